//! SDM vol. 3C 27.2.2 "Checks on Host Control Registers, MSRs, and SSP", 27.2.3 "Checks on Host Segment and
//! Descriptor-Table Registers", 27.2.4 "Checks Related to Address-Space Size".

use super::Checks;
use crate::controls::ExitControls;
use crate::fields as field;
use bulkhead_arch::{Cr4, Efer};

pub(super) fn check(checks: &mut Checks<'_>) {
    let capabilities = checks.capabilities;
    let cr3 = checks.value(field::HOST_CR3);
    let cr4 = checks.value(field::HOST_CR4);
    let exit = ExitControls::from_bits_truncate(checks.value(field::EXIT_CONTROLS));
    checks.fixed(field::HOST_CR0, capabilities.cr0, 0);
    checks.fixed(field::HOST_CR4, capabilities.cr4, 0);
    checks.rule(field::HOST_CR3, checks.is_physical(cr3), "must be inside the physical address width");
    checks.rule(field::EXIT_CONTROLS, exit.contains(ExitControls::HOST_64), "a 64-bit host needs bit 9");
    checks.rule(field::HOST_CR4, cr4 & Cr4::PAE.bits() != 0, "a 64-bit host needs PAE");
    if exit.contains(ExitControls::LOAD_PAT) {
        checks.pat(field::HOST_PAT);
    }
    if exit.contains(ExitControls::LOAD_EFER) {
        let known = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        let efer = Efer::from_bits_retain(checks.value(field::HOST_EFER));
        checks.rule(field::HOST_EFER, known.contains(efer), "reserved bits must be 0");
        let long = efer.contains(Efer::LMA | Efer::LME);
        checks.rule(field::HOST_EFER, long, "LMA and LME must be 1 for a 64-bit host");
    }
    segments(checks);
}

fn segments(checks: &mut Checks<'_>) {
    for selector in [
        field::HOST_CS_SELECTOR,
        field::HOST_SS_SELECTOR,
        field::HOST_DS_SELECTOR,
        field::HOST_ES_SELECTOR,
        field::HOST_FS_SELECTOR,
        field::HOST_GS_SELECTOR,
        field::HOST_TR_SELECTOR,
    ] {
        let value = checks.value(selector);
        checks.rule(selector, value & 7 == 0, "RPL and TI must be 0");
    }
    for selector in [field::HOST_CS_SELECTOR, field::HOST_TR_SELECTOR] {
        let value = checks.value(selector);
        checks.rule(selector, value != 0, "must not be 0");
    }
    for address in [
        field::HOST_SYSENTER_ESP,
        field::HOST_SYSENTER_EIP,
        field::HOST_FS_BASE,
        field::HOST_GS_BASE,
        field::HOST_TR_BASE,
        field::HOST_GDTR_BASE,
        field::HOST_IDTR_BASE,
        field::HOST_RIP,
    ] {
        checks.canonical(address);
    }
}
