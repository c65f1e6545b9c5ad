use super::{FIFO, RING, Uart};

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

fn with_out2() -> Uart {
    let mut uart = Uart::new();
    uart.write(MCR, 0x08);
    uart
}

#[test]
fn divisor_latch_is_apart_from_data_and_enable() {
    let mut uart = Uart::new();
    uart.write(IER, 0x05);
    uart.write(LCR, 0x83);
    uart.write(DATA, 0x0C);
    uart.write(IER, 0x01);
    assert_eq!((uart.read(DATA), uart.read(IER)), (0x0C, 0x01));
    assert_eq!(uart.pop_output(), None);
    uart.write(LCR, 0x03);
    assert_eq!((uart.read(DATA), uart.read(IER), uart.read(LCR)), (0, 0x05, 0x03));
}

#[test]
fn linux_takes_it_for_a_16550a() {
    let mut uart = Uart::new();
    uart.write(IER, 0);
    assert_eq!(uart.read(IER), 0);
    uart.write(IER, 0xFF);
    assert_eq!(uart.read(IER), 0x0F, "no 16C950, no XScale: the upper bits do not stick");
    uart.write(IER, 0);
    uart.write(MCR, 0x1A);
    assert_eq!(uart.read(MSR) & 0xF0, 0x90);
    uart.write(MCR, 0);
    uart.write(FCR, 1);
    assert_eq!(uart.read(IIR) >> 6, 3);
    uart.write(FCR, 0);
    assert_eq!(uart.read(IIR) >> 6, 0);
    uart.write(LCR, 0xBF);
    uart.write(FCR, 1);
    assert_ne!(uart.read(IIR), 0, "no enhanced-feature register");
    uart.write(FCR, 0x21);
    assert_eq!(uart.read(IIR) >> 5, 6, "no 64-byte FIFO");
    uart.write(LCR, 0);
    uart.write(SCR, 0xA5);
    assert_eq!(uart.read(SCR), 0xA5);
}

#[test]
fn transmit_empty_interrupt_at_enable_and_after_each_byte() {
    let mut uart = with_out2();
    assert!(!uart.line());
    uart.write(IER, 2);
    assert!(uart.line());
    assert_eq!(uart.read(IIR), 0x02);
    assert_eq!(uart.read(IIR), 0x01, "reading the identification clears it");
    assert!(!uart.line());
    uart.write(IER, 0);
    uart.write(IER, 2);
    assert!(uart.line(), "Linux's THRE interrupt test");
    assert_eq!(uart.read(IIR), 0x02);
    uart.write(IER, 2);
    assert!(!uart.line(), "only the rising enable bit counts");
    uart.write(DATA, b'x');
    assert!(uart.line());
    assert_eq!((uart.pop_output(), uart.pop_output()), (Some(b'x'), None));
}

#[test]
fn out2_connects_the_interrupt_and_loopback_cuts_it() {
    let mut uart = Uart::new();
    uart.write(IER, 2);
    assert!(!uart.line());
    uart.write(MCR, 0x08);
    assert!(uart.line());
    uart.write(MCR, 0x18);
    assert!(!uart.line());
}

#[test]
fn receive_without_fifo_holds_one_byte() {
    let mut uart = with_out2();
    uart.write(IER, 1);
    assert!(uart.receive(b'a'));
    assert!(!uart.receive(b'b'));
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(uart.read(IIR), 0x04);
    assert_eq!(uart.read(DATA), b'a');
    assert_eq!(uart.read(LSR), 0x60);
    assert!(!uart.line());
}

#[test]
fn receive_fifo_trigger_and_timeout() {
    for (bits, trigger) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)] {
        let mut uart = with_out2();
        uart.write(FCR, bits | 1);
        uart.write(IER, 1);
        for n in 1..=FIFO {
            assert!(uart.receive(b'0'));
            assert_eq!(uart.read(IIR), if n < trigger { 0xCC } else { 0xC4 }, "trigger {trigger}, {n} bytes");
            assert!(uart.line());
        }
        assert!(!uart.receive(b'z'), "a full FIFO refuses");
        uart.write(FCR, bits | 3);
        assert_eq!(uart.read(LSR) & 1, 0);
        assert_eq!(uart.read(IIR), 0xC1);
    }
}

