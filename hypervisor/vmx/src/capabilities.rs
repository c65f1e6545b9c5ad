//! What the processor's VT-x can do, and what is missing for this hypervisor.
//!
//! All that is needed is checked by name before VMX is switched on; the answer is one sentence that says what to do.
//! SDM vol. 3C 24.6 "Discovering Support for VMX", 24.7 "Enabling and Entering VMX Operation"; vol. 3D appendix A
//! "VMX Capability Reporting Facility".

use crate::controls::{Allowed, EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::switched;
use bulkhead_arch::{Cr0, Cr4, msr};
use bulkhead_hw::probe::Source;
use core::fmt;

/// What VT-x lacks here, and what to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Missing {
    what: &'static str,
    advice: &'static str,
}

impl Missing {
    /// No VT-x at all.
    pub const VMX: Self = Self {
        what: "this processor shows no VT-x (CPUID.1:ECX bit 5)",
        advice: "use an Intel processor with VT-x; in a virtual machine, switch on nested virtualization",
    };
    /// VT-x is there, but off for good.
    pub const LOCKED_OFF: Self = Self {
        what: "the firmware has switched VT-x off and locked it (IA32_FEATURE_CONTROL)",
        advice: "switch on \"Intel Virtualization Technology\" in the firmware's set-up, then power-cycle the machine",
    };

    /// A feature of VT-x that came later than VT-x.
    const fn feature(what: &'static str) -> Self {
        let advice = "use a newer processor (Intel Core of 2010 or later has it), or expose it to this virtual machine";
        Self { what, advice }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}.", self.what, self.advice)
    }
}

/// Bits of a control register that VMX operation fixes. SDM vol. 3D appendix A.7 "VMX-Fixed Bits in CR0", A.8.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fixed {
    /// Bits that must be 1.
    pub must: u64,
    /// Bits that may be 1.
    pub may: u64,
}

/// What the processor's VT-x can do; all that is needed is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// VMCS revision identifier.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: Allowed,
    /// Primary processor-based controls.
    pub primary: Allowed,
    /// Secondary processor-based controls.
    pub secondary: Allowed,
    /// VM-exit controls.
    pub exit: Allowed,
    /// VM-entry controls.
    pub entry: Allowed,
    /// Fixed bits of CR0, for the host.
    pub cr0: Fixed,
    /// Fixed bits of CR4.
    pub cr4: Fixed,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// Right shift from the time-stamp counter to the preemption timer.
    pub timer_shift: u32,
    /// INS and OUTS exits describe their operand.
    pub string_info: bool,
    /// Events with an instruction length of 0 can be injected.
    pub zero_length: bool,
    /// Which of [`switched::SWITCHED`] exist.
    pub switched: [bool; switched::COUNT],
    /// Width of physical addresses in bits.
    pub physical_bits: u32,
}

/// Bits of IA32_FEATURE_CONTROL: locked, and VMX outside SMX.
pub(crate) const FEATURE_LOCK: u64 = 1 << 0;
/// See [`FEATURE_LOCK`].
pub(crate) const FEATURE_VMX: u64 = 1 << 2;

// Distances of the capability MSRs from the first. Appendix A.
const CR0_FIXED: u32 = 6;
const CR4_FIXED: u32 = 8;
const SECONDARY: u32 = 0xB;
const EPT_VPID: u32 = 0xC;
const MISC: u32 = 5;

// IA32_VMX_EPT_VPID_CAP. Appendix A.10 "VPID and EPT Capabilities".
const EPT_FOUR_LEVELS: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const EPT_2M: u64 = 1 << 16;
const EPT_1G: u64 = 1 << 17;
const EPT_ACCESSED_DIRTY: u64 = 1 << 21;
const INVEPT: u64 = 1 << 20 | 1 << 25 | 1 << 26;
const INVVPID: u64 = 1 << 32;
const INVVPID_SINGLE: u64 = 1 << 41;
const INVVPID_ALL: u64 = 1 << 42;

