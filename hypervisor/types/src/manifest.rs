//! The packed manifest: what the host tool hands to the hypervisor.
//!
//! A *pack* is one blob: a [`PackHeader`], the [`Manifest`] in postcard's encoding right behind it, and then the images,
//! each at a page boundary. Offsets count from the start of the pack. The host tool writes it from a TOML file that it
//! has checked; the hypervisor checks it again with [`Manifest::check`], since nothing tells it who packed it.

use crate::{Barriers, PAGE_SIZE, VcpuId};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// First bytes of a pack.
pub const MAGIC: [u8; 8] = *b"BULKHEAD";
/// Version of the encoding; a pack of another version is refused.
pub const VERSION: u32 = 4;
/// Most guests of one machine.
pub const MAX_GUESTS: usize = 64;
/// Longest name of a guest or zone, in bytes.
pub const MAX_NAME: usize = 32;
/// Longest kernel command line, in bytes.
pub const MAX_CMDLINE: usize = 2047;
/// Most boot modules of a guest.
pub const MAX_MODULES: usize = 16;
/// Least memory of a guest, in bytes.
pub const MIN_MEMORY: u64 = 2 << 20;
/// Most memory of a guest, in bytes.
pub const MAX_MEMORY: u64 = 1 << 40;

/// Fixed start of a pack, little-endian, 32 bytes: magic, version, length of the manifest, length of the pack, zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackHeader {
    /// Bytes of the encoded manifest, which begins right behind the header.
    pub manifest_bytes: u32,
    /// Bytes of the whole pack, a multiple of 4096.
    pub pack_bytes: u64,
}

impl PackHeader {
    /// Size in bytes.
    pub const BYTES: usize = 32;

    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        let fields = MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(self.manifest_bytes.to_le_bytes())
            .chain(self.pack_bytes.to_le_bytes());
        for (to, from) in out.iter_mut().zip(fields) {
            *to = from;
        }
        out
    }

    /// Reads the header of the pack that starts with `bytes`.
    ///
    /// # Errors
    /// [`ManifestError::NotAPack`] or [`ManifestError::Version`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(ManifestError::NotAPack)?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(ManifestError::NotAPack)?;
        let (manifest_bytes, rest) = rest.split_first_chunk::<4>().ok_or(ManifestError::NotAPack)?;
        let (pack_bytes, _) = rest.split_first_chunk::<8>().ok_or(ManifestError::NotAPack)?;
        if *magic != MAGIC {
            return Err(ManifestError::NotAPack);
        }
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(ManifestError::Version(version));
        }
        Ok(Self { manifest_bytes: u32::from_le_bytes(*manifest_bytes), pack_bytes: u64::from_le_bytes(*pack_bytes) })
    }
}

/// One whole machine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// How guests' consoles share the serial line.
    pub console: ConsoleMode,
    /// Run the isolation audit each time a guest has ended, and at the end.
    pub audit: bool,
    /// Trust labels; a guest names one by its index.
    pub zones: Vec<Zone>,
    /// Guests; the first has number 1.
    pub guests: Vec<Guest>,
    /// What the peer of the control line has to know; without it there is no control line.
    pub control: Option<[u8; 32]>,
}

/// How the guests' consoles share the hypervisor's serial line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// For a person at a terminal: whole lines, each with its guest's name in front.
    #[default]
    Lines,
    /// For the host tool: every byte, told apart by channel switches (see the hypervisor's console module).
    Framed,
}

/// A trust label.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// What is done when a CPU goes between a guest of it and one of another zone.
    pub barriers: Barriers,
}

/// A range of the pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Image {
    /// Offset from the start of the pack, a multiple of 4096.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A boot module beyond the kernel: multiboot's modules, or the initial RAM disk of Linux (the first).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Module {
    /// Its content.
    pub image: Image,
    /// Its command line (multiboot).
    pub cmdline: String,
}

/// How a kernel image is to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum LoadAs {
    /// By what it is: bzImage, PVH ELF, multiboot.
    #[default]
    Detect,
    /// As bytes copied to guest-physical address `at` and entered there in 16-bit real mode (below 1 MiB) or 32-bit
    /// protected mode (from 1 MiB on).
    Flat {
        /// Guest-physical address of the first byte, and of the entry.
        at: u64,
    },
}

