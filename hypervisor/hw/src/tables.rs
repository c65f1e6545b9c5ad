//! Page tables, reached through a mapping of the frames they lie in.

use bulkhead_paging::{ENTRIES, PagingError, ReadTables, Tables};
use bulkhead_types::{Hpa, Hva, PAGE_SIZE};

/// Tables in a row of frames that is mapped in the current address space.
#[derive(Debug)]
pub struct MappedTables {
    at: Hva,
    start: Hpa,
    frames: u64,
    used: u64,
}

impl MappedTables {
    /// Tables in `frames` frames from `start` on, mapped at `at`, of which the first `used` are in use and the rest are
    /// all zero.
    ///
    /// # Safety
    /// While the value lives they are mapped so, writable if it is used as [`Tables`], and reached by this value and the
    /// processor alone.
    #[must_use]
    pub const unsafe fn new(at: Hva, start: Hpa, frames: u64, used: u64) -> Self {
        Self { at, start, frames, used }
    }

    /// How many frames are in use.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    fn entry(&self, table: Hpa, index: usize) -> Result<*mut u64, PagingError> {
        let offset = table.as_u64().checked_sub(self.start.as_u64());
        let offset =
            offset.filter(|offset| offset / PAGE_SIZE < self.frames && offset % PAGE_SIZE == 0 && index < ENTRIES);
        let offset = offset.ok_or(PagingError::Unreachable(table))?;
        Ok((self.at.as_u64() + offset + 8 * index as u64) as *mut u64)
    }
}

impl ReadTables for MappedTables {
    fn read(&self, table: Hpa, index: usize) -> Result<u64, PagingError> {
        let entry = self.entry(table, index)?;
        // SAFETY: `entry` is inside the frames that `new`'s caller vouched for. The processor may set bits meanwhile.
        Ok(unsafe { entry.read_volatile() })
    }
}

impl Tables for MappedTables {
    fn write(&mut self, table: Hpa, index: usize, value: u64) -> Result<(), PagingError> {
        let entry = self.entry(table, index)?;
        // SAFETY: as for `read`; what the new entry maps is the caller's to decide (and the frame table's tokens').
        unsafe { entry.write_volatile(value) }
        Ok(())
    }

    fn allocate(&mut self) -> Result<Hpa, PagingError> {
        if self.used >= self.frames {
            return Err(PagingError::OutOfTables);
        }
        let table = self.start.wrapping_add(self.used * PAGE_SIZE);
        self.used += 1;
        Ok(table)
    }
}
