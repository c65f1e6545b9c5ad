//! Walks a table from its root: every page that it reaches, every table on the way.

use crate::PAGE;
use crate::dump::{Dump, read64};
use crate::format::{Entry, Format, Rights, decode, page_bytes};
use std::collections::BTreeSet;

/// A page that can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Address before translation: host-virtual, or guest-physical.
    pub at: u64,
    /// Physical address.
    pub frame: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What all entries on the way allow.
    pub rights: Rights,
}

/// Something that a walk comes across.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// A table, first seen.
    Table {
        /// Address before translation that it begins at.
        at: u64,
        /// Its frame.
        frame: u64,
    },
    /// A page.
    Leaf(Leaf),
    /// A table that was seen before, at another place: it is not looked into again, so that every walk ends.
    Again {
        /// Address before translation.
        at: u64,
        /// Its frame.
        frame: u64,
    },
    /// An entry that the processor refuses.
    Malformed {
        /// Address before translation.
        at: u64,
        /// The table's frame.
        frame: u64,
    },
    /// A table outside RAM.
    Outside {
        /// Address before translation.
        at: u64,
        /// The table's frame.
        frame: u64,
    },
}

struct Walk<'a, F> {
    dump: &'a Dump,
    format: Format,
    seen: BTreeSet<u64>,
    see: F,
}

/// Hands all that is reached from `root` to `see`.
pub fn walk(dump: &Dump, format: Format, root: u64, see: impl FnMut(Item)) {
    let mut walk = Walk { dump, format, seen: BTreeSet::new(), see };
    walk.table(root & !(PAGE - 1), 4, 0, Rights::ALL);
}

impl<F: FnMut(Item)> Walk<'_, F> {
    fn table(&mut self, frame: u64, level: u32, base: u64, rights: Rights) {
        let Some(content) = self.dump.frame(frame) else { return (self.see)(Item::Outside { at: base, frame }) };
        if !self.seen.insert(frame) {
            return (self.see)(Item::Again { at: base, frame });
        }
        (self.see)(Item::Table { at: base, frame });
        for index in 0..512_u64 {
            let Some(entry) = usize::try_from(index * 8).ok().and_then(|at| read64(content, at)) else { continue };
            let at = address(self.format, base, level, index);
            match decode(self.format, level, entry) {
                Entry::Absent => {}
                Entry::Malformed => (self.see)(Item::Malformed { at, frame }),
                Entry::Table(next, entry_rights) => self.table(next, level - 1, at, rights.and(entry_rights)),
                Entry::Page(page, entry_rights) => {
                    let rights = rights.and(entry_rights);
                    (self.see)(Item::Leaf(Leaf { at, frame: page, bytes: page_bytes(level), rights }));
                }
            }
        }
    }
}

/// First address that entry `index` of a table serves; host addresses are canonical.
fn address(format: Format, base: u64, level: u32, index: u64) -> u64 {
    let at = base + index * page_bytes(level);
    if level == 4 && format == Format::Host && index >= 256 { at | 0xFFFF_0000_0000_0000 } else { at }
}

/// What one address leads to.
#[must_use]
pub fn translate(dump: &Dump, root: u64, at: u64) -> Option<(u64, Rights)> {
    let mut table = root & !(PAGE - 1);
    let mut rights = Rights::ALL;
    for level in (1..=4).rev() {
        let index = (at >> (12 + 9 * (level - 1))) & 511;
        match decode(Format::Host, level, dump.word(table + index * 8)?) {
            Entry::Table(next, entry) => (table, rights) = (next, rights.and(entry)),
            Entry::Page(page, entry) => return Some((page + at % page_bytes(level), rights.and(entry))),
            Entry::Absent | Entry::Malformed => return None,
        }
    }
    None
}
