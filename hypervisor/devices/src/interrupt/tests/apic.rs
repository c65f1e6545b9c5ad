use super::{
    APIC_BASE, BOOT, CURRENT, DFR, DIVIDE, ENABLED, EOI, ESR, Guest, ICR, ICR_HIGH, INITIAL, IRR, ISR, InvalidMsr, LDR,
    LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_TIMER, MASKED, PPR, SELF_IPI, SVR, TMR, TPR, TSC_DEADLINE,
};
use bulkhead_types::{Gpa, Width};
use std::vec::Vec;

const X2APIC: u64 = ENABLED | 1 << 10;
const DISABLED: u64 = 0xFEE0_0100;

#[test]
fn state_after_power_up() {
    let mut guest = Guest::new();
    // Off and on again, which forgets what firmware did.
    guest.wrmsr(APIC_BASE, DISABLED).unwrap();
    guest.wrmsr(APIC_BASE, ENABLED).unwrap();
    assert_eq!(guest.rdmsr(APIC_BASE), Ok(ENABLED));
    assert_eq!(guest.irq.lapic_base(BOOT), Some(Gpa::new(0xFEE0_0000)));
    for (register, value) in [
        (0x02, 0),
        (0x03, 0x0105_0014),
        (TPR, 0),
        (PPR, 0),
        (LDR, 0),
        (DFR, 0xFFFF_FFFF),
        (SVR, 0xFF),
        (ICR, 0),
        (ICR_HIGH, 0),
        (INITIAL, 0),
        (CURRENT, 0),
        (DIVIDE, 0),
    ] {
        assert_eq!(guest.read(register), value, "{register:x}");
    }
    for register in LVT_TIMER..=LVT_ERROR {
        assert_eq!(guest.read(register), MASKED);
        guest.write(register, 0x40);
        assert_eq!(guest.read(register), MASKED | 0x40, "masked for as long as it is software disabled");
    }
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 0);
}

#[test]
fn virtual_wire_mode_as_firmware_leaves_it() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(SVR), 0x10F);
    assert_eq!(guest.read(LVT_LINT0), 0x700);
    assert_eq!(guest.read(LVT_LINT1), 0x400);
    guest.init_pics(0x01);
    guest.edge(0);
    assert_eq!(guest.take(), Some(0x20));
    guest.irq.pic_write(0x20, 0x20);
    // ExtINT is not held back by priorities, but by LINT0's mask.
    guest.write(TPR, 0xFF);
    guest.edge(0);
    assert!(guest.irq.has_interrupt(BOOT));
    guest.write(LVT_LINT0, MASKED | 0x700);
    assert!(!guest.irq.has_interrupt(BOOT));
    guest.write(LVT_LINT0, 0x700);
    assert!(guest.irq.has_interrupt(BOOT));
    guest.write(SVR, 0xF);
    assert!(!guest.irq.has_interrupt(BOOT), "software disable masks LINT0");
    // With the local APIC disabled INTR is the processor's own pin.
    guest.wrmsr(APIC_BASE, DISABLED).unwrap();
    assert_eq!(guest.take(), Some(0x20));
}

#[test]
fn lint0_as_a_fixed_interrupt() {
    let mut guest = Guest::new();
    guest.init_pics(0x01);
    guest.write(LVT_LINT0, 0x33);
    guest.edge(3);
    assert_eq!(guest.take(), Some(0x33));
    guest.write(LVT_LINT0, 0x400);
    guest.irq.pic_write(0x21, 0xFF);
    guest.irq.pic_write(0x21, 0x00);
    assert!(guest.irq.take_nmi(BOOT), "the way NMI watchdogs took");
}

