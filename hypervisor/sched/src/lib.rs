//! Decides which vCPU runs on which CPU and for how long; accounts all time.
//!
//! A caller holds one [`Scheduler`] under one lock. For each CPU: [`online`](Scheduler::online) once; then
//! [`pick`](Scheduler::pick), run what it says until `until` (or a kick), [`yielded`](Scheduler::yielded), and again.
//! A `kick` in an answer is a CPU to interrupt, which then asks whether its turn [`goes_on`](Scheduler::goes_on). `now` is
//! the TSC; a time before the last one counts as the last one.
//!
//! Start-time fair queueing over guests (groups): each has one virtual time, which advances by what all its vCPUs ran
//! over its share, and is charged for a whole turn in advance; what was not used is given back, what was overrun is
//! taken. The least runs. A guest that wakes starts at the present virtual time at the earliest, so sleep earns nothing,
//! and one that cannot use its share falls behind by eight slices at most. Guests pinned to a CPU are measured by that
//! CPU's virtual time, which is kept near the next one's. Above it, reservations by earliest deadline on the CPU that
//! admitted them; below it, caps by a bucket of tokens. Turns cost something: nobody's wake makes one shorter than a slice,
//! but for a reservation. All who wait are in sorted lists, so a decision looks at few of them.
//!
//! Zones: a thread runs only the zone that its core's other threads run. A task kept waiting for two slices by that
//! empties the core for its zone.

#![no_std]
#![forbid(unsafe_code)]

mod choose;
mod group;
mod inner;
mod order;
mod queue;
mod types;

use group::Group;
use order::Order;
pub use types::{AddError, Cpu, CpuSet, CpuUsage, Decision, Outcome, Params, Reservation, TaskId, Ticks, Usage};

/// Of a CPU, in parts of 2^20, that reservations may take: 15/16.
const RESERVABLE: u128 = 15 << 16;

/// Ticks of the longest slice and period.
const LONGEST: Ticks = 1 << 48;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Running(Cpu),
    Blocked,
}

#[derive(Clone, Copy)]
struct Task {
    state: State,
    paused: bool,
    cpus: CpuSet,
    zone: u16,
    group: u16,
    /// Since when the state is accounted.
    since: u64,
    /// When it last became ready.
    ready: u64,
    /// The guest's tasks that became ready before and after it.
    before: Option<TaskId>,
    after: Option<TaskId>,
    usage: Usage,
}

#[derive(Clone, Copy)]
struct Run {
    task: TaskId,
    zone: u16,
    /// On its guest's budget.
    reserved: bool,
    /// Charged in advance and not yet run.
    ahead: Ticks,
    /// No wake ends the turn before that, unless it is for a budget: a slice after the turn's begin.
    kept: u64,
}

#[derive(Clone, Copy)]
struct Processor {
    core_number: u16,
    /// All CPUs of that core.
    core: u64,
    /// Of this CPU, in parts of 2^20.
    reserved: u128,
    run: Option<Run>,
    since: u64,
    until: u64,
    usage: CpuUsage,
    /// It waits since its last decision.
    rests: bool,
    /// The guest whose turn ended last: what the CPU does before the next decision is charged to it.
    last: Option<u16>,
    /// Virtual time: the latest at which a turn began.
    time: i128,
    /// The zone that this core is being emptied for.
    wanted: Option<u16>,
}

impl Processor {
    /// Accounts what it did beside turns until now.
    const fn rest(&mut self, now: u64) {
        let spent = now - self.since;
        if self.rests {
            self.usage.idle += spent;
        } else {
            self.usage.own += spent;
        }
        self.since = now;
    }
}

/// The scheduler of a machine with up to `CPUS` (64 at most) CPUs, for up to `TASKS` vCPUs.
pub struct Scheduler<const TASKS: usize, const CPUS: usize> {
    slice: Ticks,
    tasks: [Option<Task>; TASKS],
    groups: [Option<Group>; TASKS],
    cpus: [Option<Processor>; CPUS],
    /// Guests of which a task waits and may run: all by virtual time, those with a budget left by deadline.
    fair: Order<TASKS>,
    urgent: Order<TASKS>,
    /// Guests that wait for tokens, or whose budget is renewed: by the time of that.
    timers: Order<TASKS>,
    /// CPUs that are online; those of them that idle or run without end.
    present: u64,
    open: u64,
    /// Virtual time of the CPU that is furthest.
    time: i128,
    /// Virtual time that a slice of the guest with the least share takes.
    grain: i128,
    now: u64,
    steps: u64,
}

const fn bounded(slice: Ticks) -> Ticks {
    match slice {
        0..4 => 4,
        4..=LONGEST => slice,
        _ => LONGEST,
    }
}

