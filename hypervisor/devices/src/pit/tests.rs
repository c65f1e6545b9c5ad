use std::string::String;

use super::{PIT_CLOCK, Pit};
use bulkhead_types::{Frequency, Ticks};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

/// With this rate a tick is a clock of the timer.
const TSC: Frequency = PIT_CLOCK;

fn at(clock: u64) -> Ticks {
    Ticks::new(clock)
}

fn program(pit: &mut Pit, counter: u8, mode: u8, count: u16, now: u64) {
    pit.write(3, counter << 6 | 3 << 4 | mode << 1, at(now));
    let [low, high] = count.to_le_bytes();
    pit.write(counter, low, at(now));
    pit.write(counter, high, at(now));
}

fn count(pit: &mut Pit, counter: u8, now: u64) -> u16 {
    pit.write(3, counter << 6, at(now));
    u16::from_le_bytes([pit.read(counter, at(now)), pit.read(counter, at(now))])
}

/// Output of counter 0 over `clocks`, from the clock on at which the count is loaded.
fn wave(pit: &mut Pit, from: u64, clocks: u64) -> String {
    (from..from + clocks).map(|clock| if pit.line(at(clock)) { '1' } else { '0' }).collect()
}

#[test]
fn mode_0_interrupt_on_terminal_count() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 0, 4, 10);
    assert_eq!(wave(&mut pit, 11, 8), "00001111");
    assert_eq!([11, 12, 15, 16].map(|clock| count(&mut pit, 0, clock)), [4, 3, 0, 0xFFFF]);
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 0, 4, 10);
    assert!(!pit.take_edge(at(14)));
    assert_eq!(pit.deadline(), Some(at(15)));
    assert!(pit.take_edge(at(15)));
    assert!(!pit.take_edge(at(100_000)), "once");
    assert_eq!(pit.deadline(), None);
}

#[test]
fn mode_0_first_byte_stops_the_count() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 0, 4, 10);
    assert!(pit.line(at(20)) && pit.take_edge(at(20)));
    pit.write(0, 9, at(20));
    assert!(!pit.line(at(20)));
    assert_eq!(pit.deadline(), None);
    pit.write(0, 0, at(30));
    assert_eq!(wave(&mut pit, 31, 10), "0000000001");
}

#[test]
fn mode_1_one_shot_by_gate() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 2, 1, 3, 0);
    let output = |pit: &mut Pit, clock| pit.read_port_61(at(clock)) >> 5 & 1;
    assert_eq!(output(&mut pit, 50), 1);
    pit.write_port_61(1, at(50));
    assert_eq!([51, 52, 53, 54, 55].map(|clock| output(&mut pit, clock)), [0, 0, 0, 1, 1]);
    pit.write_port_61(0, at(60));
    pit.write_port_61(1, at(60));
    assert_eq!(output(&mut pit, 61), 0);
    pit.write_port_61(0, at(62));
    pit.write_port_61(1, at(62));
    assert_eq!([63, 65, 66].map(|clock| output(&mut pit, clock)), [0, 0, 1], "retriggered");
}

#[test]
fn mode_2_rate_generator() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 2, 4, 0);
    assert_eq!(wave(&mut pit, 1, 12), "111011101110");
    assert_eq!([1, 2, 3, 4, 5].map(|clock| count(&mut pit, 0, clock)), [4, 3, 2, 1, 4]);
}

#[test]
fn mode_2_new_count_at_the_end_of_the_cycle() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 2, 200, 0);
    pit.write(0, 0x2C, at(50));
    pit.write(0, 1, at(50));
    assert_eq!(count(&mut pit, 0, 60), 200 - 59);
    pit.write(3, 0b1110_0010, at(60));
    assert_eq!(pit.read(0, at(60)) & 0xC0, 0xC0, "null count");
    assert_eq!(pit.deadline(), Some(at(201)));
    assert!(pit.take_edge(at(202)));
    assert_eq!(count(&mut pit, 0, 202), 299);
    assert_eq!(pit.deadline(), Some(at(501)));
    assert!(!pit.take_edge(at(500)));
    assert!(pit.take_edge(at(501)));
}

