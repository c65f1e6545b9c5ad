//! Threads of one core.

use crate::{END, HOG, Machine, SLICE, params};
use bulkhead_sched::{Cpu, CpuSet, Params};

#[test]
fn zones_never_share_a_core_and_none_starves() {
    let loads: Vec<_> = (0..6).map(|g| (Params { zone: g % 3, ..params(g, 1) }, HOG)).collect();
    let mut m = Machine::<8, 4>::new(2, &loads, 1);
    m.run(END / 4);
    (0..6).for_each(|n| assert!(m.ran(n) > END / 40, "{n} ran {}", m.ran(n)));
}

/// The shares of zones that share a core: what they are off by is the time that a thread stands empty for a change.
#[test]
fn zones_on_a_cores_threads_hold_their_shares() {
    for shares in [[1, 1], [1, 3], [4, 1]] {
        let loads: Vec<_> =
            (0..4).map(|g| (Params { zone: g / 2, ..params(g, shares[usize::from(g / 2)]) }, HOG)).collect();
        let mut m = Machine::<4, 2>::new(2, &loads, 1);
        m.run(END);
        let total: u64 = (0..4).map(|n| m.ran(n)).sum();
        assert!(m.idle() * 5 <= 2 * END, "{shares:?}: idle {}", m.idle());
        for n in 0..4 {
            let fair = total * u64::from(shares[n / 2]) / u64::from(2 * (shares[0] + shares[1]));
            assert!(m.ran(n).abs_diff(fair) * 10 <= fair, "{shares:?}: {n} ran {} of {fair}", m.ran(n));
        }
    }
}

/// One who may run on one thread only is not kept out by another zone that runs on the other without end.
#[test]
fn a_zone_alone_on_the_other_thread_makes_room() {
    let here = |g, c: u16| Params { zone: g, cpus: CpuSet::one(Cpu(c)), ..params(g, 1) };
    let mut m = Machine::<4, 2>::new(2, &[(here(0, 0), HOG), (here(1, 1), crate::Load::new(500, 20_000, false))], 1);
    m.run(END);
    assert!(m.work[1].latency <= 2 * SLICE, "{}", m.work[1].latency);
    assert!(m.ran(1) > END / 25 * 500 / 1000, "{}", m.ran(1));
}
