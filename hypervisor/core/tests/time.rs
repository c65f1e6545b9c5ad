//! What a guest sees of time: deadlines that pass while it runs, halts, is served or waits for its turn.
//!
//! SDM vol. 3A 11.5.4 "APIC Timer", 11.5.4.1 "TSC-Deadline Mode"; vol. 3B 18.17 "Time-Stamp Counter".
#![allow(dead_code, reason = "what is in common is not all used here")]

mod common;

use bulkhead_arch::msr::{TSC, TSC_ADJUST, TSC_DEADLINE};
use bulkhead_core::Yield;
use common::{Bench, COST, DEADLINE, DIVIDE, INITIAL_COUNT, LVT_TIMER, POWER_ON, SLICE, Step, VECTOR};
use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};
use std::collections::BTreeMap;

/// Looks at the clock between a moment and the entry that delivers what became due at it.
const LATE: u64 = 4 * COST;

#[test]
fn an_armed_deadline_reads_back_and_is_met() {
    let mut bench =
        Bench::new(&[Step::Write(LVT_TIMER, DEADLINE), Step::Write(TSC_DEADLINE, 60_000), Step::Read(TSC_DEADLINE)]);
    bench.run(100_000);
    assert_eq!(bench.cpu.vcpu.values, [60_000]);
    let [at] = bench.interrupts()[..] else { panic!("one interrupt") };
    let due = POWER_ON + 60_000;
    assert!((due..=due + LATE).contains(&at), "{at}");
}

#[test]
fn a_met_deadline_reads_as_zero() {
    let script =
        [Step::Write(LVT_TIMER, DEADLINE), Step::Arm(1_000), Step::Spin(5_000), Step::Read(TSC_DEADLINE), Step::Arm(0)];
    let mut bench = Bench::new(&script);
    bench.run(10_000);
    assert_eq!(bench.cpu.vcpu.values, [0]);
    assert_eq!(bench.interrupts().len(), 2, "the second was met as it was written");
}

/// Each tick of a turn is the guest's own, or one of those of the exit that it is served for.
#[test]
fn the_ticks_of_exits_are_all_that_the_guest_was_not_entered() {
    let mut bench = Bench::new(&[Step::Cpuid, Step::Spin(10_000), Step::Halt, Step::Spin(2 * SLICE)]);
    let ticks = |bench: &Bench| bench.cpu.counters.ticks().collect::<BTreeMap<_, _>>();
    let begun = bench.now();
    assert_eq!(bench.turn(), Yield::Waiting { until: None });
    let sum: u64 = ticks(&bench).values().sum();
    // The first look at the clock is before what it measures; so is the one behind each exit.
    let looks = 1 + bench.cpu.vcpu.entries as u64;
    assert_eq!(sum + 10_000 + looks * COST, bench.now() - begun, "{:?}", ticks(&bench));
    let (before, begun) = (ticks(&bench), bench.now());
    assert_eq!(bench.turn(), Yield::Waiting { until: None });
    let spent = bench.now() - begun - COST;
    assert_eq!(ticks(&bench)["halt"], before["halt"] + spent, "a turn without an entry is of the exit before it");
    assert_eq!(ticks(&bench).values().sum::<u64>(), sum + spent);
}

#[test]
fn deadlines_compare_as_unsigned() {
    let script = [Step::Write(LVT_TIMER, DEADLINE), Step::Write(TSC_DEADLINE, u64::MAX), Step::Read(TSC_DEADLINE)];
    let mut bench = Bench::new(&script);
    bench.run(3 * SLICE);
    assert_eq!((bench.cpu.vcpu.values[0], bench.interrupts().len()), (u64::MAX, 0));
}

#[test]
fn a_halt_lasts_until_the_deadline_whatever_the_turn() {
    let mut bench = Bench::new(&[Step::Write(LVT_TIMER, DEADLINE), Step::Write(TSC_DEADLINE, 10 * SLICE), Step::Halt]);
    let due = POWER_ON + 10 * SLICE;
    assert_eq!(bench.turn(), Yield::Waiting { until: Some(due) });
    assert_eq!(bench.turn(), Yield::Waiting { until: Some(due) }, "woken by somebody else");
    bench.run(10 * SLICE);
    let [at] = bench.interrupts()[..] else { panic!("one interrupt") };
    assert!((due..=due + LATE).contains(&at));
}

