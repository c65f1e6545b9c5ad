//! Each gets its share: within 1 % of the fair one over ten seconds.

use crate::{END, GONE, HOG, Load, Machine, SLICE, near, params};
use bulkhead_sched::{Cpu, CpuSet, Outcome, Params, Scheduler, TaskId};

/// What each of these would have in a machine that divides without end, in CPUs: all grow by their weights until one has
/// a CPU, or all CPUs of a set are used by those that may run nowhere else.
pub fn fair(cpus: u32, loads: &[(Params, Load)]) -> Vec<f64> {
    let all = (1u64 << cpus) - 1;
    let mut got = vec![None; loads.len()];
    while got.iter().any(Option::is_none) {
        let open = |n: &usize, got: &[Option<f64>]| got[*n].is_none();
        let single = (0..loads.len()).filter(|n| open(n, &got)).map(|n| (1.0 / f64::from(loads[n].0.share), vec![n]));
        let mut least = single.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        for set in 1..=all {
            let inside = (0..loads.len()).filter(|n| loads[*n].0.cpus.0 & all & !set == 0);
            let (rise, done): (Vec<_>, Vec<_>) = inside.partition(|n| open(n, &got));
            let weight: u32 = rise.iter().map(|n| loads[*n].0.share).sum();
            let left = f64::from(set.count_ones()) - done.iter().map(|n| got[*n].unwrap()).sum::<f64>();
            if !rise.is_empty() && left / f64::from(weight) < least.0 {
                least = (left / f64::from(weight), rise);
            }
        }
        for n in least.1 {
            got[n] = Some(least.0 * f64::from(loads[n].0.share));
        }
    }
    got.into_iter().map(Option::unwrap).collect()
}

/// The most that one is off, in parts of its fair share.
fn off<const C: usize>(loads: &[(Params, Load)], seed: u64) -> f64 {
    let mut m = Machine::<32, C>::new(1, loads, seed);
    m.run(END);
    let fair = fair(C as u32, loads);
    let off = |n: usize, ran| (ran as f64 / (fair[n] * END as f64) - 1.0).abs();
    let ran: Vec<_> = (0..loads.len()).map(|n| m.ran(n)).collect();
    ran.iter().enumerate().map(|(n, r)| off(n, *r)).fold(0.0, f64::max)
}

fn floats<const C: usize>() {
    for seed in 0..6 {
        let mut m = Machine::<1, 1>::new(1, &[], seed * 8 + C as u64);
        let count = C as u16 + 1 + m.random(8) as u16;
        let loads: Vec<_> = (0..count).map(|g| (params(g, 1 + m.random(9) as u32), HOG)).collect();
        let off = off::<C>(&loads, seed);
        let shares: Vec<_> = loads.iter().map(|l| l.0.share).collect();
        assert!(off <= 0.01, "seed {seed}, {C} CPUs: {off}, {shares:?}");
    }
}

#[test]
fn shares_hold_within_one_percent_on_one_to_eight_cpus() {
    floats::<1>();
    floats::<2>();
    floats::<3>();
    floats::<4>();
    floats::<5>();
    floats::<6>();
    floats::<7>();
    floats::<8>();
}

fn pins<const C: usize>() {
    for seed in 0..6 {
        let mut m = Machine::<1, 1>::new(1, &[], seed * 8 + C as u64);
        let loads: Vec<_> = (0..4 * C as u16)
            .map(|g| {
                let pin = m.random(2 * C as u64);
                let cpus = if pin < C as u64 { CpuSet::one(Cpu(pin as u16)) } else { CpuSet::ALL };
                (Params { cpus, ..params(g, 1 + m.random(4) as u32) }, HOG)
            })
            .collect();
        let off = off::<C>(&loads, seed);
        let shares: Vec<_> = loads.iter().map(|l| (l.0.share, l.0.cpus.0)).collect();
        assert!(off <= 0.01, "seed {seed}, {C} CPUs: {off}, {shares:x?}");
    }
}

#[test]
fn guests_that_float_beside_pinned_ones_hold_their_shares() {
    pins::<2>();
    pins::<3>();
    pins::<4>();
}

/// The most that one is off in the ten seconds after a minute with other loads.
fn off_after<const C: usize>(guests: &[(Params, Load)], then: &[Load]) -> f64 {
    let mut m = Machine::<32, C>::new(1, guests, 1);
    m.run(6 * END);
    let before: Vec<_> = (0..guests.len()).map(|n| m.ran(n)).collect();
    then.iter().enumerate().for_each(|(n, load)| m.change(n, *load));
    m.run(7 * END);
    let awake: Vec<_> = (0..guests.len()).filter(|n| then[*n].run == u64::MAX).collect();
    let fair = fair(C as u32, &awake.iter().map(|n| (guests[*n].0, HOG)).collect::<Vec<_>>());
    let off = |(n, fair): (&usize, &f64)| ((m.ran(*n) - before[*n]) as f64 / (fair * END as f64) - 1.0).abs();
    awake.iter().zip(&fair).map(off).fold(0.0, f64::max)
}