#[test]
fn state_transitions() {
    // Every state, and whether each value of the two bits may be written there.
    let states: [(&[u64], [bool; 4]); 3] = [
        (&[DISABLED], [true, false, true, false]),
        (&[ENABLED], [true, false, true, true]),
        (&[X2APIC], [true, false, false, true]),
    ];
    for (way, allowed) in states {
        for (bits, allowed) in [0, 1 << 10, 1 << 11, 3 << 10].into_iter().zip(allowed) {
            let mut guest = Guest::new();
            for value in way {
                guest.wrmsr(APIC_BASE, *value).unwrap();
            }
            let before = guest.rdmsr(APIC_BASE);
            assert_eq!(guest.wrmsr(APIC_BASE, DISABLED | bits).is_ok(), allowed, "{way:x?} {bits:x}");
            assert_eq!(guest.rdmsr(APIC_BASE), if allowed { Ok(DISABLED | bits) } else { before });
        }
    }
    let mut guest = Guest::new();
    for reserved in [1, 1 << 7, 1 << 9, 1 << 52, 1 << 63] {
        assert_eq!(guest.wrmsr(APIC_BASE, ENABLED | reserved), Err(InvalidMsr));
    }
}

#[test]
fn disabling_resets_and_hides_the_registers() {
    let mut guest = Guest::new();
    guest.write(TPR, 0x30);
    guest.self_ipi(0x80);
    guest.wrmsr(APIC_BASE, DISABLED).unwrap();
    assert_eq!(guest.irq.lapic_base(BOOT), None);
    assert!(!guest.irq.lapic(BOOT).is_enabled());
    assert_eq!(guest.take(), None);
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, 0x30, Width::Dword, guest.now()), 0xFFFF_FFFF);
    guest.write(TPR, 0x40);
    assert_eq!(guest.x2read(0x03), Err(InvalidMsr));
    guest.wrmsr(APIC_BASE, ENABLED).unwrap();
    assert_eq!(guest.read(TPR), 0);
    assert_eq!(guest.read(SVR), 0xFF);
    assert_eq!(guest.read(IRR + 4), 0);
    assert_eq!(guest.read(LVT_LINT0), MASKED);
}

#[test]
fn the_page_moves_with_its_base() {
    let mut guest = Guest::new();
    guest.wrmsr(APIC_BASE, 0xF_F000_0900).unwrap();
    assert_eq!(guest.irq.lapic_base(BOOT), Some(Gpa::new(0xF_F000_0000)));
}

#[test]
fn entering_x2apic_mode_keeps_the_registers() {
    let mut guest = Guest::new();
    guest.write(TPR, 0x20);
    guest.write(LVT_TIMER, 0xEC);
    guest.self_ipi(0x80);
    guest.wrmsr(APIC_BASE, X2APIC).unwrap();
    assert_eq!(guest.irq.lapic_base(BOOT), None);
    assert_eq!(guest.x2read(TPR), Ok(0x20));
    assert_eq!(guest.x2read(LVT_TIMER), Ok(0xEC));
    assert_eq!(guest.x2read(SVR), Ok(0x10F));
    assert_eq!(guest.x2read(LDR), Ok(1));
    assert_eq!(guest.take(), Some(0x80));
}

#[test]
fn x2apic_registers_by_the_table() {
    let mut guest = Guest::with_x2apic();
    let read_write = [0x08, 0x0F, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x3E];
    let read_only: Vec<u32> = [0x02, 0x03, 0x0A, 0x0D, 0x39].into_iter().chain(0x10..0x28).collect();
    let write_only = [0x0B, 0x3F];
    for register in 0..0x100 {
        let reads = read_write.contains(&register) || read_only.contains(&register);
        let writes = read_write.contains(&register) || write_only.contains(&register);
        assert_eq!(guest.x2read(register).is_ok(), reads, "read {register:x}");
        assert_eq!(guest.x2write(register, 0).is_ok(), writes, "write {register:x}");
    }
    assert_eq!(guest.rdmsr(0x900), Err(InvalidMsr));
    assert_eq!(guest.rdmsr(0x7FF), Err(InvalidMsr));
    assert_eq!(guest.wrmsr(0x900, 0), Err(InvalidMsr));
}

