use super::{BOOT, EOI, ESR, Guest, IRR, ISR, LDR, LEVEL, MASKED, SVR, TMR};
use bulkhead_types::Width;

const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn registers() {
    let mut guest = Guest::new();
    assert_eq!(guest.io_apic_read(1), 0x0017_0020);
    guest.io_apic_write(0, 0xFFFF_FFFF);
    assert_eq!(guest.io_apic_read(0), 0x0F00_0000);
    assert_eq!(guest.io_apic_read(2), 0x0F00_0000);
    for input in 0..24 {
        assert_eq!(guest.io_apic_read(0x10 + 2 * input), MASKED);
        guest.io_apic_write(0x11 + 2 * input, 0xFFFF_FFFF);
        guest.io_apic_write(0x10 + 2 * input, 0xFFFF_FFFF);
        assert_eq!(guest.io_apic_read(0x11 + 2 * input), 0xFF00_0000);
        assert_eq!(guest.io_apic_read(0x10 + 2 * input), 0x0001_AFFF);
    }
    for register in [3, 0x0F, 0x40, 0xFF] {
        guest.io_apic_write(register, 0xFFFF_FFFF);
        assert_eq!(guest.io_apic_read(register), 0);
    }
    assert_eq!(guest.irq.io_apic_read(0, Width::Dword), 0xFF);
    assert_eq!(guest.irq.io_apic_read(0x20, Width::Dword), 0);
}

#[test]
fn isa_line_0_is_input_2_and_others_are_their_own() {
    let mut guest = Guest::new();
    for input in 0..24 {
        guest.route(input, 0x40 + u32::from(input), 0);
    }
    for (line, vector) in [(0, 0x42), (1, 0x41), (15, 0x4F), (16, 0x50), (23, 0x57)] {
        guest.edge(line);
        assert_eq!(guest.take(), Some(vector));
        guest.write(EOI, 0);
    }
    for line in [2, 24, 255] {
        guest.edge(line);
        assert_eq!(guest.take(), None);
    }
}

#[test]
fn edge_triggered_inputs_send_once_an_edge() {
    let mut guest = Guest::new();
    guest.route(4, 0x44, 0);
    guest.irq.set_line(4, true);
    guest.irq.set_line(4, true);
    assert_eq!(guest.take(), Some(0x44));
    guest.write(EOI, 0);
    assert_eq!(guest.take(), None);
    assert_eq!(guest.io_apic_read(0x18) & REMOTE_IRR, 0);
    guest.edge(4);
    assert_eq!(guest.take(), Some(0x44));
    // Edges while masked are not held.
    guest.write(EOI, 0);
    guest.route(4, MASKED | 0x44, 0);
    guest.edge(4);
    guest.route(4, 0x44, 0);
    assert_eq!(guest.take(), None);
}

#[test]
fn level_triggered_inputs_send_until_their_end_of_interrupt_finds_them_inactive() {
    let mut guest = Guest::new();
    guest.route(9, LEVEL | 0x51, 0);
    guest.irq.set_line(9, true);
    assert_eq!(guest.io_apic_read(0x22), LEVEL | REMOTE_IRR | 0x51);
    assert_eq!(guest.take(), Some(0x51));
    assert_eq!(guest.read(TMR + 2), 1 << 17);
    guest.irq.set_line(9, false);
    guest.irq.set_line(9, true);
    assert_eq!(guest.take(), None, "one message until its EOI");
    guest.write(EOI, 0);
    assert_eq!(guest.take(), Some(0x51));
    guest.irq.set_line(9, false);
    guest.write(EOI, 0);
    assert_eq!(guest.take(), None);
    assert_eq!(guest.io_apic_read(0x22), LEVEL | 0x51);
    // The EOI of an edge-triggered interrupt is not broadcast.
    guest.irq.set_line(9, true);
    guest.self_ipi(0x51);
    assert_eq!(guest.take(), Some(0x51));
    guest.write(EOI, 0);
    assert_eq!(guest.io_apic_read(0x22) & REMOTE_IRR, REMOTE_IRR);
}

#[test]
fn a_level_that_was_active_while_masked_is_sent_when_unmasked() {
    let mut guest = Guest::new();
    guest.irq.set_line(10, true);
    guest.route(10, LEVEL | 0x61, 0);
    assert_eq!(guest.take(), Some(0x61));
}

#[test]
fn a_level_that_nobody_accepted_is_sent_when_somebody_can() {
    let mut guest = Guest::new();
    guest.write(SVR, 0xFF);
    guest.route(10, LEVEL | 0x61, 0);
    guest.route(11, LEVEL | 1 << 11 | 0x71, 0b10);
    guest.irq.set_line(10, true);
    guest.irq.set_line(11, true);
    assert_eq!(guest.take(), None);
    assert_eq!(guest.io_apic_read(0x24) & REMOTE_IRR, 0);
    guest.write(SVR, 0x1FF);
    assert_eq!(guest.take(), Some(0x61));
    guest.write(LDR, 0b10 << 24);
    assert_eq!(guest.take(), Some(0x71));
}

