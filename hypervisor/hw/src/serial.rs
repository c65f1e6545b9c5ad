//! The host's serial lines: COM1 for the hypervisor's log and the guests' consoles, COM2 for the control line.

use crate::ports;
use uart_16550::SerialPort;

const COM1: u16 = 0x3F8;
const COM2: u16 = 0x2F8;
/// Line status register: a byte has come in (bit 0), the transmitter is wholly empty (bit 6). 16550D data sheet, 8.4.
const LINE_STATUS: u16 = 5;
/// Registers and what they are set to: divisor 1 makes 115200 baud of the chip's 1.8432 MHz (behind bit 7 of the line
/// control register, 8.3 "Programmable Baud Generator"), 8 bits, no parity; no interrupts, as input is looked for whenever
/// a guest's turn ends; FIFOs on and empty; the outputs that say ready.
const SET_UP: [(u16, u8); 7] = [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (1, 0), (2, 0xC7), (4, 0x0B)];

/// A line, at 115200 baud. Holds its first port only: the state is the chip's.
#[derive(Clone, Copy, Debug)]
pub struct Serial(u16);

impl Serial {
    /// Sets COM1 up; called once, at start-up.
    #[must_use]
    pub fn init() -> Self {
        Self::set_up(COM1)
    }

    /// Sets COM2 up.
    #[must_use]
    pub fn second() -> Self {
        Self::set_up(COM2)
    }

    fn set_up(base: u16) -> Self {
        for (register, value) in SET_UP {
            // SAFETY: COM1 and COM2 are 16550s or nothing on every PC, and nothing else in the hypervisor touches their ports.
            unsafe { ports::write(base + register, value) }
        }
        Self(base)
    }

    /// COM1 as set up before: for the report of a fault.
    #[must_use]
    pub const fn again() -> Self {
        Self(COM1)
    }

    /// Sends a byte, after those before it.
    pub fn send(self, byte: u8) {
        // SAFETY: as in `init`; sending waits for the chip's own pace only.
        let mut port = unsafe { SerialPort::new(self.0) };
        port.send_raw(byte);
    }

    /// Whether a byte has come in.
    #[must_use]
    pub fn has_input(self) -> bool {
        // SAFETY: the line status register of a serial port; reading it clears error bits only. An absent chip reads as ones:
        // all bits at once are no real state.
        let status = unsafe { ports::read(self.0 + LINE_STATUS) };
        status & 1 != 0 && status != 0xFF
    }

    /// A byte that has come in.
    #[must_use]
    pub fn receive(self) -> Option<u8> {
        // SAFETY: the receive buffer of a serial port, read only when it holds a byte.
        self.has_input().then(|| unsafe { ports::read(self.0) })
    }

    /// Waits until the last byte has left the chip.
    pub fn flush(self) {
        for _ in 0..1_000_000 {
            // SAFETY: as in `has_input`.
            if unsafe { ports::read(self.0 + LINE_STATUS) } & 0x40 != 0 {
                break;
            }
        }
    }
}

impl core::fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}
