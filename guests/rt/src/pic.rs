//! The two 8259A interrupt controllers. Data sheet: Intel 8259A, "Programming the 8259A".

use crate::port;

const COMMAND: [u16; 2] = [0x20, 0xA0];
const DATA: [u16; 2] = [0x21, 0xA1];

/// Initializes both (edge-triggered, cascaded, 8086 mode) with IRQ 0 at `vector` (a multiple of 8), all lines masked.
pub fn init(vector: u8) {
    for (chip, (offset, cascade)) in [(vector, 4), (vector + 8, 2)].into_iter().enumerate() {
        port::write8(COMMAND[chip], 0x11);
        port::write8(DATA[chip], offset);
        port::write8(DATA[chip], cascade);
        port::write8(DATA[chip], 0x01);
        port::write8(DATA[chip], 0xFF);
    }
}

/// Sets the masks: bit n keeps IRQ n out.
pub fn set_mask(mask: u16) {
    let [low, high] = mask.to_le_bytes();
    port::write8(DATA[0], low);
    port::write8(DATA[1], high);
}

/// The masks.
#[must_use]
pub fn mask() -> u16 {
    u16::from_le_bytes(DATA.map(port::read8))
}

/// Interrupt request registers of both chips.
#[must_use]
pub fn requests() -> u16 {
    read(0x0A)
}

/// In-service registers of both chips.
#[must_use]
pub fn in_service() -> u16 {
    read(0x0B)
}

fn read(register: u8) -> u16 {
    u16::from_le_bytes(COMMAND.map(|chip| {
        port::write8(chip, register);
        port::read8(chip)
    }))
}

/// Non-specific end of interrupt for `irq`.
pub fn end_of_interrupt(irq: u8) {
    if irq >= 8 {
        port::write8(COMMAND[1], 0x20);
    }
    port::write8(COMMAND[0], 0x20);
}