#[test]
fn a_halt_without_a_deadline_has_no_end() {
    let mut bench = Bench::new(&[Step::Halt]);
    assert_eq!(bench.turn(), Yield::Waiting { until: None });
}

#[test]
fn a_deadline_that_passes_while_an_exit_is_served_is_delivered_at_the_next_entry() {
    for early in [0, 1, COST, 2 * COST, 3 * COST, 4 * COST] {
        let script = [Step::Write(LVT_TIMER, DEADLINE), Step::Arm(5_000), Step::Spin(5_000 - early), Step::Cpuid];
        let mut bench = Bench::new(&script);
        bench.run(10_000);
        let [at] = bench.interrupts()[..] else { panic!("one interrupt") };
        let exit_at = bench.cpu.vcpu.delivered[0].0;
        assert_eq!(at, exit_at);
        assert!(at <= POWER_ON + 5_000 + 20 * COST, "{early}: {at}");
    }
}

#[test]
fn an_interrupt_waits_for_its_window_and_the_next_turn() {
    let script = [
        Step::Write(LVT_TIMER, DEADLINE),
        Step::Interrupts(false),
        Step::Write(TSC_DEADLINE, SLICE / 2),
        Step::Spin(5 * SLICE / 2),
        Step::Interrupts(true),
    ];
    let mut bench = Bench::new(&script);
    bench.run(4 * SLICE);
    let [at] = bench.interrupts()[..] else { panic!("one interrupt") };
    assert!((POWER_ON + 5 * SLICE / 2..POWER_ON + 3 * SLICE).contains(&at));
}

#[test]
fn an_interrupt_of_the_host_ends_the_turn() {
    let mut bench = Bench::new(&[Step::Host, Step::Read(TSC)]);
    assert_eq!(bench.turn(), Yield::TurnOver);
    assert!(bench.now() < POWER_ON + SLICE / 2);
    bench.run(SLICE);
    assert_eq!(bench.cpu.vcpu.values.len(), 1);
}

#[test]
fn a_write_to_the_counter_moves_the_moment_of_an_armed_deadline() {
    for (register, value) in [(TSC, 1_000_000), (TSC_ADJUST, 1_000_000)] {
        let script = [
            Step::Write(LVT_TIMER, DEADLINE),
            Step::Write(TSC_DEADLINE, 1_050_000),
            Step::Write(register, value),
            Step::Read(TSC_DEADLINE),
            Step::Read(TSC_ADJUST),
        ];
        let mut bench = Bench::new(&script);
        bench.run(100_000);
        let [deadline, adjust] = bench.cpu.vcpu.values[..] else { panic!("two values") };
        assert_eq!(deadline, 1_050_000, "stays as written");
        assert_eq!(adjust, if register == TSC { adjust } else { value });
        let [at] = bench.interrupts()[..] else { panic!("one interrupt") };
        let due = POWER_ON + 1_050_000 - adjust;
        assert!((due..=due + LATE).contains(&at));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the guest does in between: as many interrupts as periods, none early, none late by more than exits cost.
    #[test]
    fn no_period_is_lost_or_doubled(
        period in 5_000_u64..60_000,
        steps in prop::collection::vec((any::<u8>(), 0_u64..9_000), 0..60),
    ) {
        let start = [Step::Write(LVT_TIMER, 1 << 17 | u64::from(VECTOR)), Step::Write(DIVIDE, 0xB)];
        let body = steps.iter().map(|&(kind, ticks)| match kind % 8 {
            0 => Step::Halt,
            1 => Step::Cpuid,
            2 => Step::Read(TSC_DEADLINE),
            3 => Step::Write(TSC_ADJUST, ticks),
            4 => Step::Host,
            _ => Step::Spin(ticks),
        });
        let script: Vec<Step> = start.into_iter().chain([Step::Write(INITIAL_COUNT, period)]).chain(body).collect();
        let mut bench = Bench::new(&script);
        bench.run(40 * period);
        let moments = bench.interrupts();
        let first = moments[0];
        prop_assert!(moments.len() >= 39, "{}", moments.len());
        for (index, at) in (0..).zip(&moments) {
            let (seen, due) = (at - first, index * period);
            prop_assert!(seen.abs_diff(due) <= 8 * COST, "{index}: {seen} instead of {due}");
        }
        prop_assert_eq!(bench.cpu.vcpu.delivered.len(), moments.len());
    }
}
