//! The 8254 interval timer. Data sheet: Intel 8254, "Programming the 8254".

use crate::port;

/// Input clock in hertz.
pub const HERTZ: u64 = 1_193_182;
const CHANNEL0: u16 = 0x40;
const CHANNEL2: u16 = 0x42;
const CONTROL: u16 = 0x43;
const SPEAKER: u16 = 0x61;

/// Starts channel 0 in `mode` (0 one-shot, 2 rate, 3 square wave) with `count` (0 is 65536).
pub fn start(mode: u8, count: u16) {
    let [low, high] = count.to_le_bytes();
    port::write8(CONTROL, 0x30 | mode << 1);
    port::write8(CHANNEL0, low);
    port::write8(CHANNEL0, high);
}

/// Count of channel 0, latched.
#[must_use]
pub fn count() -> u16 {
    port::write8(CONTROL, 0x00);
    u16::from_le_bytes([port::read8(CHANNEL0), port::read8(CHANNEL0)])
}

/// Starts channel 2 counting down from `count` (mode 0), gate on, speaker off.
pub fn start_channel2(count: u16) {
    let [low, high] = count.to_le_bytes();
    port::write8(SPEAKER, port::read8(SPEAKER) & 0xFC | 1);
    port::write8(CONTROL, 0xB0);
    port::write8(CHANNEL2, low);
    port::write8(CHANNEL2, high);
}

/// Whether channel 2 has run out (its output is high).
#[must_use]
pub fn channel2_done() -> bool {
    port::read8(SPEAKER) & 0x20 != 0
}

/// Read-back of channel 0: status byte (bit 7 output, 6 null count, 5-4 access, 3-1 mode, 0 BCD).
#[must_use]
pub fn status() -> u8 {
    port::write8(CONTROL, 0xE2);
    port::read8(CHANNEL0)
}
