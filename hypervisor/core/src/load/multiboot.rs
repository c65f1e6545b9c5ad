//! Multiboot 1: a header in the first 8 KiB, entered in 32-bit mode.
//!
//! Multiboot Specification version 0.6.96: 3.1 "OS image format", 3.2 "Machine state", 3.3 "Boot information format". The
//! image is placed by the addresses of the header (flag 16, the "a.out kludge") or as ELF, 32 or 64 bits. The kernel
//! is told its command line, the modules, the memory map and the boot loader's name. There is no display: a wish for
//! a video mode (flag 2) stays unfulfilled, which the kernel sees in the flags of the boot information. The command line
//! is passed as it stands: some loaders put the file's name in front of it, here whoever writes it does.

use super::bytes::{Bytes, length};
use super::elf::Elf;
use super::error::{LoadError, Part};
use super::modules::Modules;
use super::space::Space;
use super::state::InitialState;
use super::write::{Cursor, fill, string_bytes};
use super::{BOOT_LOADER_NAME, Protocol, Request, map};
use bulkhead_arch::Gpr;
use bulkhead_types::GuestMemory;

/// The header lies wholly within these bytes of the file.
const SEARCHED: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
/// In EAX at the entry.
const BOOT_MAGIC: u64 = 0x2BAD_B002;
/// Header flag: the address fields are valid.
const ADDRESSES: u32 = 1 << 16;
/// Header flags that must be understood: page-aligned modules, memory information, a video mode.
const UNDERSTOOD: u32 = 0b111;
/// Information flags: memory sizes, command line, modules, memory map, boot loader name.
const PROVIDED: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// Bytes of the boot information.
const INFO: u64 = 116;
/// Bytes of an entry of the memory map, its own size field (which does not count itself) included.
const MAP_ENTRY: u32 = 24;
/// Bytes of an entry of the module list.
const MODULE: u64 = 16;

/// The address fields of a multiboot header, of either version: the file from where `load` lies goes to `load`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Addresses {
    /// Offset of the header in the file.
    pub(super) header_at: u64,
    /// `header_addr`: where the header comes to lie.
    pub(super) header: u32,
    /// `load_addr`: where the first byte comes to lie.
    pub(super) load: u32,
    /// `load_end_addr`: end of what is copied; 0: all of the file.
    pub(super) load_end: u32,
    /// `bss_end_addr`: end of what is zeroed behind; 0: nothing is.
    pub(super) bss_end: u32,
}

impl Addresses {
    /// Copies the image to where its header says.
    pub(super) fn load(
        &self,
        kernel: &[u8],
        space: &mut Space,
        memory: &mut impl GuestMemory,
    ) -> Result<(), LoadError> {
        let wrong = |field, value: u32, must| LoadError::Field { field, value: u64::from(value), must };
        let before = self.header.checked_sub(self.load).map(u64::from);
        let offset = before.and_then(|before| self.header_at.checked_sub(before));
        let offset =
            offset.ok_or(wrong("load_addr", self.load, "at or below header_addr, by no more than the file has"))?;
        let file = Bytes::new(kernel, "the multiboot image");
        let content = match self.load_end {
            0 => file.from(offset),
            end => {
                let bytes = end.checked_sub(self.load).ok_or(wrong("load_end_addr", end, "above load_addr"))?;
                file.slice(offset, u64::from(bytes))?
            }
        };
        let content_bytes = length(content);
        let bytes = match self.bss_end {
            0 => content_bytes,
            end => u64::from(end.saturating_sub(self.load)),
        };
        if bytes < content_bytes {
            return Err(wrong("bss_end_addr", self.bss_end, "at or above the end of the loaded file"));
        }
        space.claim(Part::Kernel, u64::from(self.load), bytes)?;
        fill(memory, u64::from(self.load), content, bytes)
    }
}

/// A multiboot header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// With the entry address, where the header has them.
    addresses: Option<(Addresses, u32)>,
}

