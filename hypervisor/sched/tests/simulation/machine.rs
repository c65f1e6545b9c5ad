//! A machine of 1 MHz on which a scheduler's word is done, and looked at after each event.

use bulkhead_sched::{Cpu, CpuSet, Outcome, Params, Scheduler, TaskId};

pub const SLICE: u64 = 1000;
pub const END: u64 = 10_000_000;

/// Runs `run` ticks, sleeps `sleep`; with `jitter` up to twice that. Comes back up to `over` ticks late.
#[derive(Clone, Copy)]
pub struct Load {
    pub run: u64,
    pub sleep: u64,
    pub jitter: bool,
    pub over: u64,
}

/// Never sleeps.
pub const HOG: Load = Load { run: u64::MAX, sleep: 0, jitter: false, over: 0 };

/// Runs for a tick now, and then no more.
pub const GONE: Load = Load::new(1, u64::MAX / 2, false);

impl Load {
    pub const fn new(run: u64, sleep: u64, jitter: bool) -> Self {
        Self { run, sleep, jitter, over: 0 }
    }
}

pub fn params(group: u16, share: u32) -> Params {
    Params { share, cap: None, burst: 0, reservation: None, cpus: CpuSet::ALL, zone: 0, group }
}

pub struct Work {
    pub params: Params,
    pub load: Load,
    left: u64,
    /// When it wakes; `u64::MAX`: it is awake.
    wakes: u64,
    since: u64,
    /// The longest that it waited for its first turn after a wake.
    pub latency: u64,
    /// The shortest turn that it did not end.
    pub shortest: u64,
    pub ran: u64,
}

pub struct Machine<const T: usize, const C: usize> {
    pub sched: Box<Scheduler<T, C>>,
    pub work: Vec<Work>,
    ends: Vec<u64>,
    kicked: Vec<bool>,
    /// The task and since when it runs.
    runs: Vec<Option<(usize, u64)>>,
    seed: u64,
    threads: usize,
    /// What a CPU does between two turns takes this long.
    pub between: u64,
    /// Until when it does that; `u64::MAX`: it does not.
    busy: Vec<u64>,
    pub decisions: u64,
    pub now: u64,
}

impl<const T: usize, const C: usize> Machine<T, C> {
    pub fn new(threads: usize, loads: &[(Params, Load)], seed: u64) -> Self {
        let mut sched = Box::new(Scheduler::new(SLICE));
        for n in 0..C {
            sched.online(Cpu(n as u16), (n / threads) as u16, 0);
        }
        for (n, (params, _)) in loads.iter().enumerate() {
            sched.add(TaskId(n as u16), *params, 0).unwrap();
        }
        let work = |(params, load): &(Params, Load)| Work {
            params: *params,
            load: *load,
            left: load.run,
            wakes: 0,
            since: 0,
            latency: 0,
            shortest: u64::MAX,
            ran: 0,
        };
        let work = loads.iter().map(work).collect();
        let (ends, runs, busy) = (vec![0; C], vec![None; C], vec![u64::MAX; C]);
        let kicked = vec![false; C];
        Self { sched, work, ends, kicked, runs, seed, threads, between: 0, busy, decisions: 0, now: 0 }
    }

    /// From now on it does this; who sleeps wakes for it.
    pub fn change(&mut self, task: usize, load: Load) {
        let work = &mut self.work[task];
        (work.load, work.left) = (load, load.run);
        if work.wakes != u64::MAX {
            work.wakes = self.now;
        } else if let Some(cpu) = self.runs.iter().position(|r| r.is_some_and(|(t, _)| t == task)) {
            self.ends[cpu] = self.now;
        }
    }

