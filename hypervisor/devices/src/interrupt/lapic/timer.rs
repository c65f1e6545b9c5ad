//! The local APIC's timer: one-shot, periodic, TSC-deadline.
//!
//! Its clock is the guest's time-stamp counter, divided by the divide configuration: CPUID leaf 0x15 says so to the
//! guest, and counts read from it agree with the time-stamp counter to the tick. Nothing counts: the state is the moment
//! of the next expiry, and the current count is computed from it.
//!
//! A period too short to be served would cost an exit for every expiry and never let the guest go on. Expiries closer
//! than 50 microseconds are therefore merged: of a period below that, only every n-th expiry interrupts, n so that
//! 50 microseconds lie between, while the current count runs as programmed. A processor that is a period late with its
//! interrupts merges them in the IRR just so. 50 microseconds is 20 kHz, far above the tick of any system (10 kHz at
//! most), and some twenty times what it costs to serve one. One-shot and deadline need no bound: each expiry takes a
//! write of the guest's own.
//!
//! SDM vol. 3A 11.5.4 "APIC Timer", 11.5.4.1 "TSC-Deadline Mode".

use bulkhead_types::{Frequency, Ticks};
use core::num::NonZeroU64;

/// How the timer runs: bits 17 and 18 of its LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved encoding: the timer stands still.
    Reserved,
}

impl Mode {
    pub(super) const fn from_lvt(entry: u32) -> Self {
        match (entry >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The timer's registers, but for its LVT entry.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: Mode,
    initial: u32,
    /// The divide configuration register.
    divide: u32,
    /// When it expires next; `None` while it stands still.
    expiry: Option<Ticks>,
    /// Ticks that lie between two interrupts of the periodic mode, at least.
    shortest: u64,
}

impl Timer {
    /// Interrupts a second in periodic mode, at most.
    const HIGHEST_RATE: u64 = 20_000;

    pub(super) const fn new(tsc: Frequency) -> Self {
        Self { mode: Mode::OneShot, initial: 0, divide: 0, expiry: None, shortest: tsc.as_hertz() / Self::HIGHEST_RATE }
    }

    /// The same timer after a reset.
    pub(super) const fn after_reset(&self) -> Self {
        Self { mode: Mode::OneShot, initial: 0, divide: 0, expiry: None, shortest: self.shortest }
    }

    pub(super) const fn expiry(&self) -> Option<Ticks> {
        self.expiry
    }

    /// Whether it expired; expiries that lie close together, and all those before `now`, count as one.
    pub(super) fn advance(&mut self, now: Ticks) -> bool {
        let Some(expiry) = self.expiry else { return false };
        if now < expiry {
            return false;
        }
        self.expiry = (self.mode == Mode::Periodic).then(|| {
            let period = self.period();
            let merged = NonZeroU64::new(self.shortest.div_ceil(period.get())).unwrap_or(NonZeroU64::MIN);
            let step = period.saturating_mul(merged);
            let missed = now.since(expiry) / step;
            expiry.after(step.get().saturating_mul(missed.saturating_add(1)))
        });
        true
    }

    pub(super) const fn initial_count(&self) -> u32 {
        self.initial
    }

    pub(super) fn set_initial_count(&mut self, count: u32, now: Ticks) {
        // SDM vol. 3A 11.5.4.1: in TSC-deadline mode, writes to the initial-count register are ignored.
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.start(count, now);
    }

    /// The current count. `now` must have been passed to [`Self::advance`].
    pub(super) fn current_count(&self, now: Ticks) -> u32 {
        let remaining = match self.expiry {
            Some(expiry) if self.mode.counts() => expiry.since(now),
            _ => return 0,
        };
        // In periodic mode the next interrupt may be several periods ahead.
        let count = match remaining.checked_sub(1) {
            Some(less) if self.mode == Mode::Periodic => (less % self.period()) >> self.shift(),
            Some(less) => less >> self.shift(),
            None => return 0,
        };
        u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1)
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; the count goes on from where it is, at the new rate.
    pub(super) fn set_divide(&mut self, value: u32, now: Ticks) {
        let count = self.current_count(now);
        self.divide = value & 0xB;
        self.start(count, now);
    }

    /// Sets the mode. Going into or out of TSC-deadline mode stops the timer.
    pub(super) fn set_mode(&mut self, mode: Mode, now: Ticks) {
        if mode == self.mode {
            return;
        }
        let count = self.current_count(now);
        self.mode = mode;
        self.expiry = None;
        self.start(count, now);
    }

    /// IA32_TSC_DEADLINE: 0 unless armed.
    pub(super) fn deadline(&self) -> u64 {
        match self.expiry {
            Some(expiry) if self.mode == Mode::TscDeadline => expiry.as_u64(),
            _ => 0,
        }
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms; ignored in other modes.
    pub(super) fn set_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.expiry = (value != 0).then(|| Ticks::new(value));
        }
    }

    /// Counts down from `count`, in the modes that count; 0 stops.
    fn start(&mut self, count: u32, now: Ticks) {
        if self.mode.counts() {
            self.expiry = (count != 0).then(|| now.after(u64::from(count) << self.shift()));
        }
    }

    /// Ticks of one period.
    fn period(&self) -> NonZeroU64 {
        NonZeroU64::new(u64::from(self.initial) << self.shift()).unwrap_or(NonZeroU64::MIN)
    }

    /// The divisor as a power of two: 2, 4, 8, 16, 32, 64, 128, 1 for the three bits 3, 1, 0.
    const fn shift(&self) -> u32 {
        ((self.divide & 3 | (self.divide & 8) >> 1) + 1) & 7
    }
}
