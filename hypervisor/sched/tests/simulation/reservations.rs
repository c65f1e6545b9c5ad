//! Who has a reservation.

use crate::{END, HOG, Load, Machine, SLICE, params};
use bulkhead_sched::{AddError, Cpu, CpuSet, Outcome, Params, Reservation, Scheduler, TaskId};

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

/// Each gets its budget in each of its periods, from its first wake on.
#[test]
fn several_reservations_are_met_on_one_cpu_to_the_tick() {
    let periods = [(7_000, 2_000), (13_000, 3_000), (40_000, 11_000), (100_000, 13_000)];
    let reserve = |(period, budget)| Some(Reservation { period, budget });
    let mut loads: Vec<_> =
        periods.iter().zip(0..).map(|(p, g)| (Params { reservation: reserve(*p), ..params(g, 1) }, HOG)).collect();
    loads.extend((4..10).map(|g| (params(g, 1000), Load::new(700, 300, true))));
    let mut m = Machine::<16, 1>::new(1, &loads, 3);
    let mut marks = periods.map(|(period, _)| (period, 0));
    while m.now < END / 2 {
        let next = marks.iter().map(|(at, _)| *at).min().unwrap();
        m.run(next);
        for (n, (period, budget)) in periods.iter().enumerate() {
            if marks[n].0 > next {
                continue;
            }
            let ran = m.ran(n);
            assert!(ran - marks[n].1 >= *budget, "{n} got {} of {budget} until {next}", ran - marks[n].1);
            marks[n] = (next + period, ran);
        }
    }
}

/// What it had beside its budget, while nobody else wanted the CPU, is not owed.
#[test]
fn spare_time_takes_nothing_from_a_reservation() {
    let reservation = Some(Reservation { period: 40_000, budget: 10_000 });
    for (run, sleep) in [(40_000, 40_000), (20_000, 20_000), (40_000, 400_000), (3_000, 50_000)] {
        let others = Load::new(run, sleep, false);
        let loads =
            [(Params { reservation, ..params(0, 1) }, HOG), (params(1, 1000), others), (params(2, 1000), others)];
        let mut m = Machine::<4, 1>::new(1, &loads, 1);
        let mut before = 0;
        for at in 1..=200 {
            m.run(at * 40_000);
            let ran = m.ran(0);
            assert!(ran - before >= 10_000, "{run}/{sleep}, period {at}: {}", ran - before);
            before = ran;
        }
    }
}

/// One that comes back late owes that to its next period, and no more once it has slept for longer.
#[test]
fn a_debt_is_of_one_period() {
    let reservation = Some(Reservation { period: 10_000, budget: 2_000 });
    let mut s = Box::new(Scheduler::<2, 1>::new(SLICE));
    s.online(Cpu(0), 0, 0);
    for (id, params) in [(TaskId(0), Params { reservation, ..params(0, 1) }), (TaskId(1), params(1, 1000))] {
        s.add(id, params, 0).unwrap();
        s.wake(id, 0);
    }
    // The first is served on its budget, and comes back late by twice that.
    assert_eq!(s.pick(Cpu(0), 0).task, Some(TaskId(0)));
    s.yielded(Cpu(0), 6_000, Outcome::Blocked);
    let served = |s: &mut Scheduler<2, 1>, from: u64, to: u64| {
        let (mut now, mut served) = (from, 0);
        while now < to {
            let d = s.pick(Cpu(0), now);
            let end = d.until.min(to);
            served += if d.task == Some(TaskId(0)) { end - now } else { 0 };
            now = end;
        }
        s.yielded(Cpu(0), to, Outcome::Ready);
        served
    };
    s.wake(TaskId(0), 10_000);
    assert!(served(&mut s, 10_000, 20_000) <= SLICE, "what was overrun was not owed");
    assert!(served(&mut s, 20_000, 30_000) >= 2_000);
    s.pick(Cpu(0), 30_000);
    s.yielded(Cpu(0), 36_000, Outcome::Blocked);
    served(&mut s, 36_000, 70_000);
    s.wake(TaskId(0), 70_000);
    assert!(served(&mut s, 70_000, 80_000) >= 2_000, "an old debt");
}