#[test]
fn an_access_before_the_edge_is_taken_does_not_lose_it() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 2, 200, 0);
    pit.write(0, 0x2C, at(50));
    pit.write(0, 1, at(50));
    // The new count is taken up at 201, which is also an edge.
    assert_eq!([0; 2].map(|_| pit.read(0, at(210))), 291_u16.to_le_bytes());
    assert!(pit.deadline().is_some_and(|deadline| deadline <= at(210)));
    assert!(pit.take_edge(at(210)));
    assert!(!pit.take_edge(at(500)));
    program(&mut pit, 0, 0, 200, 1000);
    program(&mut pit, 0, 0, 200, 1300);
    assert!(pit.take_edge(at(1300)), "it had run out at 1201");
    assert!(!pit.take_edge(at(1500)));
    assert_eq!(pit.deadline(), Some(at(1501)));
}

#[test]
fn what_programs_counter_0() {
    let mut pit = Pit::new(TSC);
    let programs = [(0, 0), (3, 0x34), (3, 0x10), (0, 5)];
    let others = [(1, 0), (2, 0), (3, 0x0F), (3, 0x70), (3, 0xB0), (3, 0xE2)];
    assert!(programs.into_iter().all(|(port, value)| pit.write(port, value, at(0))));
    assert!(!others.into_iter().any(|(port, value)| pit.write(port, value, at(0))));
}

#[test]
fn mode_3_square_wave() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 3, 4, 0);
    assert_eq!(wave(&mut pit, 1, 9), "110011001");
    assert_eq!([1, 2, 3, 4].map(|clock| count(&mut pit, 0, clock)), [4, 2, 4, 2]);
    program(&mut pit, 0, 3, 5, 100);
    assert_eq!(wave(&mut pit, 101, 10), "1110011100");
    assert_eq!([101, 102, 103, 104, 105].map(|clock| count(&mut pit, 0, clock)), [4, 2, 0, 4, 2]);
}

#[test]
fn mode_3_new_count_at_the_end_of_the_half_cycle() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 3, 8, 0);
    pit.write(0, 4, at(2));
    pit.write(0, 0, at(2));
    assert_eq!(wave(&mut pit, 1, 10), "1111001100");
}

#[test]
fn mode_4_strobe_by_software() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 4, 3, 0);
    assert_eq!(wave(&mut pit, 1, 6), "111011");
    assert_eq!(pit.deadline(), Some(at(5)));
    assert!(pit.take_edge(at(7)));
    assert_eq!(pit.deadline(), None);
    program(&mut pit, 0, 4, 3, 10);
    pit.write(0, 6, at(12));
    pit.write(0, 0, at(12));
    assert_eq!(wave(&mut pit, 13, 8), "11111101", "a new count starts again");
}

#[test]
fn mode_5_strobe_by_gate() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 2, 5, 2, 0);
    pit.write_port_61(1, at(10));
    let wave = [11, 12, 13, 14].map(|clock| pit.read_port_61(at(clock)) >> 5 & 1);
    assert_eq!(wave, [1, 1, 0, 1]);
}

#[test]
fn gate_holds_the_count() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 2, 0, 100, 0);
    assert_eq!(count(&mut pit, 2, 50), 100, "the gate is low");
    pit.write_port_61(1, at(50));
    assert_eq!(count(&mut pit, 2, 60), 90);
    pit.write_port_61(0, at(60));
    assert_eq!(count(&mut pit, 2, 80), 90);
    pit.write_port_61(1, at(80));
    assert_eq!(count(&mut pit, 2, 90), 80);
    assert_eq!(pit.read_port_61(at(169)) & 0x20, 0);
    assert_eq!(pit.read_port_61(at(170)) & 0x20, 0x20);
}

