//! From a basic exit reason, its qualification and its instruction information to an [`Exit`].
//!
//! Only what a reason needs is read. Each basic exit reason of the manual is mapped; those that can not come with the
//! controls as they are set are [`Exit::Unexpected`]. SDM vol. 3D appendix C "VMX Basic Exit Reasons"; vol. 3C 28.2.1
//! "Basic VM-Exit Information", tables 28-1 to 28-7.

use crate::fields::{self as field, Fields};
use crate::vmcs::VmcsAccess;
use bulkhead_arch::{Gpr, SegmentName, Vector};
use bulkhead_core::{BackendError, Exit, IoAccess, NestedFault, injection};
use bulkhead_types::{Gpa, Gva, Width};

/// Basic exit reasons that others than [`decode`] look at.
pub(crate) mod reason {
    pub(crate) const EXCEPTION_OR_NMI: u32 = 0;
    pub(crate) const EPT_VIOLATION: u32 = 48;
    pub(crate) const APIC_WRITE: u32 = 56;
    /// Bit 31: the entry failed.
    pub(crate) const ENTRY_FAILED: u32 = 1 << 31;
}

/// Of VM-exit interruption information: IRET had unblocked NMIs when its fault came. SDM vol. 3C 28.2.3.
pub(crate) const NMI_UNBLOCKED: u32 = 1 << 12;

/// Fields that are read unchecked at an exit, so that a new vCPU reads them checked, once.
pub(crate) const KNOWN: [u32; 6] = [
    field::EXIT_REASON.encoding(),
    field::EXIT_QUALIFICATION.encoding(),
    field::EXIT_INSTRUCTION_LENGTH.encoding(),
    field::IDT_VECTORING.encoding(),
    field::GUEST_PHYSICAL_ADDRESS.encoding(),
    field::GUEST_LINEAR_ADDRESS.encoding(),
];

/// Decodes the last exit. `string_info` is [`crate::Capabilities::string_info`].
///
/// # Errors
/// If the processor refuses to read a field.
#[inline(always)]
pub fn decode(vmcs: &impl VmcsAccess, reason: u32, string_info: bool) -> Result<Exit, BackendError> {
    Ok(match reason & 0xFFFF {
        0 => return exception(vmcs, reason),
        1 => Exit::Host,
        2 => Exit::TripleFault,
        7 => Exit::InterruptWindow,
        8 => Exit::NmiWindow,
        9 => Exit::TaskSwitch,
        10 => Exit::Cpuid,
        12 => Exit::Halt,
        13 | 54 => Exit::CacheFlush,
        18 => Exit::Hypercall,
        // GETSEC, RDPMC, the VMX instructions, MWAIT, MONITOR, INVEPT, RDTSCP, INVVPID, INVPCID, VMFUNC, ENCLS, XSAVES,
        // XRSTORS, PCONFIG, UMWAIT, TPAUSE, LOADIWKEY, ENCLV, SEAMCALL, TDCALL, RDMSRLIST, WRMSRLIST.
        11 | 15 | 19..=27 | 36 | 39 | 50 | 51 | 53 | 58..=60 | 63..=65 | 67..=70 | 76..=79 => Exit::Undefined,
        28 => return control_register(vmcs, reason),
        30 => return port(vmcs, string_info),
        31 => Exit::ReadMsr,
        32 => Exit::WriteMsr,
        45 => return end_of_interrupt(vmcs),
        48 => return nested(vmcs),
        49 => return malformed(vmcs),
        52 => Exit::Timer,
        55 => Exit::Xsetbv,
        // INIT and SIPI, SMIs, INVLPG, RDTSC, RSM, MOV DR, failed entries, the monitor trap flag, PAUSE, accesses to
        // the APIC's page, the task priority, descriptor tables, RDRAND, RDSEED, the dirty log, sub-page events, bus locks, and what is yet to come.
        _ => return unexpected(vmcs, reason),
    })
}

/// Reason 45, whose qualification is the vector. SDM vol. 3C 30.1.4 "EOI Virtualization".
#[inline(never)]
fn end_of_interrupt(vmcs: &impl VmcsAccess) -> Result<Exit, BackendError> {
    let [vector, ..] = vmcs.get(field::EXIT_QUALIFICATION)?.to_le_bytes();
    Ok(Exit::EndOfInterrupt { vector })
}

#[cold]
#[inline(never)]
fn unexpected(vmcs: &impl VmcsAccess, reason: u32) -> Result<Exit, BackendError> {
    Ok(Exit::Unexpected { reason: reason.into(), info: vmcs.get(field::EXIT_QUALIFICATION)? })
}

/// Reason 0. What was not asked for is unexpected. SDM vol. 3C table 28-1 for #DB.
#[inline(never)]
fn exception(vmcs: &impl VmcsAccess, reason: u32) -> Result<Exit, BackendError> {
    /// B0 to B3, BD, BS.
    const DEBUG_STATUS: u64 = 0x600F;
    let info = vmcs.get(field::EXIT_INTERRUPTION)?;
    let kind = info & injection::TYPE;
    if kind == injection::NMI {
        return Ok(Exit::Host);
    }
    let vector = Vector(u8::try_from(info & 0xFF).unwrap_or(0));
    let error = match info & injection::WITH_ERROR {
        0 => None,
        _ => Some(vmcs.get(field::EXIT_ERROR_CODE)?),
    };
    let debug_status = match (vector, kind) {
        (Vector::DB, injection::HARDWARE_EXCEPTION) => vmcs.get(field::EXIT_QUALIFICATION)? & DEBUG_STATUS,
        (Vector::MC, injection::HARDWARE_EXCEPTION) => return Ok(Exit::MachineCheck),
        (Vector::DB, injection::PRIVILEGED_EXCEPTION) | (Vector::AC, injection::HARDWARE_EXCEPTION) => 0,
        _ => return Ok(Exit::Unexpected { reason: reason.into(), info: info.into() }),
    };
    Ok(Exit::Exception { vector, error, debug_status })
}