/// How much of the processors a guest gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CpuTime {
    /// Its weight among those that want to run, 1 to [`MAX_SHARE`].
    pub share: u32,
    /// The most that it gets, in thousandths of one processor; 0 if there is no limit.
    pub cap: u32,
    /// What it can save up below its cap and use above it, in microseconds.
    pub burst: u64,
    /// What is reserved for it, `budget` in each `period`, in microseconds; nothing if `period` is 0.
    pub period: u64,
    /// See `period`.
    pub budget: u64,
    /// The processors that it may use, a bit each; 0 for all.
    pub cpus: u64,
}

/// Most that a guest's share can be.
pub const MAX_SHARE: u32 = 10_000;
/// Most that a guest's cap can be, in thousandths of a processor.
pub const MAX_CAP: u32 = 64_000;
/// Longest burst and period, in microseconds.
pub const MAX_TIME: u64 = 60_000_000;

impl Default for CpuTime {
    fn default() -> Self {
        Self { share: 1, cap: 0, burst: 0, period: 0, budget: 0, cpus: 0 }
    }
}

impl CpuTime {
    /// Whether each field is in its range.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        let reserved = self.budget <= self.period && (self.budget == 0) == (self.period == 0);
        1 <= self.share
            && self.share <= MAX_SHARE
            && self.cap <= MAX_CAP
            && self.burst <= MAX_TIME
            && self.period <= MAX_TIME
            && reserved
    }
}

/// One guest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Guest {
    /// Its name, unique, of letters, digits, `-` and `_`.
    pub name: String,
    /// Its zone: an index into [`Manifest::zones`].
    pub zone: u16,
    /// Its kernel.
    pub kernel: Image,
    /// How to take the kernel.
    pub load: LoadAs,
    /// Kernel command line.
    pub cmdline: String,
    /// Boot modules.
    pub modules: Vec<Module>,
    /// RAM in bytes, a multiple of 4096.
    pub memory: u64,
    /// Leave RAM unmapped until it is first touched (4-KiB pages), instead of mapping all of it at the start.
    pub lazy: bool,
    /// Virtual CPUs: 1 to [`VcpuId::MOST`].
    pub vcpus: u16,
    /// Its part of the processors.
    pub cpu: CpuTime,
    /// Times that it is made anew after it has ended.
    pub restarts: u16,
    /// Seconds after its start at which it is stopped; 0 for never.
    pub lease: u64,
    /// SHA-256 of the kernel and the modules, one behind the other, as whoever packed them worked it out.
    pub origin: [u8; 32],
    /// The test exit at port 0xF4.
    pub test_exit: bool,
    /// The MMIO test device (a page of registers that remember what was written; see the devices crate).
    pub test_device: bool,
}

/// What is wrong with a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ManifestError {
    /// It does not start with the magic.
    NotAPack,
    /// It is of another version.
    Version(u32),
    /// Its manifest does not decode.
    Encoding,
    /// It is shorter than its header says, or not a whole number of pages.
    Length,
    /// It has no guest, or more than [`MAX_GUESTS`].
    GuestCount(usize),
    /// A guest's field is out of its range.
    Guest {
        /// Index of the guest, from 0.
        index: usize,
        /// The field's name.
        field: &'static str,
    },
    /// A zone's name is empty, too long, or not printable.
    Zone(usize),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPack => {
                f.write_str("no pack of guests (it has not the magic BULKHEAD): make one with `hv image`")
            }
            Self::Version(v) => {
                write!(f, "pack of version {v}, this hypervisor takes {VERSION}: pack it again with its own `hv`")
            }
            Self::Encoding => f.write_str("the pack's manifest does not decode: pack it again"),
            Self::Length => f.write_str("the pack is cut short: pack or copy it again"),
            Self::GuestCount(n) => write!(f, "{n} guests; a machine has 1 to {MAX_GUESTS}"),
            Self::Guest { index, field } => write!(f, "guest {} has a wrong {field}", index + 1),
            Self::Zone(index) => write!(f, "zone {} has a wrong name", index + 1),
        }
    }
}

