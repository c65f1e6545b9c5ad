//! All state of a vCPU, for a person to read.

use crate::fields as field;
use crate::vmcs::VmcsAccess;
use bulkhead_arch::Gpr;
use bulkhead_core::{Register, Vcpu};
use core::fmt;

/// What is not in the VMCS, or not as the guest sees it.
const REGISTERS: [(&str, Register); 5] = [
    ("CR0", Register::Cr0),
    ("CR2", Register::Cr2),
    ("CR4", Register::Cr4),
    ("DR6", Register::Dr6),
    ("RFLAGS", Register::Rflags),
];

/// Writes the registers of `vcpu` and every field of its VMCS. What can not be read is left out.
///
/// # Errors
/// Of the writer.
pub fn write(vmcs: &dyn VmcsAccess, vcpu: &dyn Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
    let general = Gpr::ALL.iter().map(|&gpr| (gpr, vcpu.gpr(gpr)));
    for (index, (gpr, value)) in general.enumerate() {
        let end = if index % 4 == 3 { '\n' } else { ' ' };
        write!(out, "{gpr:?}={:016x}{end}", value.unwrap_or(0))?;
    }
    for (name, register) in REGISTERS {
        write!(out, "{name}={:x} ", vcpu.read(register).unwrap_or(0))?;
    }
    for (index, &number) in field::ALL.iter().enumerate() {
        let start = if index % 6 == 0 { '\n' } else { ' ' };
        if let Ok(value) = vmcs.read(number) {
            write!(out, "{start}{}={value:x}", field::name(number))?;
        }
    }
    writeln!(out)
}