#[test]
fn switching_the_fifos_empties_them() {
    let mut uart = Uart::new();
    assert!(uart.receive(1));
    uart.write(FCR, 1);
    assert_eq!(uart.read(LSR) & 1, 0);
}

#[test]
fn loopback_carries_data_and_overruns() {
    let mut uart = Uart::new();
    uart.write(MCR, 0x10);
    uart.write(IER, 4);
    assert!(!uart.receive(b'!'), "the line is cut");
    uart.write(DATA, 0x11);
    uart.write(DATA, 0x22);
    assert_eq!(uart.pop_output(), None);
    assert_eq!(uart.read(IIR), 0x06);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(IIR), 0x01, "reading the line status clears it");
    assert_eq!(uart.read(DATA), 0x11);
}

#[test]
fn modem_deltas() {
    let mut uart = with_out2();
    assert_eq!(uart.read(MSR), 0xB0);
    uart.write(IER, 8);
    uart.write(MCR, 0x18 | 0x04);
    assert_eq!(uart.read(MSR), 0xC0 | 0x03, "CTS and DSR fell; RI's rise is not reported");
    uart.write(MCR, 0x18);
    assert_eq!(uart.read(IIR), 0x00);
    assert_eq!(uart.read(MSR), 0x84);
    uart.write(MCR, 0x08);
    assert!(uart.line());
    assert_eq!(uart.read(MSR), 0xB3);
    assert!(!uart.line());
}

#[test]
fn interrupt_priority() {
    let mut uart = Uart::new();
    uart.write(MCR, 0x1F);
    uart.write(IER, 0x0F);
    uart.write(MCR, 0x10);
    uart.write(DATA, 1);
    uart.write(DATA, 2);
    assert_eq!(uart.read(IIR), 0x06);
    uart.read(LSR);
    assert_eq!(uart.read(IIR), 0x04);
    uart.read(DATA);
    assert_eq!(uart.read(IIR), 0x02);
    assert_eq!(uart.read(IIR), 0x00);
    uart.read(MSR);
    assert_eq!(uart.read(IIR), 0x01);
}

#[test]
fn full_output_ring_makes_the_transmitter_busy() {
    let mut uart = with_out2();
    uart.write(FCR, 1);
    uart.write(IER, 2);
    let mut sent = 0;
    while uart.read(LSR) & 0x20 != 0 {
        uart.write(DATA, b'.');
        sent += 1;
    }
    assert_eq!(sent, RING - FIFO + 1);
    assert!(uart.take_busy() && !uart.take_busy(), "said once");
    assert_eq!((uart.output(), uart.lost()), (Some(b'.'), 0));
    assert_eq!(uart.read(IIR), 0xC1, "not empty, so no interrupt");
    for _ in 0..2 * RING {
        uart.write(DATA, b'!');
    }
    assert_eq!(uart.lost(), (2 * RING - (FIFO - 1)) as u64, "what was written anyway");
    assert!(!uart.take_busy(), "it was busy all the time");
    assert_eq!(uart.read(LSR) & 0x60, 0);
    while uart.output.len() > RING - FIFO {
        uart.pop_output();
    }
    assert_eq!(uart.read(LSR) & 0x60, 0x20, "room again, and not all is sent");
    let mut taken = FIFO;
    while uart.pop_output().is_some() {
        taken += 1;
    }
    assert_eq!(taken, RING);
    assert!(uart.line(), "empty again");
    assert_eq!(uart.read(LSR) & 0x60, 0x60);
    uart.write(DATA, b'?');
    assert_eq!((uart.output(), uart.pop_output(), uart.output()), (Some(b'?'), Some(b'?'), None));
}
