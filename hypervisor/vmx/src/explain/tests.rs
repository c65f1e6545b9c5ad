use super::{Violation, check};
use crate::fake::{FakeProcessor, capabilities, region};
use crate::fields as field;
use crate::vcpu::{Resources, VmxVcpu};
use bulkhead_arch::{Segment, SegmentName};
use bulkhead_core::{Register, Vcpu};
use bulkhead_types::Hpa;
use std::string::ToString;
use std::vec::Vec;

/// A VMCS of a guest in 64-bit mode with which nothing is wrong.
fn long_mode() -> VmxVcpu<FakeProcessor> {
    let resources = Resources {
        vmcs: region(1),
        msr_bitmap: region(2),
        virtual_apic: region(6),
        io_bitmaps: [region(3), region(4)],
        nested_root: Hpa::new(0x5000),
        vpid: 1,
    };
    let mut vcpu = VmxVcpu::with_processor(FakeProcessor::default(), capabilities(), resources).unwrap();
    vcpu.write(Register::Cr0, 0x8000_0011).unwrap();
    vcpu.write(Register::Cr4, 0x20).unwrap();
    vcpu.write(Register::Efer, 0x500).unwrap();
    vcpu.write(Register::Rip, 0x10_0000).unwrap();
    let data = Segment { selector: 0x10, attributes: 0xC093, limit: !0, base: 0 };
    for name in [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
        vcpu.set_segment(name, data).unwrap();
    }
    vcpu.set_segment(SegmentName::Cs, Segment { selector: 8, attributes: 0xA09B, ..data }).unwrap();
    vcpu
}

fn violations(fake: &FakeProcessor) -> Vec<Violation> {
    let mut found = Vec::new();
    check(fake, &capabilities(), &mut |violation| found.push(violation));
    found
}

/// Breaks fields and wants exactly this complaint among what is reported.
fn broken(changes: &[(u32, u64)], culprit: u32, rule: &str) {
    let mut vcpu = long_mode();
    for &(encoding, value) in changes {
        vcpu.processor().force(encoding, value);
    }
    let found = violations(vcpu.processor());
    let hit = found.iter().any(|violation| violation.field == culprit && violation.rule.contains(rule));
    assert!(hit, "{changes:x?}: {} ... {rule} not in {found:#?}", field::name(culprit));
}

/// One field broken: it is the culprit.
fn breaks(field: u32, value: u64, rule: &str) {
    broken(&[(field, value)], field, rule);
}

macro_rules! number {
    ($name:ident) => {
        field::$name.encoding()
    };
}

#[test]
fn nothing_is_wrong_with_a_good_vmcs() {
    assert_eq!(violations(long_mode().processor()), []);
}

#[test]
fn nothing_is_wrong_with_protected_and_virtual_8086_mode() {
    let mut vcpu = long_mode();
    vcpu.write(Register::Efer, 0).unwrap();
    vcpu.write(Register::Cr0, 0x11).unwrap();
    let cs = Segment { selector: 8, attributes: 0xC09B, limit: !0, base: 0 };
    vcpu.set_segment(SegmentName::Cs, cs).unwrap();
    assert_eq!(violations(vcpu.processor()), []);
    vcpu.write(Register::Rflags, 1 << 17 | 2).unwrap();
    for name in SegmentName::ALL.into_iter().take(6) {
        let segment = Segment { selector: 0x1234, attributes: 0xF3, limit: 0xFFFF, base: 0x12340 };
        vcpu.set_segment(name, segment).unwrap();
    }
    assert_eq!(violations(vcpu.processor()), []);
}

#[test]
fn control_words() {
    for word in [
        number!(PIN_CONTROLS),
        number!(PRIMARY_CONTROLS),
        number!(SECONDARY_CONTROLS),
        number!(EXIT_CONTROLS),
        number!(ENTRY_CONTROLS),
    ] {
        let mut vcpu = long_mode();
        let value = vcpu.processor().get_raw(word);
        breaks(word, value | 1 << 31 | 1 << 30 | 1 << 27, "reserved bits");
    }
}

