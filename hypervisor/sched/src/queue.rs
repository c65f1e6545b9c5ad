//! Who waits: a list for each guest in the order of becoming ready, and where the guests stand.

use crate::{Cpu, Scheduler, TaskId};

impl<const TASKS: usize, const CPUS: usize> Scheduler<TASKS, CPUS> {
    /// Puts a task at the end of its guest's list.
    pub(crate) fn enqueue(&mut self, id: TaskId) {
        let Some((number, cpus)) = self.task(id).map(|t| (t.group, t.cpus.0)) else { return };
        let Some(group) = self.group_mut(number) else { return };
        let before = group.tail.replace(id);
        group.head = group.head.or(Some(id));
        group.waiting |= cpus;
        if let Some(last) = before.and_then(|b| self.task_mut(b)) {
            last.after = Some(id);
        }
        if let Some(task) = self.task_mut(id) {
            (task.before, task.after) = (before, None);
        }
    }

    /// Takes a task out of its guest's list.
    pub(crate) fn dequeue(&mut self, id: TaskId) {
        let Some((number, before, after)) = self.task(id).map(|t| (t.group, t.before, t.after)) else { return };
        if let Some(before) = before.and_then(|b| self.task_mut(b)) {
            before.after = after;
        }
        if let Some(after) = after.and_then(|a| self.task_mut(a)) {
            after.before = before;
        }
        let Some(group) = self.group_mut(number) else { return };
        if group.head == Some(id) {
            group.head = after;
        }
        if group.tail == Some(id) {
            group.tail = before;
        }
        let (mut next, all, mut waiting) = (group.head, group.cpus, 0);
        while let Some(t) = next.and_then(|n| self.task(n)) {
            waiting |= t.cpus.0;
            // The others add nothing if one may run wherever any of the guest may.
            next = t.after.filter(|_| all != waiting);
            self.steps += 1;
        }
        if let Some(group) = self.group_mut(number) {
            group.waiting = waiting;
        }
    }

    /// The guest's task that waits longest for this CPU.
    pub(crate) fn longest(&mut self, number: u16, cpu: Cpu) -> Option<TaskId> {
        let mut next = self.group(number)?.head;
        while let Some(id) = next {
            self.steps += 1;
            let task = self.task(id)?;
            if task.cpus.has(cpu) {
                return Some(id);
            }
            next = task.after;
        }
        None
    }

    /// Brings a guest up to date and puts it where it belongs among those that wait.
    pub(crate) fn place(&mut self, number: u16, now: u64) {
        let slice = self.slice;
        let Some(Some(group)) = self.groups.get_mut(usize::from(number)) else { return };
        let head = group.head.and_then(|h| self.tasks.get(usize::from(h.0))?.as_ref());
        let ready = head.map_or(0, |t| t.ready);
        if group.params.cap.is_none() && group.params.reservation.is_none() {
            return self.fair.set(number, head.and_then(|_| group.entry(group.time, ready, group.waiting)));
        }
        group.refill(now, slice);
        let [fair, urgent, timer] = group.places(now, slice, ready);
        self.fair.set(number, fair);
        self.urgent.set(number, urgent);
        self.timers.set(number, timer);
    }
}
