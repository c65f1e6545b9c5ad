//! Secrets: bytes that one guest alone may hold, searched for in all of RAM, at every byte.

use crate::dump::Dump;
use std::collections::BTreeMap;

/// Something that a guest knows and nobody else should.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secret {
    /// Whose: the guest's name.
    pub guest: String,
    /// What it is, for the report.
    pub what: String,
    /// The bytes, eight or more.
    pub bytes: Vec<u8>,
}

/// Words of `guests/suite/src/bin/witness.rs` with this seed: SplitMix64, each a secret of its own.
#[must_use]
pub fn witness(guest: &str, seed: u64) -> Vec<Secret> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let places = [("RAM", 8), ("general register", 8), ("vector register", 8), ("debug register", 4)];
    let mut found = Vec::new();
    for (place, count) in places {
        for index in 0..count {
            let what = format!("{place} word {index}");
            found.push(Secret { guest: guest.to_owned(), what, bytes: next().to_le_bytes().to_vec() });
        }
    }
    found
}

/// Hands every place that holds one of `secrets` to `see`: physical address, and the secret's index.
pub(crate) fn search(dump: &Dump, secrets: &[Secret], mut see: impl FnMut(u64, usize)) {
    let mut first = vec![false; 1 << 16];
    let mut by_start: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for (index, secret) in secrets.iter().enumerate() {
        let Some(start) = secret.bytes.first_chunk::<8>() else { continue };
        by_start.entry(start).or_default().push(index);
        if let Some(known) = first.get_mut(pair(start)) {
            *known = true;
        }
    }
    if by_start.is_empty() {
        return;
    }
    for (start, bytes) in dump.ranges() {
        for (offset, window) in (0..).zip(bytes.windows(8)) {
            if first.get(pair(window)) != Some(&true) {
                continue;
            }
            for index in by_start.get(window).into_iter().flatten() {
                let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
                let here = secrets.get(*index).zip(from).is_some_and(|(s, rest)| rest.starts_with(&s.bytes));
                if here {
                    see(start + offset, *index);
                }
            }
        }
    }
}

fn pair(bytes: &[u8]) -> usize {
    match bytes {
        [a, b, ..] => usize::from(u16::from_le_bytes([*a, *b])),
        _ => 0,
    }
}
