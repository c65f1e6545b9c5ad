//! A processor's registers after reset, which every vCPU has at first.
//!
//! SDM vol. 3A 10.1.1 "Processor State After Reset", table 10-1; APM vol. 2 14.1.3 "Processor Initialization State", table
//! 14-1. General registers are zero here; what a processor tells of itself in EDX no guest asks for.

use crate::backend::Register;
use bulkhead_arch::{Rflags, Segment, SegmentName};

/// DR6.
pub const DR6: u64 = 0xFFFF_0FF0;

/// All registers with a name.
pub const REGISTERS: [(Register, u64); 21] = [
    // Caching off, extension type.
    (Register::Cr0, 0x6000_0010),
    (Register::Cr2, 0),
    (Register::Cr3, 0),
    (Register::Cr4, 0),
    (Register::Efer, 0),
    (Register::Rip, 0xFFF0),
    (Register::Rflags, Rflags::FIXED.bits()),
    (Register::Dr6, DR6),
    (Register::Dr7, 0x400),
    (Register::Pat, 0x0007_0406_0007_0406),
    (Register::GdtBase, 0),
    (Register::GdtLimit, 0xFFFF),
    (Register::IdtBase, 0),
    (Register::IdtLimit, 0xFFFF),
    (Register::SysenterCs, 0),
    (Register::SysenterEsp, 0),
    (Register::SysenterEip, 0),
    (Register::Pdpte0, 0),
    (Register::Pdpte1, 0),
    (Register::Pdpte2, 0),
    (Register::Pdpte3, 0),
];

/// A segment register.
#[must_use]
pub const fn segment(name: SegmentName) -> Segment {
    let (selector, attributes, base) = match name {
        SegmentName::Cs => (0xF000, 0x9B, 0xFFFF_0000),
        SegmentName::Ldtr => (0, 0x82, 0),
        SegmentName::Tr => (0, 0x8B, 0),
        _ => (0, 0x93, 0),
    };
    Segment { selector, attributes, limit: 0xFFFF, base }
}