#[test]
fn x2apic_reserved_bits() {
    for (register, allowed) in [
        (TPR, 0xFF),
        (EOI, 0),
        (SVR, 0x13FF),
        (ESR, 0),
        (ICR, 0xFFFF_FFFF_000C_CFFF),
        (LVT_TIMER, 0x7_10FF),
        (0x33, 0x1_17FF),
        (0x34, 0x1_17FF),
        (LVT_LINT0, 0x1_F7FF),
        (LVT_LINT1, 0x1_F7FF),
        (LVT_ERROR, 0x1_10FF),
        (INITIAL, 0xFFFF_FFFF),
        (DIVIDE, 0xB),
        (SELF_IPI, 0xFF),
    ] {
        for bit in 0..64 {
            let mut guest = Guest::with_x2apic();
            assert_eq!(guest.x2write(register, 1 << bit).is_ok(), allowed & 1_u64 << bit != 0, "{register:x} {bit}");
        }
    }
}

#[test]
fn priorities() {
    let mut guest = Guest::new();
    guest.self_ipi(0x41);
    guest.self_ipi(0x45);
    guest.self_ipi(0x52);
    assert_eq!(guest.read(IRR + 2), 1 << 1 | 1 << 5 | 1 << 18);
    guest.write(TPR, 0x50);
    assert_eq!(guest.take(), None, "not above the task priority's class");
    guest.write(TPR, 0x4F);
    assert_eq!(guest.take(), Some(0x52));
    assert_eq!(guest.read(ISR + 2), 1 << 18);
    assert_eq!(guest.read(PPR), 0x50);
    guest.write(TPR, 0);
    assert_eq!(guest.take(), None);
    guest.self_ipi(0x5F);
    assert_eq!(guest.take(), None, "the same class does not interrupt itself");
    guest.self_ipi(0x60);
    assert_eq!(guest.take(), Some(0x60));
    guest.write(EOI, 0);
    assert_eq!(guest.take(), None);
    guest.write(EOI, 0);
    assert_eq!(guest.take(), Some(0x5F));
    guest.write(EOI, 0);
    assert_eq!(guest.take(), Some(0x45), "the lower of a class waits");
    guest.write(EOI, 0);
    assert_eq!(guest.take(), Some(0x41));
    guest.write(EOI, 0);
    guest.write(EOI, 0);
    assert_eq!(guest.read(PPR), 0);
}

#[test]
fn cr8_is_the_class_of_the_task_priority() {
    let mut guest = Guest::new();
    guest.write(TPR, 0x9C);
    assert_eq!(guest.irq.cr8(BOOT), 9);
    guest.self_ipi(0x95);
    assert_eq!(guest.take(), None);
    guest.irq.set_cr8(BOOT, 0xF8);
    assert_eq!(guest.read(TPR), 0x80);
    assert_eq!(guest.read(PPR), 0x80);
    assert_eq!(guest.take(), Some(0x95));
}

#[test]
fn interprocessor_interrupts_reach_whom_they_name() {
    let logical = 1 << 11;
    let mut guest = Guest::new();
    guest.write(LDR, 0x21 << 24);
    for (format, low, destination, reached) in [
        (u32::MAX, 0, 0, true),
        (u32::MAX, 0, 1, false),
        (u32::MAX, 0, 0xFF, true),
        (u32::MAX, 1 << 18, 7, true),
        (u32::MAX, 2 << 18, 7, true),
        (u32::MAX, 3 << 18, 0, false),
        (u32::MAX, logical, 0x01, true),
        (u32::MAX, logical, 0x20, true),
        (u32::MAX, logical, 0x1E & !0x20, false),
        (u32::MAX, logical, 0xFF, true),
        (0, logical, 0x21, true),
        (0, logical, 0x23, true),
        (0, logical, 0x22, false),
        (0, logical, 0x11, false),
        (0, logical, 0xF1, true),
        (0, logical, 0xF2, false),
        (0, logical, 0xFF, true),
    ] {
        guest.write(DFR, format);
        guest.write(ICR_HIGH, destination << 24);
        guest.write(ICR, low | 1 << 14 | 0x66);
        assert_eq!(guest.take(), reached.then_some(0x66), "{format:x} {low:x} {destination:x}");
        guest.write(EOI, 0);
        assert_eq!(guest.read(ICR), low | 1 << 14 | 0x66, "delivery status idle");
        assert_eq!(guest.read(ICR_HIGH), destination << 24);
    }
}

