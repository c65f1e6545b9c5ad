//! Who halts and wakes at the worst moments gains at most 1 %.

use crate::{END, HOG, Load, Machine, SLICE, params};
use bulkhead_sched::{Cpu, CpuSet, Params};

#[test]
fn one_that_halts_at_the_worst_moments_gains_nothing() {
    for (run, sleep) in [(SLICE - 1, 1), (SLICE / 2, 1), (10, 1), (SLICE, SLICE), (2 * SLICE + 1, 1), (3000, 500)] {
        for jitter in [false, true] {
            let loads = [(params(0, 1), Load::new(run, sleep, jitter)), (params(1, 1), HOG), (params(2, 2), HOG)];
            let mut m = Machine::<4, 1>::new(1, &loads, run);
            m.run(END);
            assert!(m.ran(0) <= END / 4 * 101 / 100, "{run}/{sleep}: {}", m.ran(0));
        }
    }
}

/// The worst sleepers against a hog: with whom the attacker shares the machine, and what it might have at most.
fn attack<const C: usize>(others: &[(Params, u32)], attacker: Params) {
    let hogs: Vec<_> = others.iter().map(|(p, share)| (Params { share: *share, ..*p }, HOG)).collect();
    let mut fair = hogs.clone();
    fair.insert(0, (attacker, HOG));
    let most = crate::shares::fair(C as u32, &fair)[0] * END as f64;
    for (run, sleep) in
        [(SLICE - 1, 1), (10, 1), (2 * SLICE + 1, 1), (SLICE / 4, SLICE), (SLICE, 7 * SLICE), (END / 4, END / 4)]
    {
        for jitter in [false, true] {
            let mut loads = hogs.clone();
            loads.insert(0, (attacker, Load::new(run, sleep, jitter)));
            let mut m = Machine::<8, C>::new(1, &loads, run);
            m.run(END);
            assert!(m.ran(0) as f64 <= most * 1.01, "{C} CPUs, {run}/{sleep}: {} of {most}", m.ran(0));
        }
    }
}

#[test]
fn a_sleeper_gains_at_most_one_percent_on_one_two_and_four_cpus() {
    let float = |g| params(g, 1);
    let pin = |g, c| Params { cpus: CpuSet::one(Cpu(c)), ..params(g, 1) };
    for share in [1, 3] {
        let me = params(0, share);
        attack::<1>(&[(float(1), 1), (float(2), 2)], me);
        attack::<2>(&[(float(1), 1), (float(2), 2), (float(3), 5)], me);
        attack::<2>(&[(pin(1, 0), 1), (pin(2, 1), 2), (pin(3, 1), 3)], me);
        attack::<2>(&[(pin(1, 0), 1), (float(2), 2), (float(3), 2)], Params { cpus: CpuSet::one(Cpu(0)), ..me });
        attack::<4>(&[(float(1), 1), (float(2), 2), (float(3), 5), (float(4), 1), (float(5), 3)], me);
        attack::<4>(&[(pin(1, 0), 1), (pin(2, 1), 2), (pin(3, 2), 3), (pin(4, 3), 1), (float(5), 2)], me);
    }
}

/// What a CPU does between two turns takes a fiftieth of a slice.
const BETWEEN: u64 = SLICE / 50;

/// What each of these has beside one who makes many turns is at most 1 % less than beside one who never sleeps.
fn costly<const C: usize>(others: &[Params], attacker: Params) {
    let beside = |load: Load| {
        let mut loads = vec![(attacker, load)];
        loads.extend(others.iter().map(|p| (*p, HOG)));
        let mut m = Machine::<8, C>::new(1, &loads, 1);
        m.between = BETWEEN;
        m.run(END);
        (1..loads.len()).map(|n| m.ran(n)).collect::<Vec<_>>()
    };
    let fair = beside(HOG);
    for (run, sleep) in [(10, 1), (10, 40), (SLICE / 8, 1), (SLICE - 1, 1), (SLICE + 1, SLICE)] {
        let had = beside(Load::new(run, sleep, false));
        for (n, (had, fair)) in had.iter().zip(&fair).enumerate() {
            assert!(had * 100 >= fair * 99, "{C} CPUs, {others:?}, {run}/{sleep}: {n} had {had} of {fair}");
        }
    }
}

#[test]
fn who_makes_many_turns_pays_for_them() {
    let pin = |g, c| Params { cpus: CpuSet::one(Cpu(c)), ..params(g, 1) };
    for share in [1, 3] {
        let me = params(0, share);
        costly::<1>(&[params(1, 1)], me);
        costly::<1>(&[params(1, 1), params(2, 2), params(3, 1)], me);
        costly::<2>(&[params(1, 1), params(2, 2), params(3, 5)], me);
        costly::<2>(&[pin(1, 0), pin(2, 1), params(3, 1)], me);
    }
}
