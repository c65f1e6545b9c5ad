//! A corpus: the inputs of one target, packed into one file.
//!
//! A corpus is a start, not a record of all that was tried: [`pack`] keeps the shortest inputs, up to [`MOST`] bytes.
//! Each input is its length (16 bits, little-endian) and its bytes; they are sorted.

use std::path::{Path, PathBuf};

/// Most bytes of a packed corpus.
pub const MOST: usize = 96 << 10;

/// Where the corpus of the target `name` is.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(format!("{name}.corpus"))
}

/// The inputs of the target `name` that once showed a fault: files `regressions/NAME/WHAT`.
#[must_use]
pub fn regressions(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read(file.path()).ok()).collect()
}

/// One file of these inputs, the shortest first, as many as fit.
#[must_use]
pub fn pack(mut inputs: Vec<Vec<u8>>) -> Vec<u8> {
    inputs.sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    inputs.dedup();
    let mut out = Vec::new();
    for input in inputs {
        let Ok(length) = u16::try_from(input.len()) else { break };
        if out.len() + 2 + input.len() > MOST {
            break;
        }
        out.extend(length.to_le_bytes());
        out.extend(input);
    }
    out
}

/// The inputs of a file; `None` if it is cut.
#[must_use]
pub fn unpack(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut inputs = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (input, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
        inputs.push(input);
        bytes = rest;
    }
    Some(inputs)
}

#[cfg(test)]
mod tests {
    use super::{MOST, pack, unpack};

    #[test]
    fn what_fits_comes_back_once_and_sorted() {
        let packed = pack(vec![vec![2, 3], vec![], vec![1], vec![2, 3], vec![0; MOST]]);
        assert_eq!(unpack(&packed), Some(vec![&[][..], &[1], &[2, 3]]));
        assert_eq!(unpack(&packed[..packed.len() - 1]), None);
    }
}
