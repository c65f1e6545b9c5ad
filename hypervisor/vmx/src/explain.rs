//! Why an entry was refused: the processor's checks, done again in software.
//!
//! The processor says only that some check failed. Here each check of the manual that can fail with the features that
//! are used is one line; all that fail are reported with field, value and rule. SDM vol. 3C 27.2 "Checks on VMX Controls
//! and Host-State Area", 27.3 "Checking and Loading Guest State".

mod controls;
mod guest;
mod host;
mod segments;

use crate::capabilities::{Capabilities, Fixed};
use crate::exit::reason;
use crate::fields::{self as field, Field, Fields, Size};
use crate::instructions::error_name;
use crate::vmcs::VmcsAccess;
use bulkhead_core::BackendError;
use bulkhead_core::control::check_pat;
use core::fmt;

/// A check that a field fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Number of the field.
    pub field: u32,
    /// Its value.
    pub value: u64,
    /// What the manual wants.
    pub rule: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:#x}: {}", field::name(self.field), self.value, self.rule)
    }
}

/// Does all checks on the current VMCS and reports each that fails.
pub fn check(vmcs: &dyn VmcsAccess, capabilities: &Capabilities, report: &mut dyn FnMut(Violation)) {
    let mut checks = Checks { vmcs, capabilities, report };
    controls::check(&mut checks);
    host::check(&mut checks);
    guest::check(&mut checks);
    segments::check(&mut checks);
}

/// Writes why the entry that ended with `error` was refused.
///
/// # Errors
/// Of the writer.
pub fn write(
    vmcs: &dyn VmcsAccess,
    capabilities: &Capabilities,
    error: Option<BackendError>,
    out: &mut dyn fmt::Write,
) -> fmt::Result {
    match error {
        None => return writeln!(out, "no entry was refused"),
        Some(BackendError::Entry { code }) => match u32::try_from(code).unwrap_or(u32::MAX) {
            code if code & reason::ENTRY_FAILED == 0 => writeln!(out, "entry refused: {} ({code})", error_name(code))?,
            code => {
                let what = match code & 0xFFFF {
                    33 => "invalid guest state",
                    34 => "an MSR could not be loaded",
                    41 => "machine check",
                    _ => "unknown reason",
                };
                let qualification = vmcs.get(field::EXIT_QUALIFICATION).unwrap_or(0);
                writeln!(out, "entry failed: {what} (reason {code:#x}, qualification {qualification})")?;
            }
        },
        Some(BackendError::Field { field, code }) => {
            return writeln!(out, "field {}: {} ({code})", field::name(field), error_name(code));
        }
        Some(BackendError::Instruction { name, code }) => {
            return writeln!(out, "{name}: {} ({code})", error_name(code));
        }
    }
    let mut result = Ok(());
    let mut count = 0_usize;
    check(vmcs, capabilities, &mut |violation| {
        count += 1;
        result = result.and_then(|()| writeln!(out, "  {violation}"));
    });
    result?;
    if count == 0 { writeln!(out, "  every check that is known here holds") } else { Ok(()) }
}

/// What the checks look at, and where they report to.
struct Checks<'a> {
    vmcs: &'a dyn VmcsAccess,
    capabilities: &'a Capabilities,
    report: &'a mut dyn FnMut(Violation),
}

impl Checks<'_> {
    /// The field's value; a field that can not be read is 0.
    fn value<S: Size, A>(&self, field: Field<S, A>) -> S::Value {
        self.vmcs.get(field).unwrap_or_default()
    }

    /// Reports `field` unless `holds`.
    fn rule<S: Size, A>(&mut self, field: Field<S, A>, holds: bool, rule: &'static str) {
        if !holds {
            let value = S::into_raw(self.value(field));
            (self.report)(Violation { field: field.encoding(), value, rule });
        }
    }

    fn canonical<A>(&mut self, field: Field<field::Natural, A>) {
        let value = self.value(field);
        self.rule(field, is_canonical(value), "must be canonical");
    }

    fn page<A>(&mut self, field: Field<field::Bits64, A>) {
        let value = self.value(field);
        self.rule(field, value & 0xFFF == 0 && self.is_physical(value), "must be a page in the physical address width");
    }

    fn fixed<A>(&mut self, field: Field<field::Natural, A>, fixed: Fixed, free: u64) {
        let value = self.value(field);
        let holds = !value & fixed.must & !free == 0 && value & !fixed.may == 0;
        self.rule(field, holds, "bits fixed in VMX operation must be as IA32_VMX_CRx_FIXED0/1 say");
    }

    fn pat<A>(&mut self, field: Field<field::Bits64, A>) {
        let holds = check_pat(self.value(field)).is_ok();
        self.rule(field, holds, "each byte must be a memory type: 0, 1, 4, 5, 6 or 7");
    }

    fn is_physical(&self, address: u64) -> bool {
        address >> self.capabilities.physical_bits == 0
    }
}

/// Whether bits 63:47 are the same.
const fn is_canonical(address: u64) -> bool {
    let high = address >> 47;
    high == 0 || high == 0x1_FFFF
}

#[cfg(test)]
mod tests;
