//! A vCPU's registers as the guest sees them, for a person to read.

use crate::backend::Vcpu;
use crate::reset;
use bulkhead_arch::{Gpr, SegmentName};
use core::fmt;

/// Writes the registers of `vcpu`. What can not be read is left out.
///
/// # Errors
/// Of the writer.
pub fn write(vcpu: &(impl Vcpu + ?Sized), out: &mut dyn fmt::Write) -> fmt::Result {
    let end = |index| if index % 4 == 3 { '\n' } else { ' ' };
    for (index, gpr) in Gpr::ALL.into_iter().enumerate() {
        write!(out, "{gpr:?}={:016x}{}", vcpu.gpr(gpr).unwrap_or(0), end(index))?;
    }
    for (index, (register, _)) in reset::REGISTERS.into_iter().enumerate() {
        if let Ok(value) = vcpu.read(register) {
            write!(out, "{register:?}={value:x}{}", end(index))?;
        }
    }
    writeln!(out)?;
    for name in SegmentName::ALL {
        if let Ok(segment) = vcpu.segment(name) {
            let bulkhead_arch::Segment { selector, attributes, limit, base } = segment;
            writeln!(out, "{name:?} {selector:04x} base={base:x} limit={limit:x} attributes={attributes:05x}")?;
        }
    }
    Ok(())
}
