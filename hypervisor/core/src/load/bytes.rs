//! Fields of an image file, read where they say, or an error.
//!
//! Offsets and lengths come from the file itself: all arithmetic on them is checked, nothing is read beyond the end.

use super::LoadError;

/// A stretch of an image file. Offsets count from its start, in bytes; values are little-endian.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    bytes: &'a [u8],
    /// What these bytes are, for errors.
    what: &'static str,
}

impl<'a> Bytes<'a> {
    pub(super) const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(super) fn len(&self) -> u64 {
        length(self.bytes)
    }

    /// `bytes` bytes from `at` on.
    pub(super) fn slice(&self, at: u64, bytes: u64) -> Result<&'a [u8], LoadError> {
        let needed = at.saturating_add(bytes);
        let range = usize::try_from(at).ok().zip(usize::try_from(needed).ok());
        let slice = range.and_then(|(start, end)| self.bytes.get(start..end));
        slice.ok_or(LoadError::Short { what: self.what, needed, have: self.len() })
    }

    /// A stretch of this one, under a name of its own.
    pub(super) fn part(&self, at: u64, bytes: u64, what: &'static str) -> Result<Self, LoadError> {
        let bytes = Self { what, ..*self }.slice(at, bytes)?;
        Ok(Self { bytes, what })
    }

    /// All from `at` on; nothing beyond the end.
    pub(super) fn from(&self, at: u64) -> &'a [u8] {
        usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], LoadError> {
        let short = LoadError::Short { what: self.what, needed: at.saturating_add(length(&[0; N])), have: self.len() };
        self.from(at).first_chunk::<N>().copied().ok_or(short)
    }

    pub(super) fn u8(&self, at: u64) -> Result<u8, LoadError> {
        self.array(at).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&self, at: u64) -> Result<u16, LoadError> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: u64) -> Result<u32, LoadError> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: u64) -> Result<u64, LoadError> {
        self.array(at).map(u64::from_le_bytes)
    }
}

/// Length in bytes.
pub(super) fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// The smallest multiple of `align` (a power of two) not below `value`.
pub(super) const fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::{Bytes, LoadError};

    #[test]
    fn fields_are_little_endian_and_end_with_the_file() {
        let bytes = Bytes::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9], "test");
        assert_eq!(bytes.u16(1), Ok(0x0302));
        assert_eq!(bytes.u32(5), Ok(0x0908_0706));
        assert_eq!(bytes.u64(1), Ok(0x0908_0706_0504_0302));
        assert_eq!(bytes.u64(2), Err(LoadError::Short { what: "test", needed: 10, have: 9 }));
        assert_eq!(bytes.u8(u64::MAX), Err(LoadError::Short { what: "test", needed: u64::MAX, have: 9 }));
        assert_eq!(bytes.slice(9, 0), Ok(&[][..]));
        assert!(bytes.slice(u64::MAX, u64::MAX).is_err());
        assert!(bytes.slice(10, 0).is_err());
    }
}
