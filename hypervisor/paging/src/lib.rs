//! Page tables of every kind: edit, walk, audit.
//!
//! One algorithm over four levels of 512 entries; what an entry's bits mean is a [`Format`]: [`Host`] for the
//! hypervisor's own address spaces, [`Ept`] for the nested tables of VT-x, [`Npt`] for
//! those of SVM.
//!
//! There is no mapping of all memory (that is the point of the hypervisor), so no table is ever reached through a
//! pointer: [`ReadTables`] and [`Tables`] are whatever window the owner of the tables has.
//!
//! Sources: SDM (order 325462-083US, March 2024) vol. 3A 4.5 "4-Level Paging and 5-Level Paging", vol. 3C 29.3 "The
//! Extended Page Table Mechanism (EPT)"; APM (24593 revision 3.42) vol. 2 15.25 "Nested Paging".
#![no_std]
#![forbid(unsafe_code)]

mod edit;
mod format;
pub mod guest;
#[cfg(test)]
mod tests;
mod walk;

pub use edit::{Mapping, map, tables_needed, unmap};
pub use format::{Access, Entry, Ept, Format, Host, Leaf, Memory, Npt, Size};
pub use walk::{Item, Translation, translate, visit};

use bulkhead_types::Hpa;
use core::fmt;

/// Levels of tables: 4 is the root, 1 the table whose entries map 4-KiB pages.
pub const LEVELS: u32 = 4;
/// Entries of a table.
pub const ENTRIES: usize = 512;

/// What went wrong. The address is the one being mapped (host-virtual or guest-physical).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PagingError {
    /// An address or a length is not a multiple of 4096, or the length is zero.
    Unaligned,
    /// The range leaves the address space (or crosses the hole between its canonical halves), or physical memory.
    OutOfRange,
    /// The format can not express this access, or refuses it: a host page that is both writable and executable.
    Access,
    /// Something is mapped at this address already.
    Mapped(u64),
    /// A larger page at this address would have to be split.
    Split(u64),
    /// An entry at this address has bits that this code never writes.
    Malformed(u64),
    /// The table at this address is not within the owner's reach.
    Unreachable(Hpa),
    /// No frame is left for a table.
    OutOfTables,
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("the range is not made of whole pages"),
            Self::OutOfRange => f.write_str("the range leaves the address space"),
            Self::Access => f.write_str("such an access is refused"),
            Self::Mapped(at) => write!(f, "{at:#x} is mapped already"),
            Self::Split(at) => write!(f, "the large page at {at:#x} would have to be split"),
            Self::Malformed(at) => write!(f, "the entry for {at:#x} is malformed"),
            Self::Unreachable(table) => write!(f, "the table at {table} is out of reach"),
            Self::OutOfTables => f.write_str("no frame is left for a page table"),
        }
    }
}

/// How tables are read.
pub trait ReadTables {
    /// Entry `index` (below [`ENTRIES`]) of the table at `table`.
    ///
    /// # Errors
    /// [`PagingError::Unreachable`] if the owner has no such table.
    fn read(&self, table: Hpa, index: usize) -> Result<u64, PagingError>;
}

/// Tables that lie in two places: what the first does not have, the second may.
impl<A: ReadTables, B: ReadTables> ReadTables for (A, B) {
    fn read(&self, table: Hpa, index: usize) -> Result<u64, PagingError> {
        self.0.read(table, index).or_else(|_| self.1.read(table, index))
    }
}

/// How tables are changed.
pub trait Tables: ReadTables {
    /// Sets entry `index` (below [`ENTRIES`]) of the table at `table`, in one 64-bit store.
    ///
    /// # Errors
    /// [`PagingError::Unreachable`] if the owner has no such table.
    fn write(&mut self, table: Hpa, index: usize, value: u64) -> Result<(), PagingError>;

    /// Takes a frame for a new table; all its entries are zero.
    ///
    /// # Errors
    /// [`PagingError::OutOfTables`].
    fn allocate(&mut self) -> Result<Hpa, PagingError>;
}

/// Bit of an address at which the index into a table of `level` starts.
const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

/// Index into a table of `level` for `address`.
const fn index(address: u64, level: u32) -> usize {
    ((address >> shift(level)) & 0x1FF) as usize
}
