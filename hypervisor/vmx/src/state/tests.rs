use super::{BY_MOV_SS, BY_STI, PENDING_STEP, interruptibility, read, segment, set_interruptibility, set_segment};
use super::{skip_instruction, write};
use crate::fake::{FakeProcessor, capabilities};
use crate::fields::{self as field, Fields};
use bulkhead_arch::{Segment, SegmentName};
use bulkhead_core::{Interruptibility, Register};

#[test]
fn cr0_hides_what_the_host_needs() {
    let mut fake = FakeProcessor::default();
    let capabilities = capabilities();
    write(&mut fake, &capabilities, Register::Cr0, 0x6000_0010).unwrap();
    assert_eq!(read(&fake, &capabilities, Register::Cr0), 0x6000_0010);
    assert_eq!(fake.get(field::GUEST_CR0), Ok(0x30));
    // The guest sets PE and TS by itself, without an exit.
    fake.set(field::GUEST_CR0, 0x39).unwrap();
    assert_eq!(read(&fake, &capabilities, Register::Cr0), 0x6000_0019);
}

#[test]
fn cr4_hides_vmxe_and_keeps_machine_checks_on() {
    let mut fake = FakeProcessor::default();
    let capabilities = capabilities();
    write(&mut fake, &capabilities, Register::Cr4, 0x20).unwrap();
    assert_eq!(read(&fake, &capabilities, Register::Cr4), 0x20);
    assert_eq!(fake.get(field::GUEST_CR4), Ok(0x2060));
    write(&mut fake, &capabilities, Register::Cr4, 0x60).unwrap();
    assert_eq!(read(&fake, &capabilities, Register::Cr4), 0x60);
}

#[test]
fn efer_switches_the_mode_of_the_next_entry() {
    let mut fake = FakeProcessor::default();
    let capabilities = capabilities();
    write(&mut fake, &capabilities, Register::Efer, 0x100).unwrap();
    assert_eq!(fake.get(field::ENTRY_CONTROLS).unwrap() & 1 << 9, 0);
    write(&mut fake, &capabilities, Register::Efer, 0xD01).unwrap();
    assert_eq!(fake.get(field::ENTRY_CONTROLS).unwrap() & 1 << 9, 1 << 9);
    assert!(capabilities.entry.accepts(fake.get(field::ENTRY_CONTROLS).unwrap()));
    assert_eq!(read(&fake, &capabilities, Register::Efer), 0xD01);
    write(&mut fake, &capabilities, Register::Efer, 0).unwrap();
    assert_eq!(fake.get(field::ENTRY_CONTROLS).unwrap() & 1 << 9, 0);
}

#[test]
fn each_register_in_the_vmcs_is_its_own() {
    let registers = [
        Register::Rip,
        Register::Cr3,
        Register::Dr7,
        Register::Pat,
        Register::GdtBase,
        Register::GdtLimit,
        Register::IdtBase,
        Register::IdtLimit,
        Register::SysenterCs,
        Register::SysenterEsp,
        Register::SysenterEip,
        Register::Pdpte0,
        Register::Pdpte1,
        Register::Pdpte2,
        Register::Pdpte3,
    ];
    let mut fake = FakeProcessor::default();
    for (value, register) in (0x11..).zip(registers) {
        write(&mut fake, &capabilities(), register, value).unwrap();
    }
    for (value, register) in (0x11..).zip(registers) {
        assert_eq!(read(&fake, &capabilities(), register), value, "{register:?}");
    }
}

#[test]
fn segments_round_trip() {
    let mut fake = FakeProcessor::default();
    for (number, name) in (1..).zip(SegmentName::ALL) {
        let value = Segment { selector: number, attributes: 0xA09B, limit: !0, base: u64::from(number) << 40 };
        set_segment(&mut fake, name, value).unwrap();
    }
    for (number, name) in (1..).zip(SegmentName::ALL) {
        let value = segment(&fake, name);
        assert_eq!((value.selector, value.base), (number, u64::from(number) << 40));
    }
}

#[test]
fn interruptibility_round_trips() {
    let mut fake = FakeProcessor::default();
    fake.force(field::PENDING_DEBUG.encoding(), PENDING_STEP | 1);
    for bits in 0..8 {
        let value = Interruptibility { sti: bits & 1 != 0, mov_ss: bits & 2 != 0, nmi: bits & 4 != 0 };
        set_interruptibility(&mut fake, value).unwrap();
        assert_eq!(interruptibility(&fake), value);
        assert_eq!(fake.get(field::PENDING_DEBUG), Ok(0), "nothing is left from before");
    }
}

fn skipped(rip: u64, fields: &[(u32, u64)]) -> FakeProcessor {
    let mut fake = FakeProcessor::default();
    fake.force(field::EXIT_INSTRUCTION_LENGTH.encoding(), 2);
    fake.force(field::GUEST_RIP.encoding(), rip);
    fake.force(field::GUEST_RFLAGS.encoding(), 2);
    for &(encoding, value) in fields {
        fake.force(encoding, value);
    }
    skip_instruction(&mut fake).unwrap();
    fake
}

#[test]
fn skip_writes_rip_only_when_nothing_else_changes() {
    let fake = skipped(0x1000, &[]);
    assert_eq!(fake.get(field::GUEST_RIP), Ok(0x1002));
    assert_eq!(fake.writes, 1);
}

#[test]
fn skip_ends_the_shadows_and_leaves_nmi_blocking() {
    for shadow in [BY_STI, BY_MOV_SS] {
        let fake = skipped(0x1000, &[(field::INTERRUPTIBILITY.encoding(), (shadow | 8).into())]);
        assert_eq!(fake.get(field::INTERRUPTIBILITY), Ok(8));
    }
}

#[test]
fn skip_makes_a_single_step_due() {
    let fake = skipped(0x1000, &[(field::GUEST_RFLAGS.encoding(), 0x102), (field::PENDING_DEBUG.encoding(), 1)]);
    assert_eq!(fake.get(field::PENDING_DEBUG), Ok(PENDING_STEP | 1));
}

#[test]
fn skip_wraps_at_32_bits_outside_64_bit_code() {
    let efer = field::GUEST_EFER.encoding();
    let cs = field::GUEST_CS_ATTRIBUTES.encoding();
    assert_eq!(skipped(0xFFFF_FFFE, &[]).get(field::GUEST_RIP), Ok(0));
    assert_eq!(skipped(0xFFFF_FFFE, &[(efer, 0x500), (cs, 0xC09B)]).get(field::GUEST_RIP), Ok(0));
    assert_eq!(skipped(0xFFFF_FFFE, &[(efer, 0x500), (cs, 0xA09B)]).get(field::GUEST_RIP), Ok(0x1_0000_0000));
    assert_eq!(skipped(u64::MAX - 1, &[(efer, 0x500), (cs, 0xA09B)]).get(field::GUEST_RIP), Ok(0));
}
