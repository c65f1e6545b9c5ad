//! Who gets which guest memory while an image is loaded.
//!
//! A part whose address the image dictates is *claimed*, and refused where there is no usable RAM or another part. What
//! may lie anywhere is *placed* after that. The number of parts is bounded; nothing is given out twice.

use super::bytes::align_up;
use super::error::{LoadError, Part};
use super::map::{self, Entry};
use bulkhead_devices::layout;
use bulkhead_types::PAGE_SIZE;

/// Most parts of one guest: segments of the kernel, modules and what is placed for the protocol.
const MOST_CLAIMS: usize = 64;
/// Where the boot structures start: above what kernels take for trampolines before they look at a memory map.
const BOOT_STRUCTURES: u64 = 0x1_0000;

#[derive(Clone, Copy)]
struct Claim {
    start: u64,
    end: u64,
    part: Part,
}

/// The memory of one guest, and what lies where. Addresses are guest-physical.
pub(super) struct Space {
    memory: u64,
    claims: [Claim; MOST_CLAIMS],
    count: usize,
}

impl Space {
    /// The space of a guest with `memory` bytes of RAM.
    pub(super) const fn new(memory: u64) -> Self {
        Self { memory, claims: [Claim { start: 0, end: 0, part: Part::Kernel }; MOST_CLAIMS], count: 0 }
    }

    fn claims(&self) -> impl Iterator<Item = &Claim> + Clone {
        self.claims.iter().take(self.count)
    }

    fn ram(&self) -> impl Iterator<Item = Entry> + Clone {
        map::usable(self.memory)
    }

