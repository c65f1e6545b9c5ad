//! The last events, in order: whoever reads them from a number on gets all, or is told how many are gone.

use crate::bucket::{Bucket, Rate};
use crate::{Event, EventKind, Events, Moment, Name};
use bulkhead_types::manifest::MAX_GUESTS;
use heapless::Deque;

/// Events that are kept.
pub const KEPT: usize = 256;

/// The events.
pub struct Ring {
    events: Deque<Event, KEPT>,
    /// Number of the oldest event that is kept.
    first: u64,
    /// What each guest may bring about by itself; the last one is of all with higher numbers.
    limits: [Bucket; MAX_GUESTS + 1],
    rate: Rate,
}

impl Ring {
    /// No events yet. Each guest may bring about as many by itself as `rate` says.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { events: Deque::new(), first: 0, limits: [Bucket::new(); MAX_GUESTS + 1], rate }
    }

    /// Adds what an operator or the hypervisor brought about.
    pub fn push(&mut self, at: Moment, guest: u16, name: &str, kind: EventKind) {
        if self.events.is_full() && self.events.pop_front().is_some() {
            self.first = self.first.saturating_add(1);
        }
        let name = Name::try_from(name).unwrap_or_default();
        // There is room now.
        let _ = self.events.push_back(Event { at, guest, name, kind });
    }

    /// Adds what a guest brought about, unless that were too many; then they are counted, and [`Ring::tell`] tells it.
    pub fn push_limited(&mut self, at: Moment, guest: u16, name: &str, kind: EventKind) {
        let rate = self.rate;
        self.tell(at, guest, name);
        if self.limit(guest).is_none_or(|bucket| bucket.take(at.ticks, rate)) {
            self.push(at, guest, name, kind);
        }
    }

    /// Tells how many events of a guest were left out, if some were and it is time.
    pub fn tell(&mut self, at: Moment, guest: u16, name: &str) {
        let rate = self.rate;
        if let Some(count) = self.limit(guest).and_then(|bucket| bucket.held_back(at.ticks, rate)) {
            self.push(at, guest, name, EventKind::LeftOut(count));
        }
    }

    fn limit(&mut self, guest: u16) -> Option<&mut Bucket> {
        self.limits.get_mut(usize::from(guest).min(MAX_GUESTS))
    }

    /// The first events from number `from` on.
    #[must_use]
    pub fn read(&self, from: u64) -> Events {
        let end = self.first.saturating_add(self.events.len() as u64);
        let first = from.clamp(self.first, end);
        let skip = usize::try_from(first - self.first).unwrap_or(usize::MAX);
        let mut items = heapless::Vec::new();
        for event in self.events.iter().skip(skip) {
            if items.push(event.clone()).is_err() {
                break;
            }
        }
        Events { first, end, items }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{KEPT, Ring};
    use crate::bucket::Rate;
    use crate::{EventKind, Moment, Source};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const RATE: Rate = Rate { burst: 8, ticks: 1000 };

    fn at(ticks: u64) -> Moment {
        Moment { ticks, unix_ms: 0 }
    }

    proptest! {
        #[test]
        fn a_reader_gets_all_or_is_told(pushes in proptest::collection::vec(0..400_u64, 1..20), ask in any::<bool>()) {
            let mut ring = Ring::new(RATE);
            let (mut next, mut lost, mut seen, mut pushed) = (0, 0, 0, 0);
            for count in pushes {
                for _ in 0..count {
                    ring.push(at(pushed), 1, "a", EventKind::Session);
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
        assert_eq!((read.first, read.end), (1000 - KEPT as u64, 1000));
        let read = ring.read(u64::MAX);
        assert_eq!((read.first, read.end, read.items.len()), (1000, 1000, 0));
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
