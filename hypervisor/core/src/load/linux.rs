//! Linux bzImage: the 64-bit boot protocol, or the 32-bit one for 32-bit kernels.
//!
//! "The Linux/x86 Boot Protocol" (Documentation/arch/x86/boot.rst) and "Zero Page" (zero-page.rst) of Linux 6.1. The
//! protected-mode part goes to its preferred address and is entered there in 32-bit mode, or 0x200 behind in 64-bit mode with
//! identity page tables of the first 4 GiB. RSI is the zero page: the setup header of the image, the memory map, the
//! initial RAM disk and the command line. All modules together are the initial RAM disk, one after the other, as the
//! kernel takes concatenated archives.
//!
//! Protocol 2.10 (Linux 2.6.31) or later, for it says where the kernel wants to be and how much RAM it needs to start.

use super::bytes::{Bytes, align_up, length};
use super::error::{LoadError, Part};
use super::space::Space;
use super::state::InitialState;
use super::write::{Cursor, fill, string_bytes};
use super::{Protocol, Request, map};
use bulkhead_arch::Gpr;
use bulkhead_devices::layout;
use bulkhead_types::{GuestMemory, PAGE_SIZE};

/// Offset of the setup header, in the image and in the zero page.
const SETUP_HEADER: u64 = 0x1F1;
/// The setup header must end behind `init_size`, and before what the zero page has next.
const HEADER_END: core::ops::RangeInclusive<u64> = 0x264..=0x290;
/// Oldest protocol that is taken.
const OLDEST: u16 = 0x020A;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `loadflags`: the protected-mode part goes above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `loadflags`: do not reload the segment registers.
const KEEP_SEGMENTS: u8 = 1 << 6;
/// `loadflags`: the 16-bit part, which is not run, has a heap.
const CAN_USE_HEAP: u8 = 1 << 7;
/// Page tables of the first 4 GiB: a root, a directory-pointer table, four directories of 2-MiB pages.
const PAGE_TABLES: u64 = 6 * PAGE_SIZE;

/// Offsets in the zero page that are not in the image.
mod zero_page {
    pub(super) const ACPI_RSDP_ADDR: u32 = 0x070;
    pub(super) const E820_ENTRIES: u32 = 0x1E8;
    pub(super) const E820_TABLE: u32 = 0x2D0;
}

/// Offsets in the setup header.
mod setup {
    pub(super) const SETUP_SECTS: u32 = 0x1F1;
    pub(super) const SYSSIZE: u32 = 0x1F4;
    pub(super) const BOOT_FLAG: u32 = 0x1FE;
    pub(super) const JUMP: u32 = 0x200;
    pub(super) const HEADER: u32 = 0x202;
    pub(super) const VERSION: u32 = 0x206;
    pub(super) const TYPE_OF_LOADER: u32 = 0x210;
    pub(super) const LOADFLAGS: u32 = 0x211;
    pub(super) const CODE32_START: u32 = 0x214;
    pub(super) const RAMDISK_IMAGE: u32 = 0x218;
    pub(super) const CMD_LINE_PTR: u32 = 0x228;
    pub(super) const INITRD_ADDR_MAX: u32 = 0x22C;
    pub(super) const XLOADFLAGS: u32 = 0x236;
    pub(super) const CMDLINE_SIZE: u32 = 0x238;
    pub(super) const PREF_ADDRESS: u32 = 0x258;
    pub(super) const INIT_SIZE: u32 = 0x260;
}

/// A bzImage with the fields of its setup header that matter here.
pub(super) struct BzImage<'a> {
    /// The setup header itself, for the zero page.
    header: &'a [u8],
    /// The protected-mode part.
    payload: &'a [u8],
    loadflags: u8,
    /// `initrd_addr_max`: last address that the initial RAM disk may take.
    initrd_last: u32,
    /// `cmdline_size`: most bytes of a command line, its final zero not counted.
    cmdline_most: u32,
    wide: bool,
    /// `pref_address`: where the kernel runs.
    address: u64,
    /// `init_size`: bytes it needs there until it reads the memory map.
    init_bytes: u32,
}

