//! ACPI fixed hardware: PM1 event and control blocks, and the power-management timer.
//!
//! ACPI specification 6.5, sections 4.8.2.2.1.1 "Fixed Power Button", 4.8.3.1 "PM1 Event Grouping", 4.8.3.2 "PM1 Control
//! Grouping", 4.8.3.3 "Power Management Timer" and 7.4.2 "System \_Sx States".
//!
//! Emulated: the status and enable registers with two sources of events, the timer's carry and the power button; the control
//! register with the change to S5; and the timer with 32 bits. The machine is always in ACPI mode: there is no SMI. The
//! button is pressed where the system listens to it, and nowhere else: a press that nobody hears is not kept for later. Held
//! for four seconds it would end the machine; nobody holds it.
//!
//! Not emulated: the sleep button, wake-up, sleep states other than S5, general-purpose events, bus mastering status.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | write any sleep type | S5 ends its machine, all others do nothing |
//! | enable any event | only the timer has one, every 10 minutes, and the button, when the operator presses it |
//! | leave the button's status set | its own interrupt stays up; presses are not counted, and nothing waits for it |

use crate::bits::low_u32;
use bulkhead_types::{Frequency, Ticks, Width};

/// Rate of the timer in hertz.
pub const PM_TIMER: Frequency = Frequency::hertz(3_579_545);
/// Sleep type that the DSDT's `\_S5` names.
pub const SLEEP_TYPE_S5: u8 = 5;

const TIMER_EVENT: u16 = 1 << 0;
const BUTTON_EVENT: u16 = 1 << 8;
/// TMR, GBL, power button, sleep button, RTC, PCIe wake disable.
const ENABLE_MASK: u16 = 0x4721;
const SCI_ENABLED: u16 = 1 << 0;
/// BM_RLD and SLP_TYP stay as they are written.
const CONTROL_MASK: u16 = 0x1C02;
/// In the high byte of the control register.
const SLEEP_ENABLE: u8 = 1 << 5;

/// The 16-byte register block at [`crate::layout::ACPI_PM`].
#[derive(Clone, Debug)]
pub struct PowerManagement {
    tsc: Frequency,
    status: u16,
    enable: u16,
    control: u16,
    /// Times that the timer's top bit has changed, as far as the status knows.
    carries: u64,
    power_off: bool,
}

impl PowerManagement {
    /// The block after reset, for a guest whose time-stamp counter runs at `tsc`.
    #[must_use]
    pub const fn new(tsc: Frequency) -> Self {
        Self { tsc, status: 0, enable: 0, control: SCI_ENABLED, carries: 0, power_off: false }
    }

    /// Reads `width` bytes at `offset` (0 to 15). What reaches past a 32-bit register reads as zero there.
    pub fn read(&mut self, offset: u8, width: Width, now: Ticks) -> u32 {
        let register = match offset & 0xC {
            0 => {
                self.advance(now);
                u32::from(self.status) | u32::from(self.enable) << 16
            }
            4 => u32::from(self.control),
            8 => self.timer(now),
            _ => 0,
        };
        register >> (u32::from(offset & 3) * 8) & low_u32(width.mask())
    }

    /// Writes one byte at `offset` (0 to 15).
    pub fn write(&mut self, offset: u8, value: u8, now: Ticks) {
        self.advance(now);
        let low = u16::from(value);
        match offset {
            0 => self.status &= !low,
            1 => self.status &= !(low << 8),
            2 => self.enable = (self.enable & 0xFF00 | low) & ENABLE_MASK,
            3 => self.enable = (self.enable & 0x00FF | low << 8) & ENABLE_MASK,
            4 => self.control = (self.control & 0xFF00 | low) & CONTROL_MASK | SCI_ENABLED,
            5 => {
                self.control = (self.control & 0x00FF | low << 8) & CONTROL_MASK | SCI_ENABLED;
                self.power_off |= value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5;
            }
            _ => {}
        }
    }

    /// The timer's count.
    #[must_use]
    pub const fn timer(&self, now: Ticks) -> u32 {
        low_u32(self.tsc.convert(now.as_u64(), PM_TIMER))
    }

    /// Notices carries up to `now`.
    pub fn advance(&mut self, now: Ticks) {
        let carries = self.tsc.convert(now.as_u64(), PM_TIMER) >> 31;
        if carries > self.carries {
            self.carries = carries;
            self.status |= TIMER_EVENT;
        }
    }

    /// When [`PowerManagement::advance`] can change [`PowerManagement::line`] next.
    #[must_use]
    pub const fn deadline(&self) -> Option<Ticks> {
        if self.enable & TIMER_EVENT == 0 || self.status & TIMER_EVENT != 0 {
            return None;
        }
        Some(Ticks::new(self.tsc.count_at(self.carries.saturating_add(1) << 31, PM_TIMER)))
    }

