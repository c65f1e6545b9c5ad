//! The first contents of a VMCB: controls, which stay, and the guest's state after reset.
//!
//! APM vol. 2 15.9 "Instruction Intercepts", 15.13 "Miscellaneous
//! Intercepts"; 15.25.3 "Enabling Nested Paging".

use crate::fields as field;
use crate::state;
use crate::vmcb::Vmcb;
use bulkhead_arch::{SegmentName, Vector};
use bulkhead_core::reset;
use bulkhead_types::Hpa;

/// Reads of CR4, in the word of the control registers: on while the guest believes that CR4.MCE is clear.
pub(crate) const READ_CR4: u64 = 1 << 4;
/// Writes of CR0, CR4 and CR8; reads of CR8.
const CONTROL_REGISTERS: u64 = 1 << 8 | (1 << 0 | 1 << 4 | 1 << 8) << 16;
/// #DB and #AC can recur without end inside one instruction; a machine check is the host's.
pub(crate) const EXCEPTIONS: u64 = 1 << Vector::DB.0 | 1 << Vector::AC.0 | 1 << Vector::MC.0;
/// Interrupts, NMIs, INIT, RDPMC, CPUID, INVD, HLT, INVLPGA, ports, MSRs, task switches, shutdown.
const MISC: u64 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// The window for an interrupt, in the same word.
pub(crate) const WINDOW: u64 = 1 << 4;
/// IRET, in the same word.
pub(crate) const IRET: u64 = 1 << 20;
/// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT; WBINVD, MONITOR, MWAIT (armed or not), XSETBV, RDPRU.
const MORE: u64 = 0x7F | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14;
/// INVLPGB (legal or not), MCOMMIT, TLBSYNC.
const LAST: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;
/// Physical interrupts obey the host's flags, CR8 is the guest's own.
pub(crate) const INTERRUPTS_MASKED: u64 = 1 << 24;

/// Physical addresses and the tag that a VMCB names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub msr_map: Hpa,
    pub io_map: Hpa,
    pub nested_root: Hpa,
    pub asid: u16,
}

/// Writes the controls.
pub(crate) fn write_controls(vmcb: &mut Vmcb, addresses: &Addresses) {
    vmcb.set(field::INTERCEPT_CR, CONTROL_REGISTERS);
    vmcb.set(field::INTERCEPT_EXCEPTIONS, EXCEPTIONS);
    vmcb.set(field::INTERCEPT_MISC, MISC);
    vmcb.set(field::INTERCEPT_MORE, MORE);
    vmcb.set(field::INTERCEPT_LAST, LAST);
    vmcb.set(field::IOPM_BASE, addresses.io_map.as_u64());
    vmcb.set(field::MSRPM_BASE, addresses.msr_map.as_u64());
    vmcb.set(field::ASID, addresses.asid.into());
    vmcb.set(field::INTERRUPT_CONTROL, INTERRUPTS_MASKED);
    vmcb.set(field::NESTED_CONTROL, 1);
    vmcb.set(field::NESTED_CR3, addresses.nested_root.as_u64());
}

/// Writes the guest's state after reset.
pub(crate) fn write_guest(vmcb: &mut Vmcb) {
    for (register, value) in reset::REGISTERS {
        state::write(vmcb, register, value);
    }
    for name in SegmentName::ALL {
        state::set_segment(vmcb, name, reset::segment(name));
    }
}
