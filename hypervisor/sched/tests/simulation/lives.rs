//! Who ends and comes again.

use crate::{END, SLICE, near, params};
use bulkhead_sched::{Cpu, Outcome, Params, Scheduler, TaskId};

const A: TaskId = TaskId(0);
const B: TaskId = TaskId(1);
const HERE: Cpu = Cpu(0);

/// A runs for `life` in each of its lives, then is made anew, which takes `make`; B never sleeps. What each had, the making
/// counted as A's.
fn again(a: Params, life: u64, make: u64) -> (u64, u64) {
    let mut s = Box::new(Scheduler::<2, 1>::new(SLICE));
    s.online(HERE, 0, 0);
    for (id, params) in [(A, a), (B, params(1, 1))] {
        s.add(id, params, 0).unwrap();
        s.wake(id, 0);
    }
    let (mut now, mut left, mut had) = (0, life, 0);
    while now < END {
        let d = s.pick(HERE, now);
        let turn = d.until.min(END) - now;
        if d.task != Some(A) {
            now += turn;
            continue;
        }
        let ran = turn.min(left);
        (now, left, had) = (now + ran, left - ran, had + ran);
        if left == 0 {
            s.yielded(HERE, now, Outcome::Gone);
            (now, left, had) = (now + make, life, had + make);
            s.add(A, a, now).unwrap();
            s.wake(A, now);
            s.charge(a.group, make, now);
        }
    }
    (had, s.usage(B, now).unwrap().ran)
}

#[test]
fn who_is_made_anew_pays_for_it_and_gains_nothing() {
    for life in [1, SLICE / 10, SLICE, 3 * SLICE] {
        for make in [0, SLICE / 10, 5 * SLICE, 100 * SLICE] {
            let (_, b) = again(params(0, 1), life, make);
            // A life's first turn may be one that its making was not charged for yet.
            assert!(b >= END / 2 * 99 / 100, "{life}/{make}: {b}");
            let (_, b) = again(params(0, 3), life, make);
            assert!(b >= END / 4 * 99 / 100, "{life}/{make}: {b}");
        }
    }
    near(again(params(0, 1), SLICE, 5 * SLICE).0, END / 2);
}

#[test]
fn a_new_life_fills_no_bucket() {
    let capped = Params { cap: Some(100), burst: 20 * SLICE, ..params(0, 1) };
    for life in [SLICE / 2, 20 * SLICE] {
        let (a, _) = again(capped, life, SLICE);
        assert!(a <= END / 10 + 22 * SLICE, "{life}: {a}");
    }
}