    /// Level of the system control interrupt.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.status & self.enable & (TIMER_EVENT | BUTTON_EVENT) != 0
    }

    /// Presses the power button; `false`, and nothing is done, if its event is not enabled.
    pub const fn press(&mut self) -> bool {
        let heard = self.enable & BUTTON_EVENT != 0;
        if heard {
            self.status |= BUTTON_EVENT;
        }
        heard
    }

    /// Whether the guest has gone to S5, once.
    pub const fn take_power_off(&mut self) -> bool {
        core::mem::replace(&mut self.power_off, false)
    }
}

#[cfg(test)]
mod tests {
    use super::PowerManagement;
    use bulkhead_types::{Frequency, Ticks, Width};

    const HZ: u64 = 10_000_000;

    fn block() -> PowerManagement {
        PowerManagement::new(Frequency::hertz(HZ))
    }

    #[test]
    fn timer_runs_at_its_rate_and_wraps() {
        let mut pm = block();
        assert_eq!(pm.read(8, Width::Dword, Ticks::ZERO), 0);
        assert_eq!(pm.read(8, Width::Dword, Ticks::new(HZ)), 3_579_545);
        let wrap = Frequency::hertz(HZ).count_at(1 << 32, super::PM_TIMER);
        assert_eq!(pm.read(8, Width::Dword, Ticks::new(wrap - 1)), u32::MAX);
        assert_eq!(pm.read(8, Width::Dword, Ticks::new(wrap)), 0);
        assert_eq!(pm.read(9, Width::Byte, Ticks::new(HZ)), 3_579_545 >> 8 & 0xFF);
    }

    #[test]
    fn carry_of_the_timer_is_an_event() {
        let mut pm = block();
        assert_eq!(pm.deadline(), None);
        pm.write(2, 1, Ticks::ZERO);
        let due = pm.deadline().unwrap();
        assert_eq!(due.as_u64(), Frequency::hertz(HZ).count_at(1 << 31, super::PM_TIMER));
        pm.advance(Ticks::new(due.as_u64() - 1));
        assert!(!pm.line());
        pm.advance(due);
        assert!(pm.line());
        assert_eq!(pm.deadline(), None, "nothing more can happen until it is cleared");
        assert_eq!(pm.read(0, Width::Word, due), 1);
        pm.write(0, 1, due);
        assert!(!pm.line());
        assert_eq!(pm.deadline().unwrap().as_u64(), Frequency::hertz(HZ).count_at(2 << 31, super::PM_TIMER));
    }

    #[test]
    fn button_is_heard_where_it_is_enabled() {
        let mut pm = block();
        assert!(!pm.press(), "nobody listens");
        pm.write(3, 1, Ticks::ZERO);
        assert!(!pm.line(), "and nothing was kept");
        assert!(pm.press() && pm.press());
        assert_eq!((pm.line(), pm.read(0, Width::Dword, Ticks::ZERO)), (true, 0x0100_0100));
        pm.write(3, 0, Ticks::ZERO);
        assert!(!pm.line() && !pm.press(), "a disabled one is quiet, and keeps its status");
        pm.write(3, 1, Ticks::ZERO);
        assert!(pm.line());
        pm.write(0, 0xFF, Ticks::ZERO);
        assert!(pm.line(), "the low byte is not its status");
        pm.write(1, 1, Ticks::ZERO);
        assert!(!pm.line(), "one clears however many presses");
        assert_eq!(pm.read(0, Width::Word, Ticks::ZERO), 0);
    }

    #[test]
    fn sci_is_always_enabled() {
        let mut pm = block();
        pm.write(4, 0, Ticks::ZERO);
        assert_eq!(pm.read(4, Width::Word, Ticks::ZERO), 1);
    }

    #[test]
    fn sleep_type_five_powers_off() {
        let mut pm = block();
        for (value, off) in [(5 << 2, false), (1 << 5 | 1 << 2, false), (1 << 5 | 5 << 2, true)] {
            pm.write(5, value, Ticks::ZERO);
            assert_eq!(pm.take_power_off(), off, "{value:#x}");
        }
        assert_eq!(pm.read(4, Width::Word, Ticks::ZERO), 5 << 10 | 1, "the enable bit reads as zero");
        assert!(!pm.take_power_off());
    }

    #[test]
    fn reserved_bits_do_not_stick() {
        let mut pm = block();
        for offset in 0..16 {
            pm.write(offset, 0xDF, Ticks::ZERO);
        }
        assert_eq!(pm.read(0, Width::Dword, Ticks::ZERO), 0x4701_0000);
    }
}
