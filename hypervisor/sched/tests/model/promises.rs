//! Any operations in any order, beside a plain account of what was promised.

use bulkhead_sched::{AddError, Cpu, CpuSet, CpuUsage, Outcome, Params, Reservation, Scheduler, TaskId, Usage};

const SLICE: u64 = 1000;
const CPUS: u16 = 4;
const TASKS: u16 = 8;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Runs(u16),
    Sleeps,
}

struct Task {
    params: Params,
    state: State,
    paused: bool,
    since: u64,
    usage: Usage,
}

impl Task {
    fn account(&mut self, now: u64) {
        let time = match self.state {
            State::Runs(_) => &mut self.usage.ran,
            _ if self.paused => &mut self.usage.paused,
            State::Ready => &mut self.usage.waiting,
            State::Sleeps => &mut self.usage.blocked,
        };
        *time += now - self.since;
        self.since = now;
    }

    fn waits(&self) -> bool {
        self.state == State::Ready && !self.paused
    }
}

/// A guest with a cap: since when, what it ran, and how much of it after its turn's end.
#[derive(Clone, Copy)]
struct Guest {
    params: Params,
    since: u64,
    ran: u64,
    late: u64,
    tasks: u32,
}

/// The machine as it should be.
struct Model {
    sched: Box<Scheduler<8, 4>>,
    tasks: [Option<Task>; 8],
    guests: [Option<Guest>; 8],
    /// Until when each CPU's turn is, since when it runs, what it ran so far.
    until: [u64; 4],
    since: [u64; 4],
    usage: [CpuUsage; 4],
    rests: [bool; 4],
    /// What each guest ran in all its lives.
    ran: [u64; 8],
    /// It has a reservation, or its next life has.
    kept: [bool; 8],
    threads: u16,
    now: u64,
}

/// Does what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let threads = 1 + u16::from(bytes.next().unwrap_or(0) & 1);
    let mut m = Model {
        sched: Box::new(Scheduler::new(SLICE)),
        tasks: Default::default(),
        guests: [None; 8],
        until: [0; 4],
        since: [0; 4],
        usage: [CpuUsage::default(); 4],
        rests: [false; 4],
        ran: [0; 8],
        kept: [false; 8],
        threads,
        now: 0,
    };
    (0..CPUS).for_each(|c| m.sched.online(Cpu(c), c / threads, 0));
    while let Some(op) = bytes.next() {
        let mut byte = || bytes.next().unwrap_or(0);
        let (id, cpu) = (u16::from(op >> 4) % (TASKS + 1), u16::from(op >> 4) % CPUS);
        match op & 15 {
            0 => m.add(id, [byte(), byte(), byte()]),
            1 => m.remove(id),
            2 => m.pause(id, true),
            3 => m.pause(id, false),
            4 => m.wake(id),
            5 => m.retire(id),
            6 => m.yielded(cpu, Outcome::Blocked),
            7 => m.yielded(cpu, if byte() & 1 == 0 { Outcome::Ready } else { Outcome::Gone }),
            8 => {
                m.look(id, cpu);
                m.sched.excuse(Cpu(cpu), 16 * u64::from(byte()), (id % 2 == 0).then_some(TaskId(id)), m.now);
            }
            9 => m.now += u64::from(byte()),
            10 => m.now += 16 * u64::from(byte()),
            13 => m.goes_on(cpu),
            14 => m.awake(cpu),
            15 => m.sched.charge(id, 64 * u64::from(byte()), m.now),
            11 => m.now = m.now.max(m.until[usize::from(cpu)].min(m.now + 100_000)),
            _ => m.pick(cpu),
        }
    }
    (0..TASKS).for_each(|id| m.look(id, id % CPUS));
    (0..8).for_each(|n| assert_eq!(m.sched.ran(n), m.ran[usize::from(n)]));
    let ran = m.usage.iter().map(|u| u.ran).sum::<u64>();
    assert_eq!(ran, m.ran.iter().sum(), "the guests' time is the CPUs'");
    let guests = m.guests.iter().flatten().map(|g| g.ran).sum::<u64>();
    assert!(guests <= ran, "guests ran more than the CPUs");
}

