//! Interval timer: the 8254 PIT, with the PC's port 0x61 beside it.
//!
//! Data sheet: Intel 82C54 "CHMOS Programmable Interval Timer", order 231244-006, sections "Programming the 82C54",
//! "Write Operations", "Read Operations" and "Mode Definitions".
//!
//! Emulated: three counters in all six modes, binary and BCD, the three access modes, counter latch and read-back, the
//! gate of counter 2 and the status bits at port 0x61. Everything is computed from the guest's one clock when it is
//! looked at, exactly: nothing ticks in between.
//!
//! Not emulated: the speaker's sound; counter 1 refreshes nothing (port 0x61 bit 4 toggles every 18 clocks, as if it did).
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | program counter 0 to tiny periods | edges closer than [`MIN_PERIOD`] clocks are left out; all at once make one |
//! | let time pass without serving edges | any number of missed edges is one edge, in one step |
//! | use counts that are illegal | 1 acts as 2 in modes 2 and 3; BCD digits above 9 count as they are |

mod counter;

use crate::bits::low_u8;
use bulkhead_types::{Frequency, Ticks};
use counter::{Access, Counter};

/// Rate of the timer's clock input in hertz.
pub const PIT_CLOCK: Frequency = Frequency::hertz(1_193_182);
/// Fewest clocks between two edges of counter 0 that reach the interrupt line (100 microseconds). A shorter period is
/// multiplied until it is long enough; what the guest reads from the counter is not affected.
pub const MIN_PERIOD: u64 = 119;

/// Where the clock starts to count: late enough that nothing is ever computed to be before zero.
const CLOCK_START: u64 = 1 << 20;
/// Clocks of half a refresh cycle.
const REFRESH: u64 = 18;

const SPEAKER_GATE: u8 = 1 << 0;
const SPEAKER_MASK: u8 = 0x0F;
const SPEAKER_REFRESH: u8 = 1 << 4;
const SPEAKER_OUT2: u8 = 1 << 5;

/// The timer and port 0x61.
#[derive(Clone, Debug)]
pub struct Pit {
    tsc: Frequency,
    counters: [Counter; 3],
    /// Clock up to which edges of counter 0 were looked for.
    seen: u64,
    /// There was one that nobody has taken.
    risen: bool,
    deadline: Option<Ticks>,
    port_61: u8,
}

impl Pit {
    /// The timer as the firmware would leave it, for a guest whose time-stamp counter runs at `tsc`: no counter runs.
    #[must_use]
    pub const fn new(tsc: Frequency) -> Self {
        Self {
            tsc,
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            seen: CLOCK_START,
            risen: false,
            deadline: None,
            port_61: 0,
        }
    }

    /// Reads port 0x40 + `offset` (0 to 3).
    pub fn read(&mut self, offset: u8, now: Ticks) -> u8 {
        let clock = self.catch_up(now);
        match self.counters.get_mut(usize::from(offset & 3)) {
            Some(counter) => counter.read(clock),
            // The control word can not be read: nothing drives the bus.
            None => 0xFF,
        }
    }

    /// Writes port 0x40 + `offset` (0 to 3). Whether it has programmed counter 0, so that [`Pit::line`] may have changed.
    pub fn write(&mut self, offset: u8, value: u8, now: Ticks) -> bool {
        let clock = self.catch_up(now);
        match self.counters.get_mut(usize::from(offset & 3)) {
            Some(counter) => counter.write(value, clock),
            None => self.control(value, clock),
        }
        self.arm();
        // Not so counter latch commands, of which the low four bits do not count.
        offset & 3 == 0 || offset & 3 == 3 && (0x10..0x40).contains(&value)
    }

    /// Reads port 0x61.
    pub fn read_port_61(&mut self, now: Ticks) -> u8 {
        let clock = self.clock(now);
        let [_, _, speaker] = &mut self.counters;
        let mut value = self.port_61;
        if (clock / REFRESH) & 1 != 0 {
            value |= SPEAKER_REFRESH;
        }
        if speaker.output(clock) {
            value |= SPEAKER_OUT2;
        }
        value
    }

    /// Writes port 0x61: counter 2's gate, speaker data, and the two enable bits for NMIs that never come.
    pub fn write_port_61(&mut self, value: u8, now: Ticks) {
        let clock = self.clock(now);
        self.port_61 = value & SPEAKER_MASK;
        let [_, _, speaker] = &mut self.counters;
        speaker.set_gate(value & SPEAKER_GATE != 0, clock);
    }

    /// Whether counter 0's output has risen since the last call, however often.
    pub fn take_edge(&mut self, now: Ticks) -> bool {
        self.catch_up(now);
        let risen = core::mem::take(&mut self.risen);
        self.arm();
        risen
    }

    /// Level of counter 0's output.
    #[must_use]
    pub fn line(&mut self, now: Ticks) -> bool {
        let clock = self.catch_up(now);
        let [timer, _, _] = &mut self.counters;
        timer.output(clock)
    }

    /// When [`Pit::take_edge`] has something to take next.
    #[must_use]
    pub const fn deadline(&self) -> Option<Ticks> {
        self.deadline
    }

    fn clock(&self, now: Ticks) -> u64 {
        self.tsc.convert(now.as_u64(), PIT_CLOCK).saturating_add(CLOCK_START)
    }

    /// Looks for edges up to `now`; the clock then. Every access starts with this: what it does to the counter could not
    /// be told from what happened before.
    fn catch_up(&mut self, now: Ticks) -> u64 {
        let clock = self.clock(now);
        if !self.risen && self.deadline.is_some_and(|deadline| deadline <= now) {
            let [timer, _, _] = &mut self.counters;
            self.risen = timer.rises(self.seen, clock);
        }
        self.seen = clock.max(self.seen);
        clock
    }

    fn arm(&mut self) {
        if self.risen {
            return;
        }
        let [timer, _, _] = &self.counters;
        self.deadline = timer.next_rise(self.seen).map(|clock| {
            let since_start = clock.saturating_sub(CLOCK_START);
            Ticks::new(self.tsc.count_at(since_start, PIT_CLOCK))
        });
    }

    fn control(&mut self, value: u8, clock: u64) {
        if value >> 6 == 3 {
            return self.read_back(value, clock);
        }
        let Some(counter) = self.counters.get_mut(usize::from(value >> 6)) else { return };
        match value >> 4 & 3 {
            0 => counter.latch_count(clock),
            1 => counter.program(value, Access::Low),
            2 => counter.program(value, Access::High),
            _ => counter.program(value, Access::Both),
        }
    }

    /// "Read-Back Command": bits 1-3 choose counters, bit 5 clear latches the count, bit 4 clear the status.
    fn read_back(&mut self, value: u8, clock: u64) {
        for (counter, bit) in self.counters.iter_mut().zip(1..) {
            if low_u8(u64::from(value) >> bit) & 1 == 0 {
                continue;
            }
            if value & 1 << 5 == 0 {
                counter.latch_count(clock);
            }
            if value & 1 << 4 == 0 {
                counter.latch_status(clock);
            }
        }
    }
}

#[cfg(test)]
mod tests;