/// The CPUs of a set.
fn bits(mut set: u64) -> impl Iterator<Item = Cpu> {
    core::iter::from_fn(move || {
        let n = u16::try_from(set.trailing_zeros()).ok().filter(|n| *n < 64)?;
        set &= set - 1;
        Some(Cpu(n))
    })
}

impl<const TASKS: usize, const CPUS: usize> Scheduler<TASKS, CPUS> {
    /// No CPUs and no tasks; a turn is `slice` ticks where others wait. It is large: best made in place.
    #[must_use]
    pub const fn new(slice: Ticks) -> Self {
        Self {
            slice: bounded(slice),
            tasks: [None; TASKS],
            groups: [None; TASKS],
            cpus: [None; CPUS],
            fair: Order::new(),
            urgent: Order::new(),
            timers: Order::new(),
            present: 0,
            open: 0,
            time: 0,
            grain: 0,
            now: 0,
            steps: 0,
        }
    }

    /// Another length of turns; before any task is added.
    pub const fn set_slice(&mut self, slice: Ticks) {
        self.slice = bounded(slice);
    }

    /// A CPU, a thread of `core`, is there. Accounted from now on.
    pub fn online(&mut self, cpu: Cpu, core: u16, now: u64) {
        let now = self.clock(now);
        let (time, bit) = (self.time, CpuSet::one(cpu).0);
        let Some(slot) = self.cpus.get_mut(usize::from(cpu.0)).filter(|c| c.is_none() && bit != 0) else { return };
        let usage = CpuUsage::default();
        let idle = Processor {
            core_number: core,
            core: 0,
            reserved: 0,
            run: None,
            since: now,
            until: 0,
            usage,
            rests: false,
            last: None,
            time,
            wanted: None,
        };
        *slot = Some(idle);
        self.present |= bit;
        self.open |= bit;
        let all = (0u16..).zip(&self.cpus).filter(|(_, c)| c.is_some_and(|c| c.core_number == core));
        let all = all.fold(0, |set, (n, _)| set | CpuSet::one(Cpu(n)).0);
        for p in self.cpus.iter_mut().flatten().filter(|p| p.core_number == core) {
            p.core = all;
        }
    }

    /// Adds a task, asleep. `online` its CPUs before.
    ///
    /// # Errors
    /// Nothing is changed; see [`AddError`].
    pub fn add(&mut self, id: TaskId, params: Params, now: u64) -> Result<(), AddError> {
        let now = self.clock(now);
        if usize::from(params.group) >= TASKS {
            return Err(AddError::Range);
        }
        match self.tasks.get(usize::from(id.0)) {
            None => return Err(AddError::Range),
            Some(Some(_)) => return Err(AddError::Taken),
            Some(None) => {}
        }
        let sound = |r: Reservation| r.budget > 0 && r.budget <= r.period && r.period <= LONGEST;
        let other = self.group(params.group).is_some_and(|g| g.tasks != 0 && g.params.zone != params.zone);
        if params.share == 0 || params.cap == Some(0) || !params.reservation.is_none_or(sound) || other {
            return Err(AddError::Params);
        }
        if self.present & params.cpus.0 == 0 {
            return Err(AddError::NoCpu);
        }
        let left = self.group(params.group).filter(|g| g.tasks == 0).copied();
        if left.is_some() || self.group(params.group).is_none() {
            let home = self.admit(&params, left.as_ref()).ok_or(AddError::Overcommitted)?;
            self.retire(params.group);
            let mut group = Group::new(params, now, self.slice, home);
            if let Some(left) = left {
                group.inherit(&left, self.slice);
            }
            if let Some(p) = self.cpu_mut(home) {
                p.reserved += group.kept;
            }
            if let Some(slot) = self.groups.get_mut(usize::from(params.group)) {
                *slot = Some(group);
            }
        }
        if let Some(group) = self.group_mut(params.group) {
            group.tasks += 1;
            group.cpus |= params.cpus.0;
        }
        let (slice, there) = (i128::from(self.slice), self.groups.iter().flatten().filter(|g| g.tasks != 0));
        self.grain = there.map(|g| g.span(slice)).max().unwrap_or(0);
        let Params { cpus, zone, group, .. } = params;
        let usage = Usage::default();
        let state = State::Blocked;
        let (before, after) = (None, None);
        let task = Task { state, paused: false, cpus, zone, group, since: now, ready: now, before, after, usage };
        if let Some(slot) = self.tasks.get_mut(usize::from(id.0)) {
            *slot = Some(task);
        }
        Ok(())
    }

