//! Values out of an input, in order; zeros when it is used up.

use arbitrary::Unstructured;
use bulkhead_types::Width;

/// An input that is being used up.
pub struct Feed<'a>(Unstructured<'a>);

impl<'a> Feed<'a> {
    /// The start of `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next `N` bytes, with zeros behind the end.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let some = self.0.len().min(N);
        out[..some].copy_from_slice(self.0.bytes(some).unwrap_or_default());
        out
    }

    /// Up to `most` bytes.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let some = self.0.len().min(most);
        self.0.bytes(some).unwrap_or_default()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// True or false.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u8) -> u8 {
        self.u8() % end
    }

    /// A width of 1, 2, 4 or 8 bytes.
    pub fn width(&mut self) -> Width {
        [Width::Byte, Width::Word, Width::Dword, Width::Qword][usize::from(self.u8() & 3)]
    }

    /// A width of 1, 2 or 4 bytes.
    pub fn port_width(&mut self) -> Width {
        [Width::Byte, Width::Word, Width::Dword][usize::from(self.below(3))]
    }

    /// A number of any magnitude: small ones are as likely as huge ones.
    pub fn magnitude(&mut self) -> u64 {
        let shift = self.u8() & 63;
        self.u64() >> shift
    }
}

#[cfg(test)]
mod tests {
    use super::Feed;

    #[test]
    fn an_input_ends_in_zeros() {
        let mut feed = Feed::new(&[1, 2, 3]);
        assert_eq!((feed.u8(), feed.u32(), feed.u64()), (1, 0x0302, 0));
        assert!(feed.is_empty());
    }
}