#[test]
fn execution_controls() {
    breaks(number!(CR3_TARGET_COUNT), 5, "above 4");
    breaks(number!(IO_BITMAP_A), 1, "page");
    breaks(number!(IO_BITMAP_B), 1 << 39, "page");
    breaks(number!(MSR_BITMAP), 0x800, "page");
    breaks(number!(VPID), 0, "must not be 0");
    let pin = number!(PIN_CONTROLS);
    let value = long_mode().processor().get_raw(pin);
    breaks(pin, value & !(1 << 3), "virtual NMIs need");
    let primary = number!(PRIMARY_CONTROLS);
    let window = long_mode().processor().get_raw(primary) | 1 << 22;
    broken(&[(pin, value & !(1 << 5)), (primary, window)], primary, "NMI-window");
    let secondary = number!(SECONDARY_CONTROLS);
    let value = long_mode().processor().get_raw(secondary);
    breaks(secondary, value & !2, "unrestricted guest needs");
}

#[test]
fn ept_pointers() {
    let pointer = number!(EPT_POINTER);
    breaks(pointer, 0x505C, "memory type");
    breaks(pointer, 0x5056, "walk length");
    breaks(pointer, 0x50DE, "11:7");
    breaks(pointer, 1 << 39 | 0x5E, "11:7");
    let mut vcpu = long_mode();
    let mut old = capabilities();
    old.ept_vpid &= !(1 << 21);
    let mut found = Vec::new();
    check(vcpu.processor(), &old, &mut |violation| found.push(violation.rule));
    assert_eq!(found, ["accessed and dirty bits (bit 6) must be supported"]);
}

#[test]
fn exit_and_entry_controls() {
    let exit = number!(EXIT_CONTROLS);
    let value = long_mode().processor().get_raw(exit);
    let pin = long_mode().processor().get_raw(number!(PIN_CONTROLS));
    let changes = [(exit, value | 1 << 22), (number!(PIN_CONTROLS), pin & !(1 << 6))];
    broken(&changes, exit, "needs the timer");
    let area = number!(EXIT_MSR_LOAD_ADDRESS);
    broken(&[(number!(EXIT_MSR_LOAD_COUNT), 1), (area, 8)], area, "16-byte");
    let area = number!(ENTRY_MSR_LOAD_ADDRESS);
    broken(&[(number!(ENTRY_MSR_LOAD_COUNT), 2), (area, (1 << 39) - 16)], area, "physical");
    let entry = number!(ENTRY_CONTROLS);
    let value = long_mode().processor().get_raw(entry);
    breaks(entry, value | 1 << 10, "SMM");
}

#[test]
fn injected_events() {
    let info = number!(ENTRY_INTERRUPTION);
    breaks(info, 0x8000_1306, "30:12");
    breaks(info, 0x8000_0106, "type");
    breaks(info, 0x8000_0203, "vector 2");
    breaks(info, 0x8000_0320, "below 32");
    breaks(info, 0x8000_030D, "error code");
    breaks(info, 0x8000_0B06, "error code");
    let error = number!(ENTRY_ERROR_CODE);
    broken(&[(info, 0x8000_0B0D), (error, 0x1_0000)], error, "31:16");
    let length = number!(ENTRY_INSTRUCTION_LENGTH);
    broken(&[(info, 0x8000_0480), (length, 16)], length, "length");
    let mut vcpu = long_mode();
    vcpu.processor().force(info, 0x30);
    assert_eq!(violations(vcpu.processor()), [], "not valid, not looked at");
}

#[test]
fn host_state() {
    breaks(number!(HOST_CR0), 0x8000_0001, "fixed");
    breaks(number!(HOST_CR4), 0x20, "fixed");
    breaks(number!(HOST_CR4), 0x2000, "PAE");
    breaks(number!(HOST_CR3), 1 << 39, "physical");
    breaks(number!(HOST_PAT), 2, "memory type");
    breaks(number!(HOST_EFER), 0x1500, "reserved");
    breaks(number!(HOST_EFER), 0x400, "LMA and LME");
    let exit = number!(EXIT_CONTROLS);
    let value = long_mode().processor().get_raw(exit);
    breaks(exit, value & !(1 << 9), "64-bit host");
    breaks(number!(HOST_CS_SELECTOR), 0xB, "RPL");
    breaks(number!(HOST_SS_SELECTOR), 4, "RPL");
    breaks(number!(HOST_CS_SELECTOR), 0, "must not be 0");
    breaks(number!(HOST_TR_SELECTOR), 0, "must not be 0");
    for address in [number!(HOST_SYSENTER_ESP), number!(HOST_GS_BASE), number!(HOST_IDTR_BASE), number!(HOST_RIP)] {
        breaks(address, 1 << 47, "canonical");
    }
}