    /// Takes `bytes` bytes from `start` on for `part`. No bytes fit anywhere.
    pub(super) fn claim(&mut self, part: Part, start: u64, bytes: u64) -> Result<(), LoadError> {
        if bytes == 0 {
            return Ok(());
        }
        let outside = LoadError::OutsideRam { part, start, bytes, memory: self.memory };
        let end = start.checked_add(bytes).ok_or(outside)?;
        if !self.ram().any(|ram| ram.start <= start && end <= ram.end) {
            return Err(outside);
        }
        if let Some(other) = self.claims().find(|claim| claim.start < end && start < claim.end) {
            return Err(LoadError::Overlap { part, other: other.part, start, bytes });
        }
        let too_many = LoadError::TooMany { what: "parts to load", most: MOST_CLAIMS as u64 };
        *self.claims.get_mut(self.count).ok_or(too_many)? = Claim { start, end, part };
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    fn is_free(&self, start: u64, bytes: u64) -> bool {
        // No bytes lie where one byte could.
        start.checked_add(bytes.max(1)).is_some_and(|end| {
            self.ram().any(|ram| ram.start <= start && end <= ram.end)
                && !self.claims().any(|claim| claim.start < end && start < claim.end)
        })
    }

    /// Places `bytes` bytes for `part` as low as possible from `from` on and wholly below `below`, which is at most
    /// 4 GiB, at a multiple of `align` (a power of two).
    fn place_low(&mut self, part: Part, bytes: u64, align: u64, from: u64, below: u64) -> Result<u32, LoadError> {
        // The lowest place starts where RAM starts or another part ends.
        let starts = self.ram().map(|ram| ram.start).chain(self.claims().map(|claim| claim.end));
        let place = starts
            .filter_map(|start| align_up(start.max(from), align))
            .filter(|&at| at.checked_add(bytes).is_some_and(|end| end <= below) && self.is_free(at, bytes))
            .min();
        self.take(part, bytes, below, place)
    }

    /// Places `bytes` bytes for `part` as high as possible but wholly below `below`, which is at most 4 GiB, at the
    /// start of a page.
    pub(super) fn place_high(&mut self, part: Part, bytes: u64, below: u64) -> Result<u32, LoadError> {
        // The highest place ends where RAM ends or another part starts.
        let ends = self.ram().map(|ram| ram.end).chain(self.claims().map(|claim| claim.start));
        let place = ends
            .filter_map(|end| end.min(below).checked_sub(bytes))
            .map(|at| at & !(PAGE_SIZE - 1))
            .filter(|&at| self.is_free(at, bytes))
            .max();
        self.take(part, bytes, below, place)
    }

    fn take(&mut self, part: Part, bytes: u64, below: u64, place: Option<u64>) -> Result<u32, LoadError> {
        let at = place.and_then(|at| u32::try_from(at).ok()).ok_or(LoadError::NoRoom { part, bytes, below })?;
        self.claim(part, u64::from(at), bytes)?;
        Ok(at)
    }

    /// Places a boot structure in low memory.
    pub(super) fn place_structure(&mut self, part: Part, bytes: u64, align: u64) -> Result<u32, LoadError> {
        self.place_low(part, bytes, align, BOOT_STRUCTURES, layout::LOW_RAM_END.as_u64())
    }

    /// Places a boot module: page-aligned, behind the kernel and above 1 MiB.
    pub(super) fn place_module(&mut self, index: u8, bytes: u64) -> Result<u32, LoadError> {
        let kernel_end = self.claims().filter(|claim| claim.part == Part::Kernel).map(|claim| claim.end).max();
        let from = kernel_end.unwrap_or(0).max(layout::FIRMWARE_END.as_u64());
        self.place_low(Part::Module(index), bytes, PAGE_SIZE, from, layout::HOLE.as_u64())
    }

    /// `entry` as the address of a first 32-bit instruction, if it lies in the kernel.
    pub(super) fn entry(&self, field: &'static str, entry: u64) -> Result<u32, LoadError> {
        let wrong = LoadError::Field { field, value: entry, must: "an address in the loaded kernel, below 4 GiB" };
        let mut kernel = self.claims().filter(|claim| claim.part == Part::Kernel);
        let inside = kernel.any(|claim| (claim.start..claim.end).contains(&entry));
        u32::try_from(entry).ok().filter(|_| inside).ok_or(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::{LoadError, Part, Space};

    #[test]
    fn nothing_is_given_out_twice() {
        let mut space = Space::new(16 << 20);
        space.claim(Part::Kernel, 0x20_0000, 0x10_0000).unwrap();
        assert_eq!(
            space.claim(Part::BootInfo, 0x2F_FFFF, 1),
            Err(LoadError::Overlap { part: Part::BootInfo, other: Part::Kernel, start: 0x2F_FFFF, bytes: 1 })
        );
        assert_eq!(space.place_module(0, 1), Ok(0x30_0000));
        assert_eq!(space.place_module(1, 4097), Ok(0x30_1000));
        assert_eq!(space.place_module(2, 0), Ok(0x30_3000));
        assert_eq!(space.place_high(Part::Initrd, 5, 0x30_1001), Ok(0x1F_F000));
        assert_eq!(space.place_high(Part::Initrd, 5, u64::MAX), Ok(0xFF_F000));
    }

    #[test]
    fn holes_are_no_ram() {
        for (start, bytes) in [(0x9_FFFF, 2), (0xA_0000, 1), (0xD_FFFF, 2), (0xE_0000, 1), (0xF_FFFF, 2), (2 << 20, 1)]
        {
            let error = Space::new(2 << 20).claim(Part::Kernel, start, bytes);
            assert!(matches!(error, Err(LoadError::OutsideRam { .. })), "{start:#x}");
        }
        assert!(Space::new(2 << 20).claim(Part::Kernel, u64::MAX, 2).is_err());
        assert!(Space::new(4 << 30).claim(Part::Kernel, 0xC000_0000, 1).is_err());
        assert!(Space::new(4 << 30).claim(Part::Kernel, 0x1_0000_0000, 1).is_ok());
    }

    #[test]
    fn what_does_not_fit_says_how_much_it_is() {
        let mut space = Space::new(2 << 20);
        assert_eq!(
            space.place_module(3, 2 << 20),
            Err(LoadError::NoRoom { part: Part::Module(3), bytes: 2 << 20, below: 0xC000_0000 })
        );
        assert!(space.place_module(3, u64::MAX).is_err());
        assert!(space.place_high(Part::Initrd, u64::MAX, u64::MAX).is_err());
    }

    #[test]
    fn the_number_of_parts_is_bounded() {
        let mut space = Space::new(2 << 20);
        for part in 0..64 {
            space.claim(Part::Kernel, part * 16, 16).unwrap();
        }
        assert_eq!(
            space.claim(Part::Kernel, 0x8_0000, 16),
            Err(LoadError::TooMany { what: "parts to load", most: 64 })
        );
    }
}
