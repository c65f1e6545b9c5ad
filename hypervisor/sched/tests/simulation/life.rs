//! Tasks come, pause and go; turns are overrun; wrong ones are refused.

use crate::{END, HOG, Load, Machine, SLICE, near, params};
use bulkhead_sched::{AddError, Cpu, CpuSet, Outcome, Params, Reservation, Scheduler, TaskId};

const A: TaskId = TaskId(0);
const B: TaskId = TaskId(1);
const HERE: Cpu = Cpu(0);

/// Two equal guests on one CPU, both awake.
fn two() -> Box<Scheduler<4, 1>> {
    let mut s = Box::new(Scheduler::new(SLICE));
    s.online(HERE, 0, 0);
    for id in [A, B] {
        s.add(id, params(id.0, 1), 0).unwrap();
        s.wake(id, 0);
    }
    s
}

/// Does what the scheduler says until a time; each comes back late by `over` for A.
fn go(s: &mut Scheduler<4, 1>, from: u64, to: u64, over: u64) {
    let mut now = from;
    while now < to {
        let d = s.pick(HERE, now);
        now = d.until.saturating_add(if d.task == Some(A) { over } else { 0 }).min(to);
    }
}

#[test]
fn what_was_overrun_is_owed() {
    let mut s = two();
    go(&mut s, 0, END, 700);
    near(s.usage(A, END).unwrap().ran, END / 2);
}

#[test]
fn a_pause_keeps_off_and_earns_nothing() {
    let mut s = two();
    go(&mut s, 0, END, 0);
    s.yielded(HERE, END, Outcome::Ready);
    assert_eq!(s.pause(A, END), None);
    let before = s.usage(A, END).unwrap();
    go(&mut s, END, 2 * END, 0);
    let paused = s.usage(A, 2 * END).unwrap();
    assert_eq!(paused.ran, before.ran);
    assert_eq!((paused.paused, paused.waiting), (END, before.waiting));
    assert_eq!(s.resume(A, 2 * END), Some(HERE), "B runs without end");
    // Nothing was saved up.
    go(&mut s, 2 * END, 2 * END + 20 * SLICE, 0);
    let ran = s.usage(A, 2 * END + 20 * SLICE).unwrap().ran - before.ran;
    assert!(ran.abs_diff(10 * SLICE) <= SLICE, "{ran}");
}

#[test]
fn a_pause_of_who_runs_kicks_it_and_one_that_sleeps_can_be_paused() {
    let mut s = two();
    let first = s.pick(HERE, 0).task.unwrap();
    assert_eq!(s.pause(first, 10), Some(HERE));
    let other = s.pick(HERE, 10).task.unwrap();
    assert_ne!(first, other);
    s.yielded(HERE, 20, Outcome::Blocked);
    assert_eq!(s.pick(HERE, 20).task, None);
    assert_eq!(s.pause(other, 30), None);
    assert_eq!(s.wake(other, 30), None, "it is paused");
    assert_eq!(s.pick(HERE, 30).task, None);
    assert_eq!(s.resume(other, 40), Some(HERE));
    assert_eq!(s.pick(HERE, 40).task, Some(other));
    assert_eq!(s.usage(other, 50).unwrap().paused, 10);
}

#[test]
fn who_is_gone_is_gone_and_its_place_is_free() {
    let mut s = two();
    assert_eq!(s.pick(HERE, 0).task, Some(A));
    assert!(!s.remove(A, 5), "it runs");
    s.yielded(HERE, 10, Outcome::Gone);
    assert_eq!(s.usage(A, 10), None);
    assert_eq!(s.wake(A, 10), None);
    assert_eq!(s.pick(HERE, 10).task, Some(B));
    s.yielded(HERE, 20, Outcome::Ready);
    assert!(s.remove(B, 20));
    assert!(!s.remove(B, 20));
    assert_eq!(s.pick(HERE, 20).task, None);
    // A new guest in the old place starts anew, with its own share.
    s.add(A, params(0, 3), 30).unwrap();
    s.add(B, params(1, 1), 30).unwrap();
    s.wake(A, 30);
    s.wake(B, 30);
    go(&mut s, 30, END, 0);
    near(s.usage(A, END).unwrap().ran, END * 3 / 4);
    assert_eq!(s.cpu_usage(HERE, END).unwrap().idle, 10);
}

#[test]
fn wrong_tasks_are_refused() {
    let mut s = Box::new(Scheduler::<4, 2>::new(SLICE));
    s.online(HERE, 0, 0);
    let good = params(0, 1);
    let reserve = |period, budget| Params { reservation: Some(Reservation { period, budget }), ..good };
    assert_eq!(s.add(TaskId(4), good, 0), Err(AddError::Range));
    assert_eq!(s.add(A, params(4, 1), 0), Err(AddError::Range));
    assert_eq!(s.add(A, params(0, 0), 0), Err(AddError::Params));
    assert_eq!(s.add(A, Params { cap: Some(0), ..good }, 0), Err(AddError::Params));
    for (period, budget) in [(0, 0), (10, 0), (10, 11), (u64::MAX, 1)] {
        assert_eq!(s.add(A, reserve(period, budget), 0), Err(AddError::Params), "{budget} in {period}");
    }
    assert_eq!(s.add(A, Params { cpus: CpuSet::one(Cpu(1)), ..good }, 0), Err(AddError::NoCpu));
    assert_eq!(s.add(A, reserve(100, 94), 0), Err(AddError::Overcommitted));
    assert_eq!(s.add(A, reserve(100, 93), 0), Ok(()));
    assert_eq!(s.add(A, good, 0), Err(AddError::Taken));
    assert_eq!(s.add(B, Params { zone: 1, ..good }, 0), Err(AddError::Params), "another zone than its guest's");
    // What was refused left nothing behind.
    assert_eq!(s.usage(B, 0), None);
    assert_eq!(s.pick(HERE, 0).task, None);
}

#[test]
fn everything_mixed_adds_up() {
    for seed in 0..10 {
        let mut m = Machine::<1, 1>::new(1, &[], seed);
        let loads: Vec<_> = (0..24u16)
            .map(|n| {
                let mut p = Params { zone: n / 2 % 3, ..params(n / 2, 1 + m.random(5) as u32) };
                p.cap = (n / 2 % 4 == 1).then_some(300);
                p.cpus = if n % 5 == 0 { CpuSet::one(Cpu(n % 4)) } else { CpuSet::ALL };
                p.reservation = (n / 2 % 6 == 2).then_some(Reservation { period: 20_000, budget: 1_500 });
                let load = Load { over: m.random(400), ..Load::new(1 + m.random(5000), 1 + m.random(20_000), true) };
                (p, if n % 3 == 0 { HOG } else { load })
            })
            .collect();
        // Its account is compared with the scheduler's at each end.
        let mut m = Machine::<32, 4>::new(2, &loads, seed);
        for at in 1..200 {
            m.run(at * 5_003);
        }
        (0..24).for_each(|n| assert!(m.ran(n) > 0, "seed {seed}: {n} starved"));
    }
}
