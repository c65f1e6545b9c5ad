//! All state of a vCPU, for a person to read.

use crate::fields as field;
use crate::vmcs::VmcsAccess;
use bulkhead_arch::{Gpr, SegmentName};
use bulkhead_core::{Register, Vcpu};
use core::fmt;

/// Writes the registers of `vcpu` and the controls and exit information in its VMCS. What can not be read shows as ?.
///
/// # Errors
/// Of the writer.
pub fn write(vmcs: &dyn VmcsAccess, vcpu: &dyn Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
    general(vcpu, out)?;
    control(vcpu, out)?;
    segments(vcpu, out)?;
    fields(vmcs, "exit", EXIT, out)?;
    fields(vmcs, "entry", ENTRY, out)?;
    fields(vmcs, "controls", CONTROLS, out)?;
    fields(vmcs, "host", HOST, out)
}

const EXIT: &[u32] = &[
    field::EXIT_REASON.encoding(),
    field::EXIT_QUALIFICATION.encoding(),
    field::GUEST_PHYSICAL_ADDRESS.encoding(),
    field::GUEST_LINEAR_ADDRESS.encoding(),
    field::EXIT_INTERRUPTION.encoding(),
    field::EXIT_ERROR_CODE.encoding(),
    field::IDT_VECTORING.encoding(),
    field::IDT_ERROR_CODE.encoding(),
    field::EXIT_INSTRUCTION_LENGTH.encoding(),
    field::EXIT_INSTRUCTION_INFO.encoding(),
];
const ENTRY: &[u32] = &[
    field::ENTRY_INTERRUPTION.encoding(),
    field::ENTRY_ERROR_CODE.encoding(),
    field::INTERRUPTIBILITY.encoding(),
    field::ACTIVITY_STATE.encoding(),
    field::PENDING_DEBUG.encoding(),
    field::GUEST_DEBUGCTL.encoding(),
];
const CONTROLS: &[u32] = &[
    field::PIN_CONTROLS.encoding(),
    field::PRIMARY_CONTROLS.encoding(),
    field::SECONDARY_CONTROLS.encoding(),
    field::EXIT_CONTROLS.encoding(),
    field::ENTRY_CONTROLS.encoding(),
    field::EXCEPTION_BITMAP.encoding(),
    field::EPT_POINTER.encoding(),
    field::VPID.encoding(),
    field::TSC_OFFSET.encoding(),
    field::TIMER_VALUE.encoding(),
    field::CR0_MASK.encoding(),
    field::CR0_SHADOW.encoding(),
    field::GUEST_CR0.encoding(),
    field::CR4_MASK.encoding(),
    field::CR4_SHADOW.encoding(),
    field::GUEST_CR4.encoding(),
];
const HOST: &[u32] = &[
    field::HOST_CR3.encoding(),
    field::HOST_RIP.encoding(),
    field::HOST_RSP.encoding(),
    field::HOST_TR_BASE.encoding(),
    field::HOST_GDTR_BASE.encoding(),
    field::HOST_IDTR_BASE.encoding(),
];

fn general(vcpu: &dyn Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
    const NAMES: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15",
    ];
    for (gpr, name) in Gpr::ALL.into_iter().zip(NAMES) {
        let end = if gpr.number() % 4 == 3 { "\n" } else { "  " };
        value(out, name, vcpu.gpr(gpr).ok(), end)?;
    }
    value(out, "RIP", vcpu.read(Register::Rip).ok(), "  ")?;
    value(out, "RFLAGS", vcpu.read(Register::Rflags).ok(), "\n")
}

fn control(vcpu: &dyn Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
    for (name, register, end) in [
        ("CR0", Register::Cr0, "  "),
        ("CR2", Register::Cr2, "  "),
        ("CR3", Register::Cr3, "  "),
        ("CR4", Register::Cr4, "\n"),
        ("EFER", Register::Efer, "  "),
        ("PAT", Register::Pat, "  "),
        ("DR6", Register::Dr6, "  "),
        ("DR7", Register::Dr7, "\n"),
        ("GDT", Register::GdtBase, "  "),
        ("limit", Register::GdtLimit, "  "),
        ("IDT", Register::IdtBase, "  "),
        ("limit", Register::IdtLimit, "\n"),
        ("SYSENTER_CS", Register::SysenterCs, "  "),
        ("ESP", Register::SysenterEsp, "  "),
        ("EIP", Register::SysenterEip, "\n"),
    ] {
        value(out, name, vcpu.read(register).ok(), end)?;
    }
    Ok(())
}

fn value(out: &mut dyn fmt::Write, name: &str, value: Option<u64>, end: &str) -> fmt::Result {
    match value {
        Some(value) => write!(out, "{name} {value:016x}{end}"),
        None => write!(out, "{name} ?{end}"),
    }
}

fn segments(vcpu: &dyn Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
    const NAMES: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];
    for (name, text) in SegmentName::ALL.into_iter().zip(NAMES) {
        match vcpu.segment(name) {
            Ok(segment) => writeln!(
                out,
                "{text:4} {:04x}  base {:016x}  limit {:08x}  attributes {:05x}",
                segment.selector, segment.base, segment.limit, segment.attributes
            )?,
            Err(_) => writeln!(out, "{text:4} ?")?,
        }
    }
    Ok(())
}

fn fields(vmcs: &dyn VmcsAccess, title: &str, numbers: &[u32], out: &mut dyn fmt::Write) -> fmt::Result {
    write!(out, "{title}:")?;
    for &number in numbers {
        match vmcs.read(number) {
            Ok(value) => write!(out, " {}={value:x}", field::name(number))?,
            Err(_) => write!(out, " {}=?", field::name(number))?,
        }
    }
    writeln!(out)
}
