//! Guest boot protocols: an image file becomes guest memory and first registers.
//!
//! Linux bzImage, PVH ELF, multiboot 1 and 2, and flat binaries. An image is the guest's own and may lie in every field: all
//! offsets are checked against the file, all addresses against the guest's RAM and what is there already before a byte
//! is written, and every search is bounded. Nothing but the guest's own RAM is written, and never the area of the
//! firmware tables, which is the machine's.
//!
//! A file that speaks several protocols is taken as the first of: bzImage, multiboot 2, multiboot 1, PVH. Headers come before
//! notes since who adds a header has a boot loader in mind; multiboot 2 tells more than 1. (A Linux vmlinux has only the
//! note; an EFI-stub bzImage is a bzImage.)
//!
//! `detect` alone needs no guest: the host tool refuses with it what would not boot.

mod bytes;
mod elf;
mod error;
mod flat;
mod linux;
mod map;
mod modules;
mod multiboot;
mod multiboot2;
mod pvh;
mod space;
mod state;
mod write;

#[cfg(test)]
mod tests;

pub use error::{LoadError, Part};
pub use state::{InitialState, TableRegister};

use bulkhead_devices::layout;
use bulkhead_types::manifest::LoadAs;
use bulkhead_types::{Gpa, GuestMemory};
use core::fmt;
use elf::Elf;
use linux::BzImage;

/// What kernels that ask are told.
const BOOT_LOADER_NAME: &str = "Bulkhead";

/// A boot protocol: how a kernel is loaded and entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Linux bzImage, entered in 64-bit mode.
    Linux64,
    /// Linux bzImage of a 32-bit kernel, entered in 32-bit mode.
    Linux32,
    /// ELF with a PVH note, entered in 32-bit mode.
    Pvh,
    /// Multiboot 1.
    Multiboot,
    /// Multiboot 2.
    Multiboot2,
    /// Flat binary entered in 16-bit real mode.
    FlatReal,
    /// Flat binary entered in 32-bit protected mode.
    FlatProtected,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux64 => "64-bit Linux bzImage",
            Self::Linux32 => "32-bit Linux bzImage",
            Self::Pvh => "PVH kernel",
            Self::Multiboot => "multiboot kernel",
            Self::Multiboot2 => "multiboot2 kernel",
            Self::FlatReal => "16-bit flat binary",
            Self::FlatProtected => "32-bit flat binary",
        })
    }
}

/// A boot module.
#[derive(Clone, Copy, Debug)]
pub struct LoadModule<'a> {
    /// Its content; may be empty.
    pub bytes: &'a [u8],
    /// Its command line, without a zero byte. Linux's initial RAM disk has none.
    pub cmdline: &'a str,
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// How to take it.
    pub load: LoadAs,
    /// Kernel command line, without a zero byte.
    pub cmdline: &'a str,
    /// Boot modules, at most [`MAX_MODULES`](bulkhead_types::manifest::MAX_MODULES).
    pub modules: &'a [LoadModule<'a>],
    /// RAM of the guest in bytes, a multiple of 4096.
    pub memory: u64,
    /// The guest's ACPI root pointer. Multiboot 2 copies it, so that it must have been written before.
    pub rsdp: Gpa,
}

/// A kernel file by what it is.
enum Image<'a> {
    Linux(BzImage<'a>),
    Multiboot2(multiboot2::Header),
    Multiboot(multiboot::Header),
    Pvh(Elf<'a>, u64),
}

impl<'a> Image<'a> {
    fn parse(kernel: &'a [u8]) -> Result<Self, LoadError> {
        if let Some(image) = BzImage::parse(kernel)? {
            return Ok(Self::Linux(image));
        }
        if let Some(header) = multiboot2::Header::find(kernel)? {
            return Ok(Self::Multiboot2(header));
        }
        if let Some(header) = multiboot::Header::find(kernel)? {
            return Ok(Self::Multiboot(header));
        }
        let Some(elf) = Elf::parse(kernel)? else {
            let mut start = [0; 4];
            for (to, from) in start.iter_mut().zip(kernel) {
                *to = *from;
            }
            return Err(LoadError::Unknown { start, bytes: bytes::length(kernel) });
        };
        let entry = elf.pvh_entry()?.ok_or(LoadError::BareElf)?;
        Ok(Self::Pvh(elf, entry))
    }
}

/// Which protocol loads the file `kernel`, by its headers alone.
///
/// # Errors
/// If none does, or if the headers that say so are wrong in themselves.
pub fn detect(kernel: &[u8]) -> Result<Protocol, LoadError> {
    Ok(match Image::parse(kernel)? {
        Image::Linux(image) => image.protocol(),
        Image::Multiboot2(_) => Protocol::Multiboot2,
        Image::Multiboot(_) => Protocol::Multiboot,
        Image::Pvh(..) => Protocol::Pvh,
    })
}

/// Writes what kernels read in the BIOS data area without asking for it: the port of COM1 (0x400) and the KiB of low RAM
/// (0x413), below which they put trampolines. An image that belongs there is written over it.
fn write_bios_data(request: &Request<'_>, memory: &mut impl GuestMemory) -> Result<(), LoadError> {
    let (low_kib, _) = map::kib_below_and_above(request.memory);
    let low_kib = u16::try_from(low_kib).unwrap_or(u16::MAX);
    write::fill(memory, 0x400, &layout::COM1.to_le_bytes(), 0)?;
    write::fill(memory, 0x413, &low_kib.to_le_bytes(), 0)
}

/// Loads what `request` says into `memory`, which has the RAM of `request.memory` bytes, and returns the registers
/// to start with. Memory that no part was put into is left alone.
///
/// # Errors
/// What is wrong with the image, or what there is no RAM for. Some parts may have been written by then.
pub fn load(request: &Request<'_>, memory: &mut impl GuestMemory) -> Result<InitialState, LoadError> {
    write_bios_data(request, memory)?;
    if let LoadAs::Flat { at } = request.load {
        return flat::load(request, at, memory);
    }
    match Image::parse(request.kernel)? {
        Image::Linux(image) => image.load(request, memory),
        Image::Multiboot2(header) => header.load(request, memory),
        Image::Multiboot(header) => header.load(request, memory),
        Image::Pvh(elf, entry) => pvh::load(&elf, entry, request, memory),
    }
}
