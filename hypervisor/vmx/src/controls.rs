//! The VM-execution, VM-exit and VM-entry controls, and how a capability MSR adjusts them.
//!
//! A capability MSR says of each bit whether it may be 0 (low half) and whether it may be 1 (high half). What this
//! hypervisor needs is checked once, at start-up ([`crate::capabilities`]); here bits are only combined.
//! SDM vol. 3C 25.6 "VM-Execution Control Fields" to 25.8 "VM-Entry Control Fields"; vol. 3D appendix A.3 to A.5.

use bitflags::bitflags;

bitflags! {
    /// Pin-based controls. Table 25-5.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Pin: u32 {
        /// A host interrupt exits.
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        /// A host NMI exits.
        const NMI_EXITING = 1 << 3;
        /// The guest has NMI blocking of its own.
        const VIRTUAL_NMIS = 1 << 5;
        /// The preemption timer counts.
        const PREEMPTION_TIMER = 1 << 6;
    }

    /// Primary processor-based controls. Table 25-6.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Primary: u32 {
        /// Exit when the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// RDTSC gives the host's counter plus an offset.
        const TSC_OFFSETTING = 1 << 3;
        /// HLT exits.
        const HLT_EXITING = 1 << 7;
        /// MWAIT exits.
        const MWAIT_EXITING = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// MOV to CR3 exits.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits.
        const CR3_STORE_EXITING = 1 << 16;
        /// MOV to CR8 exits.
        const CR8_LOAD_EXITING = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE_EXITING = 1 << 20;
        /// CR8 and the task priority are in the virtual-APIC page.
        const TPR_SHADOW = 1 << 21;
        /// Exit when the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// Ports exit by bitmap.
        const IO_BITMAPS = 1 << 25;
        /// MSRs exit by bitmap.
        const MSR_BITMAPS = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXITING = 1 << 29;
        /// The secondary controls count.
        const SECONDARY = 1 << 31;
    }

    /// Secondary processor-based controls. Table 25-7.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Secondary: u32 {
        /// Guest-physical addresses are translated by EPT.
        const EPT = 1 << 1;
        /// RDTSCP works.
        const RDTSCP = 1 << 3;
        /// The MSRs of x2APIC mode are in the virtual-APIC page.
        const VIRTUALIZE_X2APIC = 1 << 4;
        /// Linear translations are tagged.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD_EXITING = 1 << 6;
        /// Real mode and protected mode without paging run as they are.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// All registers are read from the virtual-APIC page, not the task priority alone.
        const APIC_REGISTERS = 1 << 8;
        /// Interrupts are delivered from the virtual-APIC page.
        const INTERRUPT_DELIVERY = 1 << 9;
        /// INVPCID works.
        const INVPCID = 1 << 12;
    }

    /// Primary VM-exit controls. Table 25-13.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ExitControls: u32 {
        /// Save DR7 and IA32_DEBUGCTL.
        const SAVE_DEBUG = 1 << 2;
        /// The host runs in 64-bit mode.
        const HOST_64 = 1 << 9;
        /// Save IA32_PAT.
        const SAVE_PAT = 1 << 18;
        /// Load IA32_PAT.
        const LOAD_PAT = 1 << 19;
        /// Save IA32_EFER.
        const SAVE_EFER = 1 << 20;
        /// Load IA32_EFER.
        const LOAD_EFER = 1 << 21;
        /// Save what is left of the preemption timer.
        const SAVE_TIMER = 1 << 22;
    }

    /// VM-entry controls. Table 25-17.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct EntryControls: u32 {
        /// Load DR7 and IA32_DEBUGCTL.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in IA-32e mode; follows EFER.LMA.
        const IA32E_GUEST = 1 << 9;
        /// Enter system-management mode.
        const SMM = 1 << 10;
        /// End the dual-monitor treatment.
        const DUAL_MONITOR_OFF = 1 << 11;
        /// Load IA32_PAT.
        const LOAD_PAT = 1 << 14;
        /// Load IA32_EFER.
        const LOAD_EFER = 1 << 15;
    }
}

impl Pin {
    /// What every vCPU runs with.
    pub const WANTED: Self = Self::EXTERNAL_INTERRUPT_EXITING
        .union(Self::NMI_EXITING)
        .union(Self::VIRTUAL_NMIS)
        .union(Self::PREEMPTION_TIMER);
}

