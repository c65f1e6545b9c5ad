//! SDM vol. 3C 27.3.1 "Checks on the Guest State Area", without its segments.

use super::{Checks, controls, is_canonical};
use crate::controls::{EntryControls, Pin, Secondary};
use crate::fields as field;
use crate::state::{BY_MOV_SS, BY_NMI, BY_STI, PENDING_STEP};
use bulkhead_arch::{Cr0, Cr4, Efer, Rflags, Segment};
use bulkhead_core::injection;

/// Blocking by SMI.
const BY_SMI: u32 = 1 << 2;
/// IA32_DEBUGCTL: single-step on branches.
const BTF: u64 = 1 << 1;

pub(super) fn check(checks: &mut Checks<'_>) {
    control_registers(checks);
    msrs(checks);
    tables(checks);
    rip_and_flags(checks);
    interruptibility(checks);
    activity_and_pending(checks);
    pdptes(checks);
}

/// Whether the guest is entered in IA-32e mode.
pub(super) fn long_mode(checks: &Checks<'_>) -> bool {
    checks.value(field::ENTRY_CONTROLS) & EntryControls::IA32E_GUEST.bits() != 0
}

/// 27.3.1.1 "Checks on Guest Control Registers, Debug Registers, and MSRs".
fn control_registers(checks: &mut Checks<'_>) {
    let capabilities = checks.capabilities;
    let unrestricted = controls::secondary(checks).contains(Secondary::UNRESTRICTED_GUEST);
    let free = if unrestricted { Cr0::PE | Cr0::PG } else { Cr0::empty() };
    let cr0 = Cr0::from_bits_retain(checks.value(field::GUEST_CR0));
    let cr4 = Cr4::from_bits_retain(checks.value(field::GUEST_CR4));
    let long = long_mode(checks);
    checks.fixed(field::GUEST_CR0, capabilities.cr0, free.bits());
    checks.fixed(field::GUEST_CR4, capabilities.cr4, 0);
    checks.rule(field::GUEST_CR0, !cr0.contains(Cr0::PG) || cr0.contains(Cr0::PE), "PG needs PE");
    checks.rule(field::GUEST_CR0, !long || cr0.contains(Cr0::PG), "IA-32e mode needs PG");
    checks.rule(field::GUEST_CR4, !long || cr4.contains(Cr4::PAE), "IA-32e mode needs PAE");
    checks.rule(field::GUEST_CR4, long || !cr4.contains(Cr4::PCIDE), "PCIDE needs IA-32e mode");
    let cr3 = checks.value(field::GUEST_CR3);
    checks.rule(field::GUEST_CR3, checks.is_physical(cr3), "must be inside the physical address width");
}

fn msrs(checks: &mut Checks<'_>) {
    let entry = EntryControls::from_bits_truncate(checks.value(field::ENTRY_CONTROLS));
    if entry.contains(EntryControls::LOAD_DEBUG) {
        let debugctl = checks.value(field::GUEST_DEBUGCTL);
        checks.rule(field::GUEST_DEBUGCTL, debugctl & !0xFFC7 == 0, "reserved bits must be 0");
        let dr7 = checks.value(field::GUEST_DR7);
        checks.rule(field::GUEST_DR7, dr7 >> 32 == 0, "bits 63:32 must be 0");
    }
    checks.canonical(field::GUEST_SYSENTER_ESP);
    checks.canonical(field::GUEST_SYSENTER_EIP);
    if entry.contains(EntryControls::LOAD_PAT) {
        checks.pat(field::GUEST_PAT);
    }
    if entry.contains(EntryControls::LOAD_EFER) {
        let known = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        let efer = Efer::from_bits_retain(checks.value(field::GUEST_EFER));
        let paging = checks.value(field::GUEST_CR0) & Cr0::PG.bits() != 0;
        let active = efer.contains(Efer::LMA);
        let long = entry.contains(EntryControls::IA32E_GUEST);
        checks.rule(field::GUEST_EFER, known.contains(efer), "reserved bits must be 0");
        checks.rule(field::GUEST_EFER, active == long, "LMA must be the entry control \"IA-32e mode guest\"");
        checks.rule(field::GUEST_EFER, !paging || active == efer.contains(Efer::LME), "with PG, LMA must be LME");
    }
}

/// 27.3.1.3 "Checks on Guest Descriptor-Table Registers".
fn tables(checks: &mut Checks<'_>) {
    checks.canonical(field::GUEST_GDTR_BASE);
    checks.canonical(field::GUEST_IDTR_BASE);
    for limit in [field::GUEST_GDTR_LIMIT, field::GUEST_IDTR_LIMIT] {
        let value = checks.value(limit);
        checks.rule(limit, value >> 16 == 0, "bits 31:16 must be 0");
    }
}

