//! What decisions cost.

use crate::{END, HOG, Load, Machine, params};
use bulkhead_sched::{Cpu, CpuSet, Outcome, Params, Scheduler, TaskId};
use std::time::Instant;

#[test]
fn alone_is_tickless() {
    let mut m = Machine::<4, 2>::new(1, &[(params(0, 1), HOG)], 1);
    m.run(END);
    assert!(m.decisions < 8, "{}", m.decisions);
}

/// 1,000 vCPUs on 64 CPUs, all of which work as the guests' parameters say; only the scheduler is in the time.
fn thousand(name: &str, kind: impl Fn(u16) -> Params) {
    let mut sched = Box::new(Scheduler::<1000, 64>::new(1000));
    (0..64).for_each(|c| sched.online(Cpu(c), c, 0));
    for n in 0..1000 {
        sched.add(TaskId(n), kind(n), 0).unwrap();
        sched.wake(TaskId(n), 0);
    }
    let (mut ends, mut decisions, mut most) = ([0; 64], 0u32, 0);
    let (began, first) = (Instant::now(), sched.steps());
    while decisions < 100_000 {
        let (cpu, now) = (0..).zip(ends).min_by_key(|(_, end)| *end).unwrap();
        let before = sched.steps();
        sched.yielded(Cpu(cpu), now, Outcome::Ready);
        let d = sched.pick(Cpu(cpu), now);
        most = most.max(sched.steps() - before);
        // Turns end one after another, as they would.
        ends[usize::from(cpu)] = d.until.min(now + 900 + u64::from(decisions % 97));
        decisions += 1;
    }
    let (steps, ns) =
        ((sched.steps() - first) / u64::from(decisions), began.elapsed().as_nanos() / u128::from(decisions));
    println!("1000 vCPUs on 64 CPUs, {name}: {steps} steps (at most {most}) and {ns} ns a decision");
    assert!(steps <= 1000 && most <= 3000, "{name}: {steps}, at most {most}");
}

#[test]
fn a_thousand_on_sixty_four() {
    thousand("all floating", |n| params(n, 1 + u32::from(n) % 2));
    thousand("all pinned", |n| Params { cpus: CpuSet::one(Cpu(n % 64)), ..params(n, 1 + u32::from(n) % 2) });
    thousand("half pinned", |n| match n % 2 {
        0 => params(n, 1),
        _ => Params { cpus: CpuSet::one(Cpu(n % 64)), ..params(n, 1) },
    });
    thousand("4 to a guest, capped, zones", |n| Params { cap: Some(250), zone: n / 4, ..params(n / 4, 1) });
}

/// Sleepers too; each event of the machine is looked at.
#[test]
fn a_thousand_sleepers_on_sixty_four() {
    let loads: Vec<_> =
        (0..1000).map(|g| (params(g, 1 + u32::from(g) % 2), Load::new(700, 9_000 + u64::from(g), true))).collect();
    let mut m = Machine::<1000, 64>::new(1, &loads, 1);
    m.run(20_000);
    let steps = m.sched.steps() / m.decisions;
    assert!(steps <= 400, "{steps} steps a decision");
}