/// Reason 28. Table 28-3 "Exit Qualification for Control-Register Accesses".
#[inline(never)]
fn control_register(vmcs: &impl VmcsAccess, reason: u32) -> Result<Exit, BackendError> {
    let qualification = vmcs.get(field::EXIT_QUALIFICATION)?;
    let number = u8::try_from(qualification & 0xF).unwrap_or(0);
    let gpr = Gpr::from_number(u8::try_from(qualification >> 8 & 0xF).unwrap_or(0));
    Ok(match (qualification >> 4 & 3, number) {
        (0, 0 | 4 | 8) => Exit::WriteCr { number, from: gpr },
        (1, 8) => Exit::ReadCr { number, to: gpr },
        (3, _) => Exit::Lmsw { value: u16::try_from(qualification >> 16 & 0xFFFF).ok() },
        // CR3 does not exit; CLTS neither, because TS is the guest's own.
        _ => Exit::Unexpected { reason: reason.into(), info: qualification },
    })
}

/// What an I/O instruction's qualification says. Table 28-5 "Exit Qualification for I/O Instructions".
#[inline(always)]
fn port_access(qualification: u64) -> IoAccess {
    const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Dword];
    let width = usize::try_from(qualification & 3).unwrap_or(0);
    IoAccess {
        port: u16::try_from(qualification >> 16 & 0xFFFF).unwrap_or(0),
        width: WIDTHS.get(width).copied().unwrap_or(Width::Byte),
        write: qualification & 1 << 3 == 0,
        string: qualification & 1 << 4 != 0,
        repeat: qualification & 1 << 5 != 0,
        segment: None,
        address_bytes: None,
    }
}

/// Reason 30.
#[inline(always)]
fn port(vmcs: &impl VmcsAccess, string_info: bool) -> Result<Exit, BackendError> {
    let qualification = vmcs.known(field::EXIT_QUALIFICATION);
    if string_info && qualification & 1 << 4 != 0 {
        return string_port(vmcs, qualification);
    }
    Ok(Exit::Io(port_access(qualification)))
}

/// INS or OUTS, with its operand. 28.2.5, table 28-9.
#[cold]
#[inline(never)]
fn string_port(vmcs: &impl VmcsAccess, qualification: u64) -> Result<Exit, BackendError> {
    let mut access = port_access(qualification);
    string_operand(&mut access, vmcs.get(field::EXIT_INSTRUCTION_INFO)?);
    Ok(Exit::Io(access))
}

fn string_operand(access: &mut IoAccess, info: u32) {
    access.address_bytes = match info >> 7 & 7 {
        0 => Some(2),
        1 => Some(4),
        2 => Some(8),
        _ => None,
    };
    if access.write {
        access.segment = match info >> 15 & 7 {
            0 => Some(SegmentName::Es),
            1 => Some(SegmentName::Cs),
            2 => Some(SegmentName::Ss),
            3 => Some(SegmentName::Ds),
            4 => Some(SegmentName::Fs),
            5 => Some(SegmentName::Gs),
            _ => None,
        };
    }
}

/// Reason 49, of which nothing more is said.
#[cold]
#[inline(never)]
fn malformed(vmcs: &impl VmcsAccess) -> Result<Exit, BackendError> {
    Ok(Exit::Nested(NestedFault {
        gpa: Gpa::new(vmcs.get(field::GUEST_PHYSICAL_ADDRESS)?),
        gva: None,
        write: false,
        execute: false,
        table_walk: false,
        present: true,
        malformed: true,
    }))
}

/// Reason 48. Table 28-7 "Exit Qualification for EPT Violations".
#[inline(never)]
fn nested(vmcs: &impl VmcsAccess) -> Result<Exit, BackendError> {
    let qualification = vmcs.known(field::EXIT_QUALIFICATION);
    let linear = qualification & 1 << 7 != 0;
    let gva = linear.then(|| Gva::new(vmcs.known(field::GUEST_LINEAR_ADDRESS)));
    Ok(Exit::Nested(NestedFault {
        gpa: Gpa::new(vmcs.known(field::GUEST_PHYSICAL_ADDRESS)),
        gva,
        write: qualification & 1 << 1 != 0,
        execute: qualification & 1 << 2 != 0,
        // Without a linear address it was a load of the PDPTEs, a walk too.
        table_walk: !linear || qualification & 1 << 8 == 0,
        present: qualification & 7 << 3 != 0,
        malformed: false,
    }))
}

/// Bit of the qualification of reason 48: IRET had unblocked NMIs when the violation came.
pub(crate) const NESTED_NMI_UNBLOCKED: u64 = 1 << 12;

#[cfg(test)]
mod tests;
