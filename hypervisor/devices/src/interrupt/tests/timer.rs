use super::{BOOT, CURRENT, DIVIDE, ENABLED, EOI, ESR, Guest, INITIAL, LVT_TIMER, MASKED, SVR, TSC_DEADLINE};
use bulkhead_types::Ticks;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const VECTOR: u32 = 0xEC;
/// Register values for the divisors 1, 2, 4, ... 128.
const DIVISORS: [u32; 8] = [0xB, 0x0, 0x1, 0x2, 0x3, 0x8, 0x9, 0xA];
/// 50 microseconds.
const SHORTEST: u64 = 50_000;

#[test]
fn one_shot_counts_down_at_each_divisor_and_fires_once() {
    for (power, divide) in DIVISORS.into_iter().enumerate() {
        let mut guest = Guest::new();
        let start = guest.now;
        guest.write(LVT_TIMER, VECTOR);
        guest.write(DIVIDE, divide);
        assert_eq!(guest.read(DIVIDE), divide);
        guest.write(INITIAL, 1000);
        let whole = 1000 << power;
        assert_eq!(guest.irq.deadline(BOOT), Some(Ticks::new(start + whole)));
        guest.now = start + (10 << power) - 1;
        assert_eq!(guest.read(CURRENT), 991);
        guest.now += 1;
        assert_eq!(guest.read(CURRENT), 990);
        assert_eq!(guest.run(2 * whole), [start + whole]);
        assert_eq!(guest.read(CURRENT), 0);
        assert_eq!(guest.read(INITIAL), 1000);
        assert_eq!(guest.irq.deadline(BOOT), None);
    }
}

#[test]
fn periodic_fires_at_multiples_of_the_period() {
    let mut guest = Guest::new();
    let start = guest.now;
    guest.write(LVT_TIMER, PERIODIC | VECTOR);
    guest.write(DIVIDE, 0xB);
    guest.write(INITIAL, 100_000);
    assert_eq!(guest.run(350_000), [100_000, 200_000, 300_000].map(|t| start + t));
    assert_eq!(guest.read(CURRENT), 50_000);
    guest.write(INITIAL, 0);
    assert_eq!(guest.irq.deadline(BOOT), None);
    assert_eq!(guest.read(CURRENT), 0);
}

#[test]
fn a_late_host_merges_periods_and_keeps_the_phase() {
    let mut guest = Guest::new();
    let start = guest.now;
    guest.write(LVT_TIMER, PERIODIC | VECTOR);
    guest.write(DIVIDE, 0xB);
    guest.write(INITIAL, 100_000);
    guest.now = start + 100_000 * 1_000_000_007 + 5;
    guest.irq.advance(BOOT, guest.now());
    assert_eq!(guest.take(), Some(0xEC));
    assert_eq!(guest.take(), None);
    assert_eq!(guest.irq.deadline(BOOT), Some(Ticks::new(start + 100_000 * 1_000_000_008)));
    guest.now = u64::MAX;
    guest.irq.advance(BOOT, guest.now());
    guest.read(CURRENT);
}

#[test]
fn a_period_of_one_tick_costs_at_most_20_000_interrupts_a_second() {
    let mut guest = Guest::new();
    guest.write(LVT_TIMER, PERIODIC | VECTOR);
    guest.write(DIVIDE, 0xB);
    guest.write(INITIAL, 1);
    let moments = guest.run(1_000_000_000);
    assert!((19_999..=20_001).contains(&moments.len()), "{}", moments.len());
    assert!(moments.windows(2).all(|pair| pair[1] - pair[0] >= SHORTEST));
}

#[test]
fn masked_it_counts_without_interrupting() {
    let mut guest = Guest::new();
    guest.write(LVT_TIMER, MASKED | PERIODIC | VECTOR);
    guest.write(DIVIDE, 0xB);
    guest.write(INITIAL, 100_000);
    assert_eq!(guest.irq.deadline(BOOT), None);
    guest.now += 250_000;
    assert_eq!(guest.read(CURRENT), 50_000);
    guest.write(LVT_TIMER, PERIODIC | VECTOR);
    assert_eq!(guest.take(), None, "what expired while masked is gone");
    assert_eq!(guest.irq.deadline(BOOT), Some(Ticks::new(guest.now + 50_000)));
    guest.write(SVR, 0xFF);
    assert_eq!(guest.irq.deadline(BOOT), None, "software disable masks");
}

