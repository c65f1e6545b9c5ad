//! Groups in order of a key, and the first of them that fits a CPU.
//!
//! A sorted list of numbers, two bytes each: a place is found by bisection, and what is behind it moves as bytes. That is
//! less work than a search tree for a handful of groups, and for a thousand. The first that fits is mostly the first.

/// Earlier is less.
pub(crate) type Key = (i128, u64);

/// A group's key, the CPUs (a bit each, not none) where it may run, its zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: Key,
    pub cpus: u64,
    pub zone: u16,
}

/// What is looked for: one of these CPUs, this zone if any, not this group.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    pub cpus: u64,
    pub zone: Option<u16>,
    pub but: Option<u16>,
}

pub(crate) struct Order<const N: usize> {
    /// By group. Without CPUs: not in the list.
    entries: [Entry; N],
    list: [u16; N],
    length: usize,
    /// Groups looked at so far.
    pub steps: u64,
}

impl<const N: usize> Order<N> {
    pub const fn new() -> Self {
        Self { entries: [Entry { key: (0, 0), cpus: 0, zone: 0 }; N], list: [0; N], length: 0, steps: 0 }
    }

    pub fn get(&self, n: u16) -> Option<&Entry> {
        self.entries.get(usize::from(n)).filter(|e| e.cpus != 0)
    }

    fn listed(&self) -> &[u16] {
        self.list.get(..self.length).unwrap_or(&[])
    }

    /// One of them, by its place.
    pub fn nth(&self, at: usize) -> Option<u16> {
        self.listed().get(at).copied()
    }

    /// How many come before this; who waits anew comes last, mostly.
    fn place(&mut self, key: Key, n: u16) -> usize {
        let before = |other: &u16| self.get(*other).is_some_and(|e| (e.key, *other) < (key, n));
        let listed = self.listed();
        let at = if listed.last().is_none_or(before) { self.length } else { listed.partition_point(before) };
        self.steps += 1 + u64::from(self.length.checked_ilog2().filter(|_| at < self.length).unwrap_or(0));
        at
    }

    /// Puts the group where it belongs, or out.
    pub fn set(&mut self, n: u16, entry: Option<Entry>) {
        let Some(slot) = self.entries.get_mut(usize::from(n)) else { return };
        let old = core::mem::replace(slot, entry.unwrap_or(Entry { cpus: 0, ..*slot }));
        if old.cpus != 0 && entry.is_none_or(|e| e.key != old.key) {
            // Who leaves is the first, mostly.
            let Some(at) = self.listed().iter().position(|other| *other == n) else { return };
            let mut moved = 0;
            let from_here = self.list.get_mut(at..self.length).into_iter().flatten();
            from_here.rev().for_each(|place| core::mem::swap(place, &mut moved));
            self.length -= 1;
        }
        if let Some(Entry { key, .. }) = entry.filter(|e| old.cpus == 0 || e.key != old.key) {
            self.insert(n, key);
        }
    }

    fn insert(&mut self, n: u16, key: Key) {
        let at = self.place(key, n);
        let end = self.length + 1;
        if let Some(from_here) = self.list.get_mut(at..end) {
            let mut moved = n;
            from_here.iter_mut().for_each(|place| core::mem::swap(place, &mut moved));
            self.length = end;
        }
    }

    /// Adds to the keys of some; mostly all stay in order.
    pub fn shift(&mut self, more: i128, some: impl Fn(u16) -> bool) {
        for at in 0..core::mem::take(&mut self.length) {
            let Some(n) = self.list.get(at).copied() else { return };
            let Some(entry) = self.entries.get_mut(usize::from(n)) else { return };
            entry.key.0 += if some(n) { more } else { 0 };
            let key = entry.key;
            self.insert(n, key);
        }
    }

    /// Whether nobody is in it.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first that fits.
    #[inline]
    pub fn first(&mut self, query: Query) -> Option<u16> {
        if self.is_empty() { None } else { self.find(query) }
    }

    fn find(&mut self, query: Query) -> Option<u16> {
        let fits = |n: u16| {
            let entry = self.entries.get(usize::from(n));
            let here = entry.is_some_and(|e| e.cpus & query.cpus != 0 && query.zone.is_none_or(|z| z == e.zone));
            here && query.but != Some(n)
        };
        let mut steps = 0;
        let found = self.listed().iter().copied().find(|n| {
            steps += 1;
            fits(*n)
        });
        self.steps += steps;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Order, Query};

    #[test]
    fn it_agrees_with_a_list_in_few_steps() {
        let mut order = Order::<512>::new();
        let mut list = [None; 512];
        let mut seed = 1u64;
        let mut random = |below: u16| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            u16::try_from((seed >> 33) % u64::from(below)).unwrap_or(0)
        };
        for round in 0..20_000 {
            let n = random(512);
            let entry = Entry { key: (random(50).into(), 0), cpus: (1 + random(255)).into(), zone: random(100) };
            let entry = (random(4) > 0).then_some(entry);
            let before = order.steps;
            order.set(n, entry);
            list[usize::from(n)] = entry;
            assert!(order.steps - before <= 20, "{} steps", order.steps - before);
            if round % 100 == 99 {
                let (more, every) = (random(20).into(), 1 + random(9));
                order.shift(more, |n| n % every == 0);
                let some = (0..512).step_by(usize::from(every));
                some.for_each(|n| list[n] = list[n].map(|e: Entry| Entry { key: (e.key.0 + more, e.key.1), ..e }));
            }
            let zone = (round % 2 == 0).then(|| random(100));
            let query = Query { cpus: 1 << random(8), zone, but: Some(random(512)) };
            let fits = |e: &Entry| e.cpus & query.cpus != 0 && zone.is_none_or(|z| z == e.zone);
            let all = (0..512).filter(|n| query.but != Some(*n)).filter_map(|n| Some((list[usize::from(n)]?, n)));
            let want = all.filter(|(e, _)| fits(e)).map(|(e, n)| (e.key, n)).min().map(|(_, n)| n);
            let before = order.steps;
            assert_eq!(order.first(query), want);
            assert!(order.steps - before <= 512, "{} steps", order.steps - before);
        }
    }
}
