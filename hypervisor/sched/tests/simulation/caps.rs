//! Who has a cap.

use crate::{END, HOG, Load, Machine, SLICE, params};
use bulkhead_sched::Params;

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
                assert!(ran - then <= window * u64::from(cap) / 1000 + burst.max(SLICE), "cap {cap}: {}", ran - then);
            }
            marks.push(ran);
        }
        assert!(marks[200] >= END * u64::from(cap) / 1000 * 99 / 100, "cap {cap}: only {}", marks[200]);
    }
}

/// In windows of several lengths, whatever the loads; `late`: the most by which all its turns together can be late in one.
fn capped(cap: u32, burst: u64, load: Load, step: u64) {
    let params = |g| Params { cap: Some(cap), burst, ..params(g, 5) };
    let loads = [(params(0), load), (params(0), load), (params(0), load), (crate::params(1, 1), HOG)];
    let mut m = Machine::<4, 2>::new(1, &loads, 7);
    let mut marks = vec![0];
    for at in 1..=400u64 {
        m.run(at * step);
        let ran = (0..3).map(|n| m.ran(n)).sum::<u64>();
        for (n, then) in marks.iter().enumerate() {
            let most = (at - n as u64) * step * u64::from(cap) / 1000 + burst.max(SLICE) + 2 * load.over;
            assert!(ran - then <= most, "cap {cap}, {step}: {} above {most}", ran - then);
        }
        marks.push(ran);
    }
}

#[test]
fn a_cap_holds_in_every_window_with_overruns_and_sleepers() {
    for (cap, burst) in [(50, 0), (300, 5_000), (1200, 0)] {
        for step in [97, 1000, 7_001] {
            capped(cap, burst, HOG, step);
            capped(cap, burst, Load { over: 300, ..HOG }, step);
            capped(cap, burst, Load { over: 50, ..Load::new(333, 700, true) }, step);
        }
    }
}
