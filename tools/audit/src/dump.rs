//! The dump: an ELF core with RAM by physical address and notes of the processors.
//!
//! QEMU's `dump-guest-memory` writes it: a PT_LOAD segment for each range of RAM, whose `p_paddr` is the physical
//! address, and for each processor a note named `QEMU` (version 1): two 32-bit words (version, size), RAX to R15, RIP,
//! RFLAGS, ten segments of 24 bytes, CR0 to CR4. Layout of the file: System V ABI, chapters "ELF Header", "Program
//! Header" and "Note Section".

use crate::PAGE;
use std::fmt;

/// Why a file is no dump.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DumpError(pub &'static str);

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A processor's control registers at the moment of the dump; those of its guest, if it was serving one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    start: u64,
    bytes: u64,
    offset: usize,
}

/// RAM and processors of a stopped machine.
#[derive(Clone, Debug)]
pub struct Dump {
    bytes: Vec<u8>,
    ranges: Vec<Range>,
    /// Its processors.
    pub cpus: Vec<Cpu>,
}

const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// Offset of CR0 in QEMU's note.
const CONTROL: usize = 8 + 18 * 8 + 10 * 24;

impl Dump {
    /// Reads an ELF core.
    ///
    /// # Errors
    /// [`DumpError`] if it is none, or lacks what is needed.
    pub fn new(bytes: Vec<u8>) -> Result<Self, DumpError> {
        let segments = segments(&bytes, 4)?;
        let mut ranges = Vec::new();
        let mut cpus = Vec::new();
        for segment in segments {
            match segment.kind {
                LOAD => {
                    let offset = usize::try_from(segment.offset).map_err(|_| DumpError("a segment is too large"))?;
                    ranges.push(Range { start: segment.physical, bytes: segment.bytes, offset });
                }
                NOTE => cpus.extend(notes(segment.of(&bytes).unwrap_or_default())),
                _ => {}
            }
        }
        ranges.retain(|range| range.bytes >= PAGE);
        if ranges.iter().any(|range| !range.start.is_multiple_of(PAGE)) {
            return Err(DumpError("a range of its RAM does not begin at a page"));
        }
        if ranges.is_empty() {
            return Err(DumpError("it has no RAM"));
        }
        if cpus.is_empty() {
            return Err(DumpError("it has no processor's control registers (notes named QEMU)"));
        }
        Ok(Self { bytes, ranges, cpus })
    }

    /// Bytes of the file that hold the frame at `address`.
    #[must_use]
    pub fn offset(&self, address: u64) -> Option<usize> {
        let address = address & !(PAGE - 1);
        let range = self.ranges.iter().find(|r| address.wrapping_sub(r.start) < r.bytes & !(PAGE - 1))?;
        range.offset.checked_add(usize::try_from(address - range.start).ok()?)
    }

    /// What the frame at this address holds; nothing if there is no RAM.
    #[must_use]
    pub fn frame(&self, address: u64) -> Option<&[u8]> {
        let offset = self.offset(address)?;
        self.bytes.get(offset..offset.checked_add(4096)?)
    }

    /// The 64-bit word at this address, which is aligned.
    #[must_use]
    pub fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address % PAGE).ok()?;
        read64(self.frame(address)?, at)
    }

    /// All of RAM: physical address of each range, and what it holds.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.ranges.iter().filter_map(|r| {
            let end = r.offset.checked_add(usize::try_from(r.bytes).ok()?)?;
            Some((r.start, self.bytes.get(r.offset..end)?))
        })
    }

    /// Addresses of all frames of RAM.
    pub fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|r| (0..r.bytes / PAGE).map(|index| r.start + index * PAGE))
    }

    /// End of the highest RAM.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.iter().map(|r| r.start + r.bytes).max().unwrap_or(0)
    }
}

/// One entry of an ELF's program header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub address: u64,
    pub physical: u64,
    pub bytes: u64,
}

impl Segment {
    /// What the file holds of it.
    pub fn of<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.offset).ok()?;
        file.get(start..start.checked_add(usize::try_from(self.bytes).ok()?)?)
    }
}

/// The program headers of a 64-bit little-endian ELF of this type (4 a core, 2 a program).
pub(crate) fn segments(file: &[u8], kind: u16) -> Result<Vec<Segment>, DumpError> {
    if file.get(..6) != Some(b"\x7fELF\x02\x01".as_slice()) || read16(file, 16) != Some(kind) {
        return Err(DumpError(if kind == 4 { "it is no 64-bit ELF core" } else { "it is no 64-bit ELF program" }));
    }
    let cut = DumpError("its program headers are cut short");
    let start = read64(file, 32).and_then(|at| usize::try_from(at).ok()).ok_or(cut.clone())?;
    let size = usize::from(read16(file, 54).ok_or(cut.clone())?);
    let count = usize::from(read16(file, 56).ok_or(cut.clone())?);
    let mut found = Vec::new();
    for index in 0..count {
        let at = start.saturating_add(index * size);
        let header = at.checked_add(56).and_then(|end| file.get(at..end)).ok_or(cut.clone())?;
        let word = |at| read64(header, at).unwrap_or_default();
        let segment = Segment {
            kind: read32(header, 0).unwrap_or_default(),
            flags: read32(header, 4).unwrap_or_default(),
            offset: word(8),
            address: word(16),
            physical: word(24),
            bytes: word(32),
        };
        if segment.of(file).is_none() || segment.physical.checked_add(segment.bytes).is_none() {
            return Err(DumpError("a segment reaches beyond the file: it is cut short"));
        }
        found.push(segment);
    }
    Ok(found)
}

fn notes(mut rest: &[u8]) -> Vec<Cpu> {
    let mut found = Vec::new();
    while let (Some(name), Some(size)) = (read32(rest, 0), read32(rest, 4)) {
        let padded = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX / 4).next_multiple_of(4);
        let start = 12 + padded(name);
        let Some(content) = rest.get(start..start.saturating_add(padded(size))) else { break };
        if rest.get(12..16) == Some(b"QEMU".as_slice())
            && let (Some(cr3), Some(cr4)) = (read64(content, CONTROL + 24), read64(content, CONTROL + 32))
        {
            found.push(Cpu { cr3, cr4 });
        }
        rest = rest.get(start + padded(size)..).unwrap_or_default();
    }
    found
}

pub(crate) fn read16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn read64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
