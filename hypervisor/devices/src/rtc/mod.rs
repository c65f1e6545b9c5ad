//! Real-time clock and CMOS memory: the MC146818, at ports 0x70 and 0x71.
//!
//! Data sheet: Motorola MC146818A "Real-Time Clock Plus RAM", 1984, sections "Time, Calendar, and Alarm Locations",
//! "Interrupts", "Divider Stages", "Update Cycle" and "Registers". The memory bytes' use: that of PC firmware.
//!
//! Emulated: date and time in binary and BCD, 12 and 24 hours, computed from the guest's one clock; SET, the divider
//! reset (the first update comes half a second after it ends), UIP for the 244 microseconds before each update; update,
//! alarm (with "don't care") and periodic interrupts; 114 bytes of memory. Index 0x32 is the century, in the format of
//! the year.
//!
//! Not emulated: daylight saving time, the square-wave output, other crystals, setting the day of the week (it follows
//! from the date), and NMIs to mask by bit 7 of the index port. An update takes no time.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | ask for interrupts at 8 kHz | the next one is due only once it has read register C |
//! | write impossible dates and alarms | dates count on into the next month; such an alarm never comes |
//! | let years pass unserved | flags are set in one step, however many updates were missed |

mod calendar;

use bulkhead_types::{Frequency, Ticks};
use calendar::Moment;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0A;
const REGISTER_B: u8 = 0x0B;
const REGISTER_C: u8 = 0x0C;
const REGISTER_D: u8 = 0x0D;
const CENTURY: u8 = 0x32;
/// What the clock itself keeps up to date.
const CLOCK_REGISTERS: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

const A_UPDATING: u8 = 1 << 7;
/// Both upper divider bits: the divider is held in reset.
const A_RESET: u8 = 0b11 << 5;
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Flags of register C are at the places of their enable bits in register B.
const C_REQUEST: u8 = 1 << 7;
const D_VALID: u8 = 1 << 7;
/// Bit 7 of the hours in 12-hour mode.
const PM: u8 = 1 << 7;
/// Alarm bytes from this on match anything.
const ANY: u8 = 0xC0;

/// The clock and its memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    tsc: Frequency,
    index: u8,
    ram: [u8; 128],
    flags: u8,
    /// When the divider began to count; whole seconds from there on are updates.
    origin: Ticks,
    /// Seconds since 1970 at `origin`.
    base: i64,
    /// Updates since `origin` that the flags know of.
    updates: u64,
    /// Periodic ticks since `origin` that the flags know of.
    periods: u64,
    deadline: Option<Ticks>,
}

impl Rtc {
    /// The clock as firmware leaves it (BCD, 24 hours, 1,024 Hz chosen, no interrupt enabled), `wall_clock` seconds after
    /// 1970 at [`Ticks::ZERO`], in a machine with `memory` bytes of RAM.
    #[must_use]
    pub fn new(tsc: Frequency, wall_clock: u64, memory: u64) -> Self {
        let mut clock = Self {
            tsc,
            index: 0,
            ram: [0; 128],
            flags: 0,
            origin: Ticks::ZERO,
            // 292 billion years are enough; the calendar needs room to compute.
            base: i64::try_from(wall_clock).unwrap_or(0).min(i64::MAX / 4),
            updates: 0,
            periods: 0,
            deadline: None,
        };
        clock.set(REGISTER_A, 0x26);
        clock.set(REGISTER_B, B_24_HOURS);
        clock.describe_memory(memory);
        clock
    }

    /// Reads port 0x71. (Port 0x70 can not be read.)
    pub fn read(&mut self, now: Ticks) -> u8 {
        match self.index {
            REGISTER_A => self.get(REGISTER_A) | if self.is_updating(now) { A_UPDATING } else { 0 },
            REGISTER_C => {
                self.settle(now);
                let value = self.flags | if self.line() { C_REQUEST } else { 0 };
                self.flags = 0;
                self.arm();
                value
            }
            REGISTER_D => D_VALID,
            index if CLOCK_REGISTERS.contains(&index) && self.runs() => self.encoded(index, self.moment(now)),
            index => self.get(index),
        }
    }

    /// Writes port 0x70: chooses the byte that port 0x71 is.
    pub const fn select(&mut self, index: u8) {
        self.index = index & 0x7F;
    }

    /// Writes port 0x71.
    pub fn write(&mut self, value: u8, now: Ticks) {
        self.settle(now);
        match self.index {
            REGISTER_A => self.write_a(value, now),
            REGISTER_B => self.write_b(value, now),
            REGISTER_C | REGISTER_D => {}
            index if CLOCK_REGISTERS.contains(&index) && self.runs() => {
                self.hold(now);
                self.set(index, value);
                self.release(now);
            }
            index => self.set(index, value),
        }
        self.arm();
    }

