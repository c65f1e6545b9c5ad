//! Guest MSRs that the processor does not switch by itself, and which MSRs a guest may be let at.
//!
//! APM vol. 2 15.11 "MSR Intercepts"; appendix B for what the VMCB holds.

use bulkhead_arch::msr;
use bulkhead_hw::switched::Switched;

/// How many MSRs are switched by software.
pub const COUNT: usize = 1;
/// MSRs that are exchanged when a vCPU is made active.
pub const SWITCHED: [u32; COUNT] = [msr::TSC_AUX];

/// Whether a guest may read and write the MSR with this index without an exit.
#[must_use]
pub fn allowable(index: u32, switched: &Switched<COUNT>) -> bool {
    let in_vmcb = matches!(
        index,
        msr::FS_BASE | msr::GS_BASE | msr::KERNEL_GS_BASE | msr::STAR | msr::LSTAR | msr::CSTAR | msr::FMASK
    ) || matches!(index, msr::SYSENTER_CS | msr::SYSENTER_ESP | msr::SYSENTER_EIP | msr::PAT);
    in_vmcb || switched.has(index)
}

/// Where the MSR's two bits are in the permission map: page (0 or 1), byte, and the bit for RDMSR; that for WRMSR follows.
#[must_use]
pub fn map_place(index: u32) -> Option<(usize, usize, u8)> {
    let (first, number) = match index {
        0..0x2000 => (0, index),
        0xC000_0000..0xC000_2000 => (0x800, index - 0xC000_0000),
        0xC001_0000..0xC001_2000 => (0x1000, index - 0xC001_0000),
        _ => return None,
    };
    let byte = first + usize::try_from(number / 4).ok()?;
    let bit = u8::try_from(number % 4 * 2).ok()?;
    Some((byte / 4096, byte % 4096, bit))
}

#[cfg(test)]
mod tests {
    use super::{COUNT, SWITCHED, Switched, allowable, map_place};
    use bulkhead_arch::msr;

    #[test]
    fn places_of_the_three_ranges() {
        assert_eq!(map_place(0), Some((0, 0, 0)));
        assert_eq!(map_place(0x1FFF), Some((0, 0x7FF, 6)));
        assert_eq!(map_place(0xC000_0080), Some((0, 0x820, 0)));
        assert_eq!(map_place(msr::VM_HSAVE_PA), Some((1, 0x45, 6)));
        assert_eq!(map_place(0x2000), None);
        assert_eq!(map_place(0xC001_2000), None);
    }

    #[test]
    fn only_msrs_that_are_kept_apart_can_be_allowed() {
        let [none, all] = [[false; COUNT], [true; COUNT]].map(|present| Switched::new(SWITCHED, present));
        assert!(allowable(msr::LSTAR, &none) && allowable(msr::TSC_AUX, &all));
        for index in [msr::EFER, msr::TSC, msr::TSC_AUX, msr::VM_CR, msr::VM_HSAVE_PA, msr::APIC_BASE, u32::MAX] {
            assert!(!allowable(index, &none), "{index:#x}");
        }
    }
}
