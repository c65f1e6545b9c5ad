//! Groups in order of a key, and the first of them that fits a CPU.
//!
//! A search tree in a fixed array, balanced by random ranks (a treap): all in O(log n), expected. Each node sums up the
//! CPUs and the zones below it, so the first in order for a CPU is one way down from the root. For a CPU and one zone,
//! ways that lead to nothing are possible, since the sum of zones has 64 bits.

/// Earlier is less.
pub(crate) type Key = (i128, u64);

const NONE: u16 = u16::MAX;

/// A group in the tree: its key, the CPUs (a bit each) where it may run, its zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: Key,
    pub cpus: u64,
    pub zone: u16,
}

#[derive(Clone, Copy)]
struct Node {
    entry: Entry,
    rank: u32,
    left: u16,
    right: u16,
    /// Of this node and all below it.
    cpus: u64,
    zones: u64,
}

/// What is looked for: one of these CPUs, this zone if any, not this group.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    pub cpus: u64,
    pub zone: Option<u16>,
    pub but: Option<u16>,
}

pub(crate) struct Tree<const N: usize> {
    nodes: [Option<Node>; N],
    root: u16,
    seed: u32,
    /// Nodes visited so far.
    pub steps: u64,
}

const fn bit(zone: u16) -> u64 {
    1 << (zone % 64)
}

impl<const N: usize> Tree<N> {
    pub const fn new() -> Self {
        Self { nodes: [None; N], root: NONE, seed: 1, steps: 0 }
    }

    fn node(&self, n: u16) -> Option<Node> {
        self.nodes.get(usize::from(n)).copied().flatten()
    }

    pub fn get(&self, n: u16) -> Option<Entry> {
        self.node(n).map(|node| node.entry)
    }

    /// All CPUs of all entries.
    pub fn cpus(&self) -> u64 {
        self.node(self.root).map_or(0, |n| n.cpus)
    }

    /// Puts the group where it belongs, or out.
    pub fn set(&mut self, n: u16, entry: Option<Entry>) {
        let old = self.get(n);
        if old == entry {
            return;
        }
        if let Some(Entry { key, .. }) = old {
            let (low, rest) = self.split(self.root, (key, n.into()));
            let (_, high) = self.split(rest, (key, u32::from(n) + 1));
            self.root = self.merge(low, high);
        }
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let rank = self.seed.rotate_left(16);
        let node = entry.map(|entry| Node { entry, rank, left: NONE, right: NONE, cpus: 0, zones: 0 });
        let Some(slot) = self.nodes.get_mut(usize::from(n)) else { return };
        *slot = node;
        if let Some(Entry { key, .. }) = entry {
            self.link(n, NONE, NONE);
            let (low, high) = self.split(self.root, (key, n.into()));
            let low = self.merge(low, n);
            self.root = self.merge(low, high);
        }
    }

    /// The first that fits.
    pub fn first(&mut self, query: Query) -> Option<u16> {
        self.find(self.root, query)
    }

    fn find(&mut self, n: u16, query: Query) -> Option<u16> {
        let node = self.node(n)?;
        if node.cpus & query.cpus == 0 || query.zone.is_some_and(|z| node.zones & bit(z) == 0) {
            return None;
        }
        self.steps += 1;
        let Entry { cpus, zone, .. } = node.entry;
        let fits = cpus & query.cpus != 0 && query.zone.is_none_or(|z| z == zone) && query.but != Some(n);
        self.find(node.left, query).or_else(|| if fits { Some(n) } else { self.find(node.right, query) })
    }

    fn link(&mut self, n: u16, left: u16, right: u16) {
        self.steps += 1;
        let below = [self.node(left), self.node(right)];
        let Some(Some(node)) = self.nodes.get_mut(usize::from(n)) else { return };
        (node.left, node.right) = (left, right);
        let (cpus, zones) = (node.entry.cpus, bit(node.entry.zone));
        node.cpus = below.iter().flatten().fold(cpus, |sum, b| sum | b.cpus);
        node.zones = below.iter().flatten().fold(zones, |sum, b| sum | b.zones);
    }

    /// What is before `at`, and the rest.
    fn split(&mut self, n: u16, at: (Key, u32)) -> (u16, u16) {
        let Some(node) = self.node(n) else { return (NONE, NONE) };
        if (node.entry.key, u32::from(n)) < at {
            let (low, high) = self.split(node.right, at);
            self.link(n, node.left, low);
            (n, high)
        } else {
            let (low, high) = self.split(node.left, at);
            self.link(n, high, node.right);
            (low, n)
        }
    }

    /// Both, the first all before the second.
    fn merge(&mut self, low: u16, high: u16) -> u16 {
        let (Some(a), Some(b)) = (self.node(low), self.node(high)) else {
            return if low == NONE { high } else { low };
        };
        if a.rank >= b.rank {
            let right = self.merge(a.right, high);
            self.link(low, a.left, right);
            low
        } else {
            let left = self.merge(low, b.left);
            self.link(high, left, b.right);
            high
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Query, Tree};

    #[test]
    fn it_agrees_with_a_list_in_few_steps() {
        let mut tree = Tree::<512>::new();
        let mut list = [None; 512];
        let mut seed = 1u64;
        let mut random = |below: u16| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            u16::try_from((seed >> 33) % u64::from(below)).unwrap_or(0)
        };
        for round in 0..20_000 {
            let n = random(512);
            let entry = Entry { key: (random(50).into(), 0), cpus: random(256).into(), zone: random(100) };
            let entry = (random(4) > 0).then_some(entry);
            let before = tree.steps;
            tree.set(n, entry);
            list[usize::from(n)] = entry;
            assert!(tree.steps - before < 200, "{} steps", tree.steps - before);
            let zone = (round % 2 == 0).then(|| random(100));
            let query = Query { cpus: 1 << random(8), zone, but: Some(random(512)) };
            let fits = |e: &Entry| e.cpus & query.cpus != 0 && zone.is_none_or(|z| z == e.zone);
            let all = (0..512).filter(|n| query.but != Some(*n)).filter_map(|n| Some((list[usize::from(n)]?, n)));
            let want = all.filter(|(e, _)| fits(e)).map(|(e, n)| (e.key, n)).min().map(|(_, n)| n);
            let before = tree.steps;
            assert_eq!(tree.first(query), want);
            assert!(zone.is_some() || tree.steps - before < 60, "{} steps", tree.steps - before);
        }
        assert_eq!(tree.cpus(), list.iter().flatten().fold(0, |sum, e| sum | e.cpus));
    }
}
