//! Who sent it: HMAC-SHA256.
//!
//! RFC 2104, "HMAC: Keyed-Hashing for Message Authentication". In software without vector instructions: the hypervisor's
//! code uses none.

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// A key, or a whole tag.
pub type Key = [u8; 32];
/// Bytes of a tag in a frame: the first half of the whole, as RFC 2104 section 5 "Truncated output" allows.
pub const TAG: usize = 16;

fn over(key: &Key, parts: &[&[u8]]) -> Hmac<Sha256> {
    // A key shorter than a block stands for itself with zeros behind it.
    let mut block = [0; 64];
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into());
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// The whole tag of `parts`, one behind the other.
#[must_use]
pub fn tag(key: &Key, parts: &[&[u8]]) -> Key {
    over(key, parts).finalize().into_bytes().into()
}

/// Whether `tag`, or a start of it of at least [`TAG`] bytes, is that of `parts`. Takes as long whatever the tag is.
#[must_use]
pub fn verify(key: &Key, parts: &[&[u8]], tag: &[u8]) -> bool {
    tag.len() >= TAG && over(key, parts).verify_truncated_left(tag).is_ok()
}

/// SHA-256 of bytes that come piece by piece.
#[derive(Clone, Default)]
pub struct Hash(Sha256);

impl Hash {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    #[must_use]
    pub fn finish(self) -> Key {
        self.0.finalize().into()
    }
}

/// A key from 64 hexadecimal digits.
#[must_use]
pub fn key(digits: &str) -> Option<Key> {
    let mut key = Key::default();
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            value = value << 4 | char::from(*digit).to_digit(16).and_then(|d| u8::try_from(d).ok())?;
        }
        *byte = value;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::{Hash, key, tag, verify};

    #[test]
    fn tags_are_those_of_the_standard() {
        // RFC 4231, "Test Cases for HMAC-SHA-256", test case 2; a key of 4 bytes is one of 32 with zeros behind it.
        let mut jefe = [0; 32];
        jefe[..4].copy_from_slice(b"Jefe");
        let want = key("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843").unwrap();
        let parts: &[&[u8]] = &[b"what do ya want ", b"for nothing?"];
        assert_eq!(tag(&jefe, parts), want);
        assert!(verify(&jefe, parts, &want) && verify(&jefe, parts, &want[..16]));
        assert!(!verify(&jefe, parts, &want[..15]) && !verify(&jefe, parts, &[]));
        assert!(!verify(&jefe, &[b"what"], &want));
        for bit in 0..128 {
            let mut wrong = want;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&jefe, parts, &wrong[..16]));
        }
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1 "SHA-256 Example (One-Block Message)".
        let mut hash = Hash::default();
        hash.update(b"a");
        hash.update(b"bc");
        let want = key("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        assert_eq!(hash.finish(), want);
    }

    #[test]
    fn a_key_is_64_digits() {
        assert_eq!(key(&"aF".repeat(32)), Some([0xAF; 32]));
        assert!([&"a".repeat(63), &"g0".repeat(32), &"a".repeat(66), ""].iter().all(|text| key(text).is_none()));
    }
}