impl Capabilities {
    /// Reads the capability registers of `source`.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn read(source: &impl Source) -> Result<Self, Missing> {
        const CPUID_VMX: u32 = 1 << 5;
        let [_, _, ecx, _] = source.cpuid(1, 0);
        if ecx & CPUID_VMX == 0 {
            return Err(Missing::VMX);
        }
        if source.msr(msr::FEATURE_CONTROL) & (FEATURE_LOCK | FEATURE_VMX) == FEATURE_LOCK {
            return Err(Missing::LOCKED_OFF);
        }
        let basic = source.msr(msr::VMX_BASIC);
        // The TRUE registers, where they exist, say which default-1 bits can be 0.
        let first = if basic & 1 << 55 == 0 { msr::VMX_BASIC + 1 } else { msr::VMX_BASIC + 0xD };
        let word = |distance| Allowed::from_msr(source.msr(first + distance));
        let capability = |distance| source.msr(msr::VMX_BASIC + distance);
        let primary = word(1);
        let has_secondary = primary.can_set(Primary::SECONDARY.bits());
        let secondary = if has_secondary { Allowed::from_msr(capability(SECONDARY)) } else { Allowed::default() };
        let has_ept = secondary.can_set(Secondary::EPT.bits()) || secondary.can_set(Secondary::VPID.bits());
        let misc = capability(MISC);
        let this = Self {
            revision: u32::try_from(basic & 0x7FFF_FFFF).unwrap_or(0),
            pin: word(0),
            primary,
            secondary,
            exit: word(2),
            entry: word(3),
            cr0: Fixed { must: capability(CR0_FIXED), may: capability(CR0_FIXED + 1) },
            cr4: Fixed { must: capability(CR4_FIXED), may: capability(CR4_FIXED + 1) },
            ept_vpid: if has_ept { capability(EPT_VPID) } else { 0 },
            timer_shift: u32::try_from(misc & 0x1F).unwrap_or(0),
            string_info: basic & 1 << 54 != 0,
            zero_length: misc & 1 << 30 != 0,
            switched: switched_msrs(source),
            physical_bits: physical_bits(source),
        };
        if basic >> 50 & 0xF != 6 {
            return Err(Missing::feature("VT-x keeps its VMCS in uncached memory (IA32_VMX_BASIC)"));
        }
        this.check().map(|()| this)
    }

    /// Whether everything that is needed is there.
    fn check(&self) -> Result<(), Missing> {
        let nmi = Pin::EXTERNAL_INTERRUPT_EXITING | Pin::NMI_EXITING | Pin::VIRTUAL_NMIS;
        let bitmaps = Primary::IO_BITMAPS | Primary::MSR_BITMAPS;
        let basic = Primary::WANTED.difference(bitmaps | Primary::SECONDARY) | Primary::WINDOWS;
        let ept = |bits| self.ept_vpid & bits == bits;
        let efer = ExitControls::SAVE_EFER | ExitControls::LOAD_EFER;
        let pat = ExitControls::SAVE_PAT | ExitControls::LOAD_PAT;
        let both = |exit: ExitControls, entry: EntryControls| {
            self.exit.can_set(exit.bits()) && self.entry.can_set(entry.bits())
        };
        let needed = [
            (self.pin.can_set(nmi.bits()), "VT-x lacks NMI exiting or virtual NMIs"),
            (self.pin.can_set(Pin::PREEMPTION_TIMER.bits()), "VT-x lacks the preemption timer"),
            (self.primary.can_set(bitmaps.bits()), "VT-x lacks MSR bitmaps or I/O bitmaps"),
            (self.primary.can_set(basic.bits()), "VT-x lacks HLT, MWAIT, RDPMC or CR8 exiting or TSC offsetting"),
            (
                self.primary.can_clear(Primary::UNWANTED.bits()),
                "VT-x can not let a guest load CR3 without an exit (TRUE controls)",
            ),
            (self.primary.can_set(Primary::SECONDARY.bits()), "VT-x lacks the secondary processor-based controls"),
            (self.secondary.can_set(Secondary::EPT.bits()), "VT-x lacks extended page tables (EPT)"),
            (self.secondary.can_set(Secondary::VPID.bits()), "VT-x lacks virtual-processor identifiers (VPID)"),
            (
                self.secondary.can_set(Secondary::UNRESTRICTED_GUEST.bits()),
                "VT-x lacks unrestricted guest (real mode without emulation)",
            ),
            (ept(EPT_FOUR_LEVELS), "EPT lacks tables of four levels"),
            (ept(EPT_WRITE_BACK), "EPT lacks write-back tables"),
            (ept(EPT_2M), "EPT lacks 2-MiB pages"),
            (ept(INVEPT), "INVEPT lacks the single-context or the all-context type"),
            (
                ept(INVVPID) && (ept(INVVPID_SINGLE) || ept(INVVPID_ALL)),
                "INVVPID lacks the single-context and the all-context type",
            ),
            (both(ExitControls::HOST_64, EntryControls::IA32E_GUEST), "VT-x lacks 64-bit hosts or IA-32e mode guests"),
            (both(efer, EntryControls::LOAD_EFER), "VT-x does not switch IA32_EFER"),
            (both(pat, EntryControls::LOAD_PAT), "VT-x does not switch IA32_PAT"),
            (both(ExitControls::SAVE_DEBUG, EntryControls::LOAD_DEBUG), "VT-x does not switch DR7 and IA32_DEBUGCTL"),
        ];
        needed.iter().find(|(there, _)| !there).map_or(Ok(()), |&(_, what)| Err(Missing::feature(what)))
    }

    /// Whether nested tables may hold 1-GiB pages.
    #[must_use]
    pub const fn ept_1g(&self) -> bool {
        self.ept_vpid & EPT_1G != 0
    }

    /// Whether nested tables have accessed and dirty bits.
    #[must_use]
    pub const fn ept_accessed_dirty(&self) -> bool {
        self.ept_vpid & EPT_ACCESSED_DIRTY != 0
    }

    /// Whether INVVPID can name one VPID.
    #[must_use]
    pub const fn invvpid_single(&self) -> bool {
        self.ept_vpid & INVVPID_SINGLE != 0
    }

    /// Whether a guest can use RDTSCP; otherwise it must not be shown.
    #[must_use]
    pub const fn rdtscp(&self) -> bool {
        self.secondary.can_set(Secondary::RDTSCP.bits())
    }

    /// Whether a guest can use INVPCID; otherwise it must not be shown.
    #[must_use]
    pub const fn invpcid(&self) -> bool {
        self.secondary.can_set(Secondary::INVPCID.bits())
    }

    /// Whether a guest's local APIC in x2APIC mode can be lent to the processor ([`crate::lent`]).
    #[must_use]
    pub const fn delivers_interrupts(&self) -> bool {
        self.primary.can_set(Primary::TPR_SHADOW.bits())
            && self.primary.can_clear(Primary::TPR_SHADOW.bits() | Primary::CR8_EXITING.bits())
            && self.secondary.can_set(Secondary::LENT.bits())
            && self.secondary.can_clear(Secondary::LENT.bits())
    }

    /// From now on it can not.
    pub const fn forgo_delivery(&mut self) {
        self.secondary.may &= !Secondary::INTERRUPT_DELIVERY.bits();
    }

    /// Bits of CR0 that the host owns: the guest reads their shadow, and an attempt to change one exits.
    /// All the others the guest changes by itself, paging included (unrestricted guest).
    #[must_use]
    pub const fn cr0_owned(&self) -> u64 {
        let guests =
            Cr0::PE.bits() | Cr0::MP.bits() | Cr0::EM.bits() | Cr0::TS.bits() | Cr0::ET.bits() | Cr0::WP.bits();
        !(guests | Cr0::AM.bits() | Cr0::PG.bits())
    }

    /// What CR0 really holds when the guest has set `value`. Caching stays on: it is the host's affair.
    #[must_use]
    pub const fn cr0_real(&self, value: u64) -> u64 {
        let free = Cr0::PE.bits() | Cr0::PG.bits();
        let off = Cr0::CD.bits() | Cr0::NW.bits();
        (value & !off | self.cr0.must & !free | Cr0::NE.bits() | Cr0::ET.bits()) & self.cr0.may
    }

    /// Bits of CR4 that the host owns. Machine-check enable is among them: with it off, a machine check that comes
    /// while the guest runs would shut the machine down.
    #[must_use]
    pub const fn cr4_owned(&self) -> u64 {
        let guests = Cr4::VME.bits()
            | Cr4::PVI.bits()
            | Cr4::TSD.bits()
            | Cr4::DE.bits()
            | Cr4::PSE.bits()
            | Cr4::PAE.bits()
            | Cr4::PGE.bits()
            | Cr4::PCE.bits()
            | Cr4::OSFXSR.bits()
            | Cr4::OSXMMEXCPT.bits()
            | Cr4::UMIP.bits()
            | Cr4::FSGSBASE.bits()
            | Cr4::PCIDE.bits()
            | Cr4::OSXSAVE.bits()
            | Cr4::SMEP.bits()
            | Cr4::SMAP.bits();
        !(guests & self.cr4.may)
    }

    /// What CR4 really holds when the guest has set `value`.
    #[must_use]
    pub const fn cr4_real(&self, value: u64) -> u64 {
        (value | self.cr4.must | Cr4::MCE.bits()) & self.cr4.may
    }
}

/// Which of [`switched::SWITCHED`] exist.
fn switched_msrs(source: &impl Source) -> [bool; switched::COUNT] {
    let [features, ..] = source.cpuid(0, 0);
    let [_, _, ecx, _] = if features >= 7 { source.cpuid(7, 0) } else { [0; 4] };
    let [.., extended] = source.cpuid(0x8000_0001, 0);
    let mut present = [true; switched::COUNT];
    if let Some(there) = present.get_mut(switched::TSC_AUX) {
        // RDPID or RDTSCP.
        *there = ecx & 1 << 22 != 0 || extended & 1 << 27 != 0;
    }
    present
}

/// Width of physical addresses. SDM vol. 2A "CPUID", leaf 80000008H.
fn physical_bits(source: &impl Source) -> u32 {
    let [last, ..] = source.cpuid(0x8000_0000, 0);
    if last < 0x8000_0008 {
        return 36;
    }
    let [eax, ..] = source.cpuid(0x8000_0008, 0);
    (eax & 0xFF).clamp(32, 52)
}

#[cfg(test)]
mod tests;
