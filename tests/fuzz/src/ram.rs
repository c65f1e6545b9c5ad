//! The memory of a guest that runs.

use bulkhead_types::{Gpa, GuestMemory, MemoryError};
use std::ops::Range;

/// RAM from address 0 on; the rest is absent, as it is where a device lies.
#[derive(Clone, PartialEq, Eq)]
pub struct Ram(pub Vec<u8>);

impl Ram {
    fn range(&self, gpa: Gpa, bytes: usize) -> Result<Range<usize>, MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let end = start.checked_add(bytes).filter(|&end| end <= self.0.len());
        Ok(start..end.ok_or(MemoryError { gpa, bytes })?)
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        into.copy_from_slice(&self.0[self.range(gpa, into.len())?]);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let range = self.range(gpa, from.len())?;
        self.0[range].copy_from_slice(from);
        Ok(())
    }

    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryError> {
        panic!("memory is zeroed before its guest runs");
    }
}