impl<'a> BzImage<'a> {
    /// The bzImage `kernel`; `None` if it is none at all.
    pub(super) fn parse(kernel: &'a [u8]) -> Result<Option<Self>, LoadError> {
        let file = Bytes::new(kernel, "the bzImage");
        let at = |offset: u32| u64::from(offset);
        let magic = file.slice(at(setup::HEADER), 4);
        if magic != Ok(b"HdrS") || file.u16(at(setup::BOOT_FLAG)) != Ok(0xAA55) {
            return Ok(None);
        }
        let wrong = |field, value, must| Err(LoadError::Field { field, value, must });
        let version = file.u16(at(setup::VERSION))?;
        if version < OLDEST {
            return wrong("the Linux boot protocol's version", u64::from(version), "at least 0x20a (Linux 2.6.31)");
        }
        let end = at(setup::HEADER).saturating_add(u64::from(file.u8(at(setup::JUMP).saturating_add(1))?));
        if !HEADER_END.contains(&end) {
            return wrong("the end of the setup header (jump)", end, "0x264 to 0x290");
        }
        let loadflags = file.u8(at(setup::LOADFLAGS))?;
        if loadflags & LOADED_HIGH == 0 {
            return wrong("loadflags", u64::from(loadflags), "with LOADED_HIGH (bit 0): a bzImage, not a zImage");
        }
        let xloadflags = if version >= 0x020C { file.u16(at(setup::XLOADFLAGS))? } else { 0 };
        let wide = xloadflags & XLF_KERNEL_64 != 0;
        Ok(Some(Self {
            header: file.slice(SETUP_HEADER, end.saturating_sub(SETUP_HEADER))?,
            payload: payload(file, if wide { 0x201 } else { 1 })?,
            loadflags,
            initrd_last: file.u32(at(setup::INITRD_ADDR_MAX))?,
            cmdline_most: file.u32(at(setup::CMDLINE_SIZE))?,
            wide,
            address: file.u64(at(setup::PREF_ADDRESS))?,
            init_bytes: file.u32(at(setup::INIT_SIZE))?,
        }))
    }

    pub(super) const fn protocol(&self) -> Protocol {
        if self.wide { Protocol::Linux64 } else { Protocol::Linux32 }
    }

    /// Puts kernel, RAM disk, command line and zero page into memory.
    pub(super) fn load(&self, request: &Request<'_>, memory: &mut impl GuestMemory) -> Result<InitialState, LoadError> {
        let space = &mut Space::new(request.memory);
        let payload_bytes = length(self.payload);
        space.claim(Part::Kernel, self.address, payload_bytes.max(u64::from(self.init_bytes)))?;
        let address = space.entry("pref_address", self.address)?;
        fill(memory, self.address, self.payload, payload_bytes)?;

        let zero_page = space.place_structure(Part::BootInfo, PAGE_SIZE, PAGE_SIZE)?;
        let cmdline = self.write_cmdline(request.cmdline, space, memory)?;
        let initrd = self.write_initrd(request, space, memory)?;
        fill(memory, u64::from(zero_page), &[], PAGE_SIZE)?;
        let mut put = |offset: u32, bytes: &[u8]| fill(memory, u64::from(zero_page.saturating_add(offset)), bytes, 0);
        put(setup::SETUP_SECTS, self.header)?;
        put(setup::TYPE_OF_LOADER, &[0xFF])?;
        put(setup::LOADFLAGS, &[self.loadflags & !(KEEP_SEGMENTS | CAN_USE_HEAP)])?;
        put(setup::CODE32_START, &address.to_le_bytes())?;
        put(setup::RAMDISK_IMAGE, &initrd.0.to_le_bytes())?;
        put(setup::RAMDISK_IMAGE.saturating_add(4), &initrd.1.to_le_bytes())?;
        put(setup::CMD_LINE_PTR, &cmdline.to_le_bytes())?;
        put(zero_page::ACPI_RSDP_ADDR, &request.rsdp.as_u64().to_le_bytes())?;
        write_e820(zero_page, request.memory, memory)?;

        let state = if self.wide {
            let tables = write_page_tables(space, memory)?;
            InitialState::long(Protocol::Linux64, address.saturating_add(0x200), tables, space, memory)?
        } else {
            InitialState::protected(Protocol::Linux32, address, space, memory)?
        };
        Ok(state.with(Gpr::Rsi, u64::from(zero_page)))
    }

