use super::Rtc;
use bulkhead_types::{Frequency, Ticks};
use proptest::prelude::{any, prop, prop_assert, proptest};

const HZ: u64 = 1_000_000;
/// 2023-11-14 22:13:20, a Tuesday.
const START: u64 = 1_700_000_000;

fn clock() -> Rtc {
    Rtc::new(Frequency::hertz(HZ), START, 256 << 20)
}

fn get(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
    rtc.select(index);
    rtc.read(Ticks::new(now))
}

fn put(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
    rtc.select(index);
    rtc.write(value, Ticks::new(now));
}

/// Century, year, month, day, hours, minutes, seconds, day of the week, as they read.
fn all(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [0x32, 9, 8, 7, 4, 2, 0, 6].map(|index| get(rtc, index, now))
}

#[test]
fn bcd_and_24_hours() {
    let mut rtc = clock();
    assert_eq!(all(&mut rtc, 0), [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20, 3]);
    assert_eq!(all(&mut rtc, 40 * HZ), [0x20, 0x23, 0x11, 0x14, 0x22, 0x14, 0x00, 3]);
    assert_eq!(all(&mut rtc, 86_400 * HZ - 1), [0x20, 0x23, 0x11, 0x15, 0x22, 0x13, 0x19, 4]);
}

#[test]
fn binary_and_12_hours() {
    let mut rtc = clock();
    put(&mut rtc, 0x0B, 0x04, 0);
    assert_eq!(all(&mut rtc, 0), [20, 23, 11, 14, 10 | 0x80, 13, 20, 3]);
    put(&mut rtc, 0x0B, 0x00, 0);
    assert_eq!(get(&mut rtc, 4, 2 * 3600 * HZ), 0x12, "midnight is 12 am");
    assert_eq!(get(&mut rtc, 4, 14 * 3600 * HZ), 0x92, "noon is 12 pm");
}

#[test]
fn set_holds_the_time_and_keeps_the_phase() {
    let mut rtc = clock();
    put(&mut rtc, 0x0B, 0x82, HZ / 4);
    assert_eq!(all(&mut rtc, 10 * HZ)[6], 0x20);
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
        put(&mut rtc, index, value, 10 * HZ);
    }
    put(&mut rtc, 0x0B, 0x02, 20 * HZ + HZ / 2);
    assert_eq!(all(&mut rtc, 21 * HZ - 1), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58, 6]);
    assert_eq!(all(&mut rtc, 22 * HZ), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 7]);
}

#[test]
fn divider_reset_starts_the_second_anew() {
    let mut rtc = clock();
    put(&mut rtc, 0x0B, 0x82, 0);
    put(&mut rtc, 0x0A, 0x76, 0);
    put(&mut rtc, 0, 0x30, 0);
    put(&mut rtc, 0x0B, 0x02, 0);
    assert_eq!(get(&mut rtc, 0, 5 * HZ), 0x30);
    put(&mut rtc, 0x0A, 0x26, 5 * HZ + 300);
    assert_eq!(get(&mut rtc, 0, 5 * HZ + 300 + HZ / 2 - 1), 0x30);
    assert_eq!(get(&mut rtc, 0, 5 * HZ + 300 + HZ / 2), 0x31);
}

#[test]
fn a_time_register_can_be_written_while_the_clock_runs() {
    let mut rtc = clock();
    put(&mut rtc, 4, 0x05, HZ);
    assert_eq!(all(&mut rtc, HZ), [0x20, 0x23, 0x11, 0x14, 0x05, 0x13, 0x21, 3]);
}

#[test]
fn update_in_progress_before_each_update() {
    let mut rtc = clock();
    let mut uip = |now| get(&mut rtc, 0x0A, now) & 0x80 != 0;
    assert!(!uip(0));
    assert!(!uip(HZ - 245));
    assert!(uip(HZ - 244));
    assert!(uip(HZ - 1));
    assert!(!uip(HZ));
    put(&mut rtc, 0x0B, 0x82, HZ);
    assert_eq!(get(&mut rtc, 0x0A, 2 * HZ - 1), 0x26, "not while SET");
}

#[test]
fn update_ended_interrupt() {
    let mut rtc = clock();
    assert_eq!(rtc.deadline(), None);
    put(&mut rtc, 0x0B, 0x12, HZ / 2);
    assert_eq!(rtc.deadline(), Some(Ticks::new(HZ)));
    rtc.advance(Ticks::new(HZ - 1));
    assert!(!rtc.line());
    rtc.advance(Ticks::new(HZ));
    assert!(rtc.line());
    assert_eq!(rtc.deadline(), None, "until register C is read");
    assert_eq!(get(&mut rtc, 0x0C, HZ) & !0x40, 0x90);
    assert!(!rtc.line());
    assert_eq!(get(&mut rtc, 0x0C, HZ), 0);
    assert_eq!(rtc.deadline(), Some(Ticks::new(2 * HZ)));
    put(&mut rtc, 0x0B, 0x92, HZ);
    assert_eq!(get(&mut rtc, 0x0B, HZ), 0x82, "SET clears UIE");
}

