//! Multiboot 2: a tagged header in the first 32 KiB, entered in 32-bit mode.
//!
//! Multiboot2 Specification version 2.0: 3.1 "OS image format", 3.3 "I386 machine state", 3.6 "Boot information format".
//! Of the header's tags, the addresses and the entry are followed; modules are always page-aligned; those of EFI and
//! of the console have nothing to say on this machine. A framebuffer that the kernel can not do without, or a tag
//! that is not known and not optional, is an error. The kernel is told its command line, the boot loader's name, the
//! modules, the memory sizes and map, and the ACPI root pointer (a copy: the firmware tables must have been written).

use super::bytes::{Bytes, align_up};
use super::error::{LoadError, Part};
use super::modules::Modules;
use super::multiboot::{Addresses, load_elf};
use super::space::Space;
use super::state::InitialState;
use super::write::{Cursor, string_bytes};
use super::{BOOT_LOADER_NAME, Protocol, Request, map};
use bulkhead_arch::Gpr;
use bulkhead_types::GuestMemory;

/// The header lies wholly within these bytes of the file.
const SEARCHED: u64 = 32768;
const HEADER_MAGIC: u32 = 0xE852_50D6;
/// In EAX at the entry.
const BOOT_MAGIC: u64 = 0x36D7_6289;
/// The highest type of boot information that the specification knows.
const LAST_INFORMATION: u32 = 21;
/// Bytes of an ACPI root pointer, version 2. ACPI 6.5, 5.2.5.3 "Root System Description Pointer (RSDP) Structure".
const RSDP_BYTES: usize = 36;

/// What the tags of a multiboot2 header say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Header {
    addresses: Option<Addresses>,
    entry: Option<u32>,
}

impl Header {
    /// The first header of `kernel`.
    pub(super) fn find(kernel: &[u8]) -> Result<Option<Self>, LoadError> {
        let file = Bytes::new(kernel, "the multiboot2 header");
        let right = |at: u64| {
            let word = |offset| file.u32(at.saturating_add(offset)).ok();
            let words = [word(0)?, word(4)?, word(8)?, word(12)?];
            let sum = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(*word));
            let [magic, architecture, bytes, _] = words;
            (magic == HEADER_MAGIC && sum == 0).then_some((at, architecture, u64::from(bytes)))
        };
        let mut places = (0..=SEARCHED.min(file.len()).saturating_sub(16)).step_by(8);
        let Some((at, architecture, bytes)) = places.find_map(right) else { return Ok(None) };
        if architecture != 0 {
            let field = "architecture of the multiboot2 header";
            return Err(LoadError::Field { field, value: u64::from(architecture), must: "0 (i386)" });
        }
        if bytes < 16 || at.saturating_add(bytes) > SEARCHED {
            let field = "header_length of the multiboot2 header";
            return Err(LoadError::Field { field, value: bytes, must: "at least 16, and within the first 32 KiB" });
        }
        let tags = file.part(at, bytes, "the multiboot2 header")?;
        let mut header = Self::default();
        let mut next = Some(16);
        while let Some(tag_at) = next {
            next = header.read_tag(tags, tag_at, at)?;
        }
        Ok(Some(header))
    }

    /// Takes in the tag at `at` of `tags`, in a header at `header_at` of the file; where the next one is.
    fn read_tag(&mut self, tags: Bytes<'_>, at: u64, header_at: u64) -> Result<Option<u64>, LoadError> {
        if at >= tags.len() {
            return Ok(None);
        }
        let (kind, flags) = (tags.u16(at)?, tags.u16(at.saturating_add(2))?);
        let bytes = tags.u32(at.saturating_add(4))?;
        if bytes < 8 {
            let field = "size of a multiboot2 tag";
            return Err(LoadError::Field { field, value: u64::from(bytes), must: "at least 8" });
        }
        let tag = tags.part(at, u64::from(bytes), "a tag of the multiboot2 header")?;
        let required = flags & 1 == 0;
        match kind {
            0 => return Ok(None),
            1 => information_request(tag, required)?,
            2 => {
                let (header, load, load_end, bss_end) = (tag.u32(8)?, tag.u32(12)?, tag.u32(16)?, tag.u32(20)?);
                // All bits set: the file from its start, in this version only.
                let file_at = u32::try_from(header_at).map_or(load, |offset| header.wrapping_sub(offset));
                let load = if load == u32::MAX { file_at } else { load };
                self.addresses = Some(Addresses { header_at, header, load, load_end, bss_end });
            }
            3 => self.entry = Some(tag.u32(8)?),
            4 | 6..=10 => {}
            _ if required => {
                let must = "one of 0 to 4 and 6 to 10, or optional (there is no framebuffer)";
                return Err(LoadError::Field { field: "type of a multiboot2 tag", value: u64::from(kind), must });
            }
            _ => {}
        }
        Ok(at.checked_add(u64::from(bytes)).and_then(|end| align_up(end, 8)))
    }

    /// Puts kernel, modules and boot information into memory.
    pub(super) fn load(&self, request: &Request<'_>, memory: &mut impl GuestMemory) -> Result<InitialState, LoadError> {
        let space = &mut Space::new(request.memory);
        let by_header = self.entry.map(u64::from);
        let entry = match self.addresses {
            Some(addresses) => {
                addresses.load(request.kernel, space, memory)?;
                space.entry("entry_addr", by_header.unwrap_or_default())?
            }
            None => {
                let entry = load_elf(request.kernel, space, memory)?;
                by_header.map_or(Ok(entry), |entry| space.entry("entry_addr", entry))?
            }
        };
        let modules = Modules::load(request.modules, space, memory)?;
        let info = write_info(request, &modules, space, memory)?;
        let state = InitialState::protected(Protocol::Multiboot2, entry, space, memory)?;
        Ok(state.with(Gpr::Rax, BOOT_MAGIC).with(Gpr::Rbx, u64::from(info)))
    }
}

