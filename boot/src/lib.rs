//! What the firmware's hand-over says: memory map, pack, ACPI root.
//!
//! Two protocols, one result. The entry code (`entry.S`) runs before any Rust; `link.ld` lays the image out. Both are
//! taken in by the kernel image, which also provides the bytes: this crate only reads them.
#![no_std]
#![forbid(unsafe_code)]

mod acpi;
mod multiboot2;
mod pvh;

pub use acpi::Processors;

use bulkhead_types::Hpa;

/// EAX of a multiboot2 loader. Multiboot2 specification 2.0, 3.3 "I386 machine state".
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
/// Most stretches of memory that are remembered.
pub const MAX_REGIONS: usize = 128;

/// Physical memory as the start-up code can read it: only the first 4 GiB.
pub trait Physical {
    /// Copies bytes from `at`; `None` if they are out of reach.
    fn read(&self, at: Hpa, into: &mut [u8]) -> Option<()>;

    /// A little-endian 32-bit word.
    fn u32(&self, at: Hpa) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// A little-endian 64-bit word.
    fn u64(&self, at: Hpa) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// A stretch of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First byte.
    pub start: Hpa,
    /// Length in bytes.
    pub bytes: u64,
}

impl Region {
    /// First address behind it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.as_u64().saturating_add(self.bytes)
    }

    fn find(&self, bytes: u64, align: u64, taken: &[Self]) -> Option<Hpa> {
        let mut start = self.start.as_u64().max(1 << 20);
        // Each step goes past one of `taken`, never back.
        for _ in 0..=taken.len() {
            start = start.checked_next_multiple_of(align)?;
            let end = start.checked_add(bytes)?;
            if end > self.end().min(1 << 32) {
                return None;
            }
            match taken.iter().find(|other| other.start.as_u64() < end && start < other.end()) {
                Some(other) => start = other.end(),
                None => return Some(Hpa::new(start)),
            }
        }
        None
    }
}

/// What was handed over.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// Usable RAM, as the firmware says; may overlap and is not sorted.
    regions: [Region; MAX_REGIONS],
    count: usize,
    /// The pack of guests: the first boot module.
    pub pack: Option<Region>,
    /// ACPI's root pointer, if the loader says where it is.
    pub acpi: Option<Hpa>,
}

/// Why a hand-over can not be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// Neither multiboot2's nor PVH's magic.
    Protocol(u32),
    /// It points outside the first 4 GiB, or its parts do not fit.
    Malformed(Hpa),
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Protocol(magic) => {
                write!(
                    f,
                    "the boot loader speaks neither multiboot2 nor PVH (EAX {magic:#x}): boot with GRUB's multiboot2"
                )
            }
            Self::Malformed(at) => write!(f, "the boot loader's information at {at} is malformed: try another loader"),
        }
    }
}

impl BootInfo {
    const EMPTY: Self =
        Self { regions: [Region { start: Hpa::new(0), bytes: 0 }; MAX_REGIONS], count: 0, pack: None, acpi: None };

    /// Reads what `magic` (EAX at entry) and `info` (EBX at entry) stand for.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn read(memory: &impl Physical, magic: u32, info: Hpa) -> Result<Self, BootError> {
        if magic == MULTIBOOT2_MAGIC {
            return multiboot2::read(memory, info);
        }
        if memory.u32(info) == Some(pvh::MAGIC) {
            return pvh::read(memory, info);
        }
        Err(BootError::Protocol(magic))
    }

    /// Usable RAM.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.regions.iter().take(self.count).copied()
    }

    /// First address, a multiple of `align` from 1 MiB on and with all of it below 4 GiB, of `bytes` bytes of usable RAM
    /// that overlap none of `taken`.
    #[must_use]
    pub fn find(&self, bytes: u64, align: u64, taken: &[Region]) -> Option<Hpa> {
        self.regions().find_map(|region| region.find(bytes, align, taken))
    }

    /// Remembers a stretch of usable RAM; one too many is left unused.
    fn push(&mut self, region: Region) {
        if let Some(slot) = self.regions.get_mut(self.count) {
            *slot = region;
            self.count += 1;
        }
    }
}

/// Physical memory for tests: as many bytes as there are, from address 0 on.
#[cfg(test)]
mod fake {
    use crate::Physical;
    use bulkhead_types::Hpa;
    extern crate std;

    pub(crate) struct Bytes(pub(crate) std::vec::Vec<u8>);

    impl Physical for Bytes {
        fn read(&self, at: Hpa, into: &mut [u8]) -> Option<()> {
            let start = usize::try_from(at.as_u64()).ok()?;
            into.copy_from_slice(self.0.get(start..start.checked_add(into.len())?)?);
            Some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BootInfo, Region};
    use bulkhead_types::Hpa;

    const fn region(start: u64, bytes: u64) -> Region {
        Region { start: Hpa::new(start), bytes }
    }

    #[test]
    fn room_beside_what_is_taken() {
        let mut info = BootInfo::EMPTY;
        info.push(region(0, 0x9_F000));
        info.push(region(0x10_0000, 0xF0_0000));
        let taken = [region(0x20_0000, 0x10_0000), region(0x30_0000, 0x1000), region(0x80_0000, 0x80_0000)];
        assert_eq!(info.find(0x10_0000, 4096, &taken), Some(Hpa::new(0x10_0000)));
        assert_eq!(info.find(0x20_0000, 4096, &taken), Some(Hpa::new(0x30_1000)));
        assert_eq!(info.find(0x20_0000, 0x20_0000, &taken), Some(Hpa::new(0x40_0000)));
        assert_eq!(info.find(0x60_0000, 4096, &taken), None);
        assert_eq!(info.find(u64::MAX, 4096, &taken), None);
    }
}
