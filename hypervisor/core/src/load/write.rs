//! Boot structures, written field after field.

use super::LoadError;
use super::bytes::length;
use bulkhead_types::{Gpa, GuestMemory};

/// The next byte of a structure below 4 GiB. Who makes one has placed the structure, whole.
#[derive(Clone, Copy)]
pub(super) struct Cursor {
    at: u32,
}

impl Cursor {
    /// A cursor at the guest-physical address `at`.
    pub(super) const fn new(at: u32) -> Self {
        Self { at }
    }

    /// Guest-physical address of the next byte.
    pub(super) const fn position(&self) -> u32 {
        self.at
    }

    /// Goes `bytes` bytes on without writing.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    pub(super) fn bytes(&mut self, memory: &mut impl GuestMemory, bytes: &[u8]) -> Result<(), LoadError> {
        fill(memory, u64::from(self.at), bytes, 0)?;
        self.skip(length(bytes));
        Ok(())
    }

    pub(super) fn u32(&mut self, memory: &mut impl GuestMemory, value: u32) -> Result<(), LoadError> {
        self.bytes(memory, &value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, memory: &mut impl GuestMemory, value: u64) -> Result<(), LoadError> {
        self.bytes(memory, &value.to_le_bytes())
    }

    /// Writes `string` and a zero byte; the address of its first byte.
    pub(super) fn string(&mut self, memory: &mut impl GuestMemory, string: &str) -> Result<u32, LoadError> {
        let start = self.at;
        self.bytes(memory, string.as_bytes())?;
        self.bytes(memory, &[0])?;
        Ok(start)
    }

    /// Writes zeros up to the next multiple of 8.
    pub(super) fn align8(&mut self, memory: &mut impl GuestMemory) -> Result<(), LoadError> {
        let gap = u64::from(self.at.wrapping_neg() & 7);
        fill(memory, u64::from(self.at), &[], gap)?;
        self.skip(gap);
        Ok(())
    }
}

/// Bytes of `string` with its final zero.
pub(super) fn string_bytes(string: &str) -> u64 {
    length(string.as_bytes()).saturating_add(1)
}

/// Writes `content` at the guest-physical address `at`, and zeros behind it up to `bytes` bytes.
pub(super) fn fill(memory: &mut impl GuestMemory, at: u64, content: &[u8], bytes: u64) -> Result<(), LoadError> {
    if !content.is_empty() {
        memory.write(Gpa::new(at), content)?;
    }
    let gap = bytes.saturating_sub(length(content));
    if gap != 0 {
        memory.zero(Gpa::new(at.saturating_add(length(content))), gap)?;
    }
    Ok(())
}
