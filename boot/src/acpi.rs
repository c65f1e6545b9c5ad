//! The machine's processors, from its ACPI tables.
//!
//! ACPI 6.5, 5.2.5 "Root System Description Pointer (RSDP)", 5.2.12 "Multiple APIC Description Table (MADT)". Only lengths
//! and signatures are looked at: a table that says something wrong names a processor that does not start, which is found.

use crate::Physical;
use bulkhead_types::{Hpa, MAX_CPUS};

/// Where a BIOS leaves the root pointer: every 16 bytes of this area. 5.2.5.1 "Finding the RSDP on IA-PC Systems".
const AREA: core::ops::Range<u64> = 0xE_0000..0x10_0000;
/// "RSD PTR ", little-endian.
const POINTER: u64 = u64::from_le_bytes(*b"RSD PTR ");
/// Bytes of a table's header.
const HEADER: u64 = 36;
/// Most bytes of a table that are looked at.
const MOST: u64 = 1 << 16;

/// The local APICs' numbers of the processors that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processors {
    ids: [u32; MAX_CPUS],
    count: usize,
}

impl Processors {
    /// Reads them. `root`: where the loader says that the root pointer is. None at all if there are no tables.
    #[must_use]
    pub fn read(memory: &impl Physical, root: Option<Hpa>) -> Self {
        let mut found = Self { ids: [0; MAX_CPUS], count: 0 };
        // What can not be read ends the search; what was found stands.
        let _ = found.search(memory, root);
        found
    }

    /// Their numbers, as the firmware lists them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().take(self.count).copied()
    }

    fn search(&mut self, memory: &impl Physical, root: Option<Hpa>) -> Option<()> {
        let is_root = |at: &Hpa| memory.u64(*at) == Some(POINTER);
        let root = root.filter(is_root).or_else(|| AREA.step_by(16).map(Hpa::new).find(is_root))?;
        // Byte 15 is the revision; the extended table's address is at 24, the old one's at 16.
        let revised = memory.u32(root.wrapping_add(12))? >> 24 >= 2;
        let extended = if revised { memory.u64(root.wrapping_add(24))? } else { 0 };
        let (list, step) = match extended {
            0 => (u64::from(memory.u32(root.wrapping_add(16))?), 4),
            at => (at, 8),
        };
        let list = Hpa::new(list);
        for offset in (HEADER..length(memory, list)?).step_by(step) {
            let low = memory.u32(list.wrapping_add(offset))?;
            let high = if step == 8 { memory.u32(list.wrapping_add(offset + 4))? } else { 0 };
            let table = Hpa::new(u64::from(high) << 32 | u64::from(low));
            if memory.u32(table) == Some(u32::from_le_bytes(*b"APIC")) {
                return self.take(memory, table);
            }
        }
        None
    }

    /// 5.2.12.2 "Processor Local APIC Structure", 5.2.12.12 "Processor Local x2APIC Structure".
    fn take(&mut self, memory: &impl Physical, table: Hpa) -> Option<()> {
        const ENABLED: u32 = 1;
        let end = length(memory, table)?;
        let mut at = HEADER + 8;
        while at + 8 <= end {
            let word = |offset: u64| memory.u32(table.wrapping_add(at + offset));
            let [kind, bytes, _, id] = word(0)?.to_le_bytes();
            let processor = match (kind, bytes) {
                (0, 8..) => Some((u32::from(id), word(4)?)),
                (9, 16..) => Some((word(4)?, word(8)?)),
                _ => None,
            };
            if let Some((id, flags)) = processor
                && flags & ENABLED != 0
                && let Some(slot) = self.ids.get_mut(self.count)
            {
                *slot = id;
                self.count += 1;
            }
            at += u64::from(bytes).max(2);
        }
        Some(())
    }
}

fn length(memory: &impl Physical, table: Hpa) -> Option<u64> {
    Some(u64::from(memory.u32(table.wrapping_add(4))?).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::Processors;
    use crate::fake::Bytes;
    use bulkhead_types::{Hpa, MAX_CPUS};
    extern crate std;
    use std::vec::Vec;

    impl Bytes {
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Root pointer at F_0010, a list with another table and a MADT with `entries`.
    fn sample(extended: bool, entries: &[u8]) -> Bytes {
        let mut bytes = Bytes(std::vec![0; 1 << 20]);
        bytes.put(0xF_0010, b"RSD PTR ");
        bytes.put(0xF_001F, &[if extended { 2 } else { 0 }]);
        let (list, step) = if extended { (0x2000, 8) } else { (0x1000, 4) };
        bytes.put(0xF_0020, &0x1000_u32.to_le_bytes());
        bytes.put(0xF_0028, &0x2000_u64.to_le_bytes());
        bytes.put(list + 4, &(36 + 2 * u32::try_from(step).unwrap()).to_le_bytes());
        bytes.put(list + 36, &0x3000_u32.to_le_bytes());
        bytes.put(list + 36 + step, &0x4000_u32.to_le_bytes());
        bytes.put(0x3000, b"FACP");
        bytes.put(0x4000, b"APIC");
        bytes.put(0x4004, &(44 + u32::try_from(entries.len()).unwrap()).to_le_bytes());
        bytes.put(0x4000 + 44, entries);
        bytes
    }

    const ENTRIES: [u8; 48] = [
        0, 8, 0, 0, 1, 0, 0, 0, // processor 0
        1, 8, 0, 0, 0, 0, 0xC0, 0xFE, // an I/O APIC
        0, 8, 1, 2, 0, 0, 0, 0, // processor 2, which is off
        0, 8, 1, 5, 1, 0, 0, 0, // processor 5
        9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // processor 256
    ];

    fn found(bytes: &Bytes, root: Option<Hpa>) -> Vec<u32> {
        Processors::read(bytes, root).iter().collect()
    }

    #[test]
    fn the_processors_that_are_on_are_found() {
        for extended in [false, true] {
            let bytes = sample(extended, &ENTRIES);
            assert_eq!(found(&bytes, None), [0, 5, 256]);
            assert_eq!(found(&bytes, Some(Hpa::new(0xF_0010))), [0, 5, 256]);
            assert_eq!(found(&bytes, Some(Hpa::new(0x77))), [0, 5, 256], "a wrong pointer is not believed");
        }
    }

    #[test]
    fn lies_end_the_search() {
        assert_eq!(found(&Bytes(std::vec![0; 1 << 20]), None), []);
        assert_eq!(
            found(&sample(true, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 3, 1, 0, 0, 0]), None),
            [3],
            "an empty entry"
        );
        let mut cut = sample(true, &ENTRIES);
        cut.put(0x4004, &(44_u32 + 12).to_le_bytes());
        assert_eq!(found(&cut, None), [0]);
        let many = [0, 8, 0, 7, 1, 0, 0, 0].repeat(MAX_CPUS + 3);
        assert_eq!(found(&sample(false, &many), None).len(), MAX_CPUS);
        let mut far = sample(false, &ENTRIES);
        far.put(0x4004, &u32::MAX.to_le_bytes());
        assert_eq!(found(&far, None), [0, 5, 256], "what is behind the table is no processor");
    }
}