#[test]
fn guest_control_registers_and_msrs() {
    let cr0 = number!(GUEST_CR0);
    breaks(cr0, 0x8000_0011, "fixed");
    breaks(cr0, 0x8000_0030, "PG needs PE");
    breaks(cr0, 0x31, "IA-32e mode needs PG");
    breaks(number!(GUEST_CR4), 0x20, "fixed");
    breaks(number!(GUEST_CR4), 0x2000, "needs PAE");
    let entry = number!(ENTRY_CONTROLS);
    let legacy = long_mode().processor().get_raw(entry) & !(1 << 9);
    broken(&[(entry, legacy), (number!(GUEST_CR4), 0x2_2020)], number!(GUEST_CR4), "PCIDE");
    broken(&[(entry, legacy)], number!(GUEST_EFER), "IA-32e mode guest");
    breaks(number!(GUEST_CR3), 1 << 40, "physical");
    breaks(number!(GUEST_DEBUGCTL), 8, "reserved");
    breaks(number!(GUEST_DR7), 1 << 32, "63:32");
    breaks(number!(GUEST_SYSENTER_ESP), 1 << 63, "canonical");
    breaks(number!(GUEST_SYSENTER_EIP), 1 << 63, "canonical");
    breaks(number!(GUEST_PAT), 0x0300, "memory type");
    breaks(number!(GUEST_EFER), 0x502, "reserved");
    breaks(number!(GUEST_EFER), 0x400, "LMA must be LME");
}

#[test]
fn guest_tables_rip_and_flags() {
    breaks(number!(GUEST_GDTR_BASE), 1 << 50, "canonical");
    breaks(number!(GUEST_IDTR_BASE), 1 << 50, "canonical");
    breaks(number!(GUEST_GDTR_LIMIT), 0x1_0000, "31:16");
    breaks(number!(GUEST_RIP), 1 << 47, "canonical");
    let compatibility = (number!(GUEST_CS_ATTRIBUTES), 0xC09B);
    broken(&[compatibility, (number!(GUEST_RIP), 1 << 32)], number!(GUEST_RIP), "63:32");
    let rflags = number!(GUEST_RFLAGS);
    breaks(rflags, 0x8002, "reserved");
    breaks(rflags, 0, "bit 1");
    breaks(rflags, 1 << 17 | 2, "VM needs");
    broken(&[(number!(ENTRY_INTERRUPTION), 0x8000_0030)], rflags, "needs IF");
}

#[test]
fn guest_non_register_state() {
    let word = number!(INTERRUPTIBILITY);
    let enabled = (number!(GUEST_RFLAGS), 0x202);
    breaks(word, 0x20, "31:5");
    broken(&[enabled, (word, 3)], word, "not both");
    breaks(word, 1, "needs IF");
    let interrupt = (number!(ENTRY_INTERRUPTION), 0x8000_0030);
    broken(&[enabled, interrupt, (word, 1)], word, "injected interrupt");
    let nmi = (number!(ENTRY_INTERRUPTION), 0x8000_0202);
    broken(&[nmi, (word, 2)], word, "blocked by MOV SS");
    broken(&[nmi, (word, 8)], word, "blocked by NMI");
    breaks(word, 4, "SMI");
    breaks(number!(ACTIVITY_STATE), 4, "0 to 3");
    broken(&[(word, 2), (number!(ACTIVITY_STATE), 1)], number!(ACTIVITY_STATE), "must be active");
    let pending = number!(PENDING_DEBUG);
    breaks(pending, 1 << 13, "reserved");
    broken(&[(number!(GUEST_RFLAGS), 0x102), (word, 2)], pending, "BS");
    broken(&[(pending, 1 << 14), (word, 2)], pending, "BS");
    breaks(number!(LINK_POINTER), 0, "all ones");
}