#[test]
fn gate_restarts_the_periodic_modes() {
    let mut pit = Pit::new(TSC);
    pit.write_port_61(1, at(0));
    program(&mut pit, 2, 3, 100, 0);
    assert_eq!(pit.read_port_61(at(60)) & 0x20, 0);
    pit.write_port_61(0, at(60));
    assert_eq!(pit.read_port_61(at(60)) & 0x20, 0x20, "low gate sets OUT high");
    pit.write_port_61(1, at(70));
    assert_eq!(count(&mut pit, 2, 71), 100);
}

#[test]
fn bcd_counting() {
    let mut pit = Pit::new(TSC);
    pit.write(3, 0x31, at(0));
    pit.write(0, 0x00, at(0));
    pit.write(0, 0x10, at(0));
    assert_eq!(count(&mut pit, 0, 1), 0x1000);
    assert_eq!(count(&mut pit, 0, 2), 0x0999);
    assert_eq!(count(&mut pit, 0, 1002), 0x9999);
    assert!(pit.take_edge(at(1002)));
    pit.write(3, 0x35, at(2000));
    pit.write(0, 0, at(2000));
    pit.write(0, 0, at(2000));
    assert_eq!(count(&mut pit, 0, 2001), 0, "0 is 10,000");
    assert_eq!(count(&mut pit, 0, 12_000), 1);
    assert_eq!(pit.deadline(), Some(at(12_001)));
}

#[test]
fn access_modes() {
    let mut pit = Pit::new(TSC);
    pit.write(3, 0x14, at(0));
    pit.write(0, 0x34, at(0));
    assert_eq!((pit.read(0, at(1)), pit.read(0, at(2))), (0x34, 0x33));
    pit.write(3, 0x24, at(0));
    pit.write(0, 0x12, at(0));
    assert_eq!((pit.read(0, at(1)), pit.read(0, at(2))), (0x12, 0x11));
    assert_eq!(pit.deadline(), Some(at(0x1201)));
}

#[test]
fn latch_holds_until_read_and_is_not_replaced() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 2, 0x1234, 0);
    pit.write(3, 0, at(1));
    pit.write(3, 0, at(500));
    assert_eq!((pit.read(0, at(900)), pit.read(0, at(901))), (0x34, 0x12));
    assert_eq!(pit.read(0, at(2)), 0x33);
}

#[test]
fn read_back_latches_status_and_counts() {
    let mut pit = Pit::new(TSC);
    program(&mut pit, 0, 2, 0x1000, 0);
    program(&mut pit, 1, 3, 0x2000, 0);
    pit.write(3, 0b1100_0110, at(1));
    for (counter, mode, high) in [(0, 2, 0x10), (1, 3, 0x20)] {
        assert_eq!(pit.read(counter, at(9)), 0x80 | 3 << 4 | mode << 1, "status first");
        assert_eq!((pit.read(counter, at(9)), pit.read(counter, at(9))), (0, high));
    }
    program(&mut pit, 2, 0, 5, 10);
    pit.write(3, 0b1110_1000, at(10));
    assert_eq!(pit.read(2, at(10)), 3 << 4);
}

#[test]
fn control_word_can_not_be_read() {
    assert_eq!(Pit::new(TSC).read(3, at(0)), 0xFF);
}

#[test]
fn port_61_toggles_refresh_and_keeps_four_bits() {
    let mut pit = Pit::new(TSC);
    pit.write_port_61(0xFE, at(0));
    assert_eq!(pit.read_port_61(at(0)) & 0x0F, 0x0E);
    let toggles = (0..1000).filter(|&t| (pit.read_port_61(at(t)) ^ pit.read_port_61(at(t + 1))) & 0x10 != 0).count();
    assert_eq!(toggles, 1000 / 18);
}

