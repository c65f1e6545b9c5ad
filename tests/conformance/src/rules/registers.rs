//! What a vCPU holds.

use super::{Kept, Subject, holds, same};
use crate::bench::Bench;
use crate::broken::Way;
use bulkhead_arch::{Cr4, Efer, Gpr, Segment, SegmentName};
use bulkhead_core::{Interruptibility, Register, Vcpu};

pub(super) fn a_new_vcpu_stands_as_after_reset<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let subject = Subject::reset(bench, way)?;
    for (register, value) in [
        (Register::Cr0, 0x6000_0010),
        (Register::Cr3, 0),
        (Register::Cr4, 0),
        (Register::Efer, 0),
        (Register::Rip, 0xFFF0),
        (Register::Rflags, 2),
        (Register::Dr6, 0xFFFF_0FF0),
        (Register::Dr7, 0x400),
        (Register::Pat, 0x0007_0406_0007_0406),
        (Register::IdtLimit, 0xFFFF),
        (Register::GdtLimit, 0xFFFF),
    ] {
        same!(subject.get(register)?, value, "{register:?}");
    }
    for gpr in Gpr::ALL {
        same!(subject.vcpu.gpr(gpr), Ok(0), "{gpr:?}");
    }
    let cs = Segment { selector: 0xF000, attributes: 0x9B, limit: 0xFFFF, base: 0xFFFF_0000 };
    same!(subject.vcpu.segment(SegmentName::Cs), Ok(cs), "CS");
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "interruptibility");
    same!(subject.vcpu.privilege(), Ok(0), "privilege level");
    Ok(())
}

pub(super) fn registers_hold_what_they_are_set_to<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::reset(bench, way)?;
    for gpr in Gpr::ALL {
        subject.vcpu.set_gpr(gpr, 0x1_0000_0001 * (gpr.number() as u64 + 1))?;
    }
    for gpr in Gpr::ALL {
        same!(subject.vcpu.gpr(gpr), Ok(0x1_0000_0001 * (gpr.number() as u64 + 1)), "{gpr:?}");
    }
    for (register, value) in [
        (Register::Rip, 0xFFFF_8000_1234_5678),
        (Register::Rflags, 0x4_0246),
        (Register::Cr2, 0x1234_5678_9ABC),
        (Register::Cr3, 0x1234_5018),
        (Register::Dr6, 0xFFFF_4FF1),
        (Register::Dr7, 0x2401),
        (Register::Pat, 0x0706_0504_0100_0706),
        (Register::GdtBase, 0xFFFF_FFFF_8100_0000),
        (Register::GdtLimit, 0x7F),
        (Register::IdtBase, 0xFFFF_FE00_0000_0000),
        (Register::IdtLimit, 0xFFF),
        (Register::SysenterCs, 0x10),
        (Register::SysenterEsp, 0xFFFF_8000_0000_1000),
        (Register::SysenterEip, 0xFFFF_8000_0000_2000),
    ] {
        subject.set(register, value)?;
        same!(subject.get(register)?, value, "{register:?}");
    }
    Ok(())
}

pub(super) fn segments_hold_what_they_are_set_to<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::reset(bench, way)?;
    for (index, name) in SegmentName::ALL.into_iter().enumerate() {
        let base = 0x1000 * index as u64;
        let attributes = if matches!(name, SegmentName::Ldtr | SegmentName::Tr) { 0x8B } else { 0xC0F3 };
        let segment = Segment { selector: 0x2B, attributes, limit: 0xFFFF_F000 | 0xFFF, base };
        subject.vcpu.set_segment(name, segment)?;
        same!(subject.vcpu.segment(name), Ok(segment), "{name:?}");
    }
    same!(subject.vcpu.privilege(), Ok(3), "the level of SS");
    let null = Segment { attributes: Segment::UNUSABLE, ..Segment::default() };
    subject.vcpu.set_segment(SegmentName::Gs, null)?;
    holds(subject.vcpu.segment(SegmentName::Gs)?.is_unusable(), "a null segment stays unusable")
}

pub(super) fn the_guest_does_not_see_what_the_host_adds<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::reset(bench, way)?;
    for (register, values) in [
        (Register::Cr0, &[0x10, 0x11, 0x6000_0011, 0x8005_003B, 0xE000_0011][..]),
        (Register::Cr4, &[0, 0x20, 0x6F0, Cr4::MCE.bits()][..]),
        (Register::Efer, &[0, 1, 0x101, (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits()][..]),
    ] {
        for &value in values {
            subject.set(register, value)?;
            same!(subject.get(register)?, value, "{register:?}");
        }
    }
    Ok(())
}

pub(super) fn the_instruction_pointer_wraps_at_32_bits<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.set(Register::Rip, 0xFFFF_FFFE)?;
    subject.vcpu.skip_bytes(3)?;
    same!(subject.get(Register::Rip)?, 1, "outside 64-bit code");
    let mut subject = Subject::long(subject.bench, way)?;
    subject.set(Register::Rip, 0xFFFF_FFFE)?;
    subject.vcpu.skip_bytes(3)?;
    same!(subject.get(Register::Rip)?, 0x1_0000_0001, "in 64-bit code");
    Ok(())
}
