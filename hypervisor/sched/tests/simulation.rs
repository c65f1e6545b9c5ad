//! The scheduler on a simulated machine: what it promises, over ten seconds of a machine with 1 MHz of ticks.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test; its numbers are small"
)]

use bulkhead_sched::{Cpu, CpuSet, Outcome, Params, Reservation, Scheduler, TaskId};

const SLICE: u64 = 1000;
const END: u64 = 10_000_000;

/// Runs `run` ticks, sleeps `sleep`, with some jitter. `sleep` 0: never sleeps.
#[derive(Clone, Copy)]
struct Load {
    run: u64,
    sleep: u64,
    jitter: bool,
}

const HOG: Load = Load { run: u64::MAX, sleep: 0, jitter: false };

struct Machine<const T: usize, const C: usize> {
    sched: Box<Scheduler<T, C>>,
    loads: Vec<(Params, Load, u64, u64)>,
    ends: Vec<u64>,
    runs: Vec<Option<(usize, u64)>>,
    seed: u64,
    threads: usize,
    decisions: u64,
    now: u64,
}

fn params(group: u16, share: u32) -> Params {
    Params { share, cap: None, burst: 0, reservation: None, cpus: CpuSet::ALL, zone: 0, group }
}

impl<const T: usize, const C: usize> Machine<T, C> {
    fn new(threads: usize, loads: &[(Params, Load)], seed: u64) -> Self {
        let mut sched = Box::new(Scheduler::new(SLICE));
        for n in 0..C {
            sched.online(Cpu(n as u16), (n / threads) as u16, 0);
        }
        for (n, (params, _)) in loads.iter().enumerate() {
            sched.add(TaskId(n as u16), *params, 0).unwrap();
        }
        // What is left of the run, and when it wakes.
        let loads = loads.iter().map(|(p, l)| (*p, *l, l.run, 0)).collect();
        Self { sched, loads, ends: vec![0; C], runs: vec![None; C], seed, threads, decisions: 0, now: 0 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) % below.max(1)
    }

    fn stop(&mut self, cpu: usize) {
        let Some((task, since)) = self.runs[cpu].take() else { return };
        let (_, load, left, _) = self.loads[task];
        let left = if left == u64::MAX { left } else { left - (self.now - since) };
        self.loads[task].2 = left;
        if left > 0 {
            return self.sched.yielded(Cpu(cpu as u16), self.now, Outcome::Ready);
        }
        self.sched.yielded(Cpu(cpu as u16), self.now, Outcome::Blocked);
        let (a, b) = if load.jitter { (self.random(load.run), self.random(load.sleep)) } else { (0, 0) };
        self.loads[task].2 = load.run + a;
        self.loads[task].3 = self.now + (load.sleep + b).max(1);
    }

    fn run(&mut self, end: u64) {
        while self.now < end {
            for task in 0..self.loads.len() {
                if self.loads[task].3 <= self.now {
                    self.loads[task].3 = u64::MAX;
                    if let Some(Cpu(c)) = self.sched.wake(TaskId(task as u16), self.now) {
                        self.ends[c as usize] = self.now;
                    }
                }
            }
            while let Some(cpu) = (0..C).find(|c| self.ends[*c] <= self.now) {
                self.stop(cpu);
                let d = self.sched.pick(Cpu(cpu as u16), self.now);
                self.decisions += 1;
                assert!(d.until > self.now, "a turn of nothing");
                self.ends[cpu] = d.until;
                if let Some(TaskId(t)) = d.task {
                    let task = t as usize;
                    assert!(self.loads[task].0.cpus.has(Cpu(cpu as u16)), "affinity");
                    self.runs[cpu] = Some((task, self.now));
                    self.ends[cpu] = d.until.min(self.now.saturating_add(self.loads[task].2));
                }
                if let Some(Cpu(c)) = d.kick {
                    assert_ne!(c as usize, cpu);
                    self.ends[c as usize] = self.now;
                }
            }
            self.zones();
            let wake = self.loads.iter().map(|l| l.3).min().unwrap();
            self.now = self.ends.iter().copied().min().unwrap().min(wake).min(end);
        }
        self.adds_up();
    }

