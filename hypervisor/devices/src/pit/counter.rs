//! One counter of the 8254: its count, output and gate as functions of the clock.
//!
//! A counter that runs is described by the clock at which it was loaded; its value and its output at any later clock
//! follow from the mode (section "Mode Definitions"). A count that is written takes effect at the next clock pulse.

use super::MIN_PERIOD;
use crate::bits::low_u16;
use core::num::{NonZeroU32, NonZeroU64};

/// The longest count: what 0 stands for.
const WHOLE: NonZeroU32 = NonZeroU32::MIN.saturating_add(0xFFFF);

/// Which bytes of a count are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The low byte only; the high byte is zero.
    Low,
    /// The high byte only; the low byte is zero.
    High,
    /// The low byte, then the high byte.
    Both,
}

/// What the counting element does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No count was loaded since the mode was set, or (modes 1 and 5) no trigger came.
    Idle,
    /// Counts since this clock.
    Running(u64),
    /// Held by its gate after this many clocks.
    Held(u64),
}

/// One counter.
#[derive(Clone, Debug)]
pub struct Counter {
    /// 0 to 5.
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// The count register, 1 to 65,536.
    reload: NonZeroU32,
    /// What the counting element was loaded with.
    count: NonZeroU32,
    state: State,
    /// Clock at which a running periodic counter takes up `reload`.
    reload_at: Option<u64>,
    /// A count register byte waits for its high byte.
    low_written: Option<u8>,
    /// The next byte read is the high one.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// A counter that was never programmed: mode 0, so that its output is low.
    pub const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::Both,
            gate,
            reload: WHOLE,
            count: WHOLE,
            state: State::Idle,
            reload_at: None,
            low_written: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Takes a control word that sets the mode.
    pub fn program(&mut self, control: u8, access: Access) {
        let mode = control >> 1 & 7;
        *self = Self {
            // Bit 2 of the mode does not count for modes 2 and 3.
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: control & 1 != 0,
            access,
            ..Self::new(self.gate)
        };
    }

