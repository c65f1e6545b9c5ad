//! What the processor does not switch by itself and no backend does: extended state (XSAVE) and debug addresses.
//!
//! The hypervisor is built without floating point, so a guest's registers stay in the processor through any number of
//! exits; they are saved and restored only when another guest takes the CPU.
//! SDM vol. 1 13.7 "Operation of XSAVE", 13.8 "Operation of XRSTOR".

use core::arch::asm;

/// Bytes kept for one guest's extended state.
pub const AREA_BYTES: usize = 8192;

/// Extended state of one guest, in the XSAVE area's standard form.
#[repr(C, align(64))]
pub struct XsaveArea([u8; AREA_BYTES]);

/// The state of one guest that this module switches.
#[repr(C)]
pub struct ExtendedState {
    area: XsaveArea,
    /// XCR0 as the guest set it.
    pub xcr0: u64,
    /// DR0 to DR3.
    debug_addresses: [u64; 4],
    /// State components that this CPU saves: a bit mask as in XCR0.
    components: u64,
}

impl core::fmt::Debug for ExtendedState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ExtendedState").field("xcr0", &self.xcr0).finish_non_exhaustive()
    }
}

/// x87 control word after FINIT, and MXCSR after reset: offsets 0 and 24 of the area.
const FCW: [u8; 2] = 0x37F_u16.to_le_bytes();
const MXCSR: [u8; 4] = 0x1F80_u32.to_le_bytes();

impl ExtendedState {
    /// The state after reset. `components` are those of XCR0 that guests may use.
    #[must_use]
    pub fn new(components: u64) -> Self {
        let mut area = [0; AREA_BYTES];
        area.iter_mut().zip(FCW).for_each(|(to, from)| *to = from);
        area.iter_mut().skip(24).zip(MXCSR).for_each(|(to, from)| *to = from);
        Self { area: XsaveArea(area), xcr0: 1, debug_addresses: [0; 4], components }
    }

    /// Puts the guest's state into the processor.
    ///
    /// # Safety
    /// CR4.OSXSAVE is set, CR0.TS is clear, and `components` is what this CPU has and fits the area.
    pub unsafe fn load(&self) {
        let [d0, d1, d2, d3] = self.debug_addresses;
        // SAFETY: the caller vouches for XSAVE; the area is this guest's, 64-byte aligned and was written by XSAVE or
        // as the reset state. Code built without floating point is not touched by it. Debug addresses have no effect
        // while DR7 is clear, as it is outside guests.
        unsafe {
            set_xcr0(self.components);
            asm!("xrstor64 [{}]", in(reg) &raw const self.area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) d0, in(reg) d1, in(reg) d2, in(reg) d3,
                options(nostack, preserves_flags));
            set_xcr0(self.xcr0);
        }
    }

    /// Takes the guest's state out of the processor.
    ///
    /// # Safety
    /// As for [`ExtendedState::load`], which came before.
    pub unsafe fn save(&mut self) {
        let (d0, d1, d2, d3): (u64, u64, u64, u64);
        // SAFETY: as for `load`; the area is large enough for all components.
        unsafe {
            set_xcr0(self.components);
            asm!("xsave64 [{}]", in(reg) &raw mut self.area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) d0, out(reg) d1, out(reg) d2, out(reg) d3,
                options(nomem, nostack, preserves_flags));
        }
        self.debug_addresses = [d0, d1, d2, d3];
    }

    /// Sets XCR0 as the guest asked, while its state is in the processor.
    ///
    /// # Safety
    /// `value` is legal and within the components.
    pub unsafe fn set_guest_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        // SAFETY: as the caller vouches.
        unsafe { set_xcr0(value) }
    }
}

unsafe fn set_xcr0(value: u64) {
    let [low, high] = halves(value);
    // SAFETY: the callers vouch for the value; XCR0 has no effect on code built without floating point.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nomem, nostack, preserves_flags)) }
}

const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::{ExtendedState, halves};

    #[test]
    fn reset_state() {
        let state = ExtendedState::new(7);
        assert_eq!(&state.area.0[..2], [0x7F, 0x03]);
        assert_eq!(&state.area.0[24..28], [0x80, 0x1F, 0, 0]);
        assert_eq!(core::mem::align_of_val(&state.area), 64);
        assert_eq!(halves(0x1_0000_0002), [2, 1]);
    }
}