/// It sleeps and wakes at any time: it has its budget's part of the CPU, is served before a period ends, and takes
/// nothing from another's reservation.
#[test]
fn a_sleeping_reservation_is_served_and_takes_nothing_from_another() {
    let reserve = |period, budget| Some(Reservation { period, budget });
    for (run, sleep) in [(2_000, 8_000), (1_999, 3_001), (500, 9_000), (2_500, 2_500)] {
        for jitter in [false, true] {
            let loads = [
                (Params { reservation: reserve(10_000, 2_000), ..params(0, 1) }, Load::new(run, sleep, jitter)),
                (Params { reservation: reserve(10_000, 7_000), ..params(1, 1) }, HOG),
                (params(2, 1000), HOG),
            ];
            let mut m = Machine::<4, 1>::new(1, &loads, run);
            let mut before = 0;
            for at in 1..=500 {
                m.run(at * 10_000);
                let ran = m.ran(1);
                assert!(ran - before >= 7_000, "{run}/{sleep}: the other got {} until {}", ran - before, m.now);
                before = ran;
            }
            assert!(m.work[0].latency <= 10_000, "{run}/{sleep}: {}", m.work[0].latency);
            // It has no more than its part, and the fair share of a guest of share 1 beside one of 1000.
            let most = m.now / 5 * 101 / 100 + 10_000;
            assert!(m.ran(0) <= most, "{run}/{sleep}: {} of {most}", m.ran(0));
        }
    }
}

/// Its CPU is that which admitted it, and what runs there is preempted at once, though another runs one without end.
#[test]
fn who_wakes_with_a_budget_is_served_at_home_at_once() {
    let pin = |g, c| Params { cpus: CpuSet::one(Cpu(c)), ..params(g, 1000) };
    let reservation = Some(Reservation { period: 500, budget: 50 });
    let mine = Load::new(40, 700, true);
    let loads = [(Params { reservation, ..params(0, 1) }, mine), (pin(1, 0), HOG), (pin(2, 0), HOG), (pin(3, 1), HOG)];
    let mut m = Machine::<4, 2>::new(1, &loads, 1);
    m.run(END);
    assert_eq!(m.work[0].latency, 0);
}

/// A turn that began while it slept ends when its budget comes.
#[test]
fn who_wakes_without_a_budget_is_served_when_it_comes() {
    for sleep in [50, 100, 300] {
        let reservation = Some(Reservation { period: 500, budget: 50 });
        let mine = (Params { reservation, ..params(0, 1) }, Load::new(50, sleep, true));
        let mut m = Machine::<4, 1>::new(1, &[mine, (params(1, 1000), HOG), (params(2, 1000), HOG)], 1);
        m.run(END);
        assert!(m.work[0].latency <= 500, "{sleep}: {}", m.work[0].latency);
    }
}

/// It has fair time on another CPU, too, and comes home in time.
#[test]
fn a_reservation_is_met_beside_fair_time_elsewhere() {
    let pin = |g, c, share| Params { cpus: CpuSet::one(Cpu(c)), ..params(g, share) };
    for (period, budget) in [(1_500, 700), (1_300, 900), (5_000, 4_000)] {
        for load in [HOG, Load::new(1_700, 300, true)] {
            let reservation = Some(Reservation { period, budget });
            let mut loads = vec![(Params { reservation, ..params(0, 3) }, HOG)];
            loads.extend([(pin(1, 0, 50), HOG), (pin(2, 0, 50), HOG), (pin(3, 1, 2), load), (params(4, 1), load)]);
            let mut m = Machine::<8, 2>::new(1, &loads, 1);
            let mut before = 0;
            for at in 1..=END / period {
                m.run(at * period);
                let ran = m.ran(0);
                assert!(ran - before >= budget, "{budget} in {period}, {at}: {}", ran - before);
                before = ran;
            }
        }
    }
}

#[test]
fn reservations_go_where_there_is_room() {
    let reservation = Some(Reservation { period: 100, budget: 90 });
    let loads: Vec<_> = (0..2).map(|g| (Params { reservation, ..params(g, 1) }, HOG)).collect();
    let mut m = Machine::<8, 2>::new(1, &loads, 1);
    let third = Params { reservation, ..params(2, 1) };
    assert_eq!(m.sched.add(TaskId(2), third, 0), Err(AddError::Overcommitted));
    let here = Params { cpus: CpuSet::one(Cpu(0)), reservation: Some(Reservation { period: 100, budget: 5 }), ..third };
    assert_eq!(m.sched.add(TaskId(2), here, 0), Err(AddError::Overcommitted));
    // One that ended may come again: nobody takes its part before.
    assert!(m.sched.remove(TaskId(0), 0));
    assert_eq!(m.sched.add(TaskId(2), third, 0), Err(AddError::Overcommitted));
    assert_eq!(m.sched.add(TaskId(0), loads[0].0, 0), Ok(()));
    m.sched.retire(0);
    assert_eq!(m.sched.add(TaskId(2), third, 0), Err(AddError::Overcommitted), "it has come again");
    // One that does not gives it back.
    assert!(m.sched.remove(TaskId(0), 0));
    m.sched.retire(0);
    assert_eq!(m.sched.add(TaskId(2), third, 0), Ok(()));
    assert_eq!(m.sched.add(TaskId(0), loads[0].0, 0), Err(AddError::Overcommitted));
}
