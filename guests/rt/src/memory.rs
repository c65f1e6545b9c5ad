//! A range of memory as volatile bytes: device registers and RAM that the processor or a device also reads.

use core::ptr;

/// `bytes` bytes of physical (= linear) memory from `base` on.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: usize,
    bytes: usize,
}

macro_rules! accessors {
    ($read:ident, $write:ident, $type:ty) => {
        #[doc = concat!("Reads a `", stringify!($type), "` at byte `offset`, in one access.")]
        #[must_use]
        pub fn $read(&self, offset: usize) -> $type {
            // SAFETY: at() checked the range, which the maker of the region vouched for.
            unsafe { ptr::read_volatile(self.at(offset, size_of::<$type>()) as *const $type) }
        }

        #[doc = concat!("Writes a `", stringify!($type), "` at byte `offset`, in one access.")]
        pub fn $write(&self, offset: usize, value: $type) {
            // SAFETY: at() checked the range, which the maker of the region vouched for.
            unsafe { ptr::write_volatile(self.at(offset, size_of::<$type>()) as *mut $type, value) }
        }
    };
}

impl Region {
    /// The range.
    ///
    /// # Safety
    /// It is mapped, and no Rust object lies in it.
    #[must_use]
    pub const unsafe fn new(base: usize, bytes: usize) -> Self {
        Self { base, bytes }
    }

    /// Address of its first byte.
    #[must_use]
    pub const fn base(&self) -> usize {
        self.base
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of `bytes` bytes at `offset`; aligned to their size, or a panic.
    fn at(&self, offset: usize, bytes: usize) -> usize {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside && (self.base + offset).is_multiple_of(bytes), "offset {offset:#x} is outside of the region");
        self.base + offset
    }

    accessors!(read8, write8, u8);
    accessors!(read16, write16, u16);
    accessors!(read32, write32, u32);
    accessors!(read64, write64, u64);

    /// Sets all of it to `value`.
    pub fn fill(&self, value: u8) {
        for offset in 0..self.bytes {
            self.write8(offset, value);
        }
    }

    /// Copies `from` to byte `offset`.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        for (index, byte) in from.iter().enumerate() {
            self.write8(offset + index, *byte);
        }
    }
}
