//! What an audit finds, in one line each.

use crate::frames::Owner;
use bulkhead_types::{Frame, GuestId, PAGE_SIZE};
use core::fmt;
use core::ops::AddAssign;

/// Which tables of a compartment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Those of the hypervisor's own addresses.
    Host,
    /// Those of the guest's physical addresses.
    Nested,
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The frame belongs to another compartment.
    Foreign(Owner),
    /// The frame belongs to nobody.
    Free,
    /// It is mapped where the layout has no such frame, or not with this access.
    OutsideLayout(Owner),
    /// It can be written and executed.
    WritableExecutable,
    /// It can be written, and should never be.
    Writable(Owner),
    /// Code at privilege level 3 can use it.
    User,
    /// A long stretch of memory is mapped as it comes.
    DirectMap,
    /// The root does not lead to the shared tables.
    SharedDiffers,
    /// A guest can use a frame that is not RAM.
    NotRam(Owner),
    /// A guest can use a frame that may hold what an earlier owner left.
    Dirty,
    /// A guest can use a frame at two addresses.
    Alias,
    /// A table lies in a frame that is not for tables of this compartment.
    TableOutside(Owner),
    /// A table is used in two places.
    TableTwice,
    /// An entry of the table in this frame has bits that should not be set.
    Malformed(u64),
    /// The table in this frame can not be read.
    Unreachable,
    /// The frame belongs to a guest that is not in the list of guests; the address is the frame's own.
    Unlisted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(owner) => write!(f, "foreign: it belongs to {owner}"),
            Self::Free => f.write_str("it belongs to nobody"),
            Self::OutsideLayout(owner) => write!(f, "outside the layout: it belongs to {owner}"),
            Self::WritableExecutable => f.write_str("writable and executable"),
            Self::Writable(owner) => write!(f, "writable, but it belongs to {owner}"),
            Self::User => f.write_str("accessible to user mode"),
            Self::DirectMap => f.write_str("a direct map"),
            Self::SharedDiffers => f.write_str("the shared part is not the same as elsewhere"),
            Self::NotRam(owner) => write!(f, "in nested tables, but not RAM: it belongs to {owner}"),
            Self::Dirty => f.write_str("not scrubbed"),
            Self::Alias => f.write_str("at a second guest-physical address"),
            Self::TableOutside(owner) => write!(f, "a table, but it belongs to {owner}"),
            Self::TableTwice => f.write_str("a table used in two places"),
            Self::Malformed(entry) => write!(f, "a table with the malformed entry {entry:#018x}"),
            Self::Unreachable => f.write_str("a table out of reach"),
            Self::Unlisted => f.write_str("of a guest that is not in the list"),
        }
    }
}

/// A breach of the compartments' walls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The compartment in which it was found.
    pub guest: GuestId,
    /// In which of its tables.
    pub space: Space,
    /// What is wrong.
    pub fault: Fault,
    /// The address: host-virtual, or guest-physical in nested tables.
    pub at: u64,
    /// The frame: the page's, or for a fault of a table the table's.
    pub frame: Frame,
    /// How many frames in a row, at addresses in a row.
    pub count: u64,
}

impl Violation {
    /// Takes in `next` if it goes on where this ends.
    pub(super) fn extend(&mut self, next: &Self) -> bool {
        let end = self.at.wrapping_add(self.count.wrapping_mul(PAGE_SIZE));
        let goes_on = next.at == end && next.frame == self.frame.add(self.count);
        if goes_on {
            self.count += next.count;
        }
        goes_on
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Host => "host",
            Space::Nested => "guest-physical",
        };
        write!(f, "compartment {}: {space} {:#x}: frame {}", self.guest, self.at, self.frame)?;
        if self.count > 1 {
            write!(f, " and the {} after it", self.count - 1)?;
        }
        write!(f, ": {}", self.fault)
    }
}

/// What an audit has walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Walked {
    /// Page tables.
    pub tables: u64,
    /// Pages of any size.
    pub leaves: u64,
    /// The 4-KiB frames in these pages.
    pub frames: u64,
    /// Violations that were reported.
    pub violations: u64,
}

impl AddAssign for Walked {
    fn add_assign(&mut self, other: Self) {
        self.tables += other.tables;
        self.leaves += other.leaves;
        self.frames += other.frames;
        self.violations += other.violations;
    }
}

impl fmt::Display for Walked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tables, leaves, frames, violations } = self;
        write!(f, "{tables} tables, {leaves} pages, {frames} frames: {violations} violations")
    }
}
