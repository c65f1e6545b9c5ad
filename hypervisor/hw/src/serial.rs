//! The host's serial lines: COM1 for the hypervisor's log and the guests' consoles, COM2 for the control line.

use crate::ports;
use core::sync::atomic::{AtomicBool, Ordering};
use uart_16550::SerialPort;

/// Line status register: a byte has come in (bit 0), the next one can be sent (bit 5), the transmitter is wholly empty (bit
/// 6). 16550D data sheet, 8.4.
const LINE_STATUS: u16 = 5;
const ROOM: u8 = 1 << 5;
/// Registers and what they are set to: divisor 1 makes 115200 baud of the chip's 1.8432 MHz (behind bit 7 of the line
/// control register, 8.3 "Programmable Baud Generator"), 8 bits, no parity; an interrupt when 14 bytes have come in, or nothing comes behind some; FIFOs on and
/// empty; the outputs that say ready, and let interrupts out.
const SET_UP: [(u16, u8); 7] = [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (1, INPUT), (2, 0xC7), (4, 0x0B)];
/// What the interrupt enable register has an interrupt for: a byte has come in; the next one can be sent. 8.8.
pub(crate) const INPUT: u8 = 1 << 0;
pub(crate) const EMPTY: u8 = 1 << 1;

/// One of the machine's two.
#[derive(Debug)]
struct Line {
    /// Its first port.
    base: u16,
    /// Looks at the line status register, of about a microsecond each on a PC, until a byte is given up that the chip has no
    /// room for. At 115200 baud it has room after 87.
    patience: u32,
    /// A byte was given up, and there has been no room since: nobody takes what is sent, and nobody waits for that.
    stuck: AtomicBool,
}

static COM1: Line = Line { base: 0x3F8, patience: 1_000_000, stuck: AtomicBool::new(false) };
/// Who does not take an answer is not waited for long: the client asks again.
static COM2: Line = Line { base: 0x2F8, patience: 50_000, stuck: AtomicBool::new(false) };

/// A line, at 115200 baud. All state is the chip's, but for whether it is stuck.
#[derive(Clone, Copy, Debug)]
pub struct Serial(&'static Line);

impl Serial {
    /// Sets COM1 up; called once, at start-up.
    #[must_use]
    pub fn init() -> Self {
        Self::set_up(&COM1)
    }

    /// Sets COM2 up.
    #[must_use]
    pub fn second() -> Self {
        Self::set_up(&COM2)
    }

    fn set_up(line: &'static Line) -> Self {
        SET_UP.into_iter().for_each(|(register, value)| Self(line).write(register, value));
        Self(line)
    }

    fn write(self, register: u16, value: u8) {
        // SAFETY: COM1 and COM2 are 16550s or nothing on every PC, and nothing else in the hypervisor touches their ports.
        unsafe { ports::write(self.0.base + register, value) }
    }

    /// COM1 as set up before: for the report of a fault.
    #[must_use]
    pub const fn again() -> Self {
        Self(&COM1)
    }

    /// Sends a byte, after those before it. `false`: nobody takes it, and it is lost.
    pub fn send(self, byte: u8) -> bool {
        let looks = if self.0.stuck.load(Ordering::Relaxed) { 1 } else { self.0.patience };
        let room = (0..looks).any(|_| self.status() & ROOM != 0);
        self.0.stuck.store(!room, Ordering::Relaxed);
        if room {
            // SAFETY: as in `write`; there is room, so that it waits for nothing.
            unsafe { SerialPort::new(self.0.base) }.send_raw(byte);
        }
        room
    }

    /// Whether nobody takes what is sent.
    #[must_use]
    pub fn is_stuck(self) -> bool {
        self.0.stuck.load(Ordering::Relaxed) && self.status() & ROOM == 0
    }

    /// The line status register; all ones where no chip is.
    fn status(self) -> u8 {
        // SAFETY: the line status register of a serial port; reading it clears error bits only.
        unsafe { ports::read(self.0.base + LINE_STATUS) }
    }

    /// Has it interrupt for [`INPUT`], [`EMPTY`], both or neither.
    pub(crate) fn interrupt_for(self, what: u8) {
        self.write(1, what);
    }

    /// Whether a byte has come in.
    #[must_use]
    pub fn has_input(self) -> bool {
        let status = self.status();
        // All bits at once are no real state.
        status & 1 != 0 && status != 0xFF
    }

    /// A byte that has come in.
    #[must_use]
    pub fn receive(self) -> Option<u8> {
        // SAFETY: the receive buffer of a serial port, read only when it holds a byte.
        self.has_input().then(|| unsafe { ports::read(self.0.base) })
    }

    /// Waits until the last byte has left the chip.
    pub fn flush(self) {
        let looks = 0..self.0.patience;
        let _ = looks.into_iter().any(|_| self.status() & 0x40 != 0);
    }
}
