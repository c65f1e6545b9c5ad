//! ELF executables, 32 and 64 bits, as the multiboot and PVH protocols load them: by physical address.
//!
//! System V ABI, "Object Files" and "Program Loading and Dynamic Linking": ELF header, program header, note section.
//! Segments are copied to `p_paddr` and the rest of `p_memsz` is zeroed; no relocation is applied. A file has at most
//! [`MOST_HEADERS`] program headers and no more than [`MOST_NOTE_BYTES`] of a note segment are searched.

use super::LoadError;
use super::bytes::{Bytes, align_up};
use super::error::Part;
use super::space::Space;
use super::write::fill;
use bulkhead_types::GuestMemory;

const MOST_HEADERS: u16 = 64;
const MOST_NOTE_BYTES: u64 = 0x1_0000;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Type of the note of name `Xen` whose descriptor is the 32-bit entry. Xen, `include/public/elfnote.h`.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// An ELF executable for x86.
#[derive(Clone, Copy)]
pub(super) struct Elf<'a> {
    file: Bytes<'a>,
    /// ELFCLASS64.
    wide: bool,
    entry: u64,
    headers: Bytes<'a>,
    header_bytes: u16,
    header_count: u16,
}

/// A program header.
#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

fn check(right: bool, field: &'static str, value: impl Into<u64>, must: &'static str) -> Result<(), LoadError> {
    if right { Ok(()) } else { Err(LoadError::Field { field, value: value.into(), must }) }
}

impl<'a> Elf<'a> {
    /// The ELF file `kernel`; `None` if it is not ELF at all.
    pub(super) fn parse(kernel: &'a [u8]) -> Result<Option<Self>, LoadError> {
        if !kernel.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let file = Bytes::new(kernel, "the ELF file");
        let class = file.u8(4)?;
        check(class == 1 || class == 2, "EI_CLASS", class, "1 (ELF32) or 2 (ELF64)")?;
        let (order, kind, machine) = (file.u8(5)?, file.u16(16)?, file.u16(18)?);
        check(order == 1, "EI_DATA", order, "1 (little-endian)")?;
        check(kind == 2 || kind == 3, "e_type", kind, "2 (executable) or 3 (shared, loaded at its own addresses)")?;
        check(machine == 3 || machine == 62, "e_machine", machine, "3 (80386) or 62 (x86-64)")?;
        let wide = class == 2;
        let (entry, offset, header_bytes, header_count) = if wide {
            (file.u64(24)?, file.u64(32)?, file.u16(54)?, file.u16(56)?)
        } else {
            (u64::from(file.u32(24)?), u64::from(file.u32(28)?), file.u16(42)?, file.u16(44)?)
        };
        let least = if wide { 56 } else { 32 };
        check(header_bytes >= least, "e_phentsize", header_bytes, "32 (ELF32) or 56 (ELF64), at least")?;
        check((1..=MOST_HEADERS).contains(&header_count), "e_phnum", header_count, "1 to 64")?;
        let table_bytes = u64::from(header_bytes).saturating_mul(u64::from(header_count));
        let headers = file.part(offset, table_bytes, "the ELF program header table")?;
        Ok(Some(Self { file, wide, entry, headers, header_bytes, header_count }))
    }

    fn header(&self, number: u16) -> Result<Header, LoadError> {
        let table = self.headers;
        let at = u64::from(number).saturating_mul(u64::from(self.header_bytes));
        let field = |narrow: u64, wide: u64| {
            if self.wide {
                table.u64(at.saturating_add(wide))
            } else {
                table.u32(at.saturating_add(narrow)).map(u64::from)
            }
        };
        Ok(Header {
            kind: table.u32(at)?,
            offset: field(4, 8)?,
            virtual_address: field(8, 16)?,
            physical_address: field(12, 24)?,
            file_bytes: field(16, 32)?,
            memory_bytes: field(20, 40)?,
            align: field(28, 48)?,
        })
    }

    fn headers_of(&self, kind: u32) -> impl Iterator<Item = Result<Header, LoadError>> {
        let headers = (0..self.header_count).map(|number| self.header(number));
        headers.filter(move |header| header.is_ok_and(|header| header.kind == kind) || header.is_err())
    }

    /// Copies the loadable segments to their physical addresses.
    pub(super) fn load(&self, space: &mut Space, memory: &mut impl GuestMemory) -> Result<(), LoadError> {
        for header in self.headers_of(PT_LOAD) {
            let header = header?;
            let must = "at least p_filesz";
            check(header.file_bytes <= header.memory_bytes, "p_memsz", header.memory_bytes, must)?;
            let content = self.file.part(header.offset, header.file_bytes, "a segment of the ELF file")?;
            space.claim(Part::Kernel, header.physical_address, header.memory_bytes)?;
            fill(memory, header.physical_address, content.from(0), header.memory_bytes)?;
        }
        Ok(())
    }

    /// Physical address of the entry point: of the segment that holds it by virtual address, else as it stands.
    pub(super) fn entry(&self) -> Result<u64, LoadError> {
        for header in self.headers_of(PT_LOAD) {
            let header = header?;
            let offset = self.entry.wrapping_sub(header.virtual_address);
            if self.entry >= header.virtual_address && offset < header.memory_bytes {
                return Ok(header.physical_address.wrapping_add(offset));
            }
        }
        Ok(self.entry)
    }

    /// Physical address of the PVH entry point, from the file's notes.
    pub(super) fn pvh_entry(&self) -> Result<Option<u64>, LoadError> {
        for header in self.headers_of(PT_NOTE) {
            let header = header?;
            let bytes = header.file_bytes.min(MOST_NOTE_BYTES);
            let notes = self.file.part(header.offset, bytes, "a note segment of the ELF file")?;
            let entry = pvh_note(notes, if header.align == 8 { 8 } else { 4 });
            if entry.is_some() {
                return Ok(entry);
            }
        }
        Ok(None)
    }
}

/// The 32-bit entry in a note segment. What is no note, ends the search.
fn pvh_note(notes: Bytes<'_>, align: u64) -> Option<u64> {
    let mut at = 0_u64;
    // Each turn goes at least the 12 bytes of a note's header further on.
    while at < notes.len() {
        let name_bytes = u64::from(notes.u32(at).ok()?);
        let content_bytes = u64::from(notes.u32(at.checked_add(4)?).ok()?);
        let kind = notes.u32(at.checked_add(8)?).ok()?;
        let name_at = at.checked_add(12)?;
        let content_at = align_up(name_at.checked_add(name_bytes)?, align)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && notes.slice(name_at, name_bytes).ok()? == b"Xen\0" {
            return match content_bytes {
                4 => notes.u32(content_at).ok().map(u64::from),
                8 => notes.u64(content_at).ok(),
                _ => None,
            };
        }
        at = align_up(content_at.checked_add(content_bytes)?, align)?;
    }
    None
}