#[test]
fn guest_page_directory_pointers() {
    let entry = number!(ENTRY_CONTROLS);
    let legacy = (entry, long_mode().processor().get_raw(entry) & !(1 << 9));
    let efer = (number!(GUEST_EFER), 0);
    let code = (number!(GUEST_CS_ATTRIBUTES), 0xC09B);
    let third = number!(GUEST_PDPTE3);
    broken(&[legacy, efer, code, (third, 3)], third, "reserved");
    broken(&[legacy, efer, code, (third, 1 << 39 | 1)], third, "reserved");
    let mut vcpu = long_mode();
    for (encoding, value) in [legacy, efer, code, (third, 2)] {
        vcpu.processor().force(encoding, value);
    }
    assert_eq!(violations(vcpu.processor()), [], "not present, not looked at");
}

#[test]
fn guest_code_and_stack_segments() {
    let cs = number!(GUEST_CS_ATTRIBUTES);
    let ss = number!(GUEST_SS_ATTRIBUTES);
    breaks(cs, 0xA098, "accessed code");
    broken(&[(cs, 0xC0F3)], cs, "DPL 0");
    breaks(cs, 0xA0FB, "DPL of SS");
    breaks(cs, 0xA0FF, "above that of SS");
    breaks(cs, 0xE09B, "D must be 0");
    breaks(cs, 0xA08B, "S must be 1");
    breaks(cs, 0xA01B, "P must be 1");
    breaks(cs, 0xA19B, "11:8");
    breaks(number!(GUEST_CS_LIMIT), 0xFFFE, "granularity");
    breaks(number!(GUEST_CS_BASE), 1 << 32, "63:32");
    breaks(ss, 0xC099, "writable");
    broken(&[(cs, 0xC093), (ss, 0xC0F3)], ss, "DPL of SS must be 0");
    let secondary = number!(SECONDARY_CONTROLS);
    let restricted = (secondary, long_mode().processor().get_raw(secondary) & !(1 << 7));
    broken(&[restricted, (number!(GUEST_SS_SELECTOR), 0x13)], number!(GUEST_SS_SELECTOR), "RPL of SS");
    broken(&[restricted, (number!(GUEST_SS_SELECTOR), 0x13)], ss, "be its RPL");
    broken(&[restricted, (number!(GUEST_DS_SELECTOR), 0x13)], number!(GUEST_DS_ATTRIBUTES), "below RPL");
}

#[test]
fn guest_data_and_system_segments() {
    let ds = number!(GUEST_DS_ATTRIBUTES);
    breaks(ds, 0xC092, "must be accessed");
    breaks(ds, 0xC099, "readable");
    breaks(number!(GUEST_FS_BASE), 1 << 47, "canonical");
    breaks(number!(GUEST_ES_BASE), 1 << 32, "63:32");
    broken(&[(ds, 0x93)], number!(GUEST_DS_LIMIT), "granularity");
    breaks(number!(GUEST_TR_SELECTOR), 4, "TI");
    breaks(number!(GUEST_TR_BASE), 1 << 47, "canonical");
    breaks(number!(GUEST_TR_ATTRIBUTES), 0x83, "busy TSS");
    breaks(number!(GUEST_TR_ATTRIBUTES), 0x1_008B, "usable");
    breaks(number!(GUEST_LDTR_ATTRIBUTES), 0x83, "type 2");
    let mut vcpu = long_mode();
    for unusable in [ds, number!(GUEST_LDTR_ATTRIBUTES)] {
        vcpu.processor().force(unusable, 1 << 16);
    }
    vcpu.processor().force(number!(GUEST_LDTR_SELECTOR), 4);
    assert_eq!(violations(vcpu.processor()), [], "unusable, not looked at");
    let mut text = Vec::new();
    vcpu.processor().force(ds, 0xC092);
    check(vcpu.processor(), &capabilities(), &mut |violation| text.push(violation.to_string()));
    assert_eq!(text, ["GUEST_DS_ATTRIBUTES = 0xc092: must be accessed"]);
}

#[test]
fn virtual_8086_segments() {
    let flags = (number!(GUEST_RFLAGS), 1 << 17 | 2);
    let gs = (number!(GUEST_GS_SELECTOR), 0x100);
    broken(&[flags, gs], number!(GUEST_GS_BASE), "times 16");
    broken(&[flags], number!(GUEST_GS_LIMIT), "FFFFH");
    broken(&[flags], number!(GUEST_GS_ATTRIBUTES), "F3H");
}
