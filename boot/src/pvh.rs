//! PVH: Xen's "x86/HVM direct boot ABI", `struct hvm_start_info` version 1.

use crate::{BootError, BootInfo, Physical, Region};
use bulkhead_types::Hpa;

/// First word of the start information.
pub(crate) const MAGIC: u32 = 0x336e_c578;
/// Most entries of the memory map that are looked at.
const MAX_ENTRIES: u64 = 1024;

/// Offset 12: count of modules; 16: their list (32 bytes each: address, size, command line); 32: ACPI's root pointer; 40: the memory map
/// (24 bytes each: address, size, type); 48: its count.
pub(crate) fn read(memory: &impl Physical, info: Hpa) -> Result<BootInfo, BootError> {
    let malformed = BootError::Malformed(info);
    let at = |offset: u64| info.checked_add(offset).ok_or(malformed);
    let word = |address: Hpa| memory.u64(address).ok_or(BootError::Malformed(address));
    let half = |address: Hpa| memory.u32(address).ok_or(BootError::Malformed(address));
    let mut out = BootInfo::EMPTY;
    if half(at(12)?)? > 0 {
        let list = Hpa::new(word(at(16)?)?);
        out.pack = Some(Region { start: Hpa::new(word(list)?), bytes: word(list.wrapping_add(8))? });
    }
    out.acpi = Some(Hpa::new(word(at(32)?)?)).filter(|root| root.as_u64() != 0);
    let (map, count) = (Hpa::new(word(at(40)?)?), u64::from(half(at(48)?)?));
    for index in 0..count.min(MAX_ENTRIES) {
        let entry = map.wrapping_add(index * 24);
        if half(entry.wrapping_add(16))? == 1 {
            out.push(Region { start: Hpa::new(word(entry)?), bytes: word(entry.wrapping_add(8))? });
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::fake::Bytes;
    use crate::{BootError, BootInfo, Region};
    use bulkhead_types::Hpa;
    extern crate std;
    use std::vec::Vec;

    fn sample() -> Bytes {
        let mut bytes = std::vec![0; 256];
        let mut put =
            |at: usize, value: u64, len: usize| bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        put(0, 0x336e_c578, 4);
        put(4, 1, 4);
        put(12, 1, 4);
        put(16, 64, 8);
        put(40, 128, 8);
        put(48, 2, 4);
        put(64, 0x100_0000, 8);
        put(72, 0x3000, 8);
        put(128, 0, 8);
        put(136, 0x9_fc00, 8);
        put(144, 1, 4);
        put(152, 0xf_0000, 8);
        put(160, 0x1_0000, 8);
        put(168, 2, 4);
        Bytes(bytes)
    }

    #[test]
    fn modules_and_memory_map() {
        let info = BootInfo::read(&sample(), 0, Hpa::new(0)).unwrap();
        assert_eq!(info.pack, Some(Region { start: Hpa::new(0x100_0000), bytes: 0x3000 }));
        let regions: Vec<_> = info.regions().collect();
        assert_eq!(regions, [Region { start: Hpa::new(0), bytes: 0x9_fc00 }]);
    }

    #[test]
    fn a_cut_information_is_refused() {
        let whole = sample().0;
        for cut in 4..170 {
            assert!(matches!(
                BootInfo::read(&Bytes(whole[..cut].to_vec()), 0, Hpa::new(0)),
                Err(BootError::Malformed(_))
            ));
        }
        assert_eq!(BootInfo::read(&Bytes(Vec::new()), 7, Hpa::new(0)).unwrap_err(), BootError::Protocol(7));
    }
}
