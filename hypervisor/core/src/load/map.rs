//! The guest's memory map, as every boot protocol tells it.
//!
//! RAM is where [`layout::ram_ranges`] has it, less the area of the firmware tables. What is listed as usable is also
//! what the loaders put things into.

use super::bytes::align_up;
use bulkhead_devices::layout;
use bulkhead_types::PAGE_SIZE;

/// Address-range type: RAM. ACPI 6.5, 15.1 "INT 15H, E820H - Query System Address Map"; the other protocols agree.
const USABLE: u32 = 1;
/// Address-range type: not to be used.
const RESERVED: u32 = 2;

/// One stretch of guest-physical addresses, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) start: u64,
    /// First byte behind it.
    pub(super) end: u64,
    /// [`USABLE`] or [`RESERVED`], the same number in every protocol.
    pub(super) kind: u32,
}

impl Entry {
    pub(super) const fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The map of a guest with `memory` bytes of RAM: ascending, no entry empty.
pub(super) fn entries(memory: u64) -> impl Iterator<Item = Entry> + Clone {
    let [low, high, above] =
        layout::ram_ranges(memory).map(|r| (r.start.as_u64(), r.start.as_u64().saturating_add(r.bytes)));
    let (firmware, firmware_end) = (layout::FIRMWARE.as_u64(), layout::FIRMWARE_END.as_u64());
    let page = |start: u64, kind| Entry { start, end: start.saturating_add(PAGE_SIZE), kind };
    let map: [Entry; 7] = [
        Entry { start: low.0, end: low.1, kind: USABLE },
        Entry { start: high.0, end: high.1.min(firmware), kind: USABLE },
        Entry { start: firmware, end: firmware_end, kind: RESERVED },
        Entry { start: firmware_end, end: high.1, kind: USABLE },
        page(layout::IO_APIC.as_u64(), RESERVED),
        page(layout::LOCAL_APIC.as_u64(), RESERVED),
        Entry { start: above.0, end: above.1, kind: USABLE },
    ];
    map.into_iter().filter(|entry| entry.bytes() != 0)
}

/// Number of [`entries`].
pub(super) fn count(memory: u64) -> u32 {
    entries(memory).fold(0, |count, _| count.saturating_add(1))
}

/// The usable RAM of a guest with `memory` bytes.
pub(super) fn usable(memory: u64) -> impl Iterator<Item = Entry> + Clone {
    entries(memory).filter(|entry| entry.kind == USABLE)
}

/// How many bytes of memory, whole pages, a guest must have for `bytes` bytes at `start` to be usable RAM, if any number
/// makes them so.
pub(super) fn memory_for(start: u64, bytes: u64) -> Option<u64> {
    let end = align_up(start.checked_add(bytes)?, PAGE_SIZE)?;
    let above = layout::RAM_ABOVE_4G.as_u64();
    let memory = if start >= above { end.checked_sub(above)?.checked_add(layout::HOLE.as_u64())? } else { end };
    usable(memory).any(|ram| ram.start <= start && end <= ram.end).then_some(memory)
}

/// KiB of RAM from address 0 on and from 1 MiB on, each up to the first hole, as multiboot tells it.
pub(super) fn kib_below_and_above(memory: u64) -> (u32, u32) {
    let bytes_from = |start| usable(memory).find(|ram| ram.start == start).map_or(0, |ram| ram.bytes());
    // Both lie below 4 GiB.
    let kib_from = |start| u32::try_from(bytes_from(start) / 1024).unwrap_or(u32::MAX);
    (kib_from(0), kib_from(layout::FIRMWARE_END.as_u64()))
}

#[cfg(test)]
mod tests {
    use super::{Entry, entries, kib_below_and_above, memory_for, usable};

    #[test]
    fn the_map_is_ascending_and_disjoint() {
        for memory in [0, 4096, 0x9_F000, 0xC_1000, 0x10_0000, 2 << 20, 3 << 30, 5 << 30, u64::MAX] {
            let mut last = 0;
            for entry in entries(memory) {
                assert!(entry.start >= last && entry.end > entry.start, "{memory:#x}: {entry:x?}");
                last = entry.end;
            }
        }
    }

    #[test]
    fn five_gib_go_on_above_the_hole() {
        let last = usable(5 << 30).last().unwrap();
        assert_eq!(last, Entry { start: 4 << 30, end: 6 << 30, kind: 1 });
        assert_eq!(kib_below_and_above(5 << 30), (640, (3 << 20) - 1024));
        assert_eq!(kib_below_and_above(2 << 20), (640, 1024));
    }

    #[test]
    fn memory_that_would_do() {
        assert_eq!(memory_for(0x100_0000, 1), Some(0x100_1000));
        assert_eq!(memory_for(0x9_F000, 0x2000), None);
        assert_eq!(memory_for(0xE_0000, 1), None);
        assert_eq!(memory_for(0xC000_0000, 1), None);
        assert_eq!(memory_for(4 << 30, 4096), Some((3 << 30) + 4096));
        assert_eq!(memory_for(u64::MAX, 2), None);
    }
}