    /// The task ends. If it runs, kick its CPU first and say [`Outcome::Gone`] there; here that is refused (`false`).
    pub fn remove(&mut self, id: TaskId, now: u64) -> bool {
        let now = self.clock(now);
        if self.task(id).is_none_or(|t| matches!(t.state, State::Running(_))) {
            return false;
        }
        self.shift(id, State::Blocked, false, now);
        let Some(task) = self.tasks.get_mut(usize::from(id.0)).and_then(Option::take) else { return false };
        // What its guest owes stays, and what is reserved for it.
        if let Some(group) = self.group_mut(task.group) {
            group.tasks -= 1;
        }
        self.place(task.group, now);
        true
    }

    /// A guest whose tasks have all ended does not come again: what was reserved for it is free.
    pub fn retire(&mut self, group: u16) {
        let Some(left) = self.group_mut(group).filter(|g| g.tasks == 0) else { return };
        let (home, kept) = (left.home, core::mem::take(&mut left.kept));
        if let Some(p) = self.cpu_mut(home) {
            p.reserved -= kept;
        }
    }

    /// Keeps a task off all CPUs. The CPU that it runs on is to be kicked.
    pub fn pause(&mut self, id: TaskId, now: u64) -> Option<Cpu> {
        self.hold(id, true, now)
    }

    /// Ends a pause. The CPU to kick, if it is ready.
    pub fn resume(&mut self, id: TaskId, now: u64) -> Option<Cpu> {
        self.hold(id, false, now);
        self.kicked(id)
    }

    /// A task has something to do. The CPU to kick: one that idles, or whose task it preempts.
    pub fn wake(&mut self, id: TaskId, now: u64) -> Option<Cpu> {
        let now = self.clock(now);
        let task = *self.task(id).filter(|t| t.state == State::Blocked)?;
        self.shift(id, State::Ready, task.paused, now);
        self.place(task.group, now);
        self.kicked(id)
    }

    /// The CPU does not wait any more, and does something until it asks what to run.
    pub fn awake(&mut self, cpu: Cpu, now: u64) {
        let now = self.clock(now);
        if let Some(p) = self.cpu_mut(cpu).filter(|p| p.run.is_none()) {
            p.rest(now);
            p.rests = false;
        }
    }

    /// Of what the CPU did since its last turn, `ticks` were for this task's guest, or for nobody: so they are charged.
    pub fn excuse(&mut self, cpu: Cpu, ticks: Ticks, whom: Option<TaskId>, now: u64) {
        let now = self.clock(now);
        let Some(p) = self.cpu_mut(cpu).filter(|p| p.run.is_none() && !p.rests) else { return };
        let ticks = ticks.min(now - p.since);
        p.usage.own += ticks;
        p.since += ticks;
        if let Some(task) = whom.and_then(|id| self.task(id)) {
            self.owe(task.group, ticks, now);
        }
    }

    /// What the CPU runs next. What it ran counts as [`Outcome::Ready`] if nothing else was said.
    pub fn pick(&mut self, cpu: Cpu, now: u64) -> Decision {
        let now = self.clock(now);
        match self.cpu_mut(cpu) {
            Some(p) if p.run.is_none() => {
                let spent = now - p.since;
                let last = p.last.take().filter(|_| !p.rests && spent > 0);
                p.rest(now);
                if let Some(group) = last {
                    self.owe(group, spent, now);
                }
            }
            _ => self.yielded(cpu, now, Outcome::Ready),
        }
        let mut found = self.look(cpu, now);
        let mut kick = None;
        if let Some(barred) = found.barred {
            // Who has a budget, or waited for two slices, gets the core emptied, one after the other.
            let patience = if barred.reserved { 0 } else { 2 * self.slice };
            let due = self.task(barred.task).map_or(u64::MAX, |t| t.ready.saturating_add(patience));
            found.event = found.event.min(now.saturating_add(self.slice));
            if due > now {
                found.event = found.event.min(due);
            } else if self.cpu(cpu).is_some_and(|p| p.wanted.is_none()) {
                self.want(cpu, self.task(barred.task).map(|t| t.zone));
                found.best = None;
                kick = bits(self.siblings(cpu)).find(|c| self.endless(*c));
            }
            let siblings = bits(self.siblings(cpu)).filter_map(|c| self.cpu(c).filter(|p| p.run.is_some()));
            found.event = found.event.min(siblings.map(|p| p.until).min().unwrap_or(u64::MAX).max(now + 1));
        }
        let until = match found.best {
            Some(best) => self.start(cpu, best, &found, now),
            None => self.idle(cpu, found.event),
        };
        let task = found.best.map(|b| b.task);
        let waited = task.and_then(|id| self.task(id)).map_or(0, |task| task.usage.waiting);
        Decision { task, waited, until, kick: kick.or_else(|| self.spare(cpu)) }
    }