/// Whether `name` can name a guest or a zone.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl Manifest {
    /// Decodes and checks the manifest of the pack that starts with `bytes` (at least header and manifest).
    ///
    /// # Errors
    /// What is wrong, see [`ManifestError`].
    pub fn from_pack(bytes: &[u8]) -> Result<(PackHeader, Self), ManifestError> {
        let header = PackHeader::decode(bytes)?;
        let start = PackHeader::BYTES;
        let end = usize::try_from(header.manifest_bytes).ok().and_then(|n| start.checked_add(n));
        let encoded = end.and_then(|end| bytes.get(start..end)).ok_or(ManifestError::Length)?;
        let manifest: Self = postcard::from_bytes(encoded).map_err(|_| ManifestError::Encoding)?;
        manifest.check(header.pack_bytes)?;
        Ok((header, manifest))
    }

    /// Checks every field against its range, for a pack of `pack_bytes` bytes.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, pack_bytes: u64) -> Result<(), ManifestError> {
        if !pack_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(ManifestError::Length);
        }
        if self.guests.is_empty() || self.guests.len() > MAX_GUESTS {
            return Err(ManifestError::GuestCount(self.guests.len()));
        }
        for (index, zone) in self.zones.iter().enumerate() {
            if !is_name(&zone.name) {
                return Err(ManifestError::Zone(index));
            }
        }
        for (index, guest) in self.guests.iter().enumerate() {
            let earlier = self.guests.iter().take(index);
            let wrong = guest.wrong_field(self.zones.len(), pack_bytes);
            let twice = earlier.clone().any(|other| other.name == guest.name).then_some("name (used twice)");
            let taken = |image: Image| earlier.clone().flat_map(Self::images_of).any(|other| image.overlaps(other));
            let shared = Self::images_of(guest).any(taken).then_some("image (another guest's)");
            if let Some(field) = wrong.or(twice).or(shared) {
                return Err(ManifestError::Guest { index, field });
            }
        }
        Ok(())
    }

    fn images_of(guest: &Guest) -> impl Iterator<Item = Image> {
        guest.modules.iter().map(|module| module.image).chain([guest.kernel])
    }
}

impl Image {
    /// Whether they have a byte in common. Images begin at pages, so that no page is of two.
    const fn overlaps(self, other: Self) -> bool {
        self.offset < other.offset.saturating_add(other.bytes) && other.offset < self.offset.saturating_add(self.bytes)
    }
}

impl Guest {
    fn wrong_field(&self, zones: usize, pack_bytes: u64) -> Option<&'static str> {
        let image_fits = |image: &Image| {
            image.offset.is_multiple_of(PAGE_SIZE)
                && image.offset != 0
                && image.offset.checked_add(image.bytes).is_some_and(|end| end <= pack_bytes)
        };
        let is_cmdline = |text: &str| text.len() <= MAX_CMDLINE && !text.contains('\0');
        let module_fits = |module: &Module| image_fits(&module.image) && is_cmdline(&module.cmdline);
        let checks = [
            (is_name(&self.name), "name"),
            (usize::from(self.zone) < zones, "zone"),
            (self.kernel.bytes != 0 && image_fits(&self.kernel), "kernel"),
            (self.modules.len() <= MAX_MODULES && self.modules.iter().all(module_fits), "modules"),
            (is_cmdline(&self.cmdline), "cmdline"),
            (self.memory.is_multiple_of(PAGE_SIZE) && (MIN_MEMORY..=MAX_MEMORY).contains(&self.memory), "memory"),
            ((1..=u16::from(VcpuId::MOST)).contains(&self.vcpus), "vcpus"),
            (self.cpu.is_sound(), "cpu time (share, cap, burst or reservation)"),
        ];
        checks.into_iter().find_map(|(right, field)| (!right).then_some(field))
    }
}

#[cfg(test)]
mod tests {
    use super::{Guest, Image, MAX_CMDLINE, Manifest, ManifestError, Module, PackHeader, Zone};
    use crate::Barriers;
    use alloc::vec;

