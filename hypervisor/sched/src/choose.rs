//! Who runs next on a CPU, and whose turn there ends for it.

use crate::order::Query;
use crate::{Cpu, CpuSet, Scheduler, State, TaskId, bits};

/// A task that may run.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub group: u16,
    pub task: TaskId,
    /// On its guest's budget.
    pub reserved: bool,
}

/// What waits for a CPU.
pub(crate) struct Found {
    pub best: Option<Choice>,
    /// It comes before the best, but the zone of the core keeps it out.
    pub barred: Option<Choice>,
    /// Another waits that may run here.
    pub contended: bool,
    /// When that may change by itself.
    pub event: u64,
}

/// Who may enter a core.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    All,
    Zone(u16),
    Nobody,
}

impl<const TASKS: usize, const CPUS: usize> Scheduler<TASKS, CPUS> {
    /// The first who waits for this CPU, of any zone or of one.
    fn first(&mut self, cpu: Cpu, zone: Option<u16>) -> Option<Choice> {
        let query = Query { cpus: CpuSet::one(cpu).0, zone, but: None };
        let urgent = self.urgent.first(query);
        let group = urgent.or_else(|| self.fair.first(query))?;
        Some(Choice { group, task: self.longest(group, cpu)?, reserved: urgent.is_some() })
    }

    fn zone(&self, cpu: Cpu) -> Option<u16> {
        self.cpu(cpu).and_then(|p| p.run).map(|r| r.zone)
    }

    /// Whom the other threads of the CPU's core, or who empties it, let in.
    fn door(&mut self, cpu: Cpu) -> Door {
        let siblings = self.siblings(cpu);
        self.steps += u64::from(siblings.count_ones());
        let beside = bits(siblings).find_map(|c| self.zone(c));
        match (beside, self.cpu(cpu).and_then(|p| p.wanted)) {
            (None, None) => Door::All,
            (Some(zone), None) | (None, Some(zone)) => Door::Zone(zone),
            (Some(zone), Some(wanted)) if zone == wanted => Door::Zone(zone),
            _ => Door::Nobody,
        }
    }

    fn through(&mut self, door: Door, cpu: Cpu) -> Option<Choice> {
        match door {
            Door::All => self.first(cpu, None),
            Door::Zone(zone) => self.first(cpu, Some(zone)),
            Door::Nobody => None,
        }
    }

    /// Empties the CPU's core for a zone, or ends that.
    pub(crate) fn want(&mut self, cpu: Cpu, zone: Option<u16>) {
        let core = self.siblings(cpu) | CpuSet::one(cpu).0;
        for c in bits(core) {
            if let Some(p) = self.cpu_mut(c) {
                p.wanted = zone;
            }
        }
    }

    /// Guests whose tokens or budget came.
    pub(crate) fn expire(&mut self, now: u64) {
        let all = Query { cpus: u64::MAX, zone: None, but: None };
        while let Some(group) = self.timers.first(all) {
            if self.timers.get(group).is_none_or(|e| e.key.0 > i128::from(now)) {
                return;
            }
            self.place(group, now);
        }
    }

    /// When the next of these comes that may run on the CPU.
    fn event(&mut self, cpu: Cpu) -> u64 {
        let next = self.timers.first(Query { cpus: CpuSet::one(cpu).0, zone: None, but: None });
        next.and_then(|g| self.timers.get(g)).map_or(u64::MAX, |e| u64::try_from(e.key.0).unwrap_or(u64::MAX))
    }