    /// Writes a byte of the count register.
    pub fn write(&mut self, value: u8, clock: u64) {
        let count = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.low_written = Some(value);
                if self.mode == 0 {
                    // "Mode 0": the first byte disables counting and sets OUT low.
                    self.state = State::Idle;
                }
                return;
            }
        };
        self.settle(clock);
        self.reload = self.decode(count);
        match (self.mode, self.state) {
            // A trigger loads it.
            (1 | 5, _) => {}
            // The end of the current cycle, or half-cycle, loads it.
            (2 | 3, State::Running(start)) if clock >= start => self.reload_at = Some(self.cycle_end(start, clock)),
            _ => self.load(clock),
        }
    }

    /// Reads the next byte: latched status, then latched count, then the count itself.
    pub fn read(&mut self, clock: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = match self.latched_count {
            Some(count) => count,
            None => self.value(clock),
        }
        .to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both if self.high_next => (high, true),
            Access::Both => (low, false),
        };
        self.high_next = self.access == Access::Both && !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    /// "Counter Latch Command": ignored while a latched count is unread.
    pub fn latch_count(&mut self, clock: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(clock));
        }
    }

    /// Latches the status byte: OUT, null count, and the control word.
    pub fn latch_status(&mut self, clock: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let output = if self.output(clock) { 1 << 7 } else { 0 };
        let null = if self.is_null(clock) { 1 << 6 } else { 0 };
        let access = match self.access {
            Access::Low => 1 << 4,
            Access::High => 2 << 4,
            Access::Both => 3 << 4,
        };
        self.latched_status = Some(output | null | access | self.mode << 1 | u8::from(self.bcd));
    }

    /// Sets the gate input. "Gate Pin Operations Summary".
    pub fn set_gate(&mut self, gate: bool, clock: u64) {
        if gate == self.gate {
            return;
        }
        self.settle(clock);
        self.gate = gate;
        match (self.mode, gate, self.state) {
            (0 | 2 | 3 | 4, false, State::Running(start)) => self.state = State::Held(clock.saturating_sub(start)),
            (0 | 4, true, State::Held(elapsed)) => self.state = State::Running(clock.saturating_sub(elapsed)),
            (2 | 3, true, State::Held(_)) | (1 | 5, true, _) => self.load(clock),
            _ => {}
        }
    }

    /// Level of the output.
    pub fn output(&mut self, clock: u64) -> bool {
        self.settle(clock);
        let count = u64::from(self.count.get());
        let elapsed = match (self.mode, self.state) {
            (0, State::Idle) => return false,
            (_, State::Idle) | (2 | 3, State::Held(_)) => return true,
            (_, State::Running(start)) => clock.saturating_sub(start),
            (_, State::Held(elapsed)) => elapsed,
        };
        match self.mode {
            0 | 1 => elapsed >= count,
            2 => elapsed % count != count - 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// Whether the output rises after `from`, up to and at `to`. Edges that [`MIN_PERIOD`] leaves out do not count.
    pub fn rises(&mut self, from: u64, to: u64) -> bool {
        let before_reload = match self.reload_at {
            Some(at) if at <= to => {
                let rises = self.next_rise(from).is_some_and(|edge| edge <= at);
                self.settle(to);
                rises
            }
            _ => false,
        };
        before_reload || self.next_rise(from).is_some_and(|edge| edge <= to)
    }

    /// The first clock after `from` at which the output rises, as far as is known.
    pub fn next_rise(&self, from: u64) -> Option<u64> {
        let State::Running(start) = self.state else { return None };
        let elapsed = from.saturating_sub(start);
        let count = u64::from(self.count.get());
        let edge = match self.mode {
            0 | 1 => (from < start || elapsed < count).then_some(count),
            2 | 3 => {
                let step = step(self.count);
                Some((elapsed / step + 1) * step.get())
            }
            _ => (elapsed <= count).then_some(count + 1),
        }?;
        let edge = start.saturating_add(edge);
        match self.reload_at {
            // The end of a cycle is an edge too.
            Some(at) if edge > at && self.mode == 2 => Some(at),
            Some(at) if edge > at => Some(self.reloaded_start(start, at).saturating_add(step(self.reload).get())),
            _ => Some(edge),
        }
    }

    /// The counting element's value, as it reads.
    fn value(&mut self, clock: u64) -> u16 {
        self.settle(clock);
        let count = u64::from(self.count.get());
        let elapsed = match self.state {
            State::Idle => 0,
            State::Running(start) => clock.saturating_sub(start),
            State::Held(elapsed) => elapsed,
        };
        let modulus = self.modulus();
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => {
                let half = count.div_ceil(2);
                let elapsed = elapsed % count;
                let phase = if elapsed < half { elapsed } else { elapsed - half };
                (count & !1) - 2 * phase
            }
            _ => count % modulus + modulus - elapsed % modulus,
        } % modulus;
        if self.bcd { low_u16(to_bcd(value)) } else { low_u16(value) }
    }

    const fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn decode(&self, count: u16) -> NonZeroU32 {
        let digit = |shift: u32| u32::from(count) >> shift & 0xF;
        let count = match (count, self.bcd) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (_, true) => digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12),
            (_, false) => u32::from(count),
        };
        NonZeroU32::new(if matches!(self.mode, 2 | 3) { count.max(2) } else { count }).unwrap_or(WHOLE)
    }

    /// The next clock pulse loads the count register.
    fn load(&mut self, clock: u64) {
        self.count = self.reload;
        self.reload_at = None;
        self.state = match (self.gate, self.mode) {
            (true, _) | (_, 1 | 5) => State::Running(clock.saturating_add(1)),
            _ => State::Held(0),
        };
    }

    /// Carries out a reload whose time has come.
    fn settle(&mut self, clock: u64) {
        let Some(at) = self.reload_at.filter(|&at| at <= clock) else { return };
        let State::Running(start) = self.state else { return };
        self.state = State::Running(self.reloaded_start(start, at));
        self.count = self.reload;
        self.reload_at = None;
    }

    /// The clock from which to count after the reload at `at`, of a counter that counted from `start`: at the end of
    /// mode 3's high half, the new count begins with its low half.
    fn reloaded_start(&self, start: u64, at: u64) -> u64 {
        let low_half = self.mode == 3 && !at.saturating_sub(start).is_multiple_of(u64::from(self.count.get()));
        at.saturating_sub(if low_half { u64::from(self.reload.get().div_ceil(2)) } else { 0 })
    }

    /// The end of the cycle (mode 2) or half-cycle (mode 3) that `clock` lies in.
    fn cycle_end(&self, start: u64, clock: u64) -> u64 {
        let count = u64::from(self.count.get());
        let elapsed = clock.saturating_sub(start);
        let begin = clock.saturating_sub(elapsed % count);
        let half = count.div_ceil(2);
        begin.saturating_add(if self.mode == 3 && elapsed % count < half { half } else { count })
    }

    /// A count was written that is not in the counting element yet.
    const fn is_null(&self, clock: u64) -> bool {
        match self.state {
            State::Idle => true,
            State::Running(start) => clock < start || self.reload_at.is_some(),
            State::Held(_) => self.reload_at.is_some(),
        }
    }
}

/// Clocks between two edges that reach the interrupt line: the smallest multiple of `count` not below [`MIN_PERIOD`].
fn step(count: NonZeroU32) -> NonZeroU64 {
    let count = u64::from(count.get());
    NonZeroU64::new(count * MIN_PERIOD.div_ceil(count)).unwrap_or(NonZeroU64::MIN)
}

const fn to_bcd(value: u64) -> u64 {
    (value % 10) | ((value / 10 % 10) << 4) | (value / 100 % 10) << 8 | (value / 1000 % 10) << 12
}
