//! The ELF inside a bzImage: Linux as a PVH kernel.
//!
//! The set-up header (Linux Documentation/arch/x86/boot.rst) says where the compressed kernel is. Debian compresses
//! with LZ4's legacy frame: its magic, then blocks of at most 8 MiB, each behind its compressed length.

use crate::failure::{Failure, Outcome};

const SETUP_SECTS: usize = 0x1F1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24C;
const LZ4_LEGACY: u32 = 0x184C_2102;
const BLOCK: usize = 8 << 20;

/// The ELF that `image`, a bzImage, holds.
pub fn extract(image: &[u8]) -> Outcome<Vec<u8>> {
    let payload = payload(image).ok_or_else(|| Failure::usage("the kernel is no bzImage with a payload"))?;
    let (magic, mut rest) = split_word(payload).unwrap_or((0, payload));
    if magic != LZ4_LEGACY {
        return Err(Failure::usage(format!("the kernel is compressed in another way than LZ4 (it starts {magic:#x})"))
            .hint("take the bzImage, @debian, itself"));
    }
    let mut out = Vec::new();
    // The last word is the size of all, which no block's length is.
    while let Some((length, blocks)) = split_word(rest)
        && let Some((block, later)) = usize::try_from(length).ok().and_then(|n| blocks.split_at_checked(n))
        && !block.is_empty()
    {
        let unpacked = lz4_flex::block::decompress(block, BLOCK)
            .map_err(|e| Failure::usage(format!("the compressed kernel is damaged: {e}")))?;
        out.extend(unpacked);
        rest = later;
    }
    if out.starts_with(b"\x7FELF") { Ok(out) } else { Err(Failure::usage("the compressed kernel holds no ELF")) }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let setup = match image.get(SETUP_SECTS)? {
        0 => 4,
        n => usize::from(*n),
    };
    let word = |at| split_word(image.get(at..)?).and_then(|(word, _)| usize::try_from(word).ok());
    let start = (setup + 1) * 512 + word(PAYLOAD_OFFSET)?;
    image.get(start..)?.get(..word(PAYLOAD_LENGTH)?)
}

fn split_word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk::<4>().map(|(word, rest)| (u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::extract;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1F1] = 1;
        image[0x24C..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn blocks_are_put_together() {
        let parts = [&b"\x7FELF and"[..], b" what follows"];
        let mut payload = 0x184C_2102u32.to_le_bytes().to_vec();
        for part in parts {
            let block = lz4_flex::block::compress(part);
            payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend(block);
        }
        payload.extend(22u32.to_le_bytes());
        assert_eq!(extract(&bzimage(&payload)).unwrap(), parts.concat());
    }

    #[test]
    fn other_files_are_refused() {
        for image in [vec![], vec![0; 2048], bzimage(b"\x1F\x8B gzip"), bzimage(&0x184C_2102u32.to_le_bytes())] {
            assert_eq!(extract(&image).unwrap_err().status, 2);
        }
    }
}