    fn good() -> Manifest {
        Manifest {
            zones: vec![Zone { name: "a".into(), barriers: Barriers::ALL }],
            guests: vec![Guest {
                name: "g".into(),
                kernel: Image { offset: 4096, bytes: 10 },
                memory: 2 << 20,
                vcpus: 1,
                ..Guest::default()
            }],
            ..Manifest::default()
        }
    }

    #[test]
    fn a_pack_comes_back_as_it_was() {
        let encoded = postcard::to_allocvec(&good()).unwrap();
        let header = PackHeader { manifest_bytes: u32::try_from(encoded.len()).unwrap(), pack_bytes: 8192 };
        let mut pack = header.encode().to_vec();
        pack.extend(&encoded);
        assert_eq!(Manifest::from_pack(&pack), Ok((header, good())));
        for cut in 0..pack.len() {
            assert!(Manifest::from_pack(&pack[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Spoil = fn(&mut Guest);
        let module = |cmdline: &str| Module { image: good().guests[0].kernel, cmdline: cmdline.into() };
        let mut with_module = good();
        with_module.guests[0].modules.push(module(&"a".repeat(MAX_CMDLINE)));
        assert_eq!(with_module.check(8192), Ok(()));
        for cmdline in ["a\0b", &"a".repeat(MAX_CMDLINE + 1)] {
            with_module.guests[0].modules[0] = module(cmdline);
            assert_eq!(with_module.check(8192), Err(ManifestError::Guest { index: 0, field: "modules" }));
        }
        let cpu = "cpu time (share, cap, burst or reservation)";
        let wrong: [(Spoil, &str); 11] = [
            (|g| g.name.push(' '), "name"),
            (|g| g.zone = 1, "zone"),
            (|g| g.kernel.bytes = 1 << 40, "kernel"),
            (|g| g.kernel.offset = u64::MAX - 4095, "kernel"),
            (|g| g.memory = 4095, "memory"),
            (|g| g.vcpus = 0, "vcpus"),
            (|g| g.vcpus = 9, "vcpus"),
            (|g| g.cpu.share = 0, cpu),
            (|g| g.cpu.cap = 64_001, cpu),
            (|g| g.cpu.budget = 1, cpu),
            (|g| (g.cpu.period, g.cpu.budget) = (5, 6), cpu),
        ];
        for (spoil, field) in wrong {
            let mut manifest = good();
            spoil(&mut manifest.guests[0]);
            assert_eq!(manifest.check(8192), Err(ManifestError::Guest { index: 0, field }));
        }
    }

    #[test]
    fn no_image_is_of_two_guests() {
        let image = |offset, bytes| Image { offset, bytes };
        let two = |kernel: Image, module: Option<Image>| {
            let mut manifest = good();
            manifest.guests[0].kernel = image(0x2000, 0x1001); // two pages
            manifest.guests[0].modules.push(Module { image: image(0x6000, 0x1000), ..Module::default() });
            let mut second = Guest { name: "h".into(), kernel, ..manifest.guests[0].clone() };
            second.modules = module.map(|image| Module { image, ..Module::default() }).into_iter().collect();
            manifest.guests.push(second);
            manifest.check(0x10000)
        };
        let taken = Err(ManifestError::Guest { index: 1, field: "image (another guest's)" });
        let free = image(0x8000, 0x2000);
        for other in [image(0x1000, 0x1000), image(0x4000, 0x2000), image(0x7000, 0x9000)] {
            assert_eq!(two(other, None), Ok(()), "{other:?}");
            assert_eq!(two(free, Some(other)), Ok(()), "{other:?}");
        }
        let overlapping = [
            image(0x2000, 0x1001), // the same
            image(0x2000, 1),      // its first byte
            image(0x3000, 1),      // its last byte
            image(0x1000, 0x1001), // from before it
            image(0x1000, 0xF000), // all around it
            image(0x6000, 0x1000), // the module
            image(0x5000, 0x1001), // into the module
        ];
        for other in overlapping {
            assert_eq!(two(other, None), taken, "{other:?}");
            assert_eq!(two(free, Some(other)), taken, "{other:?}");
        }
    }
}