/// 27.3.1.4 "Checks on Guest RIP, RFLAGS, and SSP".
fn rip_and_flags(checks: &mut Checks<'_>) {
    let rip = checks.value(field::GUEST_RIP);
    let long = long_mode(checks);
    let code_64 = long && checks.value(field::GUEST_CS_ATTRIBUTES) & Segment::LONG != 0;
    checks.rule(field::GUEST_RIP, code_64 || rip >> 32 == 0, "bits 63:32 must be 0 outside 64-bit code");
    checks.rule(field::GUEST_RIP, !code_64 || is_canonical(rip), "must be canonical");
    let rflags = checks.value(field::GUEST_RFLAGS);
    let reserved = rflags >> 22 == 0 && rflags & (1 << 15 | 1 << 5 | 1 << 3) == 0;
    checks.rule(field::GUEST_RFLAGS, reserved, "reserved bits must be 0");
    checks.rule(field::GUEST_RFLAGS, rflags & Rflags::FIXED.bits() != 0, "bit 1 must be 1");
    let protected = checks.value(field::GUEST_CR0) & Cr0::PE.bits() != 0;
    let virtual_8086 = rflags & Rflags::VM.bits() != 0;
    checks.rule(
        field::GUEST_RFLAGS,
        !virtual_8086 || protected && !long,
        "VM needs protected mode without IA-32e mode",
    );
    let interrupt = injected(checks) == Some(injection::EXTERNAL_INTERRUPT);
    let enabled = rflags & Rflags::IF.bits() != 0;
    checks.rule(field::GUEST_RFLAGS, !interrupt || enabled, "an injected interrupt needs IF");
}

/// The type of the event that is to be injected.
fn injected(checks: &Checks<'_>) -> Option<u32> {
    let info = checks.value(field::ENTRY_INTERRUPTION);
    (info & injection::VALID != 0).then_some(info & injection::TYPE)
}

/// 27.3.1.5 "Checks on Guest Non-Register State", interruptibility.
fn interruptibility(checks: &mut Checks<'_>) {
    let word = field::INTERRUPTIBILITY;
    let bits = checks.value(word);
    let enabled = checks.value(field::GUEST_RFLAGS) & Rflags::IF.bits() != 0;
    let virtual_nmis = checks.value(field::PIN_CONTROLS) & Pin::VIRTUAL_NMIS.bits() != 0;
    let event = injected(checks);
    let interrupt = event == Some(injection::EXTERNAL_INTERRUPT);
    let nmi = event == Some(injection::NMI);
    checks.rule(word, bits & !0x1F == 0, "bits 31:5 must be 0");
    checks.rule(word, bits & BY_STI == 0 || bits & BY_MOV_SS == 0, "not both of STI and MOV SS can block");
    checks.rule(word, bits & BY_STI == 0 || enabled, "blocking by STI needs IF");
    checks.rule(word, !interrupt || bits & (BY_STI | BY_MOV_SS) == 0, "an injected interrupt must not be blocked");
    checks.rule(word, !nmi || bits & BY_MOV_SS == 0, "an injected NMI must not be blocked by MOV SS");
    checks.rule(word, !(nmi && virtual_nmis) || bits & BY_NMI == 0, "an injected NMI must not be blocked by NMI");
    checks.rule(word, bits & BY_SMI == 0, "blocking by SMI is possible in SMM only");
}

/// 27.3.1.5, activity state, pending debug exceptions and link pointer.
fn activity_and_pending(checks: &mut Checks<'_>) {
    const HALTED: u32 = 1;
    let activity = checks.value(field::ACTIVITY_STATE);
    let shadow = checks.value(field::INTERRUPTIBILITY) & (BY_STI | BY_MOV_SS) != 0;
    checks.rule(field::ACTIVITY_STATE, activity <= 3, "must be 0 to 3");
    checks.rule(field::ACTIVITY_STATE, activity == 0 || !shadow, "must be active in the shadow of STI or MOV SS");
    let pending = checks.value(field::PENDING_DEBUG);
    checks.rule(field::PENDING_DEBUG, pending & !0x1_500F == 0, "reserved bits must be 0");
    let single_step =
        checks.value(field::GUEST_RFLAGS) & Rflags::TF.bits() != 0 && checks.value(field::GUEST_DEBUGCTL) & BTF == 0;
    let due = pending & PENDING_STEP != 0;
    let holds = !(shadow || activity == HALTED) || due == single_step;
    checks.rule(field::PENDING_DEBUG, holds, "in a shadow or halted, BS (bit 14) must be TF");
    let link = checks.value(field::LINK_POINTER);
    checks.rule(field::LINK_POINTER, link == u64::MAX, "must be all ones: there is no linked VMCS");
}

/// 27.3.1.6 "Checks on Guest Page-Directory-Pointer-Table Entries".
fn pdptes(checks: &mut Checks<'_>) {
    let paging = checks.value(field::GUEST_CR0) & Cr0::PG.bits() != 0;
    let pae = checks.value(field::GUEST_CR4) & Cr4::PAE.bits() != 0;
    let nested = controls::secondary(checks).contains(Secondary::EPT);
    if !(paging && pae && nested) || long_mode(checks) {
        return;
    }
    for entry in [field::GUEST_PDPTE0, field::GUEST_PDPTE1, field::GUEST_PDPTE2, field::GUEST_PDPTE3] {
        let value = checks.value(entry);
        let holds = value & 1 == 0 || value & 0x1E6 == 0 && checks.is_physical(value);
        checks.rule(entry, holds, "reserved bits must be 0");
    }
}
