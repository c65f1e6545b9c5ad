//! What the processor does not switch by itself and no backend does: extended state (XSAVE) and debug addresses.
//!
//! The hypervisor is built without floating point, so a guest's registers stay in the processor through any number of
//! exits; they are saved and restored only when another guest takes the CPU.
//! SDM vol. 1 13.7 "Operation of XSAVE", 13.8 "Operation of XRSTOR".

use crate::cpu::{cpuid, set_cr4};
use core::arch::asm;

/// Bytes kept for one guest's extended state.
pub const AREA_BYTES: usize = 8192;

/// Extended state of one guest, in the XSAVE area's standard form.
#[repr(C, align(64))]
pub struct XsaveArea([u8; AREA_BYTES]);

/// Turns XSAVE on for this processor, if it has it. Exits restore CR4 as it is when a vCPU is made: to be called before that.
pub fn enable() {
    const OSXSAVE: u64 = 1 << 18;
    if is_present() {
        // SAFETY: the processor has XSAVE; it changes nothing for code built without floating point.
        unsafe { set_cr4(OSXSAVE) };
    }
}

fn is_present() -> bool {
    const XSAVE: u32 = 1 << 26;
    cpuid(1, 0).ecx & XSAVE != 0
}

/// The state of one guest that this module switches.
#[repr(C)]
pub struct ExtendedState {
    area: XsaveArea,
    /// XCR0 as the guest left it.
    xcr0: u64,
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
    /// The state after reset, of a guest that may use the components of the mask `components` (as in XCR0). `None` if this
    /// processor has no XSAVE, or needs more room than there is. To be called after [`enable`].
    #[must_use]
    pub fn new(components: u64) -> Option<Self> {
        if !is_present() {
            return None;
        }
        let leaf = cpuid(0xD, 0);
        let components = components & (u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
        let fits = usize::try_from(leaf.ecx).is_ok_and(|bytes| bytes <= AREA_BYTES);
        if components & 1 == 0 || !fits {
            return None;
        }
        let mut area = [0; AREA_BYTES];
        area.iter_mut().zip(FCW).for_each(|(to, from)| *to = from);
        area.iter_mut().skip(24).zip(MXCSR).for_each(|(to, from)| *to = from);
        Some(Self { area: XsaveArea(area), xcr0: 1, debug_addresses: [0; 4], components })
    }

    /// Puts the guest's state into the processor.
    pub fn load(&self) {
        let [d0, d1, d2, d3] = self.debug_addresses;
        // SAFETY: XSAVE is on and has these components (`new`); the area is this guest's, 64-byte aligned, and was
        // written by XSAVE or is the reset state. Code built without floating point is not touched by it. Debug
        // addresses have no effect while DR7 is clear, as it is outside guests.
        unsafe {
            set_xcr0(self.components);
            asm!("xrstor64 [{}]", in(reg) &raw const self.area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) d0, in(reg) d1, in(reg) d2, in(reg) d3,
                options(nostack, preserves_flags));
            set_xcr0(self.xcr0);
        }
    }

    /// Takes the guest's state out of the processor.
    pub fn save(&mut self) {
        let (d0, d1, d2, d3): (u64, u64, u64, u64);
        // SAFETY: as for `load`; the area has room for all that the processor has (`new`).
        unsafe {
            // What the processor has counts: not every emulator of SVM lets us see XSETBV.
            self.xcr0 = get_xcr0() & self.components;
            set_xcr0(self.components);
            asm!("xsave64 [{}]", in(reg) &raw mut self.area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) d0, out(reg) d1, out(reg) d2, out(reg) d3,
                options(nomem, nostack, preserves_flags));
        }
        self.debug_addresses = [d0, d1, d2, d3];
    }

    /// Sets XCR0 as the guest asked, while its state is in the processor. The value has been checked; one with other
    /// components than the guest may use is ignored.
    pub fn set_guest_xcr0(&self, value: u64) {
        if value & !self.components != 0 || value & 1 == 0 {
            return;
        }
        // SAFETY: XSAVE is on, and the components are the processor's.
        unsafe { set_xcr0(value) }
    }

    /// Sets DR0 to DR3 to 0, while the guest's state is in the processor.
    pub fn clear_debug_addresses(&self) {
        // SAFETY: as for `load`.
        unsafe {
            asm!("mov dr0, {0}", "mov dr1, {0}", "mov dr2, {0}", "mov dr3, {0}", in(reg) 0_u64,
                options(nostack, preserves_flags));
        }
    }
}

unsafe fn set_xcr0(value: u64) {
    let [low, high] = halves(value);
    // SAFETY: the callers vouch for the value; XCR0 has no effect on code built without floating point.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nomem, nostack, preserves_flags)) }
}

unsafe fn get_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the callers vouch that XSAVE is on.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::{ExtendedState, halves};

    #[test]
    fn areas_are_aligned_as_xsave_wants() {
        assert_eq!(align_of::<ExtendedState>(), 64);
        assert_eq!(core::mem::offset_of!(ExtendedState, area), 0);
        assert_eq!(halves(0x1_0000_0002), [2, 1]);
    }
}