#[test]
fn directed_end_of_interrupt() {
    let mut guest = Guest::new();
    guest.route(10, LEVEL | 0x61, 0);
    guest.irq.set_line(10, true);
    assert_eq!(guest.take(), Some(0x61));
    // With broadcasts suppressed only the I/O APIC's own register ends it.
    guest.write(SVR, 0x11FF);
    guest.write(EOI, 0);
    assert_eq!(guest.take(), None);
    guest.irq.io_apic_write(0x40, Width::Dword, 0x62);
    assert_eq!(guest.take(), None);
    guest.irq.io_apic_write(0x40, Width::Dword, 0x61);
    assert_eq!(guest.take(), Some(0x61));
}

#[test]
fn switching_to_edge_and_back_clears_the_remote_irr() {
    let mut guest = Guest::new();
    guest.route(10, LEVEL | 0x61, 0);
    guest.irq.set_line(10, true);
    assert_eq!(guest.take(), Some(0x61));
    guest.io_apic_write(0x24, MASKED | 0x61);
    guest.io_apic_write(0x24, MASKED | LEVEL | 0x61);
    assert_eq!(guest.io_apic_read(0x24), MASKED | LEVEL | 0x61);
    guest.io_apic_write(0x24, LEVEL | 0x61);
    guest.write(EOI, 0);
    assert_eq!(guest.take(), Some(0x61));
}

#[test]
fn destinations() {
    let logical = 1 << 11;
    let mut guest = Guest::new();
    guest.write(LDR, 0x04 << 24);
    for (mode, destination, reached) in [
        (0, 0x00, true),
        (0, 0x01, false),
        (0, 0xFF, true),
        (logical, 0x00, false),
        (logical, 0x04, true),
        (logical, 0x0C, true),
        (logical, 0x03, false),
        (logical, 0xFF, true),
    ] {
        for delivery in [0, 1 << 8] {
            guest.route(5, mode | delivery | 0x55, destination);
            guest.edge(5);
            assert_eq!(guest.take(), reached.then_some(0x55), "{mode:x} {destination:x}");
            guest.write(EOI, 0);
        }
    }
}

#[test]
fn delivery_modes() {
    let mut guest = Guest::new();
    guest.route(5, LEVEL | 4 << 8, 0);
    guest.irq.set_line(5, true);
    assert!(guest.irq.nmi_pending(BOOT));
    assert!(guest.irq.take_nmi(BOOT));
    assert!(!guest.irq.take_nmi(BOOT), "level-triggered NMI counts as edge");
    guest.route(5, 5 << 8, 0);
    guest.edge(5);
    assert!(guest.irq.take_init(BOOT) && !guest.irq.take_init(BOOT));
    for ignored in [2, 3, 6, 7] {
        guest.route(5, ignored << 8 | 0x55, 0);
        guest.edge(5);
        assert_eq!(guest.take(), None);
        assert!(!guest.irq.nmi_pending(BOOT) && !guest.irq.take_init(BOOT));
    }
}

#[test]
fn an_illegal_vector_is_an_error_of_the_receiver() {
    let mut guest = Guest::new();
    guest.route(5, 0x0F, 0);
    guest.edge(5);
    assert_eq!(guest.take(), None);
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 1 << 6);
    assert_eq!(guest.read(IRR), 0);
}

#[test]
fn the_timer_works_through_input_2_and_through_the_pic() {
    // As Linux sets it up: PIC initialized with all but the cascade masked, input 2 edge-triggered.
    let mut guest = Guest::new();
    guest.init_pics(0x01);
    guest.irq.pic_write(0x21, 0xFB);
    guest.irq.pic_write(0xA1, 0xFF);
    guest.write(0x35, MASKED | 0x700);
    guest.route(2, 0x30, 0);
    for _ in 0..3 {
        guest.edge(0);
        assert_eq!(guest.take(), Some(0x30));
        guest.write(EOI, 0);
    }
    assert_eq!(guest.take(), None);
    // Its fall-back: ExtINT through input 0.
    guest.route(2, MASKED | 0x30, 0);
    guest.route(0, 0x700, 0);
    guest.irq.pic_write(0x21, 0xFA);
    assert_eq!(guest.take(), Some(0x20), "the PIC saw the edges as well");
    guest.irq.pic_write(0x20, 0x20);
    guest.edge(0);
    assert_eq!(guest.take(), Some(0x20));
    assert_eq!(guest.read(ISR + 1), 0, "not the local APIC's interrupt");
    guest.irq.pic_write(0x20, 0x20);
    guest.route(0, 0x700, 1);
    guest.edge(0);
    assert_eq!(guest.take(), None, "to another processor");
    // And INTR as an ordinary edge of input 0.
    guest.irq.pic_write(0x21, 0xFF);
    guest.route(0, 0x31, 0);
    guest.irq.pic_write(0x21, 0xFE);
    assert_eq!(guest.take(), Some(0x31));
}
