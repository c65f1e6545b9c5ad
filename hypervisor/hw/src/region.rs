//! A 4-KiB frame that the processor uses by physical address and the hypervisor through a pointer.

use bulkhead_types::{Hpa, PAGE_SIZE};
use core::ptr::NonNull;

/// A frame for a VMCS, a VMXON region or a bitmap.
#[derive(Debug)]
pub struct Region {
    pointer: NonNull<[u8; 4096]>,
    hpa: Hpa,
}

// SAFETY: the frame is its alone (`new`), and is mapped there on every processor that is in the same address space.
unsafe impl Send for Region {}

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

    /// Clears one bit; nothing happens outside the frame.
    pub fn clear_bit(&mut self, byte: usize, bit: u8) {
        self.store(byte, 1, self.load(byte, 1) & !1_u64.wrapping_shl(bit.into()));
    }

    /// The little-endian number of `bytes` bytes (1, 2, 4 or 8) at `offset`; 0 where that is none, or not aligned, or not
    /// wholly in the frame. The processor may have written it.
    #[inline(always)]
    #[must_use]
    pub fn load(&self, offset: usize, bytes: usize) -> u64 {
        if offset >= 4096 || !offset.is_multiple_of(bytes.max(1)) {
            return 0;
        }
        // SAFETY: as in `fill`; an aligned number that begins in the frame ends in it. The processor uses the frame too, by
        // physical address, which the compiler does not know: hence volatile.
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
}

/// A page of its own for a test, at page `number` of physical memory as it says.
#[cfg(any(test, feature = "fake"))]
#[must_use]
pub fn fake(number: u64) -> Region {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let page = std::boxed::Box::leak(std::boxed::Box::new(Page([0; 4096])));
    // SAFETY: the page is leaked, so it is this value's alone for good; no processor uses it.
    #[expect(clippy::expect_used, reason = "both addresses are multiples of a page")]
    unsafe {
        Region::new(&raw mut page.0, Hpa::new(number << 12)).expect("aligned")
    }
}
