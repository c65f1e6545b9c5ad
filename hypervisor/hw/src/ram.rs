//! One guest's RAM, through the window of its own compartment.
//!
//! The window is at the same address in every compartment: what this type reads and writes is the RAM of the guest
//! whose address space is current, and of no other, whatever the argument.

use bulkhead_devices::layout::{RamRange, ram_ranges};
use bulkhead_types::{Gpa, GuestMemory, Hva, MemoryError, Width};
use core::arch::asm;

/// Copies at least this long are done by a string instruction.
const LONG: usize = 64;

/// The RAM of the current compartment's guest: guest-physical address G is mapped at `base + G`.
#[derive(Clone, Copy, Debug)]
pub struct WindowRam {
    base: Hva,
    ranges: [RamRange; 3],
}

impl WindowRam {
    /// RAM of `memory` bytes whose byte 0 is at `base`.
    ///
    /// # Safety
    /// In every address space in which the value is used, all of [`ram_ranges`]`(memory)` is mapped, writable, at
    /// `base` plus its guest-physical address, holds no Rust object, and stays so.
    #[must_use]
    pub const unsafe fn new(base: Hva, memory: u64) -> Self {
        Self { base, ranges: ram_ranges(memory) }
    }

    /// Address of `bytes` bytes from `gpa` on, if they are wholly in one stretch of RAM.
    fn locate(&self, gpa: Gpa, bytes: usize) -> Result<u64, MemoryError> {
        let length = bytes as u64;
        // The first range is the smallest. What lies before a range is, modulo 2^64, far behind it.
        let inside = self.ranges.iter().rev().any(|range| {
            let offset = gpa.as_u64().wrapping_sub(range.start.as_u64());
            range.bytes.checked_sub(length).is_some_and(|last| offset <= last)
        });
        if inside { Ok(self.base.as_u64() + gpa.as_u64()) } else { Err(MemoryError { gpa, bytes }) }
    }
}

impl GuestMemory for WindowRam {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.locate(gpa, into.len())?;
        // SAFETY: `locate` found the source inside mapped RAM, which no Rust reference points into; the target is ours.
        unsafe { copy(from as *const u8, into.as_mut_ptr(), into.len()) }
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let to = self.locate(gpa, from.len())?;
        // SAFETY: as for `read`, the other way.
        unsafe { copy(from.as_ptr(), to as *mut u8, from.len()) }
        Ok(())
    }

    fn zero(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MemoryError> {
        let length = usize::try_from(bytes).map_err(|_| MemoryError { gpa, bytes: usize::MAX })?;
        let to = self.locate(gpa, length)?;
        // SAFETY: as for `write`.
        unsafe { clear(to as *mut u8, length) }
        Ok(())
    }

    fn read_u32(&self, gpa: Gpa) -> Result<u32, MemoryError> {
        let from = self.locate(gpa, 4)?;
        // SAFETY: as for `read`; one access of the processor, aligned or not.
        Ok(unsafe { (from as *const Unaligned<u32>).read_volatile().0 })
    }

    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryError> {
        let at = self.locate(gpa, width.bytes())?;
        // SAFETY: as for `write`. One locked instruction, for which the address need not be aligned.
        Ok(unsafe { compare_exchange(at, width, old, new) })
    }

    fn read_u64(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        let from = self.locate(gpa, 8)?;
        // SAFETY: as for `read`.
        Ok(unsafe { (from as *const Unaligned<u64>).read_volatile().0 })
    }
}

#[repr(C, packed)]
struct Unaligned<T>(T);

/// CMPXCHG with a lock, at an address aligned or not; whether `old` was there.
///
/// # Safety
/// The `width` at `at` is mapped and writable, and holds no Rust object.
unsafe fn compare_exchange(at: u64, width: Width, old: u64, new: u64) -> bool {
    let same: u8;
    macro_rules! exchange {
        ($instruction:literal) => {
            // SAFETY: as the caller vouches.
            unsafe {
                asm!($instruction, "sete {same}", at = in(reg) at, new = in(reg) new, same = lateout(reg_byte) same,
                    inout("rax") old => _, options(nostack));
            }
        };
    }
    match width {
        Width::Byte => exchange!("lock cmpxchg [{at}], {new:l}"),
        Width::Word => exchange!("lock cmpxchg [{at}], {new:x}"),
        Width::Dword => exchange!("lock cmpxchg [{at}], {new:e}"),
        Width::Qword => exchange!("lock cmpxchg [{at}], {new}"),
    }
    same != 0
}