/// Checks that the kernel asks for no information of a type that is not known.
fn information_request(tag: Bytes<'_>, required: bool) -> Result<(), LoadError> {
    // The rest of a word at the end is none.
    for at in (8..tag.len().saturating_sub(3)).step_by(4) {
        let kind = tag.u32(at)?;
        if required && kind > LAST_INFORMATION {
            let field = "a type in the information request of the multiboot2 header";
            return Err(LoadError::Field { field, value: u64::from(kind), must: "at most 21, or optional" });
        }
    }
    Ok(())
}

/// Writes the boot information; its address.
fn write_info(
    request: &Request<'_>,
    modules: &Modules<'_>,
    space: &mut Space,
    memory: &mut impl GuestMemory,
) -> Result<u32, LoadError> {
    // Head, end, sizes and root pointer together have fewer than 128 bytes; each tag is at most 31 longer than its strings.
    let strings = string_bytes(request.cmdline).saturating_add(modules.string_bytes());
    let tags = u64::from(modules.count()).saturating_mul(32).saturating_add(256);
    let map_bytes = map::count(request.memory).saturating_mul(24).saturating_add(16);
    let bytes = strings.saturating_add(tags).saturating_add(u64::from(map_bytes));
    let start = space.place_structure(Part::BootInfo, bytes, 8)?;

    let mut info = Cursor::new(start);
    info.u64(memory, 0)?; // the total size, when it is known
    write_string_tag(&mut info, memory, 1, &[], request.cmdline)?;
    write_string_tag(&mut info, memory, 2, &[], BOOT_LOADER_NAME)?;
    for module in modules.iter() {
        write_string_tag(&mut info, memory, 3, &[module.start, module.end], module.cmdline)?;
    }
    let (lower, upper) = map::kib_below_and_above(request.memory);
    for field in [4, 16, lower, upper] {
        info.u32(memory, field)?;
    }
    for field in [6, map_bytes, 24, 0] {
        info.u32(memory, field)?; // type, size, bytes of an entry, version
    }
    for entry in map::entries(request.memory) {
        info.u64(memory, entry.start)?;
        info.u64(memory, entry.bytes())?;
        info.u64(memory, u64::from(entry.kind))?;
    }
    let mut rsdp = [0; RSDP_BYTES];
    memory.read(request.rsdp, &mut rsdp)?;
    if rsdp.starts_with(b"RSD PTR ") {
        info.u32(memory, 15)?;
        info.u32(memory, 8 + 36)?;
        info.bytes(memory, &rsdp)?;
        info.align8(memory)?;
    }
    info.u32(memory, 0)?;
    info.u32(memory, 8)?;
    let total = info.position().saturating_sub(start);
    Cursor::new(start).u32(memory, total)?;
    Ok(start)
}

/// A tag of fixed fields and a string.
fn write_string_tag(
    info: &mut Cursor,
    memory: &mut impl GuestMemory,
    kind: u32,
    fields: &[u32],
    string: &str,
) -> Result<(), LoadError> {
    let start = *info;
    info.skip(8);
    for field in fields {
        info.u32(memory, *field)?;
    }
    info.string(memory, string)?;
    let mut head = start;
    head.u32(memory, kind)?;
    head.u32(memory, info.position().saturating_sub(start.position()))?;
    info.align8(memory)
}