/// CPUs that were far apart: who slept, or had a CPU for itself, is not ahead of who comes.
#[test]
fn shares_hold_at_once_after_other_loads() {
    let pin = |g, c, share| Params { cpus: CpuSet::one(Cpu(c)), ..params(g, share) };
    let tenth = Load::new(1_000, 9_000, false);
    let late = |guests: &[(Params, Load)]| off_after::<2>(guests, &[HOG; 4][..guests.len()]);
    let off = [
        late(&[(pin(0, 0, 1), HOG), (pin(1, 1, 1), tenth), (params(2, 1), GONE)]),
        late(&[(pin(0, 0, 100), HOG), (pin(1, 1, 1), GONE), (params(2, 1), GONE)]),
        late(&[(pin(0, 0, 1), HOG), (pin(1, 1, 20), HOG), (params(2, 10), GONE)]),
        late(&[(pin(0, 0, 1), HOG), (pin(1, 1, 1), GONE), (pin(2, 1, 3), tenth), (params(3, 2), GONE)]),
        off_after::<2>(
            &[(pin(0, 0, 1), HOG), (pin(1, 0, 1), HOG), (pin(2, 0, 1), HOG), (pin(3, 1, 1), HOG), (params(4, 1), HOG)],
            &[HOG, GONE, GONE, HOG, HOG],
        ),
    ];
    assert!(off.iter().all(|off| *off <= 0.01), "{off:?}");
}

/// Random ones: each other one begins to run only after a minute.
#[test]
fn shares_hold_at_once_after_random_loads() {
    for seed in 0..8 {
        let mut m = Machine::<1, 1>::new(1, &[], seed);
        let guests: Vec<_> = (0..12)
            .map(|g| {
                let cpus = CpuSet([1, 2, 4, 8, 3, 12, 7, 15][m.random(8) as usize]);
                let load = [HOG, GONE, Load::new(1_000, 9_000, false)][m.random(3) as usize];
                (Params { cpus, ..params(g, 1 + m.random(4) as u32) }, load)
            })
            .collect();
        let off = off_after::<4>(&guests, &[HOG; 12]);
        let shares: Vec<_> = guests.iter().map(|l| (l.0.share, l.0.cpus.0, l.1.run)).collect();
        assert!(off <= 0.01, "seed {seed}: {off}, {shares:x?}");
    }
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

/// One guest of four vCPUs beside one of a single vCPU: by their shares, but for a vCPU's one CPU at most. What each vCPU of the
/// first had is equal.
fn four_beside_one<const C: usize>(shares: (u32, u32)) {
    let mut loads: Vec<_> = (0..4).map(|_| (params(0, shares.0), HOG)).collect();
    loads.push((params(1, shares.1), HOG));
    let mut m = Machine::<8, C>::new(1, &loads, 1);
    m.run(END);
    let one = END.min(C as u64 * END * u64::from(shares.1) / u64::from(shares.0 + shares.1));
    let four = (C as u64 * END - one).min(4 * END);
    near(m.ran(4), one);
    near((0..4).map(|n| m.ran(n)).sum(), four);
    (0..4).for_each(|n| near(m.ran(n), four / 4));
}

#[test]
fn a_guest_of_four_beside_one_has_its_fair_share_on_one_two_and_four_cpus() {
    for shares in [(1, 1), (1, 3), (3, 1), (5, 2)] {
        four_beside_one::<1>(shares);
        four_beside_one::<2>(shares);
        four_beside_one::<4>(shares);
    }
}

#[test]
fn a_cap_counts_over_all_of_a_guests_vcpus() {
    for cap in [300, 1000, 2500] {
        let capped = Params { cap: Some(cap), ..params(0, 1) };
        let loads = [(capped, HOG), (capped, HOG), (capped, HOG), (capped, HOG), (params(1, 1), HOG)];
        let mut m = Machine::<8, 4>::new(1, &loads, 1);
        m.run(END);
        near((0..4).map(|n| m.ran(n)).sum(), END * u64::from(cap) / 1000);
        near(m.ran(4), END);
    }
}

/// What a CPU does between two turns is charged to the guest of the first, but not what it does for another, or for nobody.
#[test]
fn what_is_done_between_turns_is_charged_to_whom_it_is_for() {
    let part = |excused, whom| {
        let mut sched = Box::new(Scheduler::<2, 1>::new(SLICE));
        sched.online(Cpu(0), 0, 0);
        for n in 0..2 {
            sched.add(TaskId(n), params(n, 1), 0).unwrap();
            sched.wake(TaskId(n), 0);
        }
        let mut now = 0;
        while now < END {
            let decision = sched.pick(Cpu(0), now);
            now = decision.until.min(now + SLICE);
            sched.yielded(Cpu(0), now, Outcome::Ready);
            if decision.task == Some(TaskId(0)) {
                now += SLICE / 2;
                sched.excuse(Cpu(0), excused, whom, now);
            }
        }
        let usage = sched.cpu_usage(Cpu(0), now).unwrap();
        assert_eq!((usage.idle, usage.ran + usage.own), (0, now));
        sched.ran(0) as f64 / sched.ran(1) as f64
    };
    let close = |part: f64, want: f64| assert!((part / want - 1.0).abs() < 0.01, "{part} instead of {want}");
    close(part(0, None), 2.0 / 3.0);
    close(part(SLICE / 2, None), 1.0);
    // It wakes once in a turn of the first: a turn of its own less, and half a turn for that.
    close(part(SLICE / 2, Some(TaskId(1))), 2.0);
}
