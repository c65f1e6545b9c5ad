//! The look at all tasks, the turn, the charge.

use crate::{Cpu, CpuSet, Found, Group, Key, Params, Processor, RESERVABLE, Run, Scheduler, State, Task, TaskId};

impl<const TASKS: usize, const CPUS: usize> Scheduler<TASKS, CPUS> {
    pub(crate) fn clock(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        self.now
    }

    pub(crate) fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(usize::from(id.0))?.as_ref()
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

    /// CPUs that are online.
    pub(crate) fn present(&self) -> impl Iterator<Item = Cpu> {
        (0u16..).zip(self.cpus.iter().take(self.used.1)).filter_map(|(n, c)| c.is_some().then_some(Cpu(n)))
    }

    /// The other threads of the CPU's core.
    pub(crate) fn siblings(&self, cpu: Cpu) -> impl Iterator<Item = Cpu> {
        let core = self.cpu(cpu).map(|p| p.core);
        self.present().filter(move |c| *c != cpu && self.cpu(*c).map(|p| p.core) == core)
    }

    /// A CPU whose reservations leave room for these.
    pub(crate) fn admit(&self, params: &Params) -> Option<Cpu> {
        let more = Group::reserved(params);
        self.present().filter(|c| params.cpus.has(*c)).find(|cpu| {
            let there = self.groups.iter().flatten().filter(|g| g.home == *cpu);
            more == 0 || there.map(|g| Group::reserved(&g.params)).sum::<u128>() + more <= RESERVABLE
        })
    }

    /// The virtual time that counts for a group.
    fn present_time(&self, group: &Group) -> i128 {
        group.pinned().and_then(|c| self.cpu(c)).map_or(self.time, |p| p.time)
    }