impl Model {
    fn add(&mut self, id: u16, [a, b, c]: [u8; 3]) {
        let group = id.wrapping_sub(u16::from(a & 1)).min(TASKS);
        let budget = u64::from(c >> 4) * 100;
        let params = Params {
            share: u32::from(a >> 1 & 7),
            cap: (b & 3 == 1).then_some(u32::from(b >> 2) * 20),
            burst: u64::from(b >> 6) * 500,
            reservation: (c & 3 == 1).then_some(Reservation { period: 1500, budget }),
            cpus: CpuSet(if c & 4 == 0 { u64::MAX } else { u64::from(c >> 3 & 31) }),
            zone: u16::from(a >> 4 & 1),
            group,
        };
        let slot = usize::from(id);
        let guest = self.guests.get(usize::from(group)).copied().flatten();
        let bad = params.share == 0
            || params.cap == Some(0)
            || params.reservation.is_some_and(|r| r.budget == 0 || r.budget > r.period)
            || guest.is_some_and(|g| g.params.zone != params.zone);
        let wrong = match self.tasks.get(slot) {
            _ if group >= TASKS => Some(AddError::Range),
            None => Some(AddError::Range),
            Some(Some(_)) => Some(AddError::Taken),
            _ if bad => Some(AddError::Params),
            _ if params.cpus.0 & 15 == 0 => Some(AddError::NoCpu),
            _ => None,
        };
        let got = self.sched.add(TaskId(id), params, self.now);
        if let Some(wrong) = wrong {
            return assert_eq!(got, Err(wrong));
        }
        if got == Err(AddError::Overcommitted) {
            let reserved = self.kept.iter().zip(0..).any(|(kept, other)| *kept && other != group);
            return assert!(params.reservation.is_some_and(|r| reserved || r.budget * 16 > r.period * 15));
        }
        assert_eq!(got, Ok(()));
        let (state, usage) = (State::Sleeps, Usage::default());
        self.tasks[slot] = Some(Task { params, state, paused: false, since: self.now, usage });
        let new = Guest { params, since: self.now, ran: 0, late: 0, tasks: 0 };
        let group = usize::from(group);
        self.kept[group] = self.guests[group].map_or(params, |g| g.params).reservation.is_some();
        self.guests[group].get_or_insert(new).tasks += 1;
    }

    fn retire(&mut self, group: u16) {
        self.sched.retire(group);
        if let Some(None) = self.guests.get(usize::from(group)) {
            self.kept[usize::from(group)] = false;
        }
    }

    fn end(&mut self, id: u16) {
        let Some(task) = self.tasks[usize::from(id)].take() else { return };
        let guest = &mut self.guests[usize::from(task.params.group)];
        if let Some(g) = guest {
            g.tasks -= 1;
            if g.tasks == 0 {
                *guest = None;
            }
        }
    }

    fn task(&mut self, id: u16) -> Option<&mut Task> {
        self.tasks.get_mut(usize::from(id))?.as_mut()
    }

    fn remove(&mut self, id: u16) {
        let able = self.task(id).is_some_and(|t| !matches!(t.state, State::Runs(_)));
        assert_eq!(self.sched.remove(TaskId(id), self.now), able);
        if able {
            self.end(id);
        }
    }

    fn pause(&mut self, id: u16, paused: bool) {
        let now = self.now;
        let kick = if paused { self.sched.pause(TaskId(id), now) } else { self.sched.resume(TaskId(id), now) };
        let Some(task) = self.task(id) else { return assert_eq!(kick, None) };
        task.account(now);
        task.paused = paused;
        match task.state {
            State::Runs(c) if paused => assert_eq!(kick, Some(Cpu(c))),
            State::Ready if !paused => {}
            _ => assert_eq!(kick, None),
        }
        let cpus = task.params.cpus;
        assert!(kick.is_none_or(|c| cpus.has(c) && c.0 < CPUS));
    }

    fn wake(&mut self, id: u16) {
        let now = self.now;
        let kick = self.sched.wake(TaskId(id), now);
        let Some(task) = self.task(id) else { return assert_eq!(kick, None) };
        if task.state != State::Sleeps {
            return assert_eq!(kick, None);
        }
        task.account(now);
        task.state = State::Ready;
        assert!(kick.is_none_or(|c| !task.paused && task.params.cpus.has(c) && c.0 < CPUS));
    }

    /// Who runs on the CPU.
    fn on(&self, cpu: u16) -> Option<u16> {
        (0..TASKS).find(|id| self.tasks[usize::from(*id)].as_ref().is_some_and(|t| t.state == State::Runs(cpu)))
    }

