//! How long one that woke waits.

use crate::{END, HOG, Load, Machine, SLICE, params};

/// On one CPU, with `n` other guests of shares that sum to `S`, a guest of share `s`: at most `n + S / s` slices.
#[test]
fn a_wake_is_served_within_its_bound() {
    for (mine, others) in [(1, vec![1]), (1, vec![3, 1]), (4, vec![1, 1, 1, 1]), (2, vec![9, 5, 1]), (1, vec![1; 20])] {
        for (run, sleep) in [(100, 5_000), (SLICE, 1), (3_000, 2_000), (50, 50_000)] {
            let mut loads = vec![(params(0, mine), Load::new(run, sleep, true))];
            loads.extend(others.iter().zip(1..).map(|(s, g)| (params(g, *s), HOG)));
            let mut m = Machine::<32, 1>::new(1, &loads, run);
            m.run(END);
            let bound = (others.len() as u64 + u64::from(others.iter().sum::<u32>().div_ceil(mine))) * SLICE;
            assert!(m.work[0].latency <= bound, "{mine} {others:?} {run}/{sleep}: {}", m.work[0].latency);
        }
    }
}

/// One that slept long is not behind anybody: it waits for one slice beside one other.
#[test]
fn who_slept_long_waits_for_one_slice() {
    for share in [1, 5] {
        let loads = [(params(0, 1), Load::new(100, 50_000, true)), (params(1, share), HOG)];
        let mut m = Machine::<2, 1>::new(1, &loads, 1);
        m.run(END);
        assert!(m.work[0].latency <= SLICE, "{}", m.work[0].latency);
    }
}

/// The one that runs has had more than a slice: it is preempted at once.
#[test]
fn a_turn_without_end_ends_at_once() {
    let loads = [(params(0, 4), Load::new(100, 50_000, true)), (params(1, 1), HOG)];
    let mut m = Machine::<2, 1>::new(1, &loads, 1);
    m.run(END);
    assert_eq!(m.work[0].latency, 0);
}

/// Beside two, the turn of one goes on to its end, and the other may be as far behind and have waited longer.
#[test]
fn beside_two_it_waits_for_a_turn_of_each() {
    let loads = [(params(0, 4), Load::new(100, 50_000, true)), (params(1, 1), HOG), (params(2, 1), HOG)];
    let mut m = Machine::<4, 1>::new(1, &loads, 1);
    m.run(END);
    assert!(m.work[0].latency <= 2 * SLICE, "{}", m.work[0].latency);
}

/// Turns cost something, so that who wakes in those of others does not make them shorter, whatever its share.
#[test]
fn no_wake_makes_a_turn_shorter_than_a_slice() {
    for (share, others) in [(1, 1), (8, 1), (1, 2), (8, 2)] {
        for (run, sleep) in [(10, 50), (50, 10), (100, SLICE / 2), (SLICE / 2, 100)] {
            let mut loads = vec![(params(0, share), Load::new(run, sleep, true))];
            loads.extend((1..=others).map(|g| (params(g, 1), HOG)));
            let mut m = Machine::<4, 1>::new(1, &loads, run);
            m.run(END / 10);
            let shortest = m.work[1..].iter().map(|w| w.shortest).min();
            assert!(shortest >= Some(SLICE), "{share} beside {others}, {run}/{sleep}: {shortest:?}");
        }
    }
}

/// A CPU that idles or runs without end is kicked at once.
#[test]
fn a_free_cpu_is_found_at_once() {
    let loads = [(params(0, 1), Load::new(2_500, 7_000, true)), (params(1, 1), HOG)];
    let mut m = Machine::<2, 2>::new(1, &loads, 1);
    m.run(END);
    assert_eq!(m.work[0].latency, 0);
}
