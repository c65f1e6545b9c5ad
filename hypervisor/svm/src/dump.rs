//! All state of a vCPU, for a person to read.

use crate::fields;
use crate::vmcb::Vmcb;
use bulkhead_arch::{Gpr, SegmentName};
use bulkhead_core::Vcpu;
use core::fmt;

/// Writes the registers of `vcpu` and every field of its VMCB.
///
/// # Errors
/// Of the writer.
pub fn write(vmcb: &Vmcb, vcpu: &dyn Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
    for gpr in Gpr::ALL {
        let end = if gpr.number() % 4 == 3 { "\n" } else { "  " };
        write!(out, "{gpr:?} {:016x}{end}", vcpu.gpr(gpr).unwrap_or(0))?;
    }
    for name in SegmentName::ALL {
        if let Ok(segment) = vcpu.segment(name) {
            writeln!(
                out,
                "{name:?} {:04x}  base {:016x}  limit {:08x}  attributes {:05x}",
                segment.selector, segment.base, segment.limit, segment.attributes
            )?;
        }
    }
    for line in fields::ALL.chunks(4) {
        for (name, field) in line {
            write!(out, "{name}={:x} ", vmcb.get(*field))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
