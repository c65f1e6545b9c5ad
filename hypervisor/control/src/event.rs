//! The last events, in order: whoever reads them from a number on gets all, or is told how many are gone.
//!
//! They have one numbering, and two halves: however much guests bring about, what an operator or the hypervisor did is not
//! gone by it.

use crate::bucket::{Bucket, Rate};
use crate::{Event, EventKind, Events, Moment, Name};
use bulkhead_types::manifest::MAX_GUESTS;
use heapless::Deque;

/// Events that are kept: one half of what guests bring about by themselves, one of all else.
pub const KEPT: usize = 256;
const HALF: usize = KEPT / 2;

/// The events.
pub struct Ring {
    /// With their numbers: what an operator or the hypervisor brought about, and what guests did.
    halves: [Deque<(u64, Event), HALF>; 2],
    /// Number of the next one.
    end: u64,
    /// What each guest may bring about by itself; the last one is of all with higher numbers.
    limits: [Bucket; MAX_GUESTS + 1],
    rate: Rate,
}

impl Ring {
    /// No events yet. Each guest may bring about as many by itself as `rate` says.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { halves: [Deque::new(), Deque::new()], end: 0, limits: [Bucket::new(); MAX_GUESTS + 1], rate }
    }

    /// Adds what an operator or the hypervisor brought about.
    pub fn push(&mut self, at: Moment, guest: u16, name: &str, kind: EventKind) {
        self.add(false, Event { at, guest, name: name_of(name), kind });
    }

    /// Adds one to its half: that of what a guest brought about by itself, or the other.
    fn add(&mut self, by_itself: bool, event: Event) {
        let [other, guests] = &mut self.halves;
        let half = if by_itself && event.guest != 0 { guests } else { other };
        if half.is_full() {
            half.pop_front();
        }
        // There is room now.
        let _ = half.push_back((self.end, event));
        self.end = self.end.saturating_add(1);
    }

    /// Adds what a guest brought about, unless that were too many; then they are counted, and [`Ring::tell`] tells it.
    pub fn push_limited(&mut self, at: Moment, guest: u16, name: &str, kind: EventKind) {
        let rate = self.rate;
        self.tell(at, guest, name);
        if self.limit(guest).is_none_or(|bucket| bucket.take(at.ticks, rate)) {
            self.add(true, Event { at, guest, name: name_of(name), kind });
        }
    }

    /// Tells how many events of a guest were left out, if some were and it is time.
    pub fn tell(&mut self, at: Moment, guest: u16, name: &str) {
        let rate = self.rate;
        if let Some(count) = self.limit(guest).and_then(|bucket| bucket.held_back(at.ticks, rate)) {
            self.add(true, Event { at, guest, name: name_of(name), kind: EventKind::LeftOut(count) });
        }
    }

    fn limit(&mut self, guest: u16) -> Option<&mut Bucket> {
        self.limits.get_mut(usize::from(guest).min(MAX_GUESTS))
    }

    /// The first events from number `from` on, up to where some are gone.
    #[must_use]
    pub fn read(&self, from: u64) -> Events {
        let mut events = Events { first: self.end, end: self.end, items: heapless::Vec::new() };
        let mut next = from;
        while let Some((number, event)) = self.first_from(next) {
            if events.items.is_empty() {
                events.first = *number;
            } else if *number != next {
                break;
            }
            next = number.saturating_add(1);
            if events.items.push(event.clone()).is_err() {
                break;
            }
        }
        events
    }

    /// The first that is kept from number `from` on.
    fn first_from(&self, from: u64) -> Option<&(u64, Event)> {
        let firsts = self.halves.iter().filter_map(|half| half.iter().find(|(number, _)| *number >= from));
        firsts.min_by_key(|(number, _)| *number)
    }
}

fn name_of(text: &str) -> Name {
    Name::try_from(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{HALF, Ring};
    use crate::bucket::Rate;
    use crate::{EventKind, Moment, Source};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const RATE: Rate = Rate { burst: 8, ticks: 1000 };

    fn at(ticks: u64) -> Moment {
        Moment { ticks, unix_ms: 0 }
    }

    proptest! {
        #[test]
        fn a_reader_gets_all_or_is_told(
            pushes in proptest::collection::vec((0..400_u64, any::<bool>()), 1..20),
            ask in any::<bool>(),
        ) {
            let mut ring = Ring::new(Rate { burst: u32::MAX, ticks: 1 });
            let (mut next, mut lost, mut seen, mut pushed) = (0, 0, 0, 0);
            for (count, by_itself) in pushes {
                let push = if by_itself { Ring::push_limited } else { Ring::push };
                for _ in 0..count {
                    push(&mut ring, at(pushed), 1, "a", EventKind::LeaseOver);
                    pushed += 1;
                }
                for _ in 0..if ask { 100 } else { 3 } {
                    let read = ring.read(next);
                    prop_assert_eq!(read.end, pushed);
                    lost += read.first - next;
                    next = read.first;
                    for event in &read.items {
                        prop_assert_eq!(event.at.ticks, next);
                        next += 1;
                        seen += 1;
                    }
                }
                prop_assert_eq!(seen + lost, next);
                prop_assert!(!ask || next == pushed);
            }
        }
    }

    #[test]
    fn the_last_are_kept_and_the_future_is_empty() {
        let mut ring = Ring::new(RATE);
        (0..1000).for_each(|n| ring.push(at(n), 0, "", EventKind::LeaseOver));
        let read = ring.read(0);
        assert_eq!((read.first, read.end), (1000 - HALF as u64, 1000));
        let read = ring.read(u64::MAX);
        assert_eq!((read.first, read.end, read.items.len()), (1000, 1000, 0));
    }

    #[test]
    fn what_guests_bring_about_does_not_push_out_what_operators_did() {
        let mut ring = Ring::new(RATE);
        ring.push(at(0), 1, "lent", EventKind::LeaseOver);
        for n in 0..1000 {
            for guest in 1..=64 {
                ring.push_limited(at(n * 500), guest, "mad", EventKind::Ended(crate::Ending::Reset));
            }
        }
        let read = ring.read(0);
        assert_eq!((read.first, read.items.len()), (0, 1));
        assert_eq!(read.items[0].kind, EventKind::LeaseOver);
        let read = ring.read(1);
        assert!(read.end > 10_000 && read.first == read.end - HALF as u64, "{read:?}");
    }

    #[test]
    fn a_guest_that_floods_is_limited_and_it_is_said() {
        let mut ring = Ring::new(RATE);
        ring.push(at(0), 2, "calm", EventKind::Started(Source::Manifest));
        (0..500).for_each(|n| ring.push_limited(at(n), 1, "mad", EventKind::Ended(crate::Ending::Reset)));
        ring.push_limited(at(600), 2, "calm", EventKind::Ended(crate::Ending::PowerOff));
        ring.push_limited(at(50_000), 1, "mad", EventKind::Ended(crate::Ending::Reset));
        let all: std::vec::Vec<_> = (0..3).flat_map(|page| ring.read(page * 8).items).collect();
        assert_eq!(all.len(), 1 + 8 + 1 + 2);
        assert_eq!(all[9].name, "calm");
        assert_eq!(all[10].kind, EventKind::LeftOut(492));
        // Without another event it is said as well.
        (0..50).for_each(|_| ring.push_limited(at(50_000), 1, "mad", EventKind::Ended(crate::Ending::Reset)));
        ring.tell(at(70_000), 1, "mad");
        let read = ring.read(ring.read(0).end - 1);
        assert!(matches!(read.items[0].kind, EventKind::LeftOut(_)), "{read:?}");
    }
}