    /// Sets the flags for all that happened up to `now`.
    pub fn advance(&mut self, now: Ticks) {
        self.settle(now);
        self.arm();
    }

    /// When [`Rtc::advance`] can change [`Rtc::line`] next.
    #[must_use]
    pub const fn deadline(&self) -> Option<Ticks> {
        self.deadline
    }

    /// Level of the interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        self.flags & self.get(REGISTER_B) != 0
    }

    fn get(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn set(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// What PC firmware stores about the RAM, for systems that look for it here.
    fn describe_memory(&mut self, memory: u64) {
        const MIB: u64 = 1 << 20;
        let [_, below, above] = crate::layout::ram_ranges(memory);
        let below = below.start.as_u64().saturating_add(below.bytes);
        let kib = |bytes: u64| u16::try_from(bytes >> 10).unwrap_or(u16::MAX);
        let above_16m = u16::try_from(below.saturating_sub(16 * MIB) >> 16).unwrap_or(u16::MAX);
        let [a, b, c, ..] = (above.bytes >> 16).to_le_bytes();
        for (index, value) in [(0x15, 640), (0x17, kib(below.saturating_sub(MIB))), (0x34, above_16m)] {
            let [low, high] = value.to_le_bytes();
            self.set(index, low);
            self.set(index + 1, high);
        }
        self.set(0x30, self.get(0x17));
        self.set(0x31, self.get(0x18));
        self.set(0x5B, a);
        self.set(0x5C, b);
        self.set(0x5D, c);
    }

    fn divider_runs(&self) -> bool {
        self.get(REGISTER_A) & A_RESET != A_RESET
    }

    /// Whether time advances: neither SET nor the divider reset holds it.
    fn runs(&self) -> bool {
        self.divider_runs() && self.get(REGISTER_B) & B_SET == 0
    }

    /// Whole seconds since `origin`.
    fn seconds(&self, now: Ticks) -> u64 {
        now.since(self.origin) / self.tsc.as_hertz()
    }

    fn time_after(&self, updates: u64) -> i64 {
        self.base.saturating_add(i64::try_from(updates).unwrap_or(i64::MAX)).min(i64::MAX / 2)
    }

    fn moment(&self, now: Ticks) -> Moment {
        Moment::from_seconds(self.time_after(self.seconds(now)))
    }

    /// "Update Cycle": UIP rises 244 microseconds, a 4096th of a second, before it.
    fn is_updating(&self, now: Ticks) -> bool {
        let hertz = self.tsc.as_hertz();
        self.runs() && now.since(self.origin) % hertz >= hertz - hertz / 4096
    }

    /// Rate of the periodic interrupt, unless it is off.
    fn rate(&self) -> Option<Frequency> {
        let hertz = match self.get(REGISTER_A) & 0xF {
            0 => return None,
            1 => 256,
            2 => 128,
            select => 32_768 >> (select - 1),
        };
        self.divider_runs().then_some(Frequency::hertz(hertz))
    }

    fn periods_at(&self, now: Ticks) -> u64 {
        self.rate().map_or(0, |rate| self.tsc.convert(now.since(self.origin), rate))
    }

    fn settle(&mut self, now: Ticks) {
        let periods = self.periods_at(now);
        if periods > self.periods {
            self.periods = periods;
            self.flags |= B_PERIODIC;
        }
        let updates = if self.runs() { self.seconds(now) } else { 0 };
        if updates > self.updates {
            self.flags |= B_UPDATE;
            let first = self.time_after(self.updates.saturating_add(1));
            if self.next_alarm(first).is_some_and(|alarm| alarm <= self.time_after(updates)) {
                self.flags |= B_ALARM;
            }
            self.updates = updates;
        }
    }

    /// Computes the deadline. An interrupt that is already requested has none: nothing new can be seen on the line.
    fn arm(&mut self) {
        let wanted = self.get(REGISTER_B) & !self.flags;
        let hertz = self.tsc.as_hertz();
        let update = |count: u64| self.origin.after(count.saturating_mul(hertz));
        let mut earliest = None;
        let mut due = |at: Ticks| earliest = Some(earliest.map_or(at, |other: Ticks| other.min(at)));
        if let Some(rate) = self.rate().filter(|_| wanted & B_PERIODIC != 0) {
            due(self.origin.after(self.tsc.count_at(self.periods.saturating_add(1), rate)));
        }
        if self.runs() && wanted & B_UPDATE != 0 {
            due(update(self.updates.saturating_add(1)));
        }
        if self.runs()
            && wanted & B_ALARM != 0
            && let Some(alarm) = self.next_alarm(self.time_after(self.updates.saturating_add(1)))
        {
            due(update(u64::try_from(alarm.saturating_sub(self.base)).unwrap_or(0)));
        }
        self.deadline = earliest.filter(|_| !self.line());
    }

    fn write_a(&mut self, value: u8, now: Ticks) {
        let (ran, divided) = (self.runs(), self.divider_runs());
        self.set(REGISTER_A, value & !A_UPDATING);
        if ran && !self.runs() {
            self.hold(now);
        }
        if !divided && self.divider_runs() {
            // "Divider Stages": the first update comes half a second after the reset ends.
            self.origin = Ticks::new(now.as_u64().saturating_sub(self.tsc.as_hertz() / 2));
        }
        self.periods = self.periods_at(now);
        if !ran && self.runs() {
            self.release(now);
        }
    }

    fn write_b(&mut self, value: u8, now: Ticks) {
        let ran = self.runs();
        if ran && value & B_SET != 0 {
            self.hold(now);
        }
        // Setting SET clears the update interrupt's enable bit.
        self.set(REGISTER_B, if value & B_SET != 0 { value & !B_UPDATE } else { value });
        if !ran && self.runs() {
            self.release(now);
        }
    }

    /// Puts the time into its registers, where it stays.
    fn hold(&mut self, now: Ticks) {
        let moment = self.moment(now);
        for index in CLOCK_REGISTERS {
            self.set(index, self.encoded(index, moment));
        }
    }

    /// Goes on from what the registers say.
    fn release(&mut self, now: Ticks) {
        let field = |index| self.decoded(self.get(index));
        let hour = self.hour(self.get(HOURS));
        let written = Moment {
            year: field(CENTURY) * 100 + field(YEAR),
            month: field(MONTH),
            day: field(DAY),
            hour,
            minute: field(MINUTES),
            second: field(SECONDS),
            weekday: 1,
        };
        self.updates = self.seconds(now);
        self.base = written.to_seconds().saturating_sub(i64::try_from(self.updates).unwrap_or(i64::MAX));
    }

    fn encoded(&self, index: u8, moment: Moment) -> u8 {
        let value = match index {
            SECONDS => moment.second,
            MINUTES => moment.minute,
            HOURS if self.get(REGISTER_B) & B_24_HOURS == 0 => (moment.hour + 11) % 12 + 1,
            HOURS => moment.hour,
            WEEKDAY => moment.weekday,
            DAY => moment.day,
            MONTH => moment.month,
            YEAR => moment.year % 100,
            _ => moment.year / 100,
        };
        let binary = u8::try_from(value).unwrap_or(0);
        let byte = if self.get(REGISTER_B) & B_BINARY != 0 { binary } else { ((binary / 10) << 4) | (binary % 10) };
        let afternoon = index == HOURS && self.get(REGISTER_B) & B_24_HOURS == 0 && moment.hour >= 12;
        byte | if afternoon { PM } else { 0 }
    }

    fn decoded(&self, byte: u8) -> i64 {
        i64::from(if self.get(REGISTER_B) & B_BINARY != 0 { byte } else { (byte >> 4) * 10 + (byte & 0xF) })
    }

    fn hour(&self, byte: u8) -> i64 {
        if self.get(REGISTER_B) & B_24_HOURS != 0 {
            return self.decoded(byte);
        }
        self.decoded(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// The first second from `from` on that the alarm bytes match, within a day.
    fn next_alarm(&self, from: i64) -> Option<i64> {
        let byte = |index| Some(self.get(index)).filter(|&byte| byte < ANY);
        // Place and length of each field within the next larger one, in seconds.
        let fields = [
            (byte(HOURS_ALARM).map(|byte| self.hour(byte)), 3600, 24),
            (byte(MINUTES_ALARM).map(|byte| self.decoded(byte)), 60, 60),
            (byte(SECONDS_ALARM).map(|byte| self.decoded(byte)), 1, 60),
        ];
        if fields.iter().any(|&(value, _, range)| value.is_some_and(|value| value >= range)) {
            return None;
        }
        let mut at = from;
        // Each step ends at a field's next match; the hours' may be passed by twice.
        for _ in 0..8 {
            let mismatch = fields.into_iter().find_map(|(value, unit, range)| {
                let wanted = value? * unit;
                let place = at.rem_euclid(unit * range);
                (place - place % unit != wanted).then(|| (wanted - place).rem_euclid(unit * range))
            });
            match mismatch {
                Some(wait) => at = at.saturating_add(wait),
                None => return Some(at),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
