//! A pack that comes over the line in chunks.
//!
//! The hash is worked out as bytes come, so each byte is taken once, in order. A chunk that came before is passed over, so
//! that a client that is not sure can send it again; a client that comes back goes on where it was.

use crate::mac::{Hash, Key};
use core::fmt;
use serde::{Deserialize, Serialize};

/// What is wrong with what was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Wrong {
    /// No pack was announced.
    NoPack,
    /// The chunk begins behind what has come: bytes are missing.
    Gap,
    /// The chunk reaches beyond the pack's end.
    TooLong,
    /// Not all has come.
    Incomplete,
    /// The hash is another one.
    Hash,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPack => "no guest's images are expected: begin with `create`",
            Self::Gap => "bytes of the images are missing: send them in order",
            Self::TooLong => "more bytes than announced: create it again",
            Self::Incomplete => "the images are not complete: send the rest",
            Self::Hash => "the images have another hash than announced: create it again",
        })
    }
}

/// A pack on its way.
pub struct Upload {
    bytes: u64,
    sha256: Key,
    hash: Hash,
    come: u64,
}

impl Upload {
    /// One of so many bytes, with this hash.
    #[must_use]
    pub fn new(bytes: u64, sha256: Key) -> Self {
        Self { bytes, sha256, hash: Hash::default(), come: 0 }
    }

    /// Whether this one was announced with these words.
    #[must_use]
    pub fn is(&self, bytes: u64, sha256: &Key) -> bool {
        self.bytes == bytes && self.sha256 == *sha256
    }

    /// Bytes that have come.
    #[must_use]
    pub const fn come(&self) -> u64 {
        self.come
    }

    /// Takes a chunk: the part of it that is new, to be stored from [`Upload::come`] on as it was before.
    ///
    /// # Errors
    /// [`Wrong::Gap`] and [`Wrong::TooLong`]; nothing is taken then.
    pub fn take<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        let known = self.come.checked_sub(offset).ok_or(Wrong::Gap)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.bytes).ok_or(Wrong::TooLong)?;
        let new = usize::try_from(known).ok().and_then(|known| bytes.get(known..)).unwrap_or_default();
        self.hash.update(new);
        self.come = self.come.max(end);
        Ok(new)
    }

    /// The hash, if all has come and it is the one announced.
    ///
    /// # Errors
    /// [`Wrong::Incomplete`] and [`Wrong::Hash`].
    pub fn finish(&self) -> Result<Key, Wrong> {
        if self.come != self.bytes {
            return Err(Wrong::Incomplete);
        }
        if self.hash.clone().finish() == self.sha256 { Ok(self.sha256) } else { Err(Wrong::Hash) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Upload, Wrong};
    use crate::mac::Hash;

    fn upload(bytes: &[u8]) -> Upload {
        let mut hash = Hash::default();
        hash.update(bytes);
        Upload::new(bytes.len() as u64, hash.finish())
    }

    #[test]
    fn chunks_are_taken_once_and_in_order() {
        let mut upload = upload(b"abcdefgh");
        assert_eq!(upload.take(0, b"abc"), Ok(&b"abc"[..]));
        assert_eq!(upload.take(4, b"efg"), Err(Wrong::Gap));
        assert_eq!(upload.take(0, b"abc"), Ok(&b""[..]));
        assert_eq!(upload.take(2, b"cdef"), Ok(&b"def"[..]));
        assert_eq!(upload.finish(), Err(Wrong::Incomplete));
        assert_eq!(upload.take(6, b"ghi"), Err(Wrong::TooLong));
        assert_eq!(upload.take(u64::MAX, b"a"), Err(Wrong::Gap));
        assert_eq!(upload.come(), 6);
        assert_eq!(upload.take(6, b"gh"), Ok(&b"gh"[..]));
        assert!(upload.finish().is_ok());
    }

    #[test]
    fn another_hash_is_refused() {
        let mut upload = upload(b"abc");
        upload.take(0, b"abd").unwrap();
        assert_eq!(upload.finish(), Err(Wrong::Hash));
    }
}