    /// Accounts a task's state up to now and changes it.
    pub(crate) fn shift(&mut self, id: TaskId, to: State, now: u64) {
        let Some(task) = self.tasks.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return };
        let spent = now - task.since;
        match task.state {
            State::Running(_) => task.usage.ran += spent,
            _ if task.paused => task.usage.paused += spent,
            State::Ready => task.usage.waiting += spent,
            State::Blocked => task.usage.blocked += spent,
        }
        let (was, group) = (task.state, task.group);
        task.since = now;
        task.state = to;
        if to == State::Ready && was != State::Ready {
            task.ready = now;
        }
        match (was == State::Blocked, to == State::Blocked) {
            (true, false) => self.rise(group, now),
            (false, true) => {
                if let Some(group) = self.group_mut(group) {
                    group.runnable -= 1;
                }
            }
            _ => {}
        }
    }

    /// A task of the group woke: if it is the first, the group starts at the present virtual time.
    fn rise(&mut self, number: u16, now: u64) {
        let Some(group) = self.group(number).copied() else { return };
        if group.runnable == 0 {
            // Those that run without end have not been charged yet.
            for n in 0..u16::try_from(self.used.1).unwrap_or(u16::MAX) {
                if self.endless(Cpu(n)) && group.params.cpus.has(Cpu(n)) {
                    self.settle(Cpu(n), now);
                }
            }
        }
        let (time, slice) = (self.present_time(&group), self.slice);
        let Some(group) = self.group_mut(number) else { return };
        if group.runnable == 0 {
            group.time = group.time.max(time);
            group.refill(now, slice);
            group.woke(now);
        }
        group.runnable += 1;
    }

    /// Pauses or resumes.
    pub(crate) fn hold(&mut self, id: TaskId, paused: bool, now: u64) -> Option<Cpu> {
        let now = self.clock(now);
        let state = self.task(id)?.state;
        match state {
            State::Running(cpu) => self.settle(cpu, now),
            _ => self.shift(id, state, now),
        }
        let task = self.tasks.get_mut(usize::from(id.0))?.as_mut()?;
        task.paused = paused;
        match (state, paused) {
            (State::Running(cpu), _) => Some(cpu),
            (State::Ready, false) => Some(Cpu(0)),
            _ => None,
        }
    }

    /// Whether the CPU runs a task without end, or for more than a slice.
    pub(crate) fn endless(&self, cpu: Cpu) -> bool {
        self.cpu(cpu).is_some_and(|p| p.run.is_some() && p.until.saturating_sub(self.now) > self.slice)
    }

    /// The CPU to kick for a task that became ready.
    pub(crate) fn kicked(&self, id: TaskId) -> Option<Cpu> {
        let task = self.task(id).filter(|t| t.state == State::Ready && !t.paused)?;
        let group = self.group(task.group)?;
        let may = |c: &Cpu| task.cpus.has(*c);
        let fits = |c: &Cpu| self.siblings(*c).all(|s| self.zone(s).is_none_or(|z| z == task.zone));
        let idle = |c: &Cpu| self.cpu(*c).is_some_and(|p| p.run.is_none());
        if let Some(cpu) = self.present().filter(may).find(|c| idle(c) && fits(c)) {
            return Some(cpu);
        }
        if let Some(cpu) = self.present().filter(may).find(|c| self.endless(*c)) {
            return Some(cpu);
        }
        // Preempts at its home with a reservation, elsewhere who is ahead by more than a slice of its own.
        let ahead = |c: &Cpu| {
            let run = self.cpu(*c).and_then(|p| p.run)?;
            let other = self.group(self.task(run.task)?.group)?;
            let urgent =
                group.reserve(*c).is_some() && other.reserve(*c).is_none_or(|_| group.deadline < other.deadline);
            let lead = other.time - group.time - group.span(i128::from(self.slice));
            (urgent || other.reserve(*c).is_none() && lead > 0).then_some((urgent, lead))
        };
        self.present().filter(|c| may(c) && fits(c)).filter_map(|c| Some((ahead(&c)?, c))).max().map(|(_, c)| c)
    }

    fn zone(&self, cpu: Cpu) -> Option<u16> {
        self.cpu(cpu).and_then(|p| p.run).map(|r| r.zone)
    }

    /// Empties the CPU's core for a zone, or ends that.
    pub(crate) fn want(&mut self, cpu: Cpu, zone: Option<u16>) {
        let core = self.cpu(cpu).map(|p| p.core);
        for p in self.cpus.iter_mut().take(self.used.1).flatten().filter(|p| Some(p.core) == core) {
            p.wanted = zone;
        }
    }

    /// Looks at all tasks.
    pub(crate) fn look(&mut self, cpu: Cpu, now: u64) -> Found {
        let mut found = Found { best: None, barred: None, contended: false, event: u64::MAX };
        let Some(wanted) = self.cpu(cpu).map(|p| p.wanted) else { return found };
        let slice = self.slice;
        let core = self.siblings(cpu).fold(CpuSet::one(cpu), |s, c| CpuSet(s.0 | 1 << c.0));
        let waits = |t: &Task| t.state == State::Ready && !t.paused;
        let able = |t: &Task| waits(t) && self.group(t.group).is_some_and(|g| g.allowance(now, slice).is_ok());
        // It is wanted only while one waits for it.
        let wanted = wanted.filter(|z| {
            self.tasks.iter().take(self.used.0).flatten().any(|t| able(t) && t.zone == *z && t.cpus.0 & core.0 != 0)
        });
        if wanted.is_none() {
            self.want(cpu, None);
        }
        let beside = self.siblings(cpu).find_map(|c| self.zone(c));
        for (n, task) in (0u16..).zip(self.tasks.iter().take(self.used.0)) {
            self.steps += 1;
            let Some(task) = task.as_ref().filter(|t| waits(t) && t.cpus.has(cpu)) else { continue };
            let Some(Some(group)) = self.groups.get_mut(usize::from(task.group)) else { continue };
            group.refill(now, slice);
            if group.params.reservation.is_some() && group.home == cpu {
                found.event = found.event.min(group.deadline.max(now + 1));
            }
            if let Err(at) = group.allowance(now, slice) {
                found.event = found.event.min(at.max(now + 1));
                continue;
            }
            let reserved = group.reserve(cpu).is_some();
            let key: Key = (!reserved, if reserved { group.deadline } else { 0 }, group.time, task.ready);
            let open = [beside, wanted].iter().flatten().all(|z| *z == task.zone);
            let place = if open { &mut found.best } else { &mut found.barred };
            found.contended |= place.is_some();
            if place.is_none_or(|(k, _)| key < k) {
                *place = Some((key, TaskId(n)));
            }
        }
        found.contended |= found.best.is_some() && found.barred.is_some();
        found
    }

    /// Starts a turn; its end.
    pub(crate) fn start(&mut self, cpu: Cpu, id: TaskId, key: Key, found: &Found, now: u64) -> u64 {
        self.shift(id, State::Running(cpu), now);
        let Some((number, zone)) = self.task(id).map(|t| (t.group, t.zone)) else { return now };
        let (slice, floating) = (self.slice, self.group(number).is_some_and(|g| g.pinned().is_none()));
        if self.cpu(cpu).and_then(|p| p.wanted) == Some(zone) {
            self.want(cpu, None);
        }
        if floating && key.0 {
            self.time = self.time.max(key.2);
        }
        let Some(group) = self.group_mut(number) else { return now };
        let turn = group.allowance(now, slice).unwrap_or(1);
        let turn = group.reserve(cpu).map_or(turn, |left| turn.min(left)).max(1);
        let free = group.params.cap.is_none() && group.reserve(cpu).is_none();
        group.charge(i128::from(turn));
        let until = if free && !found.contended { found.event } else { now.saturating_add(turn).min(found.event) };
        if let Some(p) = self.cpu_mut(cpu) {
            if key.0 {
                p.time = p.time.max(key.2);
            }
            p.run = Some(Run { task: id, zone, ahead: turn });
            p.until = until;
        }
        until
    }

    /// Charges what the CPU ran, or idled, up to now.
    pub(crate) fn settle(&mut self, cpu: Cpu, now: u64) {
        let Some(p) = self.cpu_mut(cpu) else { return };
        let spent = now - p.since;
        p.since = now;
        let Some(run) = p.run.as_mut() else {
            p.usage.idle += spent;
            return;
        };
        p.usage.ran += spent;
        let (id, due) = (run.task, i128::from(spent) - i128::from(run.ahead));
        run.ahead = 0;
        self.shift(id, State::Running(cpu), now);
        let Some(number) = self.task(id).map(|t| t.group) else { return };
        let slice = i128::from(self.slice);
        let Some(group) = self.group_mut(number) else { return };
        group.charge(due);
        let group = *group;
        // Behind by two slices at most.
        let time = group.time.max(self.present_time(&group) - group.span(2 * slice));
        if let Some(g) = self.group_mut(number) {
            g.time = time;
        }
        if self.endless(cpu) {
            if group.pinned().is_none() {
                self.time = self.time.max(time);
            }
            if let Some(p) = self.cpu_mut(cpu) {
                p.time = p.time.max(time);
            }
        }
    }

    /// A CPU that idles or runs without end while a task waits that may run there.
    pub(crate) fn spare(&self, cpu: Cpu) -> Option<Cpu> {
        let fits = |c: Cpu, zone| self.siblings(c).all(|s| self.zone(s).is_none_or(|z| z == zone));
        let free = |c: &Cpu| *c != cpu && (self.cpu(*c).is_some_and(|p| p.run.is_none()) || self.endless(*c));
        let open = self.present().filter(free).fold(0, |set, c| set | CpuSet::one(c).0);
        if open == 0 {
            return None;
        }
        let waiting = self
            .tasks
            .iter()
            .take(self.used.0)
            .flatten()
            .filter(|t| t.state == State::Ready && !t.paused && t.cpus.0 & open != 0);
        let mut able =
            waiting.filter(|t| self.group(t.group).is_some_and(|g| g.allowance(self.now, self.slice).is_ok()));
        able.find_map(|t| {
            let here = |c: &Cpu| open & t.cpus.0 & CpuSet::one(*c).0 != 0;
            self.present().filter(here).find(|c| self.endless(*c) || fits(*c, t.zone))
        })
    }
}
