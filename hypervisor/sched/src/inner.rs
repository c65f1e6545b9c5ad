//! A task's states and their times, the turn, the charge.

use crate::choose::{Choice, Found};
use crate::{Cpu, CpuSet, Group, Params, Processor, RESERVABLE, Run, Scheduler, State, Task, TaskId, bits};

/// Slices that a guest may be behind the present virtual time, so that one that could not use its share saves up no more.
const BEHIND: i128 = 8;
/// Slices that a CPU may be behind the next one, and to how many it is brought then.
const FAR: i128 = 8;
const NEAR: i128 = 4;

impl<const TASKS: usize, const CPUS: usize> Scheduler<TASKS, CPUS> {
    pub(crate) fn clock(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        self.now
    }

    pub(crate) fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(usize::from(id.0))?.as_ref()
    }

    pub(crate) fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.get_mut(usize::from(id.0))?.as_mut()
    }

    pub(crate) fn group(&self, group: u16) -> Option<&Group> {
        self.groups.get(usize::from(group))?.as_ref()
    }

    pub(crate) fn group_mut(&mut self, group: u16) -> Option<&mut Group> {
        self.groups.get_mut(usize::from(group))?.as_mut()
    }

    pub(crate) fn cpu(&self, cpu: Cpu) -> Option<&Processor> {
        self.cpus.get(usize::from(cpu.0))?.as_ref()
    }

    pub(crate) fn cpu_mut(&mut self, cpu: Cpu) -> Option<&mut Processor> {
        self.cpus.get_mut(usize::from(cpu.0))?.as_mut()
    }

    /// The other threads of the CPU's core.
    pub(crate) fn siblings(&self, cpu: Cpu) -> u64 {
        self.cpu(cpu).map_or(0, |p| p.core) & !CpuSet::one(cpu).0
    }

    /// Whether the CPU runs a task without end, or for more than a slice.
    pub(crate) fn endless(&self, cpu: Cpu) -> bool {
        self.open & CpuSet::one(cpu).0 != 0 && self.cpu(cpu).is_some_and(|p| p.run.is_some())
    }

    /// A CPU whose reservations leave room for these, with what is kept for the guest's next life.
    pub(crate) fn admit(&self, params: &Params, left: Option<&Group>) -> Option<Cpu> {
        let more = Group::reserved(params);
        let kept = |c: Cpu| left.filter(|left| left.home == c).map_or(0, |left| left.kept);
        let fits = |c: &Cpu| more == 0 || self.cpu(*c).is_some_and(|p| p.reserved - kept(*c) + more <= RESERVABLE);
        bits(self.present & params.cpus.0).find(fits)
    }

    /// The virtual time that counts for a group: that of the furthest CPU where it may run.
    pub(crate) fn present_time(&mut self, cpus: u64) -> i128 {
        let cpus = cpus & self.present;
        if cpus == self.present {
            return self.time;
        }
        self.steps += u64::from(cpus.count_ones());
        bits(cpus).filter_map(|c| self.cpu(c)).map(|p| p.time).max().unwrap_or(0)
    }

    /// A turn at this virtual time begins, or goes on.
    fn advance(&mut self, cpu: Cpu, time: i128) {
        self.time = self.time.max(time);
        if let Some(p) = self.cpu_mut(cpu) {
            p.time = p.time.max(time);
        }
    }

    /// If the CPU is far behind the next one, brings it nearer, with all that is behind and all guests measured by that: who
    /// comes before whom stays, but how long those further on would wait if the loads changed does not grow.
    fn gather(&mut self, cpu: Cpu) {
        let Some(time) = self.cpu(cpu).map(|p| p.time).filter(|t| self.time - t > FAR * self.grain) else { return };
        let (mut behind, mut next) = (0, self.time);
        for (n, p) in (0..).zip(&self.cpus).filter_map(|(n, p)| Some((n, p.as_ref()?))) {
            self.steps += 1;
            if p.time <= time {
                behind |= CpuSet::one(Cpu(n)).0;
            } else {
                next = next.min(p.time);
            }
        }
        if next - time <= FAR * self.grain {
            return;
        }
        let more = next - time - NEAR * self.grain;
        bits(behind).for_each(|c| self.cpu_mut(c).into_iter().for_each(|p| p.time += more));
        let ahead = self.present & !behind;
        for group in self.groups.iter_mut().flatten() {
            self.steps += 1;
            group.time += if group.cpus & ahead == 0 { more } else { 0 };
        }
        let groups = &self.groups;
        let moved = |n: u16| groups.get(usize::from(n)).and_then(Option::as_ref).is_some_and(|g| g.cpus & ahead == 0);
        self.fair.shift(more, moved);
    }

    /// Accounts a task's state up to now and changes it. Its group is to be placed after that.
    pub(crate) fn shift(&mut self, id: TaskId, to: State, paused: bool, now: u64) {
        let Some(task) = self.task_mut(id) else { return };
        let spent = now - task.since;
        match task.state {
            State::Running(_) => task.usage.ran += spent,
            _ if task.paused => task.usage.paused += spent,
            State::Ready => task.usage.waiting += spent,
            State::Blocked => task.usage.blocked += spent,
        }
        let kinds = |state: State, paused: bool| (state == State::Ready && !paused, matches!(state, State::Running(_)));
        let (waited, ran) = kinds(task.state, task.paused);
        let (waits, runs) = kinds(to, paused);
        let group = task.group;
        (task.since, task.state, task.paused) = (now, to, paused);
        if waits && !waited {
            task.ready = now;
        }
        match (waited, waits) {
            (false, true) => self.enqueue(id),
            (true, false) => self.dequeue(id),
            _ => {}
        }
        match (waited || ran, waits || runs) {
            (false, true) => self.rise(group, now),
            (true, false) => {
                if let Some(group) = self.group_mut(group) {
                    group.active -= 1;
                }
            }
            _ => {}
        }
    }

    /// A task of the group woke: if it is the first, the group starts at the present virtual time.
    fn rise(&mut self, number: u16, now: u64) {
        let Some((active, cpus)) = self.group_mut(number).map(|g| (g.active, g.cpus)) else { return };
        if active == 0 {
            // Those that run without end have not been charged yet.
            for cpu in bits(self.open & cpus) {
                if self.endless(cpu) {
                    self.settle(cpu, now);
                }
            }
        }
        let (time, slice) = (self.present_time(cpus), self.slice);
        let Some(group) = self.group_mut(number) else { return };
        if active == 0 {
            group.time = group.time.max(time);
            group.refill(now, slice);
            group.woke(now);
        }
        group.active += 1;
    }

    /// Pauses or resumes.
    pub(crate) fn hold(&mut self, id: TaskId, paused: bool, now: u64) -> Option<Cpu> {
        let now = self.clock(now);
        let state = self.task(id)?.state;
        if let State::Running(cpu) = state {
            self.settle(cpu, now);
        }
        self.shift(id, state, paused, now);
        let group = self.task(id)?.group;
        self.place(group, now);
        match state {
            State::Running(cpu) => Some(cpu),
            _ => None,
        }
    }

    /// Starts a turn; its end.
    pub(crate) fn start(&mut self, cpu: Cpu, best: Choice, found: &Found, now: u64) -> u64 {
        self.shift(best.task, State::Running(cpu), false, now);
        let Some(zone) = self.task(best.task).map(|t| t.zone) else { return now };
        if self.cpu(cpu).and_then(|p| p.wanted) == Some(zone) {
            self.want(cpu, None);
        }
        let slice = self.slice;
        let Some(group) = self.group_mut(best.group) else { return now };
        let began = group.time;
        let turn = group.allowance(now, slice).unwrap_or(1);
        let turn = group.reserve(cpu).map_or(turn, |left| turn.min(left)).max(1);
        let free = group.params.cap.is_none() && group.reserve(cpu).is_none();
        group.charge(i128::from(turn), best.reserved);
        if !best.reserved {
            self.advance(cpu, began);
            self.gather(cpu);
        }
        let until = if free && !found.contended { found.event } else { now.saturating_add(turn).min(found.event) };
        let run = Run { task: best.task, zone, reserved: best.reserved, ahead: turn, kept: now.saturating_add(slice) };
        self.occupy(cpu, Some(run), until);
        if until <= now.saturating_add(slice) {
            self.open &= !CpuSet::one(cpu).0;
        }
        self.place(best.group, now);
        until
    }

    /// Nothing runs; until when.
    pub(crate) fn idle(&mut self, cpu: Cpu, until: u64) -> u64 {
        self.occupy(cpu, None, until);
        until
    }

    fn occupy(&mut self, cpu: Cpu, run: Option<Run>, until: u64) {
        if let Some(p) = self.cpu_mut(cpu) {
            (p.run, p.until, p.rests) = (run, until, run.is_none());
        }
    }

    /// Charges what the CPU ran, or idled, up to now.
    pub(crate) fn settle(&mut self, cpu: Cpu, now: u64) {
        if let Some(group) = self.charge_run(cpu, now) {
            self.place(group, now);
        }
    }

    /// Charges what the CPU ran, or idled, up to now; the group, which is to be placed after that.
    pub(crate) fn charge_run(&mut self, cpu: Cpu, now: u64) -> Option<u16> {
        let p = self.cpu_mut(cpu)?;
        let spent = now - p.since;
        let Some(run) = p.run.as_mut() else {
            p.rest(now);
            return None;
        };
        p.since = now;
        p.usage.ran += spent;
        let (id, reserved, due) = (run.task, run.reserved, spent.saturating_sub(run.ahead));
        run.ahead = run.ahead.saturating_sub(spent);
        let ahead = i128::from(run.ahead);
        let task = self.task_mut(id)?;
        task.usage.ran += now - task.since;
        task.since = now;
        let number = task.group;
        let cpus = self.group_mut(number)?.cpus;
        let (present, slice) = (self.present_time(cpus), i128::from(self.slice));
        let group = self.group_mut(number)?;
        group.charge(i128::from(due), reserved);
        group.ran += spent;
        group.time = group.time.max(present - group.span(BEHIND * slice));
        let reached = group.time - group.span(ahead);
        if self.endless(cpu) {
            self.advance(cpu, reached);
        }
        Some(number)
    }
}