#[test]
fn periods_are_exact_over_a_day() {
    let tsc = Frequency::hertz(2_399_999_999);
    let mut pit = Pit::new(tsc);
    pit.write(3, 0x34, Ticks::ZERO);
    pit.write(0, 0xA9, Ticks::ZERO);
    pit.write(0, 0x04, Ticks::ZERO);
    let (mut edges, mut now) = (0_u64, Ticks::ZERO);
    for _ in 0..10_000 {
        now = pit.deadline().unwrap();
        assert!(!pit.take_edge(Ticks::new(now.as_u64() - 1)));
        assert!(pit.take_edge(now));
        edges += 1;
    }
    assert_eq!(tsc.convert(now.as_u64(), PIT_CLOCK), 1 + edges * 0x4A9);
    let day = Ticks::new(86_400 * tsc.as_hertz());
    assert!(pit.take_edge(day));
    let next = tsc.convert(pit.deadline().unwrap().as_u64(), PIT_CLOCK) - 1;
    assert_eq!(next % 0x4A9, 0);
    assert!(next - (86_400 * PIT_CLOCK.as_hertz() - 1) <= 0x4A9);
}

#[test]
fn tiny_periods_are_thinned_out() {
    for count in [1, 2, 3, 118, 119, 120] {
        let mut pit = Pit::new(TSC);
        program(&mut pit, 0, 2, count, 0);
        let mut last = 0;
        for _ in 0..100 {
            let now = pit.deadline().unwrap().as_u64();
            assert!(now - last >= super::MIN_PERIOD, "count {count}");
            assert_eq!((now - 1) % u64::from(count.max(2)), 0);
            assert!(pit.take_edge(at(now)));
            last = now;
        }
    }
}

proptest! {
    #[test]
    fn any_program_is_bounded_and_edges_come_when_announced(
        ops in prop::collection::vec((0_u8..5, any::<u8>(), 0_u64..200_000), 1..200),
    ) {
        let mut pit = Pit::new(TSC);
        let mut now = 0;
        for (port, value, delay) in ops {
            if let Some(deadline) = pit.deadline() {
                prop_assert!(deadline.as_u64() > now);
                if deadline.as_u64() <= now + delay {
                    prop_assert!(!pit.take_edge(at(deadline.as_u64() - 1)));
                    prop_assert!(pit.take_edge(deadline), "an edge at the deadline");
                }
            } else {
                prop_assert!(!pit.take_edge(at(now + delay)));
            }
            now += delay;
            pit.take_edge(at(now));
            match port {
                4 => pit.write_port_61(value, at(now)),
                _ => drop(pit.write(port, value, at(now))),
            }
            let line = pit.line(at(now));
            prop_assert_eq!(pit.line(at(now)), line);
            let _ = (pit.read(port & 3, at(now)), pit.read_port_61(at(now)));
        }
    }

    #[test]
    fn a_late_host_sees_what_a_prompt_one_does(
        ops in prop::collection::vec((0_u8..9, any::<u8>(), 0_u64..20_000), 1..200),
    ) {
        let (mut prompt, mut late) = (Pit::new(TSC), Pit::new(TSC));
        let mut now = 0;
        for (port, value, delay) in ops {
            now += delay;
            let mut risen = false;
            while let Some(deadline) = prompt.deadline().filter(|deadline| *deadline <= at(now)) {
                risen |= prompt.take_edge(deadline);
            }
            let [first, second] = [&mut prompt, &mut late].map(|pit| match port {
                0..4 => u16::from(pit.write(port, value, at(now))),
                4 => {
                    pit.write_port_61(value, at(now));
                    u16::from(pit.read_port_61(at(now)))
                }
                5 => u16::from(pit.line(at(now))),
                _ => u16::from(pit.read(port - 6, at(now))),
            });
            prop_assert_eq!(first, second);
            prop_assert!(!prompt.take_edge(at(now)));
            prop_assert_eq!(late.take_edge(at(now)), risen);
            prop_assert_eq!(prompt.deadline(), late.deadline());
        }
    }
}
