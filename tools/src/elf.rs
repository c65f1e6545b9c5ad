//! The hypervisor image's ELF: what to load where, and the PVH entry.

use crate::failure::{Failure, Outcome};
use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry, a physical address (Xen public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// Bytes to be loaded at a physical address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Physical address.
    pub at: u64,
    /// Content.
    pub bytes: Vec<u8>,
    /// Bytes in memory; what is beyond the content is zero.
    pub memory: u64,
}

/// What there is to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Segments by ascending address.
    pub segments: Vec<Segment>,
    /// Physical address of the 32-bit entry.
    pub entry: u64,
}

impl Executable {
    /// First byte behind the last segment.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.at.saturating_add(s.memory)).max().unwrap_or(0)
    }
}

/// Reads a 64-bit ELF with a PVH entry.
pub fn read(file: &[u8]) -> Outcome<Executable> {
    let wrong = |e: object::Error| Failure::failed(format!("the hypervisor image is not a sound ELF64 file: {e}"));
    let header = FileHeader64::<Endianness>::parse(file).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let mut segments = Vec::new();
    let mut entry = None;
    for program in header.program_headers(endian, file).map_err(wrong)? {
        if program.p_type(endian) == PT_LOAD && program.p_memsz(endian) != 0 {
            let bytes = program.data(endian, file).map_err(|()| {
                Failure::failed("the hypervisor image is cut short").hint("remove the target folder and build again")
            })?;
            segments.push(Segment {
                at: program.p_paddr(endian),
                bytes: bytes.to_vec(),
                memory: program.p_memsz(endian),
            });
        }
        if program.p_type(endian) == PT_NOTE {
            entry = entry.or(pvh_entry(program.data(endian, file).unwrap_or_default()));
        }
    }
    segments.sort_by_key(|s| s.at);
    let entry = entry.ok_or_else(|| Failure::failed("the hypervisor image has no PVH entry note"))?;
    Ok(Executable { segments, entry })
}

/// Walks ELF notes: name size, descriptor size, type, then both padded to 4 bytes.
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (name_bytes, desc_bytes, kind) = (word(0)?, word(4)?, word(8)?);
        let padded = |bytes: u32| usize::try_from(bytes).ok().map(|n| n.next_multiple_of(4));
        let name = rest.get(..padded(name_bytes)?)?;
        let desc = rest.get(name.len()..)?;
        if kind == PHYS32_ENTRY && name.starts_with(b"Xen\0") {
            return desc.first_chunk::<4>().map(|v| u64::from(u32::from_le_bytes(*v)));
        }
        notes = desc.get(padded(desc_bytes)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::pvh_entry;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [u32::try_from(name.len()).unwrap(), u32::try_from(desc.len()).unwrap(), kind] {
            out.extend(word.to_le_bytes());
        }
        for part in [name, desc] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn the_entry_is_found_among_other_notes() {
        let mut notes = note(b"GNU\0", 18, &[1, 2, 3]);
        notes.extend(note(b"Xen\0", 6, b"linux"));
        notes.extend(note(b"Xen\0", 18, &0x20_0040u64.to_le_bytes()));
        assert_eq!(pvh_entry(&notes), Some(0x20_0040));
        for cut in 0..notes.len() - 4 {
            assert_eq!(pvh_entry(&notes[..cut]), None, "cut at {cut}");
        }
    }
}
