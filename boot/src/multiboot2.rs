//! Multiboot2 specification 2.0, 3.6 "Boot information format".

use crate::{BootError, BootInfo, Physical, Region};
use bulkhead_types::Hpa;

/// Tag types (3.6.5 "Modules", 3.6.8 "Memory map", 3.6.15 "ACPI old RSDP", 3.6.16 "ACPI new RSDP").
const END: u32 = 0;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const ACPI: [u32; 2] = [14, 15];
/// Most bytes of information that are looked at.
const MAX_BYTES: u64 = 1 << 20;

pub(crate) fn read(memory: &impl Physical, info: Hpa) -> Result<BootInfo, BootError> {
    let half = |offset: u64| {
        let address = info.wrapping_add(offset);
        memory.u32(address).ok_or(BootError::Malformed(address))
    };
    let word = |offset: u64| {
        let address = info.wrapping_add(offset);
        memory.u64(address).ok_or(BootError::Malformed(address))
    };
    let total = u64::from(half(0)?).min(MAX_BYTES);
    let mut out = BootInfo::EMPTY;
    let mut tag = 8;
    while tag + 8 <= total {
        let (kind, size) = (half(tag)?, u64::from(half(tag + 4)?));
        match kind {
            END => return Ok(out),
            MODULE if out.pack.is_none() => {
                let (start, end) = (u64::from(half(tag + 8)?), u64::from(half(tag + 12)?));
                out.pack = Some(Region { start: Hpa::new(start), bytes: end.saturating_sub(start) });
            }
            MEMORY_MAP => {
                let step = u64::from(half(tag + 8)?).max(24);
                let mut entry = tag + 16;
                while entry + 24 <= (tag + size).min(total) {
                    if half(entry + 16)? == 1 {
                        out.push(Region { start: Hpa::new(word(entry)?), bytes: word(entry + 8)? });
                    }
                    entry += step;
                }
            }
            // A copy of the pointer stands in the tag; the newer one wins.
            _ if ACPI.contains(&kind) => out.acpi = Some(info.wrapping_add(tag + 8)),
            _ => {}
        }
        // Tags are 8-byte aligned and never empty.
        tag += size.max(8).next_multiple_of(8);
    }
    Err(BootError::Malformed(info))
}

#[cfg(test)]
mod tests {
    use crate::fake::Bytes;
    use crate::{BootInfo, MULTIBOOT2_MAGIC, Physical, Region};
    use bulkhead_types::Hpa;
    extern crate std;
    use std::vec::Vec;

    fn sample() -> Vec<u8> {
        let words: [u32; 26] = [
            104,
            0, // total, reserved
            3,
            18,
            0x80_0000,
            0x80_2000,
            0x6162,
            0, // module "ab", padded to 24
            6,
            64,
            24,
            0, // memory map of two entries
            0x10_0000,
            0,
            0x7f0_0000,
            0,
            1,
            0, // RAM
            0xf000_0000,
            0,
            0x1000,
            0,
            2,
            0, // reserved
            0,
            8, // end
        ];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn module_and_memory_map() {
        let info = BootInfo::read(&Bytes(sample()), MULTIBOOT2_MAGIC, Hpa::new(0)).unwrap();
        assert_eq!(info.pack, Some(Region { start: Hpa::new(0x80_0000), bytes: 0x2000 }));
        let regions: Vec<_> = info.regions().collect();
        assert_eq!(regions, [Region { start: Hpa::new(0x10_0000), bytes: 0x7f0_0000 }]);
    }

    /// The same bytes again and again, up to 4 GiB.
    struct Everywhere(Vec<u8>, std::cell::Cell<usize>);
    impl Physical for Everywhere {
        fn read(&self, at: Hpa, into: &mut [u8]) -> Option<()> {
            self.1.set(self.1.get() + 1);
            let start = usize::try_from(at.as_u64()).ok().filter(|&at| at < 1 << 32)? % self.0.len();
            into.iter_mut().zip(self.0.iter().cycle().skip(start)).for_each(|(to, from)| *to = *from);
            Some(())
        }
    }

    #[test]
    fn a_memory_map_ends_with_the_information() {
        let mut bytes = sample();
        bytes[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
        let memory = Everywhere(bytes, std::cell::Cell::new(0));
        assert!(BootInfo::read(&memory, MULTIBOOT2_MAGIC, Hpa::new(0)).is_err());
        assert!(memory.1.get() < 100, "{} reads", memory.1.get());
    }

    #[test]
    fn lies_end_in_an_error() {
        let whole = sample();
        for word in 0..26 {
            for lie in [0_u32, 1, 7, 0xffff, u32::MAX] {
                let mut bytes = whole.clone();
                bytes[word * 4..word * 4 + 4].copy_from_slice(&lie.to_le_bytes());
                let _ = BootInfo::read(&Bytes(bytes), MULTIBOOT2_MAGIC, Hpa::new(0));
            }
        }
        for cut in 0..whole.len() {
            assert!(BootInfo::read(&Bytes(whole[..cut].to_vec()), MULTIBOOT2_MAGIC, Hpa::new(0)).is_err());
        }
    }
}
