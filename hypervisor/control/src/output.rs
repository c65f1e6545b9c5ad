//! What a guest has written to its console, by offset, for readers that come at their own pace.
//!
//! Bytes are counted from the first one on, and the last [`KEPT`] are kept. A reader keeps its place itself, so that one
//! that comes late, or again, costs nothing here: it gets what is left, and sees by its offset how much is gone.

/// Bytes that are kept.
pub const KEPT: usize = 1 << 14;

/// The bytes.
#[derive(Clone, Debug)]
pub struct Output {
    ring: [u8; KEPT],
    end: u64,
}

impl Output {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { ring: [0; KEPT], end: 0 }
    }

    /// Adds a byte, in place of the oldest one if there are [`KEPT`].
    pub fn push(&mut self, byte: u8) {
        if let Some(place) = self.ring.get_mut(place(self.end)) {
            *place = byte;
            self.end = self.end.saturating_add(1);
        }
    }

    /// Bytes so far: the offset of the next one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Offset of the oldest byte that is kept.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.end.saturating_sub(KEPT as u64)
    }

    /// The byte at this offset, if it is kept.
    #[must_use]
    pub fn get(&self, offset: u64) -> Option<u8> {
        let kept = (self.start()..self.end).contains(&offset);
        self.ring.get(place(offset)).copied().filter(|_| kept)
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset % KEPT as u64).unwrap_or(0)
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Output};

    #[test]
    fn the_last_bytes_are_kept_at_their_offsets() {
        let mut output = Output::new();
        assert_eq!((output.start(), output.end(), output.get(0)), (0, 0, None));
        let byte = |offset: u64| offset.to_le_bytes()[0] ^ offset.to_le_bytes()[1];
        for offset in 0..3 * KEPT as u64 + 77 {
            output.push(byte(offset));
            let start = (offset + 1).saturating_sub(KEPT as u64);
            assert_eq!((output.start(), output.end()), (start, offset + 1));
            assert_eq!(output.get(offset), Some(byte(offset)));
            assert_eq!(output.get(start), Some(byte(start)));
            assert_eq!((output.get(offset + 1), output.get(u64::MAX)), (None, None));
            assert!(start == 0 || output.get(start - 1).is_none());
        }
    }
}