    fn zones(&self) {
        for core in self.runs.chunks(self.threads) {
            let mut zones = core.iter().flatten().map(|(t, _)| self.loads[*t].0.zone);
            let first = zones.next();
            assert!(zones.all(|z| Some(z) == first), "two zones on a core");
        }
    }

    fn adds_up(&mut self) {
        let mut tasks = 0;
        for n in 0..self.loads.len() {
            let u = self.sched.usage(TaskId(n as u16), self.now).unwrap();
            assert_eq!(u.ran + u.waiting + u.blocked + u.paused, self.now);
            tasks += u.ran;
        }
        let cpus: Vec<_> = (0..C).map(|n| self.sched.cpu_usage(Cpu(n as u16), self.now).unwrap()).collect();
        assert!(cpus.iter().all(|u| u.ran + u.idle == self.now));
        assert_eq!(cpus.iter().map(|u| u.ran).sum::<u64>(), tasks);
    }

    fn ran(&mut self, task: usize) -> u64 {
        self.sched.usage(TaskId(task as u16), self.now).unwrap().ran
    }

    fn idle(&mut self) -> u64 {
        (0..C).map(|n| self.sched.cpu_usage(Cpu(n as u16), self.now).unwrap().idle).sum()
    }
}

#[track_caller]
fn near(got: u64, want: u64) {
    assert!(got.abs_diff(want) * 100 <= want, "{got} instead of {want}");
}

#[test]
fn shares_hold_within_one_percent_on_one_cpu_and_on_four() {
    let loads: Vec<_> = [1, 2, 3, 4].iter().zip(0..).map(|(s, g)| (params(g, *s), HOG)).collect();
    let mut one = Machine::<8, 1>::new(1, &loads, 1);
    one.run(END);
    (0..4).for_each(|n| near(one.ran(n), END * (n as u64 + 1) / 10));
    let loads: Vec<_> = (0..8).map(|g| (params(g, 1 + u32::from(g) % 4), HOG)).collect();
    let mut four = Machine::<8, 4>::new(1, &loads, 1);
    four.run(END);
    (0..8).for_each(|n| near(four.ran(n), 4 * END * (1 + n as u64 % 4) / 20));
    assert_eq!(four.idle(), 0);
}

#[test]
fn a_share_above_a_cpu_is_one_cpu() {
    let loads = [(params(0, 100), HOG), (params(1, 1), HOG), (params(2, 2), HOG)];
    let mut m = Machine::<4, 2>::new(1, &loads, 1);
    m.run(END);
    near(m.ran(0), END);
    near(m.ran(1), END / 3);
    near(m.ran(2), END * 2 / 3);
}

#[test]
fn a_guest_shares_its_weight_over_its_vcpus() {
    let loads = [(params(0, 1), HOG), (params(0, 1), HOG), (params(0, 1), HOG), (params(1, 1), HOG)];
    let mut m = Machine::<4, 1>::new(1, &loads, 1);
    m.run(END);
    near(m.ran(3), END / 2);
    (0..3).for_each(|n| near(m.ran(n), END / 6));
}

#[test]
fn pinned_guests_share_their_cpu() {
    let pinned = |g, share| Params { cpus: CpuSet::one(Cpu(0)), ..params(g, share) };
    let loads = [(pinned(0, 1), HOG), (pinned(1, 3), HOG), (params(2, 1), HOG)];
    let mut m = Machine::<4, 2>::new(1, &loads, 1);
    m.run(END);
    near(m.ran(0), END / 4);
    near(m.ran(1), END * 3 / 4);
    near(m.ran(2), END);
}

#[test]
fn a_cap_is_never_exceeded_by_more_than_a_slice_and_its_burst() {
    for (cap, burst) in [(100, 0), (500, 0), (500, 200_000), (1500, 0)] {
        let capped = Params { cap: Some(cap), burst, ..params(0, 5) };
        let mut m = Machine::<4, 2>::new(1, &[(capped, HOG), (capped, HOG), (params(1, 1), HOG)], 1);
        let mut marks = vec![0];
        for at in 1..=200 {
            m.run(at * 50_000);
            let ran = m.ran(0) + m.ran(1);
            for (n, then) in marks.iter().enumerate() {
                let window = (at - n as u64) * 50_000;
                assert!(ran - then <= window * u64::from(cap) / 1000 + SLICE + burst, "cap {cap}: {}", ran - then);
            }
            marks.push(ran);
        }
        assert!(marks[200] >= END * u64::from(cap) / 1000 * 99 / 100, "cap {cap}: only {}", marks[200]);
    }
}

