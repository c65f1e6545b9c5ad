//! Guest MSRs that the processor does not switch by itself, and which MSRs a guest may be let at.
//!
//! An MSR that nothing keeps apart between guests can not be allowed: asking for it has no effect, and it goes on
//! exiting. SDM vol. 3C 25.6.9 "MSR-Bitmap Address"; vol. 4 2.1 "Architectural MSRs".

use bulkhead_arch::msr;
use bulkhead_hw::switched::Switched;

/// How many MSRs are switched by software.
pub const COUNT: usize = 6;

/// MSRs that are exchanged when a vCPU is made active.
pub const SWITCHED: [u32; COUNT] = [msr::STAR, msr::LSTAR, msr::CSTAR, msr::FMASK, msr::KERNEL_GS_BASE, msr::TSC_AUX];

/// Place of [`msr::TSC_AUX`] in [`SWITCHED`].
pub const TSC_AUX: usize = 5;

/// What a guest can be allowed of an MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowable {
    /// RDMSR without an exit.
    pub read: bool,
    /// WRMSR without an exit.
    pub write: bool,
}

/// What a guest can be allowed of the MSR with this index.
#[must_use]
pub fn allowable(index: u32, switched: &Switched<COUNT>) -> Allowable {
    const BOTH: Allowable = Allowable { read: true, write: true };
    match index {
        _ if switched.has(index) => BOTH,
        // In the VMCS, switched by the processor.
        msr::FS_BASE | msr::GS_BASE | msr::SYSENTER_CS | msr::SYSENTER_ESP | msr::SYSENTER_EIP | msr::PAT => BOTH,
        // In the VMCS too; but a write changes what other fields must hold. The counter is offset when read.
        msr::EFER | msr::TSC => Allowable { read: true, write: false },
        _ => Allowable { read: false, write: false },
    }
}

/// Where the MSR's bits for RDMSR and WRMSR are in the MSR bitmap: byte of each, and the bit.
#[must_use]
pub fn bitmap_place(index: u32) -> Option<(usize, usize, u8)> {
    const HIGH: u32 = 0xC000_0000;
    let (first, number) = match index {
        0..0x2000 => (0, index),
        HIGH..0xC000_2000 => (0x400, index - HIGH),
        _ => return None,
    };
    let byte = first + usize::try_from(number / 8).ok()?;
    let bit = u8::try_from(number % 8).ok()?;
    Some((byte, byte + 0x800, bit))
}

#[cfg(test)]
mod tests {
    use super::{Allowable, COUNT, SWITCHED, Switched, TSC_AUX, allowable, bitmap_place};
    use bulkhead_arch::msr;

    #[test]
    fn only_msrs_that_are_kept_apart_can_be_allowed() {
        let all = &Switched::new(SWITCHED, [true; COUNT]);
        assert_eq!(allowable(msr::LSTAR, all), Allowable { read: true, write: true });
        assert_eq!(allowable(msr::TSC, all), Allowable { read: true, write: false });
        for index in [
            msr::APIC_BASE,
            msr::SPEC_CTRL,
            msr::PRED_CMD,
            msr::FEATURE_CONTROL,
            msr::MTRR_DEF_TYPE,
            msr::VMX_BASIC,
            0x832,
            u32::MAX,
        ] {
            assert_eq!(allowable(index, all), Allowable { read: false, write: false }, "{index:#x}");
        }
    }

    #[test]
    fn an_absent_msr_can_not_be_allowed() {
        let mut present = [true; COUNT];
        present[TSC_AUX] = false;
        let absent = Switched::new(SWITCHED, present);
        assert_eq!(allowable(msr::TSC_AUX, &absent), Allowable { read: false, write: false });
        assert_eq!(SWITCHED[TSC_AUX], msr::TSC_AUX);
    }

    #[test]
    fn bitmap_places_of_both_ranges() {
        assert_eq!(bitmap_place(0), Some((0, 0x800, 0)));
        assert_eq!(bitmap_place(0x1FFF), Some((0x3FF, 0xBFF, 7)));
        assert_eq!(bitmap_place(0xC000_0000), Some((0x400, 0xC00, 0)));
        assert_eq!(bitmap_place(0xC000_1FFF), Some((0x7FF, 0xFFF, 7)));
        assert_eq!(bitmap_place(0x2000), None);
        assert_eq!(bitmap_place(0xC000_2000), None);
        assert_eq!(bitmap_place(0xBFFF_FFFF), None);
    }
}
