//! Guest registers in the VMCS, as policy reads and writes them.
//!
//! Of CR0 and CR4 the host owns some bits: hardware holds what VMX operation and the host need, a shadow holds what the
//! guest has set, and the guest reads the shadow. SDM vol. 3C 25.6.6 "Guest/Host Masks and Read Shadows for CR0 and
//! CR4"; 25.4.1 "Guest Register State".
//!
//! All fields that are read here were written when the vCPU was made, so they are read unchecked.

use crate::capabilities::Capabilities;
use crate::controls::EntryControls;
use crate::fields::{self as field, Fields};
use crate::setup::entry_controls;
use crate::vmcs::VmcsAccess;
use bulkhead_arch::{Efer, Rflags, Segment, SegmentName};
use bulkhead_core::{BackendError, Interruptibility, Register};

/// Interruptibility state: STI shadow. SDM vol. 3C table 25-3.
pub(crate) const BY_STI: u32 = 1 << 0;
/// MOV SS shadow.
pub(crate) const BY_MOV_SS: u32 = 1 << 1;
/// An NMI is being handled.
pub(crate) const BY_NMI: u32 = 1 << 3;
/// Pending debug exceptions: a single step. SDM vol. 3C table 25-4.
pub(crate) const PENDING_STEP: u64 = 1 << 14;

/// The field that holds a register just as the guest sees it; `None` if there is none.
#[inline(always)]
const fn place(register: Register) -> Option<u32> {
    Some(match register {
        Register::Rip => field::GUEST_RIP.encoding(),
        Register::Rflags => field::GUEST_RFLAGS.encoding(),
        Register::Cr3 => field::GUEST_CR3.encoding(),
        Register::Efer => field::GUEST_EFER.encoding(),
        Register::Dr7 => field::GUEST_DR7.encoding(),
        Register::Pat => field::GUEST_PAT.encoding(),
        Register::GdtBase => field::GUEST_GDTR_BASE.encoding(),
        Register::GdtLimit => field::GUEST_GDTR_LIMIT.encoding(),
        Register::IdtBase => field::GUEST_IDTR_BASE.encoding(),
        Register::IdtLimit => field::GUEST_IDTR_LIMIT.encoding(),
        Register::SysenterCs => field::GUEST_SYSENTER_CS.encoding(),
        Register::SysenterEsp => field::GUEST_SYSENTER_ESP.encoding(),
        Register::SysenterEip => field::GUEST_SYSENTER_EIP.encoding(),
        Register::Pdpte0 => field::GUEST_PDPTE0.encoding(),
        Register::Pdpte1 => field::GUEST_PDPTE1.encoding(),
        Register::Pdpte2 => field::GUEST_PDPTE2.encoding(),
        Register::Pdpte3 => field::GUEST_PDPTE3.encoding(),
        Register::Cr0 | Register::Cr4 | Register::Cr2 | Register::Dr6 => return None,
    })
}

/// Reads a register that is in the VMCS; CR2 and DR6 are not, and read as 0.
#[inline(always)]
pub(crate) fn read(vmcs: &impl VmcsAccess, capabilities: &Capabilities, register: Register) -> u64 {
    let merged = |real: u64, shadow: u64, owned: u64| real & !owned | shadow & owned;
    match (register, place(register)) {
        (_, Some(encoding)) => vmcs.read_known(encoding),
        (Register::Cr0, _) => {
            merged(vmcs.known(field::GUEST_CR0), vmcs.known(field::CR0_SHADOW), capabilities.cr0_owned())
        }
        (Register::Cr4, _) => {
            merged(vmcs.known(field::GUEST_CR4), vmcs.known(field::CR4_SHADOW), capabilities.cr4_owned())
        }
        _ => 0,
    }
}

/// Writes a register that is in the VMCS; CR2 and DR6 are not, and stay as they are. Of a value that is wider than its
/// field VMWRITE takes the low bits.
pub(crate) fn write(
    vmcs: &mut impl VmcsAccess,
    capabilities: &Capabilities,
    register: Register,
    value: u64,
) -> Result<(), BackendError> {
    match (register, place(register)) {
        (Register::Rflags, _) => vmcs.set(field::GUEST_RFLAGS, value | Rflags::FIXED.bits()),
        (Register::Efer, _) => {
            let long = value & Efer::LMA.bits() != 0;
            let mode = if long { EntryControls::IA32E_GUEST.bits() } else { 0 };
            vmcs.set(field::GUEST_EFER, value)?;
            vmcs.set(field::ENTRY_CONTROLS, entry_controls(capabilities) | mode)
        }
        (_, Some(encoding)) => vmcs.write(encoding, value),
        (Register::Cr0, _) => {
            vmcs.set(field::CR0_SHADOW, value)?;
            vmcs.set(field::GUEST_CR0, capabilities.cr0_real(value))
        }
        (Register::Cr4, _) => {
            vmcs.set(field::CR4_SHADOW, value)?;
            vmcs.set(field::GUEST_CR4, capabilities.cr4_real(value))
        }
        _ => Ok(()),
    }
}

