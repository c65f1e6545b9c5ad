//! The host's two 8259A interrupt controllers: a byte on a serial line ends the first processor's idle wait.
//!
//! The data sheet's "Initialization Command Words" and "Operation Control Word 1". Of their inputs only those of COM1 and COM2 are
//! let in, and only while the processor waits, so that none comes during a guest's turn. They reach it by LINT0 of its local
//! APIC (SDM vol. 3A 11.5.1 "Local Vector Table", ExtINT). What is not there, or not wired so, is not heard in [`probe`].

use crate::descriptors::LEGACY_VECTOR;
use crate::serial::{EMPTY, INPUT, Serial};
use crate::{apic, cpu, ports};
use core::sync::atomic::{AtomicBool, Ordering};

/// COM1's input.
const COM1: u8 = 4;
/// Mask registers; in the first one's COM1 and input 3 (COM2) are let in.
const MASKS: [u16; 2] = [0x21, 0xA1];
const SERIAL: u8 = !(1 << 3 | 1 << COM1);
/// Edges; the vectors; the second at input 2 of the first; 8086 mode, and what is taken ends by itself.
const WORDS: [(u16, u8); 8] = [
    (0x20, 0x11),
    (0xA0, 0x11),
    (MASKS[0], LEGACY_VECTOR),
    (MASKS[1], LEGACY_VECTOR + 8),
    (MASKS[0], 1 << 2),
    (MASKS[1], 2),
    (MASKS[0], 3),
    (MASKS[1], 3),
];

/// One of COM1's came: they come at all.
static HEARD: AtomicBool = AtomicBool::new(false);

/// Keeps all interrupts of the two away.
pub fn mask() {
    MASKS.into_iter().for_each(|port| write(port, 0xFF));
}

fn write(port: u16, value: u8) {
    // SAFETY: a register of an 8259A, of which this module has both; what it lets in, the trap handler takes.
    unsafe { ports::write(port, value) }
}

/// Finds out whether COM1's interrupts reach this processor, which is the first one.
pub fn probe() {
    WORDS.into_iter().for_each(|(port, value)| write(port, value));
    mask();
    apic::take_external();
    let line = Serial::again();
    let_in(true);
    [0, INPUT | EMPTY].into_iter().for_each(|what| line.interrupt_for(what));
    // A look at a line takes about a microsecond on a PC.
    (0..1000).take_while(|_| !is_heard()).for_each(|_| {
        let _ = line.has_input();
        cpu::take_interrupts();
    });
    let_in(false);
    line.interrupt_for(INPUT);
}

/// Whether a byte that comes in ends a wait for which they are [let in](let_in).
#[must_use]
pub fn is_heard() -> bool {
    HEARD.load(Ordering::Relaxed)
}

/// Lets the serial lines' interrupts in, or no more.
pub fn let_in(open: bool) {
    write(MASKS[0], if open { SERIAL } else { 0xFF });
}

/// An interrupt of the two is being handled. It has ended already; one that is spurious says nothing of the others.
pub(crate) fn came(vector: u64) {
    if vector == u64::from(LEGACY_VECTOR + COM1) {
        HEARD.store(true, Ordering::Relaxed);
    }
}