impl Header {
    /// The first header of `kernel`.
    pub(super) fn find(kernel: &[u8]) -> Result<Option<Self>, LoadError> {
        let file = Bytes::new(kernel, "the multiboot header");
        let words =
            |at| Some((file.u32(at).ok()?, file.u32(at.checked_add(4)?).ok()?, file.u32(at.checked_add(8)?).ok()?));
        let found = (0..=SEARCHED.min(file.len()).saturating_sub(12)).step_by(4).find_map(|at| {
            let (magic, flags, checksum) = words(at)?;
            let right = magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
            right.then_some((at, flags))
        });
        let Some((header_at, flags)) = found else { return Ok(None) };
        if flags & 0xFFFF & !UNDERSTOOD != 0 {
            let must = "without required features (bits 0 to 15) beyond 0, 1 and 2";
            return Err(LoadError::Field { field: "flags of the multiboot header", value: u64::from(flags), must });
        }
        if flags & ADDRESSES == 0 {
            return Ok(Some(Self { addresses: None }));
        }
        let field = |offset| file.u32(header_at.saturating_add(offset));
        let (header, load, load_end, bss_end) = (field(12)?, field(16)?, field(20)?, field(24)?);
        Ok(Some(Self { addresses: Some((Addresses { header_at, header, load, load_end, bss_end }, field(28)?)) }))
    }

    /// Puts kernel, modules and boot information into memory.
    pub(super) fn load(&self, request: &Request<'_>, memory: &mut impl GuestMemory) -> Result<InitialState, LoadError> {
        let space = &mut Space::new(request.memory);
        let entry = match self.addresses {
            Some((addresses, entry)) => {
                addresses.load(request.kernel, space, memory)?;
                space.entry("entry_addr", u64::from(entry))?
            }
            None => load_elf(request.kernel, space, memory)?,
        };
        let modules = Modules::load(request.modules, space, memory)?;
        let info = write_info(request, &modules, space, memory)?;
        let state = InitialState::protected(Protocol::Multiboot, entry, space, memory)?;
        Ok(state.with(Gpr::Rax, BOOT_MAGIC).with(Gpr::Rbx, u64::from(info)))
    }
}

/// Loads a kernel without address fields; its entry.
pub(super) fn load_elf(kernel: &[u8], space: &mut Space, memory: &mut impl GuestMemory) -> Result<u32, LoadError> {
    let elf = Elf::parse(kernel)?.ok_or(LoadError::NoAddresses)?;
    elf.load(space, memory)?;
    space.entry("e_entry", elf.entry()?)
}

/// Boot information, memory map, module list and strings, in this order. Its address.
fn write_info(
    request: &Request<'_>,
    modules: &Modules<'_>,
    space: &mut Space,
    memory: &mut impl GuestMemory,
) -> Result<u32, LoadError> {
    let map_bytes = map::count(request.memory).saturating_mul(MAP_ENTRY);
    let module_bytes = u64::from(modules.count()).saturating_mul(MODULE);
    let fixed = INFO.saturating_add(u64::from(map_bytes)).saturating_add(module_bytes);
    let own_strings = string_bytes(request.cmdline).saturating_add(string_bytes(BOOT_LOADER_NAME));
    let bytes = fixed.saturating_add(own_strings).saturating_add(modules.string_bytes());
    let start = space.place_structure(Part::BootInfo, bytes, 8)?;

    let mut strings = Cursor::new(start);
    strings.skip(fixed);
    let cmdline = strings.string(memory, request.cmdline)?;
    let name = strings.string(memory, BOOT_LOADER_NAME)?;
    let mut map = Cursor::new(start);
    map.skip(INFO);
    let map_at = map.position();
    for entry in map::entries(request.memory) {
        map.u32(memory, 20)?;
        map.u64(memory, entry.start)?;
        map.u64(memory, entry.bytes())?;
        map.u32(memory, entry.kind)?;
    }
    let mut list = map;
    let list_at = list.position();
    for module in modules.iter() {
        let cmdline = strings.string(memory, module.cmdline)?;
        for field in [module.start, module.end, cmdline, 0] {
            list.u32(memory, field)?;
        }
    }
    let (lower, upper) = map::kib_below_and_above(request.memory);
    let boot_device = u32::MAX;
    let mut info = Cursor::new(start);
    for field in [PROVIDED, lower, upper, boot_device, cmdline, modules.count(), list_at] {
        info.u32(memory, field)?;
    }
    for field in [0, 0, 0, 0, map_bytes, map_at, 0, 0, 0, name] {
        info.u32(memory, field)?;
    }
    fill(memory, u64::from(info.position()), &[], INFO.saturating_sub(68))?;
    Ok(start)
}
