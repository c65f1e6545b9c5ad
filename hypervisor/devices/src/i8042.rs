//! Keyboard controller: an 8042 with nothing plugged in, at ports 0x60 and 0x64.
//!
//! Data sheet: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
//!
//! Emulated: the controller's own commands, so that a system's probe gets answers at once instead of waiting: self-test,
//! command byte, port tests, output port, and the reset pulse. What is sent to a device is answered as by the controller
//! when none is there: time-out, resend.
//!
//! Not emulated: keyboard and mouse, and so interrupts; the A20 gate (always open). The FADT says that there is no 8042,
//! because nobody should look for a keyboard; the reset pulse is what this is here for.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | send any command | it gets at most one byte, or resets itself |

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SELF_TEST: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUXILIARY: u8 = 1 << 5;
const STATUS_TIMEOUT: u8 = 1 << 6;

/// Command byte: the keyboard's clock is off.
const KEYBOARD_OFF: u8 = 1 << 4;
/// Command byte: the auxiliary device's clock is off.
const AUXILIARY_OFF: u8 = 1 << 5;
/// Command byte: the self-test has passed, as in the status.
const SYSTEM: u8 = 1 << 2;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_PASSED: u8 = 0x00;
/// The auxiliary port's test: clock line stuck high. There is no such port.
const PORT_TEST_FAILED: u8 = 0x02;
const RESEND: u8 = 0xFE;
/// Output port: not in reset, A20 open.
const OUTPUT_PORT: u8 = 0x03;
const NOT_RESET: u8 = 1 << 0;
/// Input port: keyboard not locked.
const INPUT_PORT: u8 = 0x80;

/// The controller.
#[derive(Clone, Copy, Debug)]
pub struct KeyboardController {
    command_byte: u8,
    /// The command whose data byte is awaited.
    pending: Option<u8>,
    output: Option<u8>,
    /// Status bits that came with the output, and whether the last write was a command.
    status: u8,
}

impl KeyboardController {
    /// After reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { command_byte: KEYBOARD_OFF | AUXILIARY_OFF | SYSTEM, pending: None, output: None, status: 0 }
    }

    /// Reads port 0x64.
    #[must_use]
    pub const fn read_status(&self) -> u8 {
        let full = if self.output.is_some() { STATUS_OUTPUT_FULL } else { 0 };
        self.status | full | STATUS_UNLOCKED | self.command_byte & STATUS_SELF_TEST
    }

    /// Reads port 0x60: zero if there is nothing to read.
    pub fn read_data(&mut self) -> u8 {
        self.status &= STATUS_COMMAND;
        self.output.take().unwrap_or(0)
    }

    /// Writes port 0x64; `true`: the machine is to be reset.
    #[must_use]
    pub const fn write_command(&mut self, command: u8) -> bool {
        self.status |= STATUS_COMMAND;
        self.pending = None;
        match command {
            0x20..=0x3F => self.answer(self.command_byte, 0),
            0xA9 => self.answer(PORT_TEST_FAILED, 0),
            0xAA => {
                self.command_byte |= SYSTEM;
                self.answer(SELF_TEST_PASSED, 0);
            }
            0xAB => self.answer(PORT_TEST_PASSED, 0),
            0xAD => self.command_byte |= KEYBOARD_OFF,
            0xAE => self.command_byte &= !KEYBOARD_OFF,
            0xC0 => self.answer(INPUT_PORT, 0),
            0xD0 => self.answer(OUTPUT_PORT, 0),
            0x60..=0x7F | 0xD1..=0xD4 => self.pending = Some(command),
            // Pulses the output port's bits that are zero; bit 0 is the processor's reset.
            0xF0..=0xFF => return command & NOT_RESET == 0,
            _ => {}
        }
        false
    }

    /// Writes port 0x60; `true`: the machine is to be reset.
    #[must_use]
    pub fn write_data(&mut self, value: u8) -> bool {
        self.status &= !STATUS_COMMAND;
        match self.pending.take() {
            Some(0x60..=0x7F) => self.command_byte = value | AUXILIARY_OFF,
            Some(0xD1) => return value & NOT_RESET == 0,
            Some(0xD2) => self.answer(value, 0),
            Some(0xD3) => self.answer(value, STATUS_AUXILIARY),
            Some(0xD4) => self.answer(RESEND, STATUS_AUXILIARY | STATUS_TIMEOUT),
            _ => self.answer(RESEND, STATUS_TIMEOUT),
        }
        false
    }

    const fn answer(&mut self, value: u8, status: u8) {
        self.output = Some(value);
        self.status = self.status & STATUS_COMMAND | status;
    }
}

impl Default for KeyboardController {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::KeyboardController;

    fn ask(controller: &mut KeyboardController, command: u8) -> u8 {
        assert!(!controller.write_command(command));
        assert_eq!(controller.read_status() & 0x03, 1, "an answer, and ready for more");
        controller.read_data()
    }

    #[test]
    fn controller_commands_are_answered_at_once() {
        let mut controller = KeyboardController::new();
        assert_eq!(controller.read_status(), 0x14);
        assert_eq!(ask(&mut controller, 0xAA), 0x55);
        assert_eq!(ask(&mut controller, 0xAB), 0);
        assert_ne!(ask(&mut controller, 0xA9), 0, "no auxiliary port");
        assert_eq!(ask(&mut controller, 0xD0), 0x03);
        assert_eq!(controller.read_status() & 1, 0);
    }

    #[test]
    fn command_byte() {
        let mut controller = KeyboardController::new();
        assert!(!controller.write_command(0x60));
        assert!(!controller.write_data(0x47));
        assert_eq!(ask(&mut controller, 0x20), 0x67, "there is no auxiliary device to switch on");
        assert!(!controller.write_command(0xAD));
        assert_eq!(ask(&mut controller, 0x20), 0x77);
        assert!(!controller.write_command(0xAE));
        assert_eq!(ask(&mut controller, 0x20), 0x67);
    }

    #[test]
    fn no_device_answers() {
        let mut controller = KeyboardController::new();
        assert!(!controller.write_data(0xF2));
        assert_eq!(controller.read_status() & 0x61, 0x41);
        assert_eq!(controller.read_data(), 0xFE);
        assert!(!controller.write_command(0xD4));
        assert!(!controller.write_data(0xF2));
        assert_eq!(controller.read_status() & 0x61, 0x61);
    }

    #[test]
    fn resets() {
        let mut controller = KeyboardController::new();
        assert!(controller.write_command(0xFE));
        assert!(!controller.write_command(0xFF));
        assert!(!controller.write_command(0xD1));
        assert!(!controller.write_data(0xDF));
        assert!(!controller.write_command(0xD1));
        assert!(controller.write_data(0xDE));
    }
}