    /// Looks for who runs next.
    pub(crate) fn look(&mut self, cpu: Cpu, now: u64) -> Found {
        self.expire(now);
        let here = CpuSet::one(cpu).0;
        if let Some(zone) = self.cpu(cpu).and_then(|p| p.wanted) {
            // It is wanted only while one waits for it.
            let core = Query { cpus: self.siblings(cpu) | here, zone: Some(zone), but: None };
            if self.fair.first(core).is_none() {
                self.want(cpu, None);
            }
        }
        let event = self.event(cpu);
        let Some(lead) = self.first(cpu, None) else {
            return Found { best: None, barred: None, contended: false, event };
        };
        let door = self.door(cpu);
        let zone = self.task(lead.task).map(|t| t.zone);
        let open = door == Door::All || zone.is_some_and(|z| door == Door::Zone(z));
        if !open {
            return Found { best: self.through(door, cpu), barred: Some(lead), contended: true, event };
        }
        let another = self.fair.first(Query { cpus: here, zone: None, but: Some(lead.group) }).is_some();
        let mut next = self.task(lead.task).and_then(|t| t.after);
        while let Some(t) = next.and_then(|n| self.task(n)).filter(|t| !another && !t.cpus.has(cpu)) {
            next = t.after;
            self.steps += 1;
        }
        Found { best: Some(lead), barred: None, contended: another || next.is_some(), event }
    }

    /// The CPU to kick for a task that became ready.
    pub(crate) fn kicked(&mut self, id: TaskId) -> Option<Cpu> {
        let task = *self.task(id).filter(|t| t.state == State::Ready && !t.paused)?;
        let open = self.open & task.cpus.0;
        let (mut ends, mut shut) = (None, None);
        for cpu in bits(open) {
            self.steps += 1;
            if self.endless(cpu) {
                ends = ends.or(Some(cpu));
                continue;
            }
            let door = self.door(cpu);
            if door == Door::All || door == Door::Zone(task.zone) {
                return Some(cpu);
            }
            // It would not look for long.
            let late = self.cpu(cpu).is_some_and(|p| p.until > self.now.saturating_add(2 * self.slice));
            shut = shut.or(late.then_some(cpu));
        }
        self.preempts(task.group).filter(|home| task.cpus.has(*home)).or(ends).or(shut)
    }

    /// Whether one waits at home with a budget left that comes before who runs there.
    pub(crate) fn is_urgent(&mut self, cpu: Cpu, now: u64) -> bool {
        self.expire(now);
        self.preempted(|home| home == cpu).is_some()
    }

    /// The first of these CPUs whose turn is to end for one that waits with a budget left.
    fn preempted(&mut self, which: impl Fn(Cpu) -> bool) -> Option<Cpu> {
        let mut at = 0;
        while let Some(group) = self.urgent.nth(at) {
            if let Some(home) = self.preempts(group).filter(|home| which(*home)) {
                return Some(home);
            }
            at += 1;
        }
        None
    }

    /// The CPU where a guest has a budget left, if it comes before what runs there.
    fn preempts(&mut self, group: u16) -> Option<Cpu> {
        self.steps += 1;
        let group = self.group(group)?;
        let (home, zone, deadline) = (group.home, group.params.zone, group.deadline);
        group.reserve(home)?;
        let run = self.cpu(home)?.run?;
        if run.reserved && self.group(self.task(run.task)?.group)?.deadline <= deadline {
            return None;
        }
        let door = self.door(home);
        (door == Door::All || door == Door::Zone(zone)).then_some(home)
    }

    /// A CPU that should look again: one that idles or runs without end, or where a guest has a budget that ran elsewhere.
    pub(crate) fn spare(&mut self, but: Cpu) -> Option<Cpu> {
        let home = self.preempted(|home| home != but);
        if home.is_some() {
            return home;
        }
        let open = self.open & !CpuSet::one(but).0;
        let query = Query { cpus: open, zone: None, but: None };
        if open == 0 || self.fair.first(query).or_else(|| self.timers.first(query)).is_none() {
            return None;
        }
        bits(open).find(|cpu| {
            self.steps += 1;
            let until = self.cpu(*cpu).map_or(0, |p| p.until);
            let waits = self.fair.first(Query { cpus: CpuSet::one(*cpu).0, zone: None, but: None }).is_some();
            let late = until > self.now.saturating_add(2 * self.slice);
            if waits && (self.endless(*cpu) || late) || self.event(*cpu) < until {
                return true;
            }
            let door = self.door(*cpu);
            waits && self.through(door, *cpu).is_some()
        })
    }
}