    /// How the CPU's task goes on with its turn, although the CPU was kicked, if it does; else it is to yield. No wake makes a
    /// turn shorter than a slice, since turns cost: only one by a reservation does.
    pub fn goes_on(&mut self, cpu: Cpu, now: u64) -> Option<Decision> {
        let now = self.clock(now);
        let (run, until) = self.cpu(cpu).and_then(|p| Some((p.run?, p.until)))?;
        let (task, wanted) = (*self.task(run.task)?, self.cpu(cpu)?.wanted);
        let end = until.min(run.kept);
        if end <= now || task.paused || wanted.is_some_and(|zone| zone != run.zone) || self.is_urgent(cpu, now) {
            return None;
        }
        // What it ran without end advanced the time that others start at.
        self.settle(cpu, now);
        self.open &= !CpuSet::one(cpu).0;
        self.cpu_mut(cpu)?.until = end;
        // The kick may have been for one that another CPU can take.
        Some(Decision { task: Some(run.task), waited: task.usage.waiting, until: end, kick: self.spare(cpu) })
    }

    /// Whether a task that sleeps would not have to wait for the end of a turn, if it woke: a CPU of its set idles, or its
    /// guest has a reservation.
    #[must_use]
    pub fn is_awaited(&self, id: TaskId) -> bool {
        let Some(task) = self.task(id) else { return false };
        let idle = |cpu| self.cpu(cpu).is_some_and(|p| p.run.is_none());
        bits(self.open & task.cpus.0).any(idle)
            || self.group(task.group).is_some_and(|group| group.params.reservation.is_some())
    }

    /// How the CPU's task came back. It is charged for its time.
    pub fn yielded(&mut self, cpu: Cpu, now: u64, outcome: Outcome) {
        let (now, slice) = (self.clock(now), self.slice);
        self.charge_run(cpu, now);
        let Some(run) = self.cpu_mut(cpu).and_then(|p| p.run.take()) else { return };
        self.open |= CpuSet::one(cpu).0;
        let Some((paused, group)) = self.task(run.task).map(|t| (t.paused, t.group)) else { return };
        if let Some(p) = self.cpu_mut(cpu) {
            // What an end costs, whoever sees to it charges.
            p.last = (outcome != Outcome::Gone).then_some(group);
        }
        if let Some(group) = self.group_mut(group) {
            group.charge(-i128::from(run.ahead), run.reserved);
            group.stopped(slice);
        }
        let state = if outcome == Outcome::Ready { State::Ready } else { State::Blocked };
        self.shift(run.task, state, paused, now);
        self.place(group, now);
        if outcome == Outcome::Gone {
            self.remove(run.task, now);
        }
    }

    /// Charges a guest, or one that was, with `ticks` that were spent for it outside its turns.
    pub fn charge(&mut self, group: u16, ticks: Ticks, now: u64) {
        let (now, slice) = (self.clock(now), self.slice);
        let Some((idle, cpus)) = self.group(group).map(|g| (g.active == 0, g.cpus)) else { return };
        let present = self.present_time(cpus);
        let Some(guest) = self.group_mut(group) else { return };
        guest.refill(now, slice);
        if idle {
            guest.time = guest.time.max(present);
        }
        guest.charge(i128::from(ticks.min(LONGEST)), true);
        self.place(group, now);
    }

    /// Counts `ticks` that a CPU spent for a guest outside its turns: as a claim, not as its time. A good deal at a time: to sort
    /// a guest in anew is work, too.
    fn owe(&mut self, group: u16, ticks: Ticks, now: u64) {
        let enough = self.slice / 8;
        let Some(guest) = self.group_mut(group) else { return };
        let Some(owed) = guest.owe(ticks, enough) else { return };
        guest.time += guest.span(i128::from(owed.min(LONGEST)));
        self.place(group, now);
    }

    /// Where the task's time went, up to now.
    pub fn usage(&mut self, id: TaskId, now: u64) -> Option<Usage> {
        let now = self.clock(now);
        let task = *self.task(id)?;
        match task.state {
            State::Running(cpu) => self.settle(cpu, now),
            state => self.shift(id, state, task.paused, now),
        }
        self.task(id).map(|t| t.usage)
    }

    /// What a guest ran in all its lives, on each CPU up to the time when that was last asked for its usage or a decision.
    #[must_use]
    pub fn ran(&self, group: u16) -> Ticks {
        self.group(group).map_or(0, |g| g.ran)
    }

    /// Where the CPU's time went, up to now.
    pub fn cpu_usage(&mut self, cpu: Cpu, now: u64) -> Option<CpuUsage> {
        let now = self.clock(now);
        self.settle(cpu, now);
        self.cpu(cpu).map(|p| p.usage)
    }

    /// Guests, tasks and CPUs looked at so far: the cost of all decisions.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps + self.fair.steps + self.urgent.steps + self.timers.steps
    }
}
