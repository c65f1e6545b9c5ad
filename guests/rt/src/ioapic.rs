//! The I/O APIC. Data sheet: Intel 82093AA, 3.0 "Register Description".

use crate::memory::Region;

// SAFETY: the registers of the I/O APIC lie here, below 4 GiB and so mapped; no RAM is there.
const REGISTERS: Region = unsafe { Region::new(0xFEC0_0000, 4096) };

/// Entry bit: masked.
pub const MASKED: u64 = 1 << 16;
/// Entry bit: level-triggered.
pub const LEVEL: u64 = 1 << 15;
/// Entry bit: delivered at the local APIC and not yet ended (read-only).
pub const REMOTE_IRR: u64 = 1 << 14;
/// Entry bit: active low.
pub const ACTIVE_LOW: u64 = 1 << 13;

/// Reads register `index`.
#[must_use]
pub fn read(index: u8) -> u32 {
    REGISTERS.write32(0, u32::from(index));
    REGISTERS.read32(0x10)
}

/// Writes register `index`.
pub fn write(index: u8, value: u32) {
    REGISTERS.write32(0, u32::from(index));
    REGISTERS.write32(0x10, value);
}

/// Inputs.
#[must_use]
pub fn inputs() -> u8 {
    (read(1) >> 16 & 0xFF) as u8 + 1
}

/// The redirection entry of `input`.
#[must_use]
pub fn entry(input: u8) -> u64 {
    u64::from(read(0x11 + 2 * input)) << 32 | u64::from(read(0x10 + 2 * input))
}

/// Sets the redirection entry of `input`.
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
pub fn set_entry(input: u8, entry: u64) {
    write(0x10 + 2 * input, read(0x10 + 2 * input) | MASKED as u32);
    write(0x11 + 2 * input, (entry >> 32) as u32);
    write(0x10 + 2 * input, entry as u32);
}