#[test]
fn x2apic_interprocessor_interrupts() {
    let mut guest = Guest::with_x2apic();
    for (destination, low, reached) in [
        (0_u64, 0, true),
        (1, 0, false),
        (0xFF, 0, false),
        (0xFFFF_FFFF, 0, true),
        (1, 1 << 11, true),
        (3, 1 << 11, true),
        (2, 1 << 11, false),
        (0x1_0001, 1 << 11, false),
        (0xFFFF_FFFF, 1 << 11, true),
        (9, 1 << 18, true),
        (0, 3 << 18, false),
    ] {
        guest.x2write(ICR, destination << 32 | low | 0x66).unwrap();
        assert_eq!(guest.take(), reached.then_some(0x66), "{destination:x} {low:x}");
        guest.x2write(EOI, 0).unwrap();
        assert_eq!(guest.x2read(ICR), Ok(destination << 32 | low | 0x66));
    }
    guest.x2write(SELF_IPI, 0x77).unwrap();
    assert_eq!(guest.take(), Some(0x77));
    assert_eq!(guest.x2read(ICR).unwrap() & 0xFF, 0x66, "SELF IPI leaves the ICR alone");
    // The I/O APIC's eight bits mean the same in this mode.
    for (low, destination, reached) in
        [(0, 0, true), (0, 0xFF, true), (0, 1, false), (1 << 11, 1, true), (1 << 11, 2, false), (1 << 11, 0xFF, true)]
    {
        guest.x2write(EOI, 0).unwrap();
        guest.route(5, low | 0x55, destination);
        guest.edge(5);
        assert_eq!(guest.take(), reached.then_some(0x55), "{low:x} {destination:x}");
    }
}

#[test]
fn other_delivery_modes_of_the_icr() {
    let mut guest = Guest::new();
    guest.write(ICR, 4 << 8);
    assert!(guest.irq.take_nmi(BOOT));
    guest.write(ICR, 4 << 8 | 3 << 18);
    assert!(!guest.irq.nmi_pending(BOOT));
    guest.write(ICR, 5 << 8 | 1 << 14 | 1 << 15);
    assert!(guest.irq.take_init(BOOT));
    guest.write(ICR, 5 << 8 | 1 << 15);
    assert!(!guest.irq.take_init(BOOT), "INIT level de-assert");
    guest.write(ICR_HIGH, 1 << 24);
    guest.write(ICR, 5 << 8 | 1 << 14);
    guest.write(ICR, 6 << 8 | 0x9F);
    assert!(!guest.irq.take_init(BOOT), "to a processor that is not there");
    guest.write(ICR_HIGH, 0);
    for nothing in [2, 3, 6, 7] {
        guest.write(ICR, nothing << 8 | 0x44);
        assert_eq!(guest.take(), None);
    }
    assert!(!guest.irq.nmi_pending(BOOT) && !guest.irq.take_init(BOOT));
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 0);
}

#[test]
fn two_nmis_wait_and_one_beside_one_that_is_handled() {
    let mut guest = Guest::new();
    let mut taken = |sent: usize, handling: bool| {
        (0..sent).for_each(|_| guest.write(ICR, 4 << 8));
        if handling {
            guest.irq.merge_nmis(BOOT);
        }
        (0..4).filter(|_| guest.irq.take_nmi(BOOT)).count()
    };
    for sent in 0..4 {
        assert_eq!((taken(sent, false), taken(sent, true)), (sent.min(2), sent.min(1)));
    }
}