impl Primary {
    /// What every vCPU runs with, without the windows.
    pub const WANTED: Self = Self::TSC_OFFSETTING
        .union(Self::HLT_EXITING)
        .union(Self::MWAIT_EXITING)
        .union(Self::RDPMC_EXITING)
        .union(Self::CR8_EXITING)
        .union(Self::IO_BITMAPS)
        .union(Self::MSR_BITMAPS)
        .union(Self::MONITOR_EXITING)
        .union(Self::SECONDARY);
    /// What must not be on: guests load CR3 without an exit.
    pub const UNWANTED: Self = Self::CR3_LOAD_EXITING.union(Self::CR3_STORE_EXITING);
    /// The two that follow the guest's state.
    pub const WINDOWS: Self = Self::INTERRUPT_WINDOW.union(Self::NMI_WINDOW);
    /// CR8 exits; not while its register is in the virtual-APIC page.
    pub const CR8_EXITING: Self = Self::CR8_LOAD_EXITING.union(Self::CR8_STORE_EXITING);
}

impl Secondary {
    /// What every vCPU runs with.
    pub const NEEDED: Self = Self::EPT.union(Self::VPID).union(Self::UNRESTRICTED_GUEST);
    /// What it runs with where the processor can.
    pub const OPTIONAL: Self = Self::RDTSCP.union(Self::INVPCID).union(Self::WBINVD_EXITING);
    /// What it runs with, where the processor can, while its local APIC is in x2APIC mode.
    pub const LENT: Self = Self::VIRTUALIZE_X2APIC.union(Self::APIC_REGISTERS).union(Self::INTERRUPT_DELIVERY);
}

impl ExitControls {
    /// What every vCPU runs with.
    pub const WANTED: Self = Self::SAVE_DEBUG
        .union(Self::HOST_64)
        .union(Self::SAVE_PAT)
        .union(Self::LOAD_PAT)
        .union(Self::SAVE_EFER)
        .union(Self::LOAD_EFER);
}

impl EntryControls {
    /// What every vCPU runs with, without [`EntryControls::IA32E_GUEST`].
    pub const WANTED: Self = Self::LOAD_DEBUG.union(Self::LOAD_PAT).union(Self::LOAD_EFER);
}

/// Which bits of a control word may be 0 and which may be 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    /// Bits that must be 1.
    pub must: u32,
    /// Bits that may be 1.
    pub may: u32,
}

impl Allowed {
    /// From the value of a capability MSR.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the register")]
    pub const fn from_msr(value: u64) -> Self {
        Self { must: value as u32, may: (value >> 32) as u32 }
    }

    /// Whether all of `bits` can be switched on.
    #[must_use]
    pub const fn can_set(self, bits: u32) -> bool {
        bits & !self.may == 0
    }

    /// Whether all of `bits` can be switched off.
    #[must_use]
    pub const fn can_clear(self, bits: u32) -> bool {
        bits & self.must == 0
    }

    /// `wanted` with what the processor insists on and without what it does not have.
    #[must_use]
    pub const fn adjust(self, wanted: u32) -> u32 {
        (wanted | self.must) & self.may
    }

    /// Whether the processor accepts this control word.
    #[must_use]
    pub const fn accepts(self, word: u32) -> bool {
        self.can_set(word) && !word & self.must == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Allowed;
    use proptest::prelude::{any, proptest};

    #[test]
    fn adjust_sets_default1_bits_and_drops_absent_ones() {
        let allowed = Allowed::from_msr(0x0000_00FF_0000_0016);
        assert_eq!(allowed.adjust(0x180), 0x96);
        assert!(allowed.can_set(0x80) && !allowed.can_set(0x100));
        assert!(allowed.can_clear(0x80) && !allowed.can_clear(0x2));
        assert!(allowed.accepts(0x96) && !allowed.accepts(0x80) && !allowed.accepts(0x196));
    }

    proptest! {
        #[test]
        fn an_adjusted_word_is_accepted(must in any::<u32>(), may in any::<u32>(), wanted in any::<u32>()) {
            let allowed = Allowed { must: must & may, may };
            assert!(allowed.accepts(allowed.adjust(wanted)));
        }
    }
}
