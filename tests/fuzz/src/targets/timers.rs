//! What counts time: PIT, real-time clock, power-management timer.
//!
//! A device is looked at when somebody asks it or when its deadline has come. How often that is must not show: each
//! target runs a twin that is looked at more often, and compares all that the guest could read.

use crate::Feed;
use bulkhead_devices::pit::{MIN_PERIOD, PIT_CLOCK, Pit};
use bulkhead_devices::pm::PowerManagement;
use bulkhead_devices::rtc::Rtc;
use bulkhead_types::{Frequency, Ticks, Width};

fn clock(feed: &mut Feed<'_>) -> Frequency {
    Frequency::hertz([10_000_000, 1_000_000_000, 3_000_000_001, 1_193_182][usize::from(feed.u8() & 3)])
}

/// Some time later: mostly soon, now and then by a deadline, seldom much.
fn later(feed: &mut Feed<'_>, now: Ticks, tsc: Frequency, deadline: Option<Ticks>) -> Ticks {
    let next = match feed.u8() & 7 {
        0 => now,
        1 | 2 => now.after(u64::from(feed.u8())),
        3 => now.after(u64::from(feed.u16())),
        4 => now.after(tsc.as_hertz() / 64 * u64::from(feed.u8())),
        5 => now.after(u64::from(feed.u32()) << 8),
        _ => deadline.unwrap_or(now),
    };
    next.max(now)
}

/// The interval timer and its gate.
pub fn pit(data: &[u8]) {
    let mut feed = Feed::new(data);
    let tsc = clock(&mut feed);
    let mut chip = Pit::new(tsc);
    let mut twin = chip.clone();
    let (mut now, mut edge) = (Ticks::ZERO, None::<Ticks>);
    while !feed.is_empty() {
        let next = later(&mut feed, now, tsc, chip.deadline());
        // The twin is looked at once in between.
        let _ = twin.line(Ticks::new(now.as_u64() + next.since(now) / 2));
        now = next;
        match feed.u8() & 7 {
            0..=2 => {
                let (offset, value) = (feed.u8() & 3, feed.u8());
                chip.take_edge(now);
                twin.take_edge(now);
                assert_eq!(chip.write(offset, value, now), twin.write(offset, value, now));
                edge = None;
            }
            3 => {
                let value = feed.u8();
                chip.write_port_61(value, now);
                twin.write_port_61(value, now);
                edge = None;
            }
            4 => assert_eq!(chip.read_port_61(now), twin.read_port_61(now), "port 0x61 at {now}"),
            5 => {
                let due = chip.deadline();
                let risen = chip.take_edge(now);
                assert_eq!(risen, twin.take_edge(now), "an edge at {now}");
                assert!(!risen || due.is_some_and(|due| due <= now), "an edge before its deadline");
                if let (Some(last), true) = (edge, risen) {
                    let least = PIT_CLOCK.convert(MIN_PERIOD - 1, tsc);
                    let due = due.unwrap_or(now);
                    assert!(due.since(last) >= least.saturating_sub(1), "edges at {last} and {due}");
                }
                edge = due.filter(|_| risen).or(edge);
                assert!(chip.deadline().is_none_or(|next| next > now), "the deadline lies ahead");
            }
            _ => {
                let offset = feed.u8() & 3;
                assert_eq!(chip.read(offset, now), twin.read(offset, now), "counter {offset} at {now}");
            }
        }
    }
}

/// The real-time clock.
pub fn rtc(data: &[u8]) {
    let mut feed = Feed::new(data);
    let tsc = clock(&mut feed);
    let mut chip = Rtc::new(tsc, feed.magnitude(), 64 << 20);
    let mut twin = chip.clone();
    let mut now = Ticks::ZERO;
    while !feed.is_empty() {
        let next = later(&mut feed, now, tsc, chip.deadline());
        twin.advance(Ticks::new(now.as_u64() + next.since(now) / 2));
        now = next;
        chip.advance(now);
        twin.advance(now);
        assert!(
            chip.deadline().is_none_or(|next| next > now),
            "the deadline {:?} lies ahead of {now}",
            chip.deadline()
        );
        assert_eq!(chip.line(), twin.line(), "the line at {now}");
        let index = if feed.flag() { feed.u8() & 15 } else { feed.u8() };
        chip.select(index);
        twin.select(index);
        if feed.flag() {
            let value = feed.u8();
            chip.write(value, now);
            twin.write(value, now);
        } else {
            assert_eq!(chip.read(now), twin.read(now), "register {index:#x} at {now}");
        }
        assert_eq!(chip.line(), twin.line());
        assert_eq!(chip.deadline(), twin.deadline());
    }
}

/// The power-management block.
pub fn pm(data: &[u8]) {
    const TIMER: Frequency = Frequency::hertz(3_579_545);
    let mut feed = Feed::new(data);
    let tsc = clock(&mut feed);
    let mut chip = PowerManagement::new(tsc);
    let mut twin = chip.clone();
    let mut now = Ticks::ZERO;
    while !feed.is_empty() {
        let next = later(&mut feed, now, tsc, chip.deadline());
        twin.advance(Ticks::new(now.as_u64() + next.since(now) / 2));
        now = next;
        if feed.flag() {
            let (offset, value) = (feed.u8() & 15, feed.u8());
            chip.write(offset, value, now);
            twin.write(offset, value, now);
            let off = chip.take_power_off();
            assert_eq!(off, twin.take_power_off());
            assert!(!off || offset == 5 && value & 1 << 5 != 0, "power-off by {value:#x} at {offset}");
        } else {
            let byte = feed.u8();
            if byte & 0x80 != 0 {
                let listens = chip.read(3, Width::Byte, now) & 1 != 0;
                assert_eq!((chip.press(), twin.press()), (listens, listens), "heard by who listens");
                assert!(!listens || chip.line() && chip.read(1, Width::Byte, now) & 1 != 0, "and told");
            }
            let (offset, width) = (byte & 15, [Width::Byte, Width::Word, Width::Dword][usize::from(feed.below(3))]);
            let value = chip.read(offset, width, now);
            assert_eq!(value, twin.read(offset, width, now), "{offset} at {now}");
            assert!(u64::from(value) <= width.mask());
        }
        chip.advance(now);
        twin.advance(now);
        assert_eq!(u64::from(chip.timer(now)), tsc.convert(now.as_u64(), TIMER) & 0xFFFF_FFFF);
        assert_eq!(chip.line(), twin.line());
        assert!(chip.deadline().is_none_or(|next| next > now), "the deadline lies ahead");
    }
}
