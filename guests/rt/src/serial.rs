//! COM1, polled. Data sheet: National Semiconductor PC16550D, 8.0 "Registers".

use crate::port;
use core::fmt;

const DATA: u16 = 0x3F8;
const LINE_CONTROL: u16 = 0x3FB;
const MODEM_CONTROL: u16 = 0x3FC;
const LINE_STATUS: u16 = 0x3FD;
/// Transmitter holding register empty.
const THRE: u8 = 1 << 5;
/// Transmitter empty: the last bit is on the line.
const TEMT: u8 = 1 << 6;

/// The console.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            wait(THRE);
            port::write8(DATA, byte);
        }
        Ok(())
    }
}

/// 115200 baud, 8 bits, no parity, one stop bit; no interrupts.
pub fn init() {
    for (port, value) in [(LINE_CONTROL, 0x83), (DATA, 1), (DATA + 1, 0), (LINE_CONTROL, 3), (DATA + 1, 0)] {
        port::write8(port, value);
    }
    port::write8(MODEM_CONTROL, 3);
}

/// Waits for a line-status bit, but not for ever: a machine without COM1 must still reach its exit.
fn wait(bit: u8) {
    for _ in 0..1_000_000 {
        if port::read8(LINE_STATUS) & bit != 0 {
            return;
        }
    }
}

/// Waits until all that was printed is on the line.
pub fn drain() {
    wait(TEMT);
}

/// Prints; for the macros.
#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    let _ = fmt::Write::write_fmt(&mut Serial, arguments);
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::serial::print(::core::format_args!($($argument)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\r\n") };
    ($($argument:tt)+) => { $crate::print!("{}\r\n", ::core::format_args!($($argument)+)) };
}