#[test]
fn periodic_interrupt_rates() {
    for (select, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut rtc = clock();
        put(&mut rtc, 0x0A, 0x20 | select, 0);
        put(&mut rtc, 0x0B, 0x42, 0);
        for n in 1..=100_u64 {
            let due = Frequency::hertz(HZ).count_at(n, Frequency::hertz(hertz));
            assert_eq!(rtc.deadline(), Some(Ticks::new(due)));
            rtc.advance(Ticks::new(due));
            assert!(rtc.line());
            assert_eq!(get(&mut rtc, 0x0C, due) & 0xC0, 0xC0);
        }
    }
    let mut rtc = clock();
    put(&mut rtc, 0x0A, 0x20, 0);
    put(&mut rtc, 0x0B, 0x42, 0);
    assert_eq!(rtc.deadline(), None);
}

#[test]
fn alarm_matches_the_time() {
    let mut rtc = clock();
    for (index, value) in [(5, 0x22), (3, 0x15), (1, 0x05)] {
        put(&mut rtc, index, value, 0);
    }
    put(&mut rtc, 0x0B, 0x22, 0);
    let due = (60 + 45) * HZ;
    assert_eq!(rtc.deadline(), Some(Ticks::new(due)));
    rtc.advance(Ticks::new(due));
    assert_eq!(get(&mut rtc, 0x0C, due) & !0x40, 0xB0);
    assert_eq!(rtc.deadline(), Some(Ticks::new(due + 86_400 * HZ)), "again tomorrow");
}

#[test]
fn alarm_with_dont_care_bytes() {
    // START is 22:13:20.
    for (alarm, seconds) in [
        ([0xFF, 0xFF, 0xFF], 1),
        ([0xFF, 0xFF, 0x20], 60),
        ([0xFF, 0x13, 0x20], 3600),
        ([0xFF, 0x13, 0xC0], 1),
        ([0xFF, 0x14, 0xFF], 40),
        ([0xFF, 0x12, 0xFF], 3600 - 60 - 20),
        ([0x22, 0x13, 0x20], 86_400),
        ([0x22, 0x13, 0x10], 86_400 - 10),
        ([0x22, 0xFF, 0x00], 40),
        ([0x21, 0xFF, 0xFF], 86_400 - 3600 - 13 * 60 - 20),
        ([0x00, 0x00, 0x00], 6400),
    ] {
        let mut rtc = clock();
        for (index, value) in [5, 3, 1].into_iter().zip(alarm) {
            put(&mut rtc, index, value, 0);
        }
        put(&mut rtc, 0x0B, 0x22, 0);
        assert_eq!(rtc.deadline(), Some(Ticks::new(seconds * HZ)), "{alarm:x?}");
    }
}

#[test]
fn impossible_alarm_never_comes() {
    let mut rtc = clock();
    put(&mut rtc, 3, 0x60, 0);
    put(&mut rtc, 0x0B, 0x22, 0);
    assert_eq!(rtc.deadline(), None);
    assert_eq!(get(&mut rtc, 0x0C, 200_000 * HZ) & 0x20, 0);
}

#[test]
fn memory_size_bytes() {
    let word = |rtc: &mut Rtc, index| u16::from_le_bytes([get(rtc, index, 0), get(rtc, index + 1, 0)]);
    let mut rtc = clock();
    assert_eq!([0x15, 0x17, 0x30, 0x34].map(|index| word(&mut rtc, index)), [640, 0xFFFF, 0xFFFF, 240 * 16]);
    let mut small = Rtc::new(Frequency::hertz(HZ), START, 8 << 20);
    assert_eq!([0x15, 0x17, 0x30, 0x34].map(|index| word(&mut small, index)), [640, 7 * 1024, 7 * 1024, 0]);
    let mut large = Rtc::new(Frequency::hertz(HZ), START, 5 << 30);
    assert_eq!(word(&mut large, 0x34), (3 * 1024 - 16) * 16);
    assert_eq!(word(&mut large, 0x5B), 0x8000);
    assert_eq!(get(&mut large, 0x5D, 0), 0);
}

#[test]
fn memory_and_fixed_registers() {
    let mut rtc = clock();
    assert_eq!(get(&mut rtc, 0x0D, 0), 0x80);
    assert_eq!(get(&mut rtc, 0x0F, 0), 0, "shutdown status");
    put(&mut rtc, 0x0F, 0x0A, 0);
    put(&mut rtc, 0xFF, 0x55, 0);
    assert_eq!((get(&mut rtc, 0x0F, 0), get(&mut rtc, 0x7F, 0)), (0x0A, 0x55), "bit 7 of the index masks NMIs");
}

proptest! {
    #[test]
    fn any_writes_are_bounded(
        wall_clock in any::<u64>(),
        ops in prop::collection::vec((any::<u8>(), any::<u8>(), 0_u64..(1 << 50)), 1..100),
    ) {
        let mut rtc = Rtc::new(Frequency::hertz(HZ), wall_clock, 1 << 30);
        let mut now = 0_u64;
        for (index, value, delay) in ops {
            now = now.saturating_add(delay);
            rtc.advance(Ticks::new(now));
            put(&mut rtc, index & 0x3F, value, now);
            if let Some(deadline) = rtc.deadline() {
                prop_assert!(deadline.as_u64() > now || now > u64::MAX / 2);
                rtc.advance(deadline);
                prop_assert!(rtc.line(), "the line rises at the deadline");
                now = deadline.as_u64();
            }
            get(&mut rtc, index >> 2, now);
        }
    }
}
