//! A guest's claim: virtual time, tokens below a cap, a reserving server.

use crate::order::Entry;
use crate::types::{Cpu, CpuSet, Params, TaskId, Ticks};

/// Units of virtual time for a tick at share 1.
pub(crate) const SCALE: i128 = 1 << 40;

#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub params: Params,
    /// Units of virtual time for a tick.
    rate: i128,
    /// Tasks that exist.
    pub tasks: u16,
    /// Tasks that run, or wait to.
    pub active: u16,
    /// CPUs of any of its tasks; of those that wait.
    pub cpus: u64,
    pub waiting: u64,
    /// The first and the last task that waits.
    pub head: Option<TaskId>,
    pub tail: Option<TaskId>,
    /// What all its tasks ran.
    pub ran: Ticks,
    /// Virtual time.
    pub time: i128,
    /// Ticks spent for it outside its turns that it was not charged for yet.
    owed: Ticks,
    /// Thousandths of a tick.
    tokens: i128,
    filled: u64,
    /// It ran out of tokens, and waits for those of a whole slice, so that its turns are not many and short.
    throttled: bool,
    /// The server's deadline and what is left of its budget until then.
    pub deadline: u64,
    budget: i128,
    /// Where the reservation was admitted, and how many parts in 2^20 are kept for it there.
    pub home: Cpu,
    pub kept: u128,
}

/// Most tokens, in thousandths of a tick: what may be saved up, and at least a turn.
const fn depth(params: &Params, slice: Ticks) -> i128 {
    1000 * if params.burst > slice { params.burst as i128 } else { slice as i128 }
}

impl Group {
    pub fn new(params: Params, now: u64, slice: Ticks, home: Cpu) -> Self {
        let rate = SCALE / if params.share == 0 { 1 } else { params.share as i128 };
        Self {
            params,
            rate,
            tasks: 0,
            active: 0,
            cpus: 0,
            waiting: 0,
            head: None,
            tail: None,
            ran: 0,
            time: 0,
            owed: 0,
            tokens: depth(&params, slice),
            filled: now,
            throttled: false,
            deadline: now,
            budget: 0,
            home,
            kept: Self::reserved(&params),
        }
    }

    /// Takes over what the one in this place owed: a new life is no new claim.
    pub fn inherit(&mut self, left: &Self, slice: Ticks) {
        (self.time, self.ran, self.owed) = (left.time, left.ran, left.owed);
        if self.params.cap.is_some() && left.params.cap.is_some() {
            (self.tokens, self.filled) = (left.tokens.min(depth(&self.params, slice)), left.filled);
            self.throttled = left.throttled;
        }
        if self.params.reservation == left.params.reservation {
            (self.deadline, self.budget) = (left.deadline, left.budget);
        }
    }

    /// Parts in 2^20 of a CPU reserved, rounded up.
    pub fn reserved(params: &Params) -> u128 {
        params.reservation.map_or(0, |r| (u128::from(r.budget) << 20).div_ceil(u128::from(r.period.max(1))))
    }

    /// Virtual time that `ticks` take.
    pub const fn span(&self, ticks: i128) -> i128 {
        ticks * self.rate
    }

    /// Counts `ticks` used, or gives them back if negative; `reserved`: on its budget.
    pub fn charge(&mut self, ticks: i128, reserved: bool) {
        self.time += self.span(ticks);
        if self.params.cap.is_some() {
            self.tokens -= ticks * 1000;
        }
        if reserved {
            self.budget -= ticks;
        }
    }

    /// Notes `ticks` spent for it; what it is to be charged for, once that is `enough`.
    pub fn owe(&mut self, ticks: Ticks, enough: Ticks) -> Option<Ticks> {
        self.owed = self.owed.saturating_add(ticks);
        (self.owed >= enough).then(|| core::mem::take(&mut self.owed))
    }

    /// A turn ended.
    pub fn stopped(&mut self, slice: Ticks) {
        self.throttled |= self.params.cap.is_some() && self.tokens < Self::least(slice);
    }

    /// Thousandths of a tick without which it is not worth a turn.
    fn least(slice: Ticks) -> i128 {
        i128::from((slice / 4).max(1)) * 1000
    }

    /// Brings tokens and budget up to date.
    pub fn refill(&mut self, now: u64, slice: Ticks) {
        if let Some(cap) = self.params.cap {
            let more = i128::from(now.saturating_sub(self.filled)) * i128::from(cap);
            self.tokens = (self.tokens + more).min(depth(&self.params, slice));
            self.filled = self.filled.max(now);
            self.throttled &= self.tokens < i128::from(slice) * 1000;
        }
        if let Some(r) = self.params.reservation
            && now >= self.deadline
        {
            // What was overrun is owed to the next period, by one budget at most.
            let late = now - self.deadline;
            let owed = if late < r.period { self.budget.min(0).max(-i128::from(r.budget)) } else { 0 };
            self.budget = i128::from(r.budget) + owed;
            self.deadline = (now - late % r.period.max(1)).saturating_add(r.period);
        }
    }

    /// The constant-bandwidth rule: a server that woke keeps its budget only if its rate allows it.
    pub fn woke(&mut self, now: u64) {
        if let Some(r) = self.params.reservation
            && now < self.deadline
            && self.budget * i128::from(r.period) > i128::from(self.deadline - now) * i128::from(r.budget)
        {
            self.budget = i128::from(r.budget);
            self.deadline = now.saturating_add(r.period);
        }
    }

    /// Ticks that it may run now (`Ok`, at most a slice), or when it may again.
    pub fn allowance(&self, now: u64, slice: Ticks) -> Result<Ticks, u64> {
        let Some(cap) = self.params.cap else { return Ok(slice) };
        let least = if self.throttled { i128::from(slice) * 1000 } else { Self::least(slice) };
        if self.tokens >= least {
            return Ok(u64::try_from(self.tokens / 1000).unwrap_or(u64::MAX).min(slice));
        }
        let wait = (least - self.tokens + i128::from(cap) - 1) / i128::from(cap.max(1));
        Err(now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// Ticks left of the reserved budget, if it counts on this CPU.
    pub fn reserve(&self, cpu: Cpu) -> Option<Ticks> {
        self.params.reservation?;
        u64::try_from(self.budget).ok().filter(|b| *b > 0 && self.home == cpu)
    }

    /// Its place in an order.
    pub const fn entry(&self, time: i128, ready: u64, cpus: u64) -> Option<Entry> {
        Some(Entry { key: (time, ready), cpus, zone: self.params.zone })
    }

    /// Where it stands among those that wait: by virtual time if it may run, by deadline where it has a budget left, and
    /// the time at which that changes by itself. `ready`: since when its first task waits.
    pub fn places(&self, now: u64, slice: Ticks, ready: u64) -> [Option<Entry>; 3] {
        let home = CpuSet::one(self.home).0;
        let waits = home & self.waiting != 0;
        // Who sleeps may wake before its budget comes; one that has it needs no look.
        let renewed = self.params.reservation.filter(|_| waits || self.budget <= 0 && self.tasks != 0);
        let timer = renewed.and_then(|_| self.entry(self.deadline.into(), 0, home));
        if self.head.is_none() {
            return [None, None, timer];
        }
        match self.allowance(now, slice) {
            Err(at) => [None, None, self.entry(at.into(), 0, self.waiting)],
            Ok(_) => {
                let urgent = self.reserve(self.home).filter(|_| waits);
                let urgent = urgent.and_then(|_| self.entry(self.deadline.into(), ready, home));
                [self.entry(self.time, ready, self.waiting), urgent, timer]
            }
        }
    }
}
