//! Changing tables: map and unmap.

use crate::{Access, Entry, Format, LEVELS, Leaf, Memory, PagingError, ReadTables, Size, Tables, index, shift};
use bulkhead_types::{Hpa, PAGE_SIZE};

/// First address past physical memory, whatever the processor.
const PHYSICAL_END: u64 = 1 << 52;

/// A range to be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address (host-virtual or guest-physical), page-aligned.
    pub from: u64,
    /// What it maps to, page-aligned.
    pub to: Hpa,
    /// Length in bytes, page-aligned, not zero.
    pub bytes: u64,
    /// What may be done with it.
    pub access: Access,
    /// How it is cached.
    pub memory: Memory,
    /// The largest page to use (what the processor can do; a larger page is used wherever alignment allows).
    pub largest: Size,
}

impl Mapping {
    /// The largest page that can start `done` bytes into the range.
    fn size_at(&self, done: u64) -> Size {
        let fits = |size: &Size| {
            let starts = self.from.wrapping_add(done) | self.to.as_u64().wrapping_add(done);
            *size <= self.largest && starts & (size.bytes() - 1) == 0 && self.bytes - done >= size.bytes()
        };
        [Size::Page1G, Size::Page2M].into_iter().find(fits).unwrap_or(Size::Page4K)
    }
}

/// Checks that a range is made of whole pages and lies in the address space.
fn check<F: Format>(from: u64, bytes: u64) -> Result<(), PagingError> {
    if bytes == 0 || !(from | bytes).is_multiple_of(PAGE_SIZE) {
        return Err(PagingError::Unaligned);
    }
    let last = from.checked_add(bytes - 1).ok_or(PagingError::OutOfRange)?;
    if F::spans(from, last) { Ok(()) } else { Err(PagingError::OutOfRange) }
}

/// Maps a range, with the largest pages that alignment allows, in the tables whose root is at `root`.
///
/// Nothing that is mapped already is changed. On an error what lies before the place of the error stays mapped. No
/// invalidation is due: the processor does not cache that something is absent.
///
/// # Errors
/// See [`PagingError`]; [`PagingError::Mapped`] names the first address that is mapped already.
pub fn map<F: Format>(tables: &mut impl Tables, root: Hpa, mapping: Mapping) -> Result<(), PagingError> {
    let Mapping { from, to, bytes, access, memory, .. } = mapping;
    check::<F>(from, bytes)?;
    if !to.is_aligned(PAGE_SIZE) {
        return Err(PagingError::Unaligned);
    }
    if to.checked_add(bytes).is_none_or(|end| end.as_u64() > PHYSICAL_END) {
        return Err(PagingError::OutOfRange);
    }
    let mut done = 0;
    while done < bytes {
        let page = to.wrapping_add(done);
        let leaf = Leaf { page, size: mapping.size_at(done), access, memory };
        done += map_page::<F>(tables, root, from.wrapping_add(done), leaf)?.bytes();
    }
    Ok(())
}

/// Maps one page, or as much of its start as fits into one entry of the tables that are there already.
fn map_page<F: Format>(tables: &mut impl Tables, root: Hpa, from: u64, leaf: Leaf) -> Result<Size, PagingError> {
    // Refused before any table is made for it.
    F::leaf(leaf)?;
    let (mut table, mut level) = (root, LEVELS);
    loop {
        let index = index(from, level);
        match F::decode(tables.read(table, index)?, level) {
            Entry::Table { table: next, .. } => table = next,
            Entry::Absent => match Size::of_level(level) {
                Some(size) if size <= leaf.size => {
                    tables.write(table, index, F::leaf(Leaf { size, ..leaf })?)?;
                    return Ok(size);
                }
                _ => {
                    let next = tables.allocate()?;
                    tables.write(table, index, F::table(next))?;
                    table = next;
                }
            },
            Entry::Leaf(_) => return Err(PagingError::Mapped(from)),
            Entry::Malformed => return Err(PagingError::Malformed(from)),
        }
        level -= 1;
    }
}

/// Unmaps whatever is mapped in a range. Tables that become empty stay where they are. The caller invalidates.
///
/// # Errors
/// [`PagingError::Split`] at a page that reaches beyond the range; what lies before it is unmapped by then.
pub fn unmap<F: Format>(tables: &mut impl Tables, root: Hpa, from: u64, bytes: u64) -> Result<(), PagingError> {
    check::<F>(from, bytes)?;
    let mut done = 0;
    while done < bytes {
        let at = from.wrapping_add(done);
        let (table, level, entry) = lowest::<F>(tables, root, at)?;
        let span = 1 << shift(level);
        let offset = at & (span - 1);
        match entry {
            Entry::Leaf(_) if offset != 0 || bytes - done < span => return Err(PagingError::Split(at)),
            Entry::Leaf(_) => tables.write(table, index(at, level), 0)?,
            Entry::Malformed => return Err(PagingError::Malformed(at)),
            Entry::Absent | Entry::Table { .. } => {}
        }
        done = done.saturating_add(span - offset);
    }
    Ok(())
}

/// The entry that decides about `address`: its table, the table's level, and what it says (never a table).
fn lowest<F: Format>(tables: &impl ReadTables, root: Hpa, address: u64) -> Result<(Hpa, u32, Entry), PagingError> {
    let (mut table, mut level) = (root, LEVELS);
    loop {
        match F::decode(tables.read(table, index(address, level))?, level) {
            Entry::Table { table: next, .. } => table = next,
            entry => return Ok((table, level, entry)),
        }
        level -= 1;
    }
}

/// How many tables, the root not counted, an empty root needs for `bytes` bytes at `from` in pages of up to `largest`.
///
/// Exact where `from` and what it maps to agree modulo the size of `largest`; where they do not, smaller pages will be
/// used, and the size to ask for is the one modulo which they agree. Ranges may share tables: the sum is an upper bound.
#[must_use]
pub const fn tables_needed(from: u64, bytes: u64, largest: Size) -> u64 {
    let end = from.saturating_add(bytes);
    let (mut level, mut sum) = (1, 0);
    while level < LEVELS {
        // What one table of this level spans; the last block may end with the address space.
        let span = shift(level + 1);
        let (first, past) = (from >> span, end.saturating_sub(1) >> span);
        let touched = if bytes == 0 { 0 } else { past - first + 1 };
        let whole = (end >> span).saturating_sub(from.div_ceil(1 << span));
        let replaced = largest.level() > level;
        sum += if replaced { touched - if whole < touched { whole } else { touched } } else { touched };
        level += 1;
    }
    sum
}
