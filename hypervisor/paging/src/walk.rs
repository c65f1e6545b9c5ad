//! Reading tables: one address, or all that is there.

use crate::{Access, ENTRIES, Entry, Format, LEVELS, Leaf, Memory, ReadTables, Size, index, shift};
use bulkhead_types::Hpa;

/// What an address maps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The byte it names.
    pub hpa: Hpa,
    /// Size of the page.
    pub size: Size,
    /// What all entries on the way allow together.
    pub access: Access,
    /// How it is cached.
    pub memory: Memory,
}

/// What `address` maps to in the tables whose root is at `root`; `None` if nothing, or nothing that can be read.
#[must_use]
pub fn translate<F: Format>(tables: &impl ReadTables, root: Hpa, address: u64) -> Option<Translation> {
    if !F::spans(address, address) {
        return None;
    }
    let (mut table, mut level, mut access) = (root, LEVELS, FULL);
    loop {
        match F::decode(tables.read(table, index(address, level)).ok()?, level) {
            Entry::Table { table: next, allows } => {
                table = next;
                access = access.and(allows);
            }
            Entry::Leaf(Leaf { page, size, access: own, memory }) => {
                let hpa = page.wrapping_add(address & (size.bytes() - 1));
                return Some(Translation { hpa, size, access: access.and(own), memory });
            }
            Entry::Absent | Entry::Malformed => return None,
        }
        level -= 1;
    }
}

/// No restriction: where a walk starts.
const FULL: Access = Access { read: true, write: true, execute: true, user: true };

/// Something found by [`visit`], at the first address that it serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// A table, before its entries.
    Table {
        /// Where it is.
        table: Hpa,
        /// 4 for the root, down to 1.
        level: u32,
    },
    /// A page, with what all entries on the way allow together.
    Leaf(Leaf),
    /// An entry with bits that should not be.
    Malformed {
        /// The table it is in.
        table: Hpa,
        /// The entry.
        entry: u64,
    },
    /// A table that can not be read.
    Unreachable {
        /// Where it is.
        table: Hpa,
    },
}

/// Shows `see` every table and every page of the tables whose root is at `root`, each with its first address, in
/// ascending order. What `see` says of a table decides whether its entries are looked at.
///
/// Depth is bounded by the levels, whatever the tables say. Tables that contain themselves would be seen again and again:
/// it is for `see` to refuse a table that it has seen.
pub fn visit<F: Format>(tables: &impl ReadTables, root: Hpa, see: &mut dyn FnMut(u64, Item) -> bool) {
    visit_table::<F>(tables, Place { table: root, level: LEVELS, from: 0, access: FULL }, see);
}

/// A table on the way.
#[derive(Clone, Copy)]
struct Place {
    table: Hpa,
    level: u32,
    from: u64,
    access: Access,
}

fn visit_table<F: Format>(tables: &impl ReadTables, place: Place, see: &mut dyn FnMut(u64, Item) -> bool) {
    let Place { table, level, from, access } = place;
    if !see(from, Item::Table { table, level }) {
        return;
    }
    for (index, offset) in (0..ENTRIES).zip((0..).step_by(1 << shift(level))) {
        let at = canonical::<F>(from.wrapping_add(offset));
        let Ok(entry) = tables.read(table, index) else {
            see(at, Item::Unreachable { table });
            return;
        };
        match F::decode(entry, level) {
            Entry::Absent => {}
            Entry::Table { table, allows } => {
                visit_table::<F>(tables, Place { table, level: level - 1, from: at, access: access.and(allows) }, see);
            }
            Entry::Leaf(leaf) => {
                see(at, Item::Leaf(Leaf { access: access.and(leaf.access), ..leaf }));
            }
            Entry::Malformed => {
                see(at, Item::Malformed { table, entry });
            }
        }
    }
}

/// An address put together from indices, as the format knows it: sign-extended if it has an upper half.
fn canonical<F: Format>(address: u64) -> u64 {
    if F::spans(address, address) { address } else { address | u64::MAX << (shift(LEVELS + 1)) }
}
