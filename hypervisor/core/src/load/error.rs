//! Why an image was refused.

use super::Protocol;
use bulkhead_types::MemoryError;
use core::fmt;

/// A part of what is put into a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The kernel, or one segment of it.
    Kernel,
    /// The boot module with this number, from 0.
    Module(u8),
    /// The initial RAM disk of Linux.
    Initrd,
    /// The structures that tell the kernel about its machine.
    BootInfo,
    /// Page tables and descriptor table of the first instruction.
    Tables,
    /// The stack a flat binary starts on.
    Stack,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("the kernel"),
            Self::Module(index) => write!(f, "module {}", u16::from(*index) + 1),
            Self::Initrd => f.write_str("the initial RAM disk"),
            Self::BootInfo => f.write_str("the boot information"),
            Self::Tables => f.write_str("the boot tables"),
            Self::Stack => f.write_str("the first stack"),
        }
    }
}

/// Why a guest could not be loaded: the image's or the manifest's fault, except for [`LoadError::Memory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// The file is of no kind that can be booted.
    Unknown {
        /// Its first bytes; zeros past its end.
        start: [u8; 4],
        /// Its length in bytes.
        bytes: u64,
    },
    /// An ELF file that names no boot protocol.
    BareElf,
    /// A multiboot header without address fields, in a file that is not ELF.
    NoAddresses,
    /// The file ends before what its headers promise.
    Short {
        /// What is cut off.
        what: &'static str,
        /// Bytes it must have at least.
        needed: u64,
        /// Bytes it has.
        have: u64,
    },
    /// A header field has a value that can not be right, or that is not supported.
    Field {
        /// Name of the field in its specification.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        must: &'static str,
    },
    /// A part belongs where there is no RAM, or only RAM that the firmware tables take.
    OutsideRam {
        /// The part.
        part: Part,
        /// Guest-physical address of its first byte.
        start: u64,
        /// Its length in bytes.
        bytes: u64,
        /// RAM of the guest in bytes.
        memory: u64,
    },
    /// Two parts belong to the same place.
    Overlap {
        /// The part that came second.
        part: Part,
        /// The part that is there already.
        other: Part,
        /// Guest-physical address of the first byte of the second.
        start: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// There is no free RAM for a part.
    NoRoom {
        /// The part.
        part: Part,
        /// Bytes it needs in one piece.
        bytes: u64,
        /// It must end at or below this guest-physical address.
        below: u64,
    },
    /// The kernel takes no command line of this length.
    Cmdline {
        /// Bytes of the command line.
        bytes: u64,
        /// Most bytes the kernel takes.
        most: u64,
    },
    /// There are more of these than are taken.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are taken.
        most: u64,
    },
    /// The boot protocol has no way to pass this on.
    NotPassed {
        /// The protocol.
        protocol: Protocol,
        /// What can not be passed on.
        what: &'static str,
    },
    /// The guest's memory refused an access that its size allows: a fault of the hypervisor.
    Memory(MemoryError),
}

impl From<MemoryError> for LoadError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl core::error::Error for LoadError {}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unknown { start: [a, b, c, d], bytes } => write!(
                f,
                "neither a Linux bzImage, a multiboot or multiboot2 kernel nor a PVH ELF: the {bytes} bytes start with \
                 {a:02x} {b:02x} {c:02x} {d:02x}; unpack it if it is compressed, or say at which address a flat binary goes"
            ),
            Self::BareElf => f.write_str(
                "an ELF file without a multiboot header in its first 8 KiB, a multiboot2 header in its first 32 KiB or a \
                 PVH note (XEN_ELFNOTE_PHYS32_ENTRY); link one in, or make a flat binary of it",
            ),
            Self::NoAddresses => f.write_str(
                "a multiboot header without load addresses, but the file is not ELF; set the address fields (flag 16 or \
                 the address tag), or boot the ELF file",
            ),
            Self::Short { what, needed, have } => {
                write!(f, "{what} ends after {have} bytes but needs {needed}; copy the file again")
            }
            Self::Field { field, value, must } => write!(f, "{field} is {value:#x} but must be {must}"),
            Self::OutsideRam { part, start, bytes, memory } => outside_ram(f, part, start, bytes, memory),
            Self::Overlap { part, other, start, bytes } => {
                write!(f, "{part} ({bytes} bytes at {start:#x}) overlaps {other}; link or place it elsewhere")
            }
            Self::NoRoom { part, bytes, below } => {
                write!(f, "no RAM left for {part}: {bytes} bytes below {below:#x}; give the guest more memory")
            }
            Self::Cmdline { bytes, most } => {
                write!(f, "the command line has {bytes} bytes, this kernel takes {most}; shorten it")
            }
            Self::TooMany { what, most } => write!(f, "more than {most} {what}"),
            Self::NotPassed { protocol, what } => write!(f, "a {protocol} takes no {what}; leave it out"),
            Self::Memory(error) => write!(f, "guest memory refused {} bytes at {}", error.bytes, error.gpa),
        }
    }
}

fn outside_ram(f: &mut fmt::Formatter<'_>, part: Part, start: u64, bytes: u64, memory: u64) -> fmt::Result {
    write!(f, "{part} needs {bytes} bytes at {start:#x}; free RAM is there only in")?;
    for (number, range) in super::map::usable(memory).enumerate() {
        write!(f, "{} {:#x}-{:#x}", if number == 0 { "" } else { "," }, range.start, range.end)?;
    }
    match super::map::memory_for(start, bytes) {
        Some(needed) => write!(f, "; give the guest at least {} MiB of memory", needed.div_ceil(1 << 20)),
        None => f.write_str("; link it to another address"),
    }
}
