//! Reset control: port 0xCF9, and system control port A at 0x92.
//!
//! Data sheet: Intel 82371AB (PIIX4), order 290562, section 4.3.4 "RC: Reset Control Register"; IBM PS/2 Hardware
//! Interface Technical Reference, "System Control Port A".
//!
//! Emulated: a write to 0xCF9 with RCPU set resets (the bit is never left set, so each such write is a rise); so does a
//! rise of port A's bit 0. Both resets are the same one.
//!
//! Not emulated: the A20 gate. Address line 20 is always open, and port A says so, whatever is written.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | write anything | it resets itself at most |

const RESET_CPU: u8 = 1 << 2;
const RESET_KIND: u8 = 1 << 1;
const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// The two registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResetControl {
    kind: u8,
    port_a: u8,
}

impl ResetControl {
    /// After reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { kind: 0, port_a: 0 }
    }

    /// Reads port 0xCF9.
    #[must_use]
    pub const fn read(&self) -> u8 {
        self.kind
    }

    /// Writes port 0xCF9; `true`: the machine is to be reset.
    #[must_use]
    pub const fn write(&mut self, value: u8) -> bool {
        self.kind = value & RESET_KIND;
        value & RESET_CPU != 0
    }

    /// Reads port 0x92.
    #[must_use]
    pub const fn read_port_a(&self) -> u8 {
        self.port_a | A20
    }

    /// Writes port 0x92; `true`: the machine is to be reset.
    #[must_use]
    pub const fn write_port_a(&mut self, value: u8) -> bool {
        let risen = value & !self.port_a & FAST_RESET != 0;
        self.port_a = value;
        risen
    }
}

#[cfg(test)]
mod tests {
    use super::ResetControl;

    #[test]
    fn reset_control_register() {
        let mut reset = ResetControl::new();
        assert!(!reset.write(0x02));
        assert_eq!(reset.read(), 0x02);
        assert!(reset.write(0x06));
        assert_eq!(reset.read(), 0x02);
        assert!(reset.write(0x06), "the FADT's value resets at once");
    }

    #[test]
    fn fast_reset_of_port_a() {
        let mut reset = ResetControl::new();
        assert_eq!(reset.read_port_a(), 0x02);
        assert!(!reset.write_port_a(0x00));
        assert_eq!(reset.read_port_a(), 0x02, "A20 stays open");
        assert!(reset.write_port_a(0x03));
        assert!(!reset.write_port_a(0x03), "only a rise");
    }
}
