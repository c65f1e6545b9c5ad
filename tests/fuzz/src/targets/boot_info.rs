//! What a boot loader hands over.

use crate::Feed;
use bulkhead_boot::{BootInfo, MAX_REGIONS, MULTIBOOT2_MAGIC, Physical, Region};
use bulkhead_types::Hpa;
use std::cell::Cell;

/// Physical memory that has the input at 0, and nothing behind it; or the input again and again up to `end`, as real
/// memory has something everywhere.
struct Memory<'a> {
    bytes: &'a [u8],
    end: u64,
    /// Whether the first word (the length of multiboot2's information) may be any number; else it has 16 bits, since what
    /// is so long takes long.
    any_length: bool,
    reads: Cell<u64>,
}

/// 1 MiB of information in tags of 8 bytes, each read three times, is 393,216.
const MOST_READS: u64 = 400_000;

impl Physical for Memory<'_> {
    fn read(&self, at: Hpa, into: &mut [u8]) -> Option<()> {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() <= MOST_READS, "reading without end");
        let end = at.as_u64().checked_add(into.len() as u64)?;
        if end > self.end || self.bytes.is_empty() {
            return None;
        }
        let start = usize::try_from(at.as_u64()).ok()? % self.bytes.len();
        for (to, from) in into.iter_mut().zip(self.bytes.iter().cycle().skip(start)) {
            *to = *from;
        }
        if let (0, false, [_, _, rest @ ..]) = (at.as_u64(), self.any_length, into) {
            rest.fill(0);
        }
        Some(())
    }
}

fn check(data: &[u8], magic: u32) {
    let mut feed = Feed::new(data);
    let (bytes, align) = (feed.magnitude(), 1 << (feed.u8() & 31));
    let taken: [Region; 2] =
        std::array::from_fn(|_| Region { start: Hpa::new(feed.magnitude()), bytes: feed.magnitude() });
    let kind = feed.u8();
    let bytes_there = feed.rest();
    let end = if kind < 4 { 1 << 32 } else { bytes_there.len() as u64 };
    let memory =
        Memory { bytes: bytes_there, end, any_length: kind % 4 == 0 || magic != MULTIBOOT2_MAGIC, reads: Cell::new(0) };
    let Ok(info) = BootInfo::read(&memory, magic, Hpa::new(0)) else { return };
    assert!(info.regions().count() <= MAX_REGIONS);
    let taken: Vec<_> = taken.into_iter().chain(info.pack).collect();
    let Some(found) = info.find(bytes, align, &taken) else { return };
    let end = found.as_u64().checked_add(bytes).expect("what is found does not wrap");
    assert!(found.is_aligned(align) && found.as_u64() >= 1 << 20 && end <= 1 << 32, "{found} to {end:#x}");
    assert!(info.regions().any(|region| region.start <= found && end <= region.end()), "{found} to {end:#x} is usable");
    let meets = |other: &&Region| other.start.as_u64() < end && found.as_u64() < other.end();
    assert_eq!(taken.iter().find(meets), None, "{found} to {end:#x} is free");
}

/// Multiboot2's information.
pub fn multiboot2(data: &[u8]) {
    check(data, MULTIBOOT2_MAGIC);
}

/// PVH's start information.
pub fn pvh(data: &[u8]) {
    check(data, 0);
}
