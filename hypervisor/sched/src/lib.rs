//! Decides which vCPU runs on which CPU and for how long; accounts all time.
//!
//! A caller holds one [`Scheduler`] under one lock. For each CPU: [`online`](Scheduler::online) once; then
//! [`pick`](Scheduler::pick), run what it says until `until` (or a kick), [`yielded`](Scheduler::yielded), and again.
//! A `kick` in an answer is a CPU to interrupt. `now` is the TSC; a time before the last one counts as the last one.
//!
//! Start-time fair queueing over guests (groups): each has one virtual time, which advances by what all its vCPUs ran
//! over its share, and is charged for a whole turn in advance; what was not used is given back, what was overrun is
//! taken. The least runs. A guest that wakes starts at the present virtual time at the earliest, so sleep earns nothing,
//! and one that cannot use its share falls behind by two slices at most. Guests pinned to a CPU are measured by that
//! CPU's virtual time. Above it, reservations by earliest deadline on the CPU that admitted them; below it, caps by a
//! bucket of tokens. A decision looks at each task once.
//!
//! Zones: a thread runs only the zone that its core's other threads run. A task kept waiting for two slices by that
//! empties the core for its zone.

#![no_std]
#![forbid(unsafe_code)]

mod group;
#[cfg(test)]
mod tree;
mod types;

use group::Group;
pub use types::{AddError, Cpu, CpuSet, CpuUsage, Decision, Outcome, Params, Reservation, TaskId, Ticks, Usage};

/// Of a CPU, in parts of 2^20, that reservations may take: 15/16.
const RESERVABLE: u128 = 15 << 16;

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
    /// When it last became ready, for turns among a guest's own.
    ready: u64,
    usage: Usage,
}

#[derive(Clone, Copy)]
struct Run {
    task: TaskId,
    zone: u16,
    /// Charged in advance and not yet run.
    ahead: Ticks,
}

#[derive(Clone, Copy)]
struct Processor {
    core: u16,
    run: Option<Run>,
    since: u64,
    until: u64,
    usage: CpuUsage,
    /// Virtual time, for guests pinned here.
    time: i128,
    /// The zone that this core is being emptied for.
    wanted: Option<u16>,
}

/// The scheduler of a machine with up to `CPUS` (64 at most) CPUs, for up to `TASKS` vCPUs.
pub struct Scheduler<const TASKS: usize, const CPUS: usize> {
    slice: Ticks,
    tasks: [Option<Task>; TASKS],
    groups: [Option<Group>; TASKS],
    cpus: [Option<Processor>; CPUS],
    /// Tasks and CPUs have numbers below these.
    used: (usize, usize),
    /// Virtual time, for guests that float.
    time: i128,
    now: u64,
    steps: u64,
}

/// What a look at all tasks found for a CPU.
struct Found {
    best: Option<(Key, TaskId)>,
    /// Kept out by the zone of the core only.
    barred: Option<(Key, TaskId)>,
    /// Another waits that may run here.
    contended: bool,
    /// When that may change by itself.
    event: u64,
}

/// Reserved first, by deadline; then by virtual time; then who waits longest.
type Key = (bool, u64, i128, u64);

impl<const TASKS: usize, const CPUS: usize> Scheduler<TASKS, CPUS> {
    /// No CPUs and no tasks; a turn is `slice` ticks where others wait.
    #[must_use]
    pub const fn new(slice: Ticks) -> Self {
        let slice = if slice < 4 { 4 } else { slice };
        Self {
            slice,
            tasks: [None; TASKS],
            groups: [None; TASKS],
            cpus: [None; CPUS],
            used: (0, 0),
            time: 0,
            now: 0,
            steps: 0,
        }
    }

    /// A turn is `slice` ticks from now on, where others wait.
    pub const fn set_slice(&mut self, slice: Ticks) {
        self.slice = if slice < 4 { 4 } else { slice };
    }