/// Reads a segment register; its attributes are a VMCS's access rights as they are.
#[inline]
pub(crate) fn segment(vmcs: &(impl VmcsAccess + ?Sized), name: SegmentName) -> Segment {
    let fields = field::segment(name);
    Segment {
        selector: vmcs.known(fields.selector),
        attributes: vmcs.known(fields.attributes),
        limit: vmcs.known(fields.limit),
        base: vmcs.known(fields.base),
    }
}

/// Writes a segment register.
pub(crate) fn set_segment(vmcs: &mut impl VmcsAccess, name: SegmentName, value: Segment) -> Result<(), BackendError> {
    let fields = field::segment(name);
    vmcs.set(fields.selector, value.selector)?;
    vmcs.set(fields.attributes, value.attributes)?;
    vmcs.set(fields.limit, value.limit)?;
    vmcs.set(fields.base, value.base)
}

/// Reads what keeps the guest from taking an event.
#[inline]
pub(crate) fn interruptibility(vmcs: &impl VmcsAccess) -> Interruptibility {
    let bits = vmcs.known(field::INTERRUPTIBILITY);
    Interruptibility { sti: bits & BY_STI != 0, mov_ss: bits & BY_MOV_SS != 0, nmi: bits & BY_NMI != 0 }
}

/// Sets what keeps the guest from taking an event, with no debug exception pending.
pub(crate) fn set_interruptibility(vmcs: &mut impl VmcsAccess, value: Interruptibility) -> Result<(), BackendError> {
    vmcs.set(field::PENDING_DEBUG, 0)?;
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    vmcs.set(field::INTERRUPTIBILITY, bit(value.sti, BY_STI) | bit(value.mov_ss, BY_MOV_SS) | bit(value.nmi, BY_NMI))
}

/// Goes past an instruction of the length that the exit recorded. SDM vol. 3C 28.2.5 "Information for VM Exits Due to
/// Instruction Execution"; 27.7.3 "Delivery of Pending Debug Exceptions after VM Entry".
#[inline]
pub(crate) fn skip_instruction(vmcs: &mut impl VmcsAccess) -> Result<(), BackendError> {
    let length = vmcs.known(field::EXIT_INSTRUCTION_LENGTH);
    skip_bytes(vmcs, length)
}

/// Goes past an instruction of `length` bytes.
#[inline]
pub(crate) fn skip_bytes(vmcs: &mut impl VmcsAccess, length: u32) -> Result<(), BackendError> {
    let old = vmcs.known(field::GUEST_RIP);
    let rip = old.wrapping_add(length.into());
    let shadow = vmcs.known(field::INTERRUPTIBILITY) & (BY_STI | BY_MOV_SS);
    let step = vmcs.known(field::GUEST_RFLAGS) & Rflags::TF.bits();
    if (rip ^ old) >> 32 | u64::from(shadow) | step != 0 {
        return skip_specially(vmcs, rip);
    }
    vmcs.set(field::GUEST_RIP, rip)
}

/// Goes on to `rip` when more has to be done than that.
#[cold]
#[inline(never)]
fn skip_specially(vmcs: &mut impl VmcsAccess, rip: u64) -> Result<(), BackendError> {
    let rip = if in_64_bit_code(vmcs)? { rip } else { rip & 0xFFFF_FFFF };
    vmcs.set(field::GUEST_RIP, rip)?;
    let interruptibility = vmcs.get(field::INTERRUPTIBILITY)?;
    vmcs.set(field::INTERRUPTIBILITY, interruptibility & !(BY_STI | BY_MOV_SS))?;
    let step = vmcs.get(field::GUEST_RFLAGS)? & Rflags::TF.bits() != 0;
    if step { make_step_pending(vmcs) } else { Ok(()) }
}

/// Makes a single step due before the guest's next instruction.
#[cold]
pub(crate) fn make_step_pending(vmcs: &mut impl VmcsAccess) -> Result<(), BackendError> {
    let pending = vmcs.get(field::PENDING_DEBUG)?;
    vmcs.set(field::PENDING_DEBUG, pending | PENDING_STEP)
}

fn in_64_bit_code(vmcs: &impl VmcsAccess) -> Result<bool, BackendError> {
    let long = vmcs.get(field::GUEST_EFER)? & Efer::LMA.bits() != 0;
    Ok(long && vmcs.get(field::GUEST_CS_ATTRIBUTES)? & Segment::LONG != 0)
}

#[cfg(test)]
mod tests;