    /// The CPU's account up to now.
    fn account(&mut self, cpu: u16) {
        let (c, now) = (usize::from(cpu), self.now);
        let spent = now - self.since[c];
        let late = now.saturating_sub(self.until[c].max(self.since[c]));
        self.since[c] = now;
        let Some(id) = self.on(cpu) else {
            let time = if self.rests[c] { &mut self.usage[c].idle } else { &mut self.usage[c].own };
            *time += spent;
            return;
        };
        self.usage[c].ran += spent;
        let group = self.tasks[usize::from(id)].as_ref().map_or(0, |t| usize::from(t.params.group));
        self.ran[group] += spent;
        if let Some(g) = &mut self.guests[group] {
            g.ran += spent;
            g.late += late;
            if let Some(cap) = g.params.cap {
                let most = (now - g.since) * u64::from(cap) + (g.params.burst.max(SLICE) + g.late) * 1000;
                assert!(g.ran * 1000 <= most, "ran {}, cap {cap}, {:?}", g.ran, g.params);
            }
        }
    }

    fn yielded(&mut self, cpu: u16, outcome: Outcome) {
        self.sched.yielded(Cpu(cpu), self.now, outcome);
        self.ended(cpu, outcome);
    }

    fn ended(&mut self, cpu: u16, outcome: Outcome) {
        self.account(cpu);
        let (now, id) = (self.now, self.on(cpu));
        if let Some((id, task)) = id.and_then(|id| Some((id, self.task(id)?))) {
            task.account(now);
            task.state = if outcome == Outcome::Ready { State::Ready } else { State::Sleeps };
            if outcome == Outcome::Gone {
                self.end(id);
            }
        }
    }

    fn look(&mut self, id: u16, cpu: u16) {
        let now = self.now;
        let got = self.sched.usage(TaskId(id), now);
        let want = self.task(id).map(|t| {
            t.account(now);
            t.usage
        });
        assert_eq!(got, want);
        self.account(cpu);
        assert_eq!(self.sched.cpu_usage(Cpu(cpu), now), Some(self.usage[usize::from(cpu)]));
        let usage = self.usage[usize::from(cpu)];
        assert_eq!(usage.ran + usage.idle + usage.own, now);
    }

    fn awake(&mut self, cpu: u16) {
        self.sched.awake(Cpu(cpu), self.now);
        if self.on(cpu).is_none() {
            self.account(cpu);
            self.rests[usize::from(cpu)] = false;
        }
    }

    /// The CPU was kicked.
    fn goes_on(&mut self, cpu: u16) {
        let (now, c) = (self.now, usize::from(cpu));
        let Some(decision) = self.sched.goes_on(Cpu(cpu), now) else { return };
        let until = decision.until;
        self.account(cpu);
        assert_eq!(decision.task.map(|id| id.0), self.on(cpu));
        assert!(decision.kick.is_none_or(|c| c.0 != cpu && c.0 < CPUS));
        assert!(until > now && until <= self.until[c], "a turn that was over, or longer");
        let task = self.on(cpu).and_then(|id| self.task(id)).expect("a turn of nobody");
        assert!(!task.paused, "a turn of one that is paused");
        task.account(now);
        self.until[c] = until;
    }

    fn pick(&mut self, cpu: u16) {
        let decision = self.sched.pick(Cpu(cpu), self.now);
        self.ended(cpu, Outcome::Ready);
        self.rests[usize::from(cpu)] = decision.task.is_none();
        assert!(decision.until > self.now, "a turn of nothing");
        assert!(decision.kick.is_none_or(|c| c.0 != cpu && c.0 < CPUS));
        self.until[usize::from(cpu)] = decision.until;
        let (now, threads) = (self.now, self.threads);
        let able = |t: &&Task| t.waits() && t.params.cpus.has(Cpu(cpu));
        let Some(TaskId(id)) = decision.task else {
            let mut waiting = self.tasks.iter().flatten().filter(able);
            // One is kept out by its cap or by its core's other thread only.
            let uncapped = |t: &Task| self.guests[usize::from(t.params.group)].is_some_and(|g| g.params.cap.is_none());
            assert!(threads > 1 || !waiting.any(uncapped), "CPU {cpu} idles and one waits");
            return;
        };
        let beside = (0..CPUS).filter(|c| *c != cpu && c / threads == cpu / threads).filter_map(|c| self.on(c));
        let zones: Vec<_> = beside.filter_map(|id| Some(self.tasks[usize::from(id)].as_ref()?.params.zone)).collect();
        let task = self.task(id).expect("a task that is not there");
        assert!(able(&&*task), "a task that does not wait for this CPU");
        assert!(zones.iter().all(|z| *z == task.params.zone), "two zones on a core");
        task.account(now);
        task.state = State::Runs(cpu);
        let uncapped = |t: &Task| self.guests[usize::from(t.params.group)].is_some_and(|g| g.params.cap.is_none());
        let others = self.tasks.iter().flatten().filter(able).any(uncapped);
        assert!(decision.until <= now + SLICE || !others, "a turn without end while another waits");
    }
}
