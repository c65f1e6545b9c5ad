//! A 4-KiB frame that the processor uses by physical address and the hypervisor through a pointer.

use bulkhead_types::{Hpa, PAGE_SIZE};
use core::ptr::NonNull;

/// A frame for a VMCS, a VMXON region or a bitmap.
#[derive(Debug)]
pub struct Region {
    pointer: NonNull<[u8; 4096]>,
    hpa: Hpa,
}

impl Region {
    /// The frame at `hpa`, mapped at `pointer`; `None` if either is no page's address.
    ///
    /// # Safety
    /// `pointer` is mapped, writable, to the frame at `hpa` whenever this value is used, and for as long as this value
    /// and the processor use the frame nothing else does.
    #[must_use]
    pub unsafe fn new(pointer: *mut [u8; 4096], hpa: Hpa) -> Option<Self> {
        let aligned = pointer.addr().is_multiple_of(4096) && hpa.is_aligned(PAGE_SIZE);
        NonNull::new(pointer).filter(|_| aligned).map(|pointer| Self { pointer, hpa })
    }

    /// Its physical address.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Sets all bytes.
    pub fn fill(&mut self, byte: u8) {
        // SAFETY: `new` was promised that the frame is mapped here, writable and ours alone; the type has its size.
        unsafe { self.pointer.as_ptr().write_bytes(byte, 1) };
    }

    /// Writes the VMCS revision identifier, the first four bytes.
    pub fn set_revision(&mut self, revision: u32) {
        // SAFETY: as in `fill`; a page's first four bytes are aligned for a u32. The processor reads the frame later,
        // by physical address, which the compiler does not know: hence volatile.
        unsafe { self.pointer.as_ptr().cast::<u32>().write_volatile(revision) };
    }

    /// Clears one bit; nothing happens outside the frame.
    pub fn clear_bit(&mut self, byte: usize, bit: u8) {
        if byte >= 4096 {
            return;
        }
        // SAFETY: as in `fill`, and `byte` was compared with the frame's size just before. Volatile as in
        // `set_revision`.
        unsafe {
            let place = self.pointer.as_ptr().cast::<u8>().add(byte);
            place.write_volatile(place.read_volatile() & !1_u8.wrapping_shl(bit.into()));
        }
    }

    /// The little-endian number of `bytes` bytes (1, 2, 4 or 8) at `offset`; 0 where that is none, or not aligned, or not
    /// wholly in the frame. The processor may have written it.
    #[inline(always)]
    #[must_use]
    pub fn load(&self, offset: usize, bytes: usize) -> u64 {
        if offset >= 4096 || !offset.is_multiple_of(bytes.max(1)) {
            return 0;
        }
        // SAFETY: as in `fill`; an aligned number that begins in the frame ends in it.
        unsafe {
            let place = self.pointer.as_ptr().cast::<u8>().add(offset);
            match bytes {
                1 => place.read_volatile().into(),
                2 => place.cast::<u16>().read_volatile().into(),
                4 => place.cast::<u32>().read_volatile().into(),
                8 => place.cast::<u64>().read_volatile(),
                _ => 0,
            }
        }
    }

    /// Writes the low `bytes` bytes of `value`, where [`Region::load`] would read them; else does nothing.
    #[inline(always)]
    pub fn store(&mut self, offset: usize, bytes: usize, value: u64) {
        if offset >= 4096 || !offset.is_multiple_of(bytes.max(1)) {
            return;
        }
        let [a, b, c, d, ..] = value.to_le_bytes();
        // SAFETY: as in `load`.
        unsafe {
            let place = self.pointer.as_ptr().cast::<u8>().add(offset);
            match bytes {
                1 => place.write_volatile(a),
                2 => place.cast::<u16>().write_volatile(u16::from_le_bytes([a, b])),
                4 => place.cast::<u32>().write_volatile(u32::from_le_bytes([a, b, c, d])),
                8 => place.cast::<u64>().write_volatile(value),
                _ => {}
            }
        }
    }

    /// The byte at this offset; `None` outside the frame.
    #[must_use]
    pub fn byte(&self, offset: usize) -> Option<u8> {
        // SAFETY: as in `clear_bit`.
        (offset < 4096).then(|| unsafe { self.pointer.as_ptr().cast::<u8>().add(offset).read_volatile() })
    }
}