#[test]
fn tsc_deadline() {
    let mut guest = Guest::new();
    guest.wrmsr(TSC_DEADLINE, 5_000).unwrap();
    assert_eq!(guest.rdmsr(TSC_DEADLINE), Ok(0), "ignored in other modes");
    guest.write(LVT_TIMER, DEADLINE | VECTOR);
    guest.write(INITIAL, 77);
    assert_eq!(guest.read(INITIAL), 0, "ignored in this mode");
    guest.wrmsr(TSC_DEADLINE, 5_000).unwrap();
    assert_eq!(guest.rdmsr(TSC_DEADLINE), Ok(5_000));
    assert_eq!(guest.read(CURRENT), 0);
    assert_eq!(guest.run(10_000), [5_000]);
    assert_eq!(guest.rdmsr(TSC_DEADLINE), Ok(0), "reads 0 once it has fired");
    // A moment that has passed.
    guest.wrmsr(TSC_DEADLINE, 1).unwrap();
    assert_eq!(guest.take(), Some(0xEC));
    guest.write(EOI, 0);
    // 0 disarms.
    guest.wrmsr(TSC_DEADLINE, 50_000).unwrap();
    guest.wrmsr(TSC_DEADLINE, 0).unwrap();
    assert_eq!(guest.irq.deadline(BOOT), None);
    // So does a change of mode; the same mode again does not.
    guest.wrmsr(TSC_DEADLINE, 50_000).unwrap();
    guest.write(LVT_TIMER, DEADLINE | 0xEB);
    assert_eq!(guest.irq.deadline(BOOT), Some(Ticks::new(50_000)));
    guest.write(LVT_TIMER, VECTOR);
    assert_eq!(guest.irq.deadline(BOOT), None);
    guest.write(INITIAL, 1_000);
    guest.write(LVT_TIMER, DEADLINE | VECTOR);
    assert_eq!(guest.irq.deadline(BOOT), None);
}

#[test]
fn one_shot_and_periodic_change_into_each_other_without_a_stop() {
    let mut guest = Guest::new();
    let start = guest.now;
    guest.write(DIVIDE, 0xB);
    guest.write(LVT_TIMER, VECTOR);
    guest.write(INITIAL, 100_000);
    guest.now += 40_000;
    guest.write(LVT_TIMER, PERIODIC | VECTOR);
    assert_eq!(guest.run(200_000), [start + 100_000, start + 200_000]);
    guest.write(LVT_TIMER, VECTOR);
    assert_eq!(guest.run(200_000), [start + 300_000]);
}

#[test]
fn the_divisor_can_change_while_it_counts() {
    let mut guest = Guest::new();
    guest.write(DIVIDE, 0xB);
    guest.write(LVT_TIMER, VECTOR);
    guest.write(INITIAL, 1_000);
    guest.now += 400;
    guest.write(DIVIDE, 0x0);
    assert_eq!(guest.read(CURRENT), 600);
    assert_eq!(guest.irq.deadline(BOOT), Some(Ticks::new(guest.now + 1_200)));
}

#[test]
fn the_reserved_mode_stands_still() {
    let mut guest = Guest::new();
    guest.write(LVT_TIMER, 3 << 17 | VECTOR);
    guest.write(INITIAL, 1_000);
    guest.wrmsr(TSC_DEADLINE, 1_000).unwrap();
    assert_eq!(guest.irq.deadline(BOOT), None);
    assert_eq!(guest.take(), None);
}

#[test]
fn an_illegal_vector_is_an_error() {
    let mut guest = Guest::new();
    guest.write(LVT_TIMER, DEADLINE | 0x0F);
    guest.wrmsr(TSC_DEADLINE, 1).unwrap();
    assert_eq!(guest.take(), None);
    guest.write(ESR, 0);
    assert_eq!(guest.read(ESR), 1 << 6);
}

#[test]
fn disabling_the_local_apic_stops_it() {
    let mut guest = Guest::new();
    guest.write(LVT_TIMER, DEADLINE | VECTOR);
    guest.wrmsr(TSC_DEADLINE, 50_000).unwrap();
    guest.wrmsr(0x1B, 0xFEE0_0100).unwrap();
    assert_eq!(guest.irq.deadline(BOOT), None);
    assert_eq!(guest.rdmsr(TSC_DEADLINE), Ok(0));
    guest.wrmsr(0x1B, ENABLED).unwrap();
    assert_eq!(guest.irq.deadline(BOOT), None);
    // The bound on periodic interrupts outlives the reset.
    guest.write(SVR, 0x1FF);
    guest.write(DIVIDE, 0xB);
    guest.write(LVT_TIMER, PERIODIC | VECTOR);
    guest.write(INITIAL, 1);
    assert!(guest.run(10 * SHORTEST).len() <= 11);
}

proptest! {
    #[test]
    fn the_current_count_agrees_with_the_tsc(
        initial in 1_u32..,
        power in 0_usize..8,
        start in 0_u64..1 << 60,
        elapsed in any::<u64>(),
        periodic in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        guest.now = start;
        guest.write(LVT_TIMER, if periodic { PERIODIC | VECTOR } else { VECTOR });
        guest.write(DIVIDE, DIVISORS[power]);
        guest.write(INITIAL, initial);
        let period = u64::from(initial) << power;
        let elapsed = elapsed % (4 * period);
        guest.now = start + elapsed;
        let counted = elapsed >> power;
        let expected = if periodic {
            u64::from(initial) - counted % u64::from(initial)
        } else {
            u64::from(initial).saturating_sub(counted)
        };
        prop_assert_eq!(u64::from(guest.read(CURRENT)), expected);
        let fired = elapsed >= period;
        prop_assert_eq!(guest.take(), fired.then_some(0xEC));
        // The next deadline is on the grid, ahead, and no further than the bound makes it.
        match guest.irq.deadline(BOOT).map(Ticks::as_u64) {
            Some(at) => {
                prop_assert!(periodic || !fired);
                prop_assert_eq!((at - start) % period, 0);
                prop_assert!(at > guest.now && at <= guest.now + period.max(SHORTEST + period));
            }
            None => prop_assert!(!periodic && fired),
        }
    }
}