    /// Its address.
    fn write_cmdline(&self, line: &str, space: &mut Space, memory: &mut impl GuestMemory) -> Result<u32, LoadError> {
        let (bytes, most) = (length(line.as_bytes()), u64::from(self.cmdline_most));
        if bytes > most {
            return Err(LoadError::Cmdline { bytes, most });
        }
        let at = space.place_structure(Part::BootInfo, string_bytes(line), 16)?;
        Cursor::new(at).string(memory, line)
    }

    /// Its address and length; zeros if there is none.
    fn write_initrd(
        &self,
        request: &Request<'_>,
        space: &mut Space,
        memory: &mut impl GuestMemory,
    ) -> Result<(u32, u32), LoadError> {
        // Each archive starts at a multiple of 4, as the kernel expects of the next one.
        let padded = |bytes: &[u8]| align_up(length(bytes), 4).unwrap_or(u64::MAX);
        let total = request.modules.iter().fold(0_u64, |sum, module| sum.saturating_add(padded(module.bytes)));
        if total == 0 {
            return Ok((0, 0));
        }
        let below = u64::from(self.initrd_last).saturating_add(1).min(layout::HOLE.as_u64());
        let start = space.place_high(Part::Initrd, total, below)?;
        let mut at = u64::from(start);
        for module in request.modules {
            fill(memory, at, module.bytes, padded(module.bytes))?;
            at = at.saturating_add(padded(module.bytes));
        }
        // What was placed below 4 GiB is no longer than that.
        Ok((start, u32::try_from(total).unwrap_or(u32::MAX)))
    }
}

/// The protected-mode part of `file`, at least `least` bytes and what `syssize` promises.
fn payload(file: Bytes<'_>, least: u64) -> Result<&[u8], LoadError> {
    let sectors = match file.u8(u64::from(setup::SETUP_SECTS))? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = sectors.saturating_add(1).saturating_mul(512);
    // `syssize` counts paragraphs of 16 bytes, the last one perhaps not full.
    let promised = u64::from(file.u32(u64::from(setup::SYSSIZE))?).saturating_mul(16).saturating_sub(15).max(least);
    file.slice(start, promised)?;
    Ok(file.from(start))
}

fn write_e820(zero_page: u32, memory_bytes: u64, memory: &mut impl GuestMemory) -> Result<(), LoadError> {
    let mut cursor = Cursor::new(zero_page.saturating_add(zero_page::E820_TABLE));
    let mut count = 0_u8;
    for entry in map::entries(memory_bytes) {
        cursor.u64(memory, entry.start)?;
        cursor.u64(memory, entry.bytes())?;
        cursor.u32(memory, entry.kind)?;
        count = count.saturating_add(1);
    }
    fill(memory, u64::from(zero_page.saturating_add(zero_page::E820_ENTRIES)), &[count], 1)
}

/// Identity page tables of the first 4 GiB; their root. SDM vol. 3A 4.5 "4-Level Paging and 5-Level Paging".
fn write_page_tables(space: &mut Space, memory: &mut impl GuestMemory) -> Result<u32, LoadError> {
    const TABLE: u64 = 0x3; // present, writable
    const LARGE_PAGE: u64 = 0x83; // and 2 MiB
    let root = space.place_structure(Part::Tables, PAGE_TABLES, PAGE_SIZE)?;
    let table = |number: u64| u64::from(root).saturating_add(number.saturating_mul(PAGE_SIZE));
    fill(memory, table(0), &(table(1) | TABLE).to_le_bytes(), PAGE_SIZE)?;
    fill(memory, table(1), &[], PAGE_SIZE)?;
    for directory in 0..4_u64 {
        let entry = table(directory.saturating_add(2)) | TABLE;
        fill(memory, table(1).saturating_add(directory.saturating_mul(8)), &entry.to_le_bytes(), 0)?;
    }
    let mut chunk = [0; 512];
    for first in (0..4 * 512).step_by(64) {
        for (page, bytes) in (first..).zip(chunk.as_chunks_mut::<8>().0) {
            *bytes = (page << 21 | LARGE_PAGE).to_le_bytes();
        }
        fill(memory, table(2).saturating_add(first.saturating_mul(8)), &chunk, 0)?;
    }
    Ok(root)
}
