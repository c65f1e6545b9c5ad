//! Ways to end: test exit, power-off, reset, panic.

use crate::{port, println, serial};
use core::panic::PanicInfo;

/// Test exit, QEMU's `isa-debug-exit`.
const TEST_EXIT: u16 = 0xF4;
/// ACPI PM1a control register, and SLP_EN with this machine's SLP_TYP for S5. ACPI 6.5, 4.8.3.2.1 "PM1 Control".
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_S5: u16 = 1 << 13 | 5 << 10;

/// Ends this guest with `code`: by the test exit, else (a machine without it) by power-off.
pub fn exit(code: u32) -> ! {
    serial::drain();
    port::write32(TEST_EXIT, code);
    power_off()
}

/// ACPI power-off.
pub fn power_off() -> ! {
    serial::drain();
    port::write16(PM1A_CONTROL, SLEEP_S5);
    // Bochs keeps its power-management block elsewhere but takes this word; no other machine has this port.
    for byte in *b"Shutdown" {
        port::write8(0x8900, byte);
    }
    println!("still on");
    halt()
}

/// Stops for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off, HLT stops this processor and touches nothing.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => println!("FAIL {}:{} panic: {}", at.file(), at.line(), info.message()),
        None => println!("FAIL panic: {}", info.message()),
    }
    exit(1)
}
