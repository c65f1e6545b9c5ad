//! Port input and output.
//!
//! These are safe functions: a guest owns its whole machine, runs on one processor, and none of the ports it is given
//! leads to a device that writes memory by itself.

use core::arch::asm;

/// Reads a byte from `port`.
#[must_use]
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: IN writes its one register; no device behind a port of this machine changes memory (module text).
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads two bytes from `port`.
#[must_use]
pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: IN writes its one register; no device behind a port of this machine changes memory (module text).
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads four bytes from `port`.
#[must_use]
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: IN writes its one register; no device behind a port of this machine changes memory (module text).
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to `port`.
pub fn write8(port: u16, value: u8) {
    // SAFETY: OUT changes no register or memory of ours; what devices do with the value is their state (module text).
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes two bytes to `port`.
pub fn write16(port: u16, value: u16) {
    // SAFETY: OUT changes no register or memory of ours; what devices do with the value is their state (module text).
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes four bytes to `port`.
pub fn write32(port: u16, value: u32) {
    // SAFETY: OUT changes no register or memory of ours; what devices do with the value is their state (module text).
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}