    /// A CPU, a thread of `core`, is there. Accounted from now on.
    pub fn online(&mut self, cpu: Cpu, core: u16, now: u64) {
        let now = self.clock(now);
        let time = self.time;
        if let Some(slot) = self.cpus.get_mut(usize::from(cpu.0)).filter(|c| c.is_none() && cpu.0 < 64) {
            let usage = CpuUsage::default();
            *slot = Some(Processor { core, run: None, since: now, until: 0, usage, time, wanted: None });
            self.used.1 = self.used.1.max(usize::from(cpu.0) + 1);
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
        let sound = params.reservation.is_none_or(|r| r.budget > 0 && r.budget <= r.period);
        if params.share == 0 || params.cap == Some(0) || !sound {
            return Err(AddError::Params);
        }
        if !self.present().any(|c| params.cpus.has(c)) {
            return Err(AddError::NoCpu);
        }
        if self.group(params.group).is_none() {
            let home = self.admit(&params).ok_or(AddError::Overcommitted)?;
            let group = Group::new(params, now, self.slice, home);
            if let Some(slot) = self.groups.get_mut(usize::from(params.group)) {
                *slot = Some(group);
            }
        }
        if let Some(group) = self.group_mut(params.group) {
            group.tasks += 1;
        }
        let Params { cpus, zone, group, .. } = params;
        let usage = Usage::default();
        let task = Task { state: State::Blocked, paused: false, cpus, zone, group, since: now, ready: now, usage };
        if let Some(slot) = self.tasks.get_mut(usize::from(id.0)) {
            *slot = Some(task);
            self.used.0 = self.used.0.max(usize::from(id.0) + 1);
        }
        Ok(())
    }

    /// The task ends. If it runs, kick its CPU first and say [`Outcome::Gone`] there; here that is refused (`false`).
    pub fn remove(&mut self, id: TaskId, now: u64) -> bool {
        let now = self.clock(now);
        if self.task(id).is_none_or(|t| matches!(t.state, State::Running(_))) {
            return false;
        }
        self.shift(id, State::Blocked, now);
        let Some(task) = self.tasks.get_mut(usize::from(id.0)).and_then(Option::take) else { return false };
        if let Some(slot) = self.groups.get_mut(usize::from(task.group))
            && let Some(group) = slot
        {
            group.tasks -= 1;
            if group.tasks == 0 {
                *slot = None;
            }
        }
        true
    }

    /// Keeps a task off all CPUs. The CPU that it runs on is to be kicked.
    pub fn pause(&mut self, id: TaskId, now: u64) -> Option<Cpu> {
        self.hold(id, true, now)
    }

    /// Ends a pause. The CPU to kick, if it is ready.
    pub fn resume(&mut self, id: TaskId, now: u64) -> Option<Cpu> {
        self.hold(id, false, now)?;
        self.kicked(id)
    }

    /// A task has something to do. The CPU to kick: one that idles, or whose task it preempts.
    pub fn wake(&mut self, id: TaskId, now: u64) -> Option<Cpu> {
        let now = self.clock(now);
        if self.task(id)?.state != State::Blocked {
            return None;
        }
        self.shift(id, State::Ready, now);
        self.kicked(id)
    }

    /// What the CPU runs next. What it ran counts as [`Outcome::Ready`] if nothing else was said.
    pub fn pick(&mut self, cpu: Cpu, now: u64) -> Decision {
        let now = self.clock(now);
        self.yielded(cpu, now, Outcome::Ready);
        let mut found = self.look(cpu, now);
        let patient = |key: &Key| now.saturating_sub(key.3) >= 2 * self.slice;
        if let Some((_, id)) = found.barred.filter(|(k, _)| patient(k) && found.best.is_none_or(|(b, _)| *k < b)) {
            let zone = self.task(id).map(|t| t.zone);
            self.want(cpu, zone);
            found.best = None;
        }
        if found.barred.is_some() {
            let others = self.siblings(cpu).filter_map(|c| self.cpu(c).filter(|p| p.run.is_some()).map(|p| p.until));
            found.event = found.event.min(others.min().unwrap_or(u64::MAX).max(now + 1));
        }
        let Some((key, id)) = found.best else {
            let kick = found.barred.and_then(|_| self.siblings(cpu).find(|c| self.endless(*c)));
            if let Some(p) = self.cpu_mut(cpu) {
                p.until = found.event;
            }
            return Decision { task: None, until: found.event, kick };
        };
        let until = self.start(cpu, id, key, &found, now);
        Decision { task: Some(id), until, kick: self.spare(cpu) }
    }

    /// How the CPU's task came back. It is charged for its time.
    pub fn yielded(&mut self, cpu: Cpu, now: u64, outcome: Outcome) {
        let now = self.clock(now);
        self.settle(cpu, now);
        let Some(run) = self.cpu_mut(cpu).and_then(|p| p.run.take()) else { return };
        match outcome {
            Outcome::Ready => self.shift(run.task, State::Ready, now),
            Outcome::Blocked => self.shift(run.task, State::Blocked, now),
            Outcome::Gone => {
                self.shift(run.task, State::Blocked, now);
                self.remove(run.task, now);
            }
        }
    }

    /// Where the task's time went, up to now.
    pub fn usage(&mut self, id: TaskId, now: u64) -> Option<Usage> {
        let now = self.clock(now);
        match self.task(id)?.state {
            State::Running(cpu) => self.settle(cpu, now),
            state => self.shift(id, state, now),
        }
        self.task(id).map(|t| t.usage)
    }

    /// Where the CPU's time went, up to now.
    pub fn cpu_usage(&mut self, cpu: Cpu, now: u64) -> Option<CpuUsage> {
        let now = self.clock(now);
        self.settle(cpu, now);
        self.cpu(cpu).map(|p| p.usage)
    }

    /// Tasks and CPUs looked at so far: the cost of all decisions.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }
}

mod inner;