#[test]
fn errors_are_latched_by_writing_and_interrupt_once() {
    let mut guest = Guest::new();
    guest.write(LVT_ERROR, 0xFE);
    guest.self_ipi(0x0F);
    assert_eq!(guest.read(ESR), 0, "not before it is written");
    assert_eq!(guest.take(), Some(0xFE));
    guest.write(EOI, 0);
    guest.self_ipi(0x0F);
    assert_eq!(guest.take(), None, "not armed again before the register is written");
    guest.write(ESR, 0xFFFF_FFFF);
    assert_eq!(guest.read(ESR), 1 << 5 | 1 << 6);
    guest.read(0x3F);
    assert_eq!(guest.take(), Some(0xFE));
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 1 << 7);
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 0);
}

#[test]
fn an_error_interrupt_that_is_an_error_ends_there() {
    let mut guest = Guest::new();
    guest.write(LVT_ERROR, 0x05);
    guest.read(0x00);
    assert_eq!(guest.take(), None);
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 1 << 6 | 1 << 7);
}

#[test]
fn reserved_registers_of_the_page() {
    let reserved = [0x00, 0x01, 0x04, 0x07, 0x09, 0x0C, 0x29, 0x2F, 0x3A, 0x3D, 0x3F, 0x40, 0xFF];
    for register in reserved {
        let mut guest = Guest::new();
        assert_eq!(guest.read(register), 0);
        guest.write(ESR, 0);
        assert_eq!(guest.read(ESR), 1 << 7, "read {register:x}");
        guest.write(register, 1);
        guest.write(ESR, 0);
        assert_eq!(guest.read(ESR), 1 << 7, "write {register:x}");
    }
    let mut guest = Guest::new();
    // Those that are there but can not be written.
    for register in [0x02, 0x03, PPR, ISR, TMR, IRR, CURRENT] {
        let before = guest.read(register);
        guest.write(register, 0xFFFF_FFFF);
        assert_eq!(guest.read(register), before);
    }
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 0);
}

#[test]
fn odd_accesses_of_the_page() {
    let mut guest = Guest::new();
    let now = guest.now();
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, 0x32, Width::Byte, now), 0x05);
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, 0x32, Width::Word, now), 0x0105);
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, 0x30, Width::Qword, now), 0x0105_0014);
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, 0x34, Width::Dword, now), 0);
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, 0x1000, Width::Word, now), 0xFFFF);
    assert_eq!(guest.irq.lapic_mmio_read(BOOT, u64::MAX, Width::Byte, now), 0xFF);
    for (offset, width) in [(0x80, Width::Byte), (0x80, Width::Word), (0x84, Width::Dword), (0x1080, Width::Dword)] {
        guest.irq.lapic_mmio_write(BOOT, offset, width, 0x55, now);
        assert_eq!(guest.read(TPR), 0);
    }
    guest.irq.lapic_mmio_write(BOOT, 0x80, Width::Qword, 0xFFFF_FFFF_0000_0030, now);
    assert_eq!(guest.read(TPR), 0x30);
}

#[test]
fn software_disabled_it_takes_only_nmi_and_init() {
    let mut guest = Guest::new();
    guest.self_ipi(0x80);
    guest.write(LVT_TIMER, 0xEC);
    guest.write(SVR, 0xFF);
    assert_eq!(guest.read(LVT_TIMER), MASKED | 0xEC);
    guest.self_ipi(0x90);
    guest.write(ICR, 4 << 8);
    assert!(guest.irq.take_nmi(BOOT));
    assert_eq!(guest.take(), Some(0x80), "what it had is held for the processor");
    assert_eq!(guest.take(), None);
    guest.write(EOI, 0);
    guest.write(SVR, 0x1FF);
    assert_eq!(guest.read(LVT_TIMER), MASKED | 0xEC, "enabling does not unmask");
    assert_eq!(guest.take(), None);
}

#[test]
fn the_deadline_register_does_not_need_x2apic_mode() {
    let mut guest = Guest::new();
    assert_eq!(guest.rdmsr(TSC_DEADLINE), Ok(0));
    guest.wrmsr(APIC_BASE, DISABLED).unwrap();
    assert_eq!(guest.wrmsr(TSC_DEADLINE, 5), Ok(()));
    assert_eq!(guest.take(), None);
}
