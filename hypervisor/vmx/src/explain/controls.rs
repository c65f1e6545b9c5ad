//! SDM vol. 3C 27.2.1 "Checks on VMX Controls".

use super::Checks;
use crate::controls::{EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::fields as field;
use bulkhead_arch::{Cr0, Vector};
use bulkhead_core::injection;

pub(super) fn check(checks: &mut Checks<'_>) {
    words(checks);
    execution(checks);
    ept(checks);
    exit_and_entry(checks);
    injection(checks);
}

/// Each control word against its capability register.
fn words(checks: &mut Checks<'_>) {
    const RULE: &str = "reserved bits must be as the capability register says";
    let capabilities = checks.capabilities;
    for (word, allowed) in [
        (field::PIN_CONTROLS, capabilities.pin),
        (field::PRIMARY_CONTROLS, capabilities.primary),
        (field::EXIT_CONTROLS, capabilities.exit),
        (field::ENTRY_CONTROLS, capabilities.entry),
    ] {
        let value = checks.value(word);
        checks.rule(word, allowed.accepts(value), RULE);
    }
    let secondary = checks.value(field::SECONDARY_CONTROLS);
    checks.rule(
        field::SECONDARY_CONTROLS,
        !secondary_active(checks) || capabilities.secondary.accepts(secondary),
        RULE,
    );
}

fn secondary_active(checks: &Checks<'_>) -> bool {
    checks.value(field::PRIMARY_CONTROLS) & Primary::SECONDARY.bits() != 0
}

/// The secondary controls that count.
pub(super) fn secondary(checks: &Checks<'_>) -> Secondary {
    if secondary_active(checks) {
        Secondary::from_bits_truncate(checks.value(field::SECONDARY_CONTROLS))
    } else {
        Secondary::empty()
    }
}

/// 27.2.1.1 "VM-Execution Control Fields".
fn execution(checks: &mut Checks<'_>) {
    let pin = Pin::from_bits_truncate(checks.value(field::PIN_CONTROLS));
    let primary = Primary::from_bits_truncate(checks.value(field::PRIMARY_CONTROLS));
    let secondary = secondary(checks);
    let cr3_targets = checks.value(field::CR3_TARGET_COUNT);
    checks.rule(field::CR3_TARGET_COUNT, cr3_targets <= 4, "must not be above 4");
    if primary.contains(Primary::IO_BITMAPS) {
        checks.page(field::IO_BITMAP_A);
        checks.page(field::IO_BITMAP_B);
    }
    if primary.contains(Primary::MSR_BITMAPS) {
        checks.page(field::MSR_BITMAP);
    }
    let nmi = pin.contains(Pin::NMI_EXITING) || !pin.contains(Pin::VIRTUAL_NMIS);
    checks.rule(field::PIN_CONTROLS, nmi, "virtual NMIs need NMI exiting");
    let window = pin.contains(Pin::VIRTUAL_NMIS) || !primary.contains(Primary::NMI_WINDOW);
    checks.rule(field::PRIMARY_CONTROLS, window, "NMI-window exiting needs virtual NMIs");
    let vpid = checks.value(field::VPID);
    checks.rule(field::VPID, vpid != 0 || !secondary.contains(Secondary::VPID), "must not be 0");
    if primary.contains(Primary::TPR_SHADOW) {
        checks.page(field::VIRTUAL_APIC);
    }
    let shadow = primary.contains(Primary::TPR_SHADOW) || !secondary.intersects(Secondary::LENT);
    checks.rule(field::PRIMARY_CONTROLS, shadow, "APIC virtualization needs the TPR shadow");
    let external = pin.contains(Pin::EXTERNAL_INTERRUPT_EXITING) || !secondary.contains(Secondary::INTERRUPT_DELIVERY);
    checks.rule(field::PIN_CONTROLS, external, "virtual-interrupt delivery needs external-interrupt exiting");
    let unrestricted = !secondary.contains(Secondary::UNRESTRICTED_GUEST) || secondary.contains(Secondary::EPT);
    checks.rule(field::SECONDARY_CONTROLS, unrestricted, "unrestricted guest needs EPT");
}

fn ept(checks: &mut Checks<'_>) {
    const ACCESSED_DIRTY: u64 = 1 << 6;
    if !secondary(checks).contains(Secondary::EPT) {
        return;
    }
    let pointer = checks.value(field::EPT_POINTER);
    let capabilities = checks.capabilities;
    checks.rule(field::EPT_POINTER, matches!(pointer & 7, 0 | 6), "memory type (bits 2:0) must be 0 or 6");
    checks.rule(field::EPT_POINTER, pointer >> 3 & 7 == 3, "walk length (bits 5:3) must be 3");
    let accessed_dirty = pointer & ACCESSED_DIRTY == 0 || capabilities.ept_accessed_dirty();
    checks.rule(field::EPT_POINTER, accessed_dirty, "accessed and dirty bits (bit 6) must be supported");
    let reserved = pointer & 0xF80 == 0 && checks.is_physical(pointer);
    checks.rule(field::EPT_POINTER, reserved, "bits 11:7 and those above the physical address width must be 0");
}

/// 27.2.1.2 "VM-Exit Control Fields", 27.2.1.3 "VM-Entry Control Fields".
fn exit_and_entry(checks: &mut Checks<'_>) {
    let exit = ExitControls::from_bits_truncate(checks.value(field::EXIT_CONTROLS));
    let entry = EntryControls::from_bits_truncate(checks.value(field::ENTRY_CONTROLS));
    let pin = Pin::from_bits_truncate(checks.value(field::PIN_CONTROLS));
    let timer = !exit.contains(ExitControls::SAVE_TIMER) || pin.contains(Pin::PREEMPTION_TIMER);
    checks.rule(field::EXIT_CONTROLS, timer, "saving the preemption timer needs the timer");
    for (count, area) in [
        (field::EXIT_MSR_STORE_COUNT, field::EXIT_MSR_STORE_ADDRESS),
        (field::EXIT_MSR_LOAD_COUNT, field::EXIT_MSR_LOAD_ADDRESS),
        (field::ENTRY_MSR_LOAD_COUNT, field::ENTRY_MSR_LOAD_ADDRESS),
    ] {
        let count = u64::from(checks.value(count));
        let address = checks.value(area);
        let end = address.saturating_add(count.saturating_mul(16)).saturating_sub(1);
        let holds = count == 0 || address & 0xF == 0 && checks.is_physical(address) && checks.is_physical(end);
        checks.rule(area, holds, "must be 16-byte aligned and inside the physical address width");
    }
    let smm = !entry.intersects(EntryControls::SMM | EntryControls::DUAL_MONITOR_OFF);
    checks.rule(field::ENTRY_CONTROLS, smm, "entry to SMM (bits 10 and 11) is possible in SMM only");
}

/// 27.2.1.3, about event injection.
fn injection(checks: &mut Checks<'_>) {
    let info = checks.value(field::ENTRY_INTERRUPTION);
    if info & injection::VALID == 0 {
        return;
    }
    let kind = info & injection::TYPE;
    let number = info & 0xFF;
    let word = field::ENTRY_INTERRUPTION;
    checks.rule(word, info & 0x7FFF_F000 == 0, "bits 30:12 must be 0");
    checks.rule(word, !matches!(kind >> 8, 1 | 7), "type (bits 10:8) must not be 1 or 7");
    checks.rule(word, kind != injection::NMI || number == 2, "an NMI must have vector 2");
    checks.rule(word, kind != injection::HARDWARE_EXCEPTION || number < 32, "an exception must have a vector below 32");
    let vector = Vector(u8::try_from(number).unwrap_or(0));
    let protected = checks.value(field::GUEST_CR0) & Cr0::PE.bits() != 0;
    let pushes = kind == injection::HARDWARE_EXCEPTION && vector.has_error_code() && protected;
    let with_error = info & injection::WITH_ERROR != 0;
    checks.rule(word, with_error == pushes, "bit 11 must say whether this vector has an error code in this mode");
    let error = checks.value(field::ENTRY_ERROR_CODE);
    checks.rule(field::ENTRY_ERROR_CODE, !with_error || error >> 16 == 0, "bits 31:16 must be 0");
    let length = checks.value(field::ENTRY_INSTRUCTION_LENGTH);
    let shortest = if checks.capabilities.zero_length { 0 } else { 1 };
    let sized =
        matches!(kind, injection::SOFTWARE_INTERRUPT | injection::PRIVILEGED_EXCEPTION | injection::SOFTWARE_EXCEPTION);
    let holds = !sized || (shortest..=15).contains(&length);
    checks.rule(field::ENTRY_INSTRUCTION_LENGTH, holds, "must be an instruction's length, 1 to 15");
}