    pub fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) % below.max(1)
    }

    fn stop(&mut self, cpu: usize) {
        let Some((task, since)) = self.runs[cpu].take() else { return };
        let (now, load) = (self.now, self.work[task].load);
        self.work[task].ran += now - since;
        if load.run != u64::MAX {
            self.work[task].left = self.work[task].left.saturating_sub(now - since);
        }
        if self.work[task].left > 0 {
            self.work[task].shortest = self.work[task].shortest.min(now - since);
            return self.sched.yielded(Cpu(cpu as u16), now, Outcome::Ready);
        }
        self.sched.yielded(Cpu(cpu as u16), now, Outcome::Blocked);
        let (a, b) = if load.jitter { (self.random(load.run), self.random(load.sleep)) } else { (0, 0) };
        self.work[task].left = load.run + a;
        self.work[task].wakes = now + (load.sleep + b).max(1);
    }

    fn wake(&mut self, task: usize) {
        self.work[task].wakes = u64::MAX;
        self.work[task].since = self.now;
        if let Some(Cpu(c)) = self.sched.wake(TaskId(task as u16), self.now) {
            (self.ends[c as usize], self.kicked[c as usize]) = (self.now, true);
        }
    }

    /// Whether a kick does not end the turn.
    fn goes_on(&mut self, cpu: usize) -> bool {
        let kicked = std::mem::take(&mut self.kicked[cpu]);
        let Some((task, since)) = self.runs[cpu].filter(|_| kicked) else { return false };
        let left = self.work[task].left.saturating_sub(self.now - since);
        if left == 0 {
            return false;
        }
        self.decisions += 1;
        let Some(d) = self.sched.goes_on(Cpu(cpu as u16), self.now) else { return false };
        assert!(d.until > self.now, "a turn of nothing");
        self.ends[cpu] = d.until.min(self.now.saturating_add(left));
        self.kick(cpu, d.kick);
        true
    }

    fn kick(&mut self, by: usize, which: Option<Cpu>) {
        if let Some(Cpu(c)) = which {
            assert_ne!(c as usize, by);
            (self.ends[c as usize], self.kicked[c as usize]) = (self.now, true);
        }
    }

    fn decide(&mut self, cpu: usize) {
        let d = self.sched.pick(Cpu(cpu as u16), self.now);
        self.decisions += 1;
        assert!(d.until > self.now, "a turn of nothing");
        self.ends[cpu] = d.until;
        if let Some(TaskId(t)) = d.task {
            let over = self.work[t as usize].load.over;
            let over = self.random(over);
            let work = &mut self.work[t as usize];
            assert!(work.params.cpus.has(Cpu(cpu as u16)), "affinity");
            assert_eq!(work.wakes, u64::MAX, "it sleeps");
            assert!(self.runs.iter().flatten().all(|(other, _)| *other != t as usize), "it runs twice");
            let waited = self.now.saturating_sub(work.since);
            work.latency = work.latency.max(waited);
            work.since = u64::MAX;
            self.runs[cpu] = Some((t as usize, self.now));
            self.ends[cpu] = d.until.saturating_add(over).min(self.now.saturating_add(work.left));
        }
        self.kick(cpu, d.kick);
    }

    pub fn run(&mut self, end: u64) {
        while self.now < end {
            for task in 0..self.work.len() {
                if self.work[task].wakes <= self.now {
                    self.wake(task);
                }
            }
            let mut turns = 0;
            while let Some(cpu) = (0..C).find(|c| self.ends[*c].min(self.busy[*c]) <= self.now) {
                if self.busy[cpu] != u64::MAX && self.busy[cpu] > self.now {
                    // It looks anyway when it is done.
                    self.ends[cpu] = u64::MAX;
                } else if !self.goes_on(cpu) {
                    let turn = self.runs[cpu].is_some();
                    self.stop(cpu);
                    if turn && self.between > 0 {
                        (self.busy[cpu], self.ends[cpu]) = (self.now + self.between, u64::MAX);
                    } else {
                        self.busy[cpu] = u64::MAX;
                        self.decide(cpu);
                    }
                }
                turns += 1;
                assert!(turns < 10 * C + 10, "kicks without end");
            }
            self.zones();
            self.conserves();
            let wake = self.work.iter().map(|l| l.wakes).min().unwrap();
            self.now = self.ends.iter().chain(&self.busy).copied().min().unwrap().min(wake).min(end);
        }
        self.adds_up();
    }

    fn zones(&self) {
        for core in self.runs.chunks(self.threads) {
            let mut zones = core.iter().flatten().map(|(t, _)| self.work[*t].params.zone);
            let first = zones.next();
            assert!(zones.all(|z| Some(z) == first), "two zones on a core");
        }
    }

    /// No CPU idles while a task waits that may run there, caps and zones aside.
    fn conserves(&self) {
        if self.threads > 1 || (0..C).all(|c| self.runs[c].is_some() || self.busy[c] != u64::MAX) {
            return;
        }
        for (n, work) in self.work.iter().enumerate() {
            let waits = work.wakes == u64::MAX && self.runs.iter().flatten().all(|(t, _)| *t != n);
            let idle =
                |c: usize| self.runs[c].is_none() && self.busy[c] == u64::MAX && work.params.cpus.has(Cpu(c as u16));
            assert!(
                !waits || work.params.cap.is_some() || !(0..C).any(idle),
                "{n} waits and a CPU idles at {}",
                self.now
            );
        }
    }

    /// No tick is lost or counted twice: the scheduler's account agrees with this machine's own.
    fn adds_up(&mut self) {
        let mut tasks = 0;
        for n in 0..self.work.len() {
            let u = self.sched.usage(TaskId(n as u16), self.now).unwrap();
            assert_eq!(u.ran + u.waiting + u.blocked + u.paused, self.now);
            let on = self.runs.iter().flatten().find(|(t, _)| *t == n).map_or(0, |(_, since)| self.now - since);
            assert_eq!(u.ran, self.work[n].ran + on);
            tasks += u.ran;
        }
        let cpus: Vec<_> = (0..C).map(|n| self.sched.cpu_usage(Cpu(n as u16), self.now).unwrap()).collect();
        assert!(cpus.iter().all(|u| u.ran + u.idle + u.own == self.now && (u.own == 0 || self.between > 0)));
        assert_eq!(cpus.iter().map(|u| u.ran).sum::<u64>(), tasks);
    }

    pub fn ran(&mut self, task: usize) -> u64 {
        self.sched.usage(TaskId(task as u16), self.now).unwrap().ran
    }

    pub fn idle(&mut self) -> u64 {
        (0..C).map(|n| self.sched.cpu_usage(Cpu(n as u16), self.now).unwrap().idle).sum()
    }
}

#[track_caller]
pub fn near(got: u64, want: u64) {
    assert!(got.abs_diff(want) * 100 <= want, "{got} instead of {want}");
}