#[test]
fn a_reservation_is_met_in_each_period_and_overcommitment_refused() {
    let reservation = Some(Reservation { period: 20_000, budget: 5_000 });
    let mut loads = vec![(Params { reservation, ..params(0, 1) }, HOG)];
    loads.extend((1..20).map(|g| (params(g, 50), HOG)));
    let mut m = Machine::<32, 1>::new(1, &loads, 1);
    let mut before = 0;
    for at in 1..=400 {
        m.run(at * 20_000);
        let ran = m.ran(0);
        assert!(ran - before >= 5_000 - SLICE, "period {at}: {}", ran - before);
        before = ran;
    }
    assert!(before >= 400 * 5_000 - SLICE);
    let more = Params { reservation: Some(Reservation { period: 100, budget: 70 }), ..params(25, 1) };
    assert_eq!(m.sched.add(TaskId(25), more, m.now), Err(bulkhead_sched::AddError::Overcommitted));
}

#[test]
fn one_that_halts_at_the_worst_moments_gains_nothing() {
    for (run, sleep) in [(SLICE - 1, 1), (SLICE / 2, 1), (10, 1), (SLICE, SLICE), (2 * SLICE + 1, 1), (3000, 500)] {
        for jitter in [false, true] {
            let loads = [(params(0, 1), Load { run, sleep, jitter }), (params(1, 1), HOG), (params(2, 2), HOG)];
            let mut m = Machine::<4, 1>::new(1, &loads, run);
            m.run(END / 4);
            assert!(m.ran(0) <= END / 16 * 101 / 100, "{run}/{sleep}: {}", m.ran(0));
        }
    }
}

#[test]
fn zones_never_share_a_core_and_none_starves() {
    let loads: Vec<_> = (0..6).map(|g| (Params { zone: g % 3, ..params(g, 1) }, HOG)).collect();
    let mut m = Machine::<8, 4>::new(2, &loads, 1);
    m.run(END / 4);
    (0..6).for_each(|n| assert!(m.ran(n) > END / 40, "{n} ran {}", m.ran(n)));
}

#[test]
fn alone_is_tickless() {
    let mut m = Machine::<4, 2>::new(1, &[(params(0, 1), HOG)], 1);
    m.run(END);
    assert!(m.decisions < 8, "{}", m.decisions);
}

#[test]
fn random_arrivals_add_up_and_no_cpu_idles_while_one_waits() {
    for seed in 0..20 {
        let mut m = Machine::<16, 4>::new(1, &[], seed);
        let mut loads = Vec::new();
        for g in 0..12 {
            let load = Load { run: 1 + m.random(5000), sleep: 1 + m.random(5000), jitter: true };
            loads.push((params(g, 1 + m.random(9) as u32), load));
        }
        let mut m = Machine::<16, 4>::new(1, &loads, seed);
        for at in 1..2000 {
            m.run(at * 97);
            let waits =
                |m: &mut Machine<16, 4>| (0..12).map(|n| m.sched.usage(TaskId(n), m.now).unwrap().waiting).sum();
            let (idle, waited): (_, u64) = (m.idle(), waits(&mut m));
            m.run(at * 97 + 1);
            assert!(m.idle() == idle || waits(&mut m) == waited, "seed {seed} at {}", m.now);
        }
    }
}

#[test]
fn a_thousand_on_sixty_four() {
    let loads: Vec<_> = (0..1000).map(|g| (params(g, 1 + u32::from(g) % 2), HOG)).collect();
    let mut m = Machine::<1000, 64>::new(1, &loads, 1);
    let began = std::time::Instant::now();
    m.run(100_000);
    let (steps, ns) = (m.sched.steps() / m.decisions, began.elapsed().as_nanos() / u128::from(m.decisions));
    println!("1000 vCPUs on 64 CPUs: {} decisions, {steps} steps and {ns} ns each (with the simulation)", m.decisions);
    assert!(steps <= 1000);
    assert_eq!(m.idle(), 0);
}