/// Copies bytes that others may change meanwhile: each is read once.
///
/// # Safety
/// Both ranges are mapped and do not overlap; the target is writable.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes < LONG {
        for offset in 0..bytes {
            // SAFETY: inside the ranges that the caller vouches for.
            unsafe { to.add(offset).write_volatile(from.add(offset).read_volatile()) }
        }
        return;
    }
    // SAFETY: as the caller vouches; the direction flag is clear by the ABI. Words first, the rest by bytes.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _, inout("rsi") from => _, inout("rdi") to => _, options(nostack, preserves_flags));
    }
}

/// Sets bytes to zero.
///
/// # Safety
/// The range is mapped and writable, and holds no Rust object.
pub unsafe fn clear(to: *mut u8, bytes: usize) {
    // SAFETY: as the caller vouches.
    unsafe {
        asm!("rep stosq", "mov rcx, {rest}", "rep stosb", rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _, inout("rdi") to => _, in("rax") 0_u64, options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::WindowRam;
    use bulkhead_types::{Gpa, GuestMemory, Hva, Width};
    extern crate std;

    #[test]
    fn only_whole_accesses_inside_one_stretch() {
        let mut backing = std::vec![0xAA_u8; 2 << 20];
        // SAFETY: the vector covers guest-physical 0 to 2 MiB, and is used through the window only.
        let mut ram = unsafe { WindowRam::new(Hva::new(backing.as_mut_ptr() as u64), 2 << 20) };
        let mut long = [0_u8; 100];
        for (start, bytes, right) in [
            (0, 100, true),
            (0x9_FFFF, 1, true),
            (0x9_FFFF, 2, false),
            (0xA_0000, 1, false),
            (0xB_FFFF, 4, false),
            (0xC_0000, 8, true),
            ((2 << 20) - 100, 100, true),
            ((2 << 20) - 99, 100, false),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(ram.read(Gpa::new(start), &mut long[..bytes]).is_ok(), right, "{start:#x}+{bytes}");
            assert_eq!(ram.write(Gpa::new(start), &long[..bytes]).is_ok(), right);
            assert_eq!(ram.zero(Gpa::new(start), bytes as u64).is_ok(), right);
        }
        ram.write(Gpa::new(3), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        assert_eq!(ram.read_u32(Gpa::new(3)), Ok(0x0403_0201));
        assert_eq!(ram.read_u64(Gpa::new(3)), Ok(0x0807_0605_0403_0201));
        assert!(ram.zero(Gpa::new(0), u64::MAX).is_err());
    }

    #[test]
    fn a_compare_exchange_of_each_width() {
        let mut backing = std::vec![0_u8; 2 << 20];
        // SAFETY: the vector covers guest-physical 0 to 2 MiB, and is used through the window only.
        let mut ram = unsafe { WindowRam::new(Hva::new(backing.as_mut_ptr() as u64), 2 << 20) };
        let (at, value) = (Gpa::new(0x1003), 0x1122_3344_5566_7788_u64);
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            ram.write(at, &value.to_le_bytes()).unwrap();
            assert_eq!(ram.compare_exchange(at, width, value ^ 1, 0), Ok(false), "{width:?}");
            assert_eq!(ram.read_u64(at), Ok(value));
            assert_eq!(ram.compare_exchange(at, width, value, !value), Ok(true), "{width:?}");
            assert_eq!(ram.read_u64(at), Ok(value ^ width.mask()), "not more than its width");
        }
        assert!(ram.compare_exchange(Gpa::new(0x9_FFFF), Width::Word, 0, 0).is_err());
    }
}
