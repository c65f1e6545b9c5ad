//! What an entry's bits mean: the formats of the host's tables and of the two kinds of nested tables.

use crate::{LEVELS, PagingError};
use bulkhead_types::Hpa;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// Instructions can be fetched from it.
    pub execute: bool,
    /// Code at privilege level 3 may use it too. Found when reading tables; never granted.
    pub user: bool,
}

impl Access {
    /// Read only.
    pub const READ: Self = Self { read: true, write: false, execute: false, user: false };
    /// Read and write.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };
    /// Read and execute.
    pub const READ_EXECUTE: Self = Self { execute: true, ..Self::READ };
    /// Read, write and execute: for guests' own memory only.
    pub const ALL: Self = Self { write: true, execute: true, ..Self::READ };

    /// What both allow.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            write: self.write && other.write,
            execute: self.execute && other.execute,
            user: self.user && other.user,
        }
    }
}

/// How a page is cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Ordinary memory.
    WriteBack,
    /// Device registers.
    Uncached,
}

/// Size of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Size {
    /// 4 KiB.
    Page4K,
    /// 2 MiB.
    Page2M,
    /// 1 GiB.
    Page1G,
}

impl Size {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << crate::shift(self.level())
    }

    /// Level of the table whose entry maps such a page.
    #[must_use]
    pub const fn level(self) -> u32 {
        match self {
            Self::Page4K => 1,
            Self::Page2M => 2,
            Self::Page1G => 3,
        }
    }

    /// Size of the pages that entries of a table of `level` map.
    pub(crate) const fn of_level(level: u32) -> Option<Self> {
        match level {
            1 => Some(Self::Page4K),
            2 => Some(Self::Page2M),
            3 => Some(Self::Page1G),
            _ => None,
        }
    }
}

/// A mapped page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Its first byte.
    pub page: Hpa,
    /// Its size.
    pub size: Size,
    /// What this entry allows; the tables above it may allow less.
    pub access: Access,
    /// How it is cached.
    pub memory: Memory,
}

/// An entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is mapped.
    Absent,
    /// A table of the next level.
    Table {
        /// Its address.
        table: Hpa,
        /// The most that anything below it may allow.
        allows: Access,
    },
    /// A page.
    Leaf(Leaf),
    /// Reserved bits are set, or bits that this code never writes.
    Malformed,
}

/// The meaning of an entry's bits.
pub trait Format {
    /// The entry for the table at `table`, which restricts nothing.
    fn table(table: Hpa) -> u64;

    /// The entry for a page, aligned to its size.
    ///
    /// # Errors
    /// [`PagingError::Access`] if the format can not express the access, or refuses it.
    fn leaf(leaf: Leaf) -> Result<u64, PagingError>;

    /// Reads an entry of a table of `level`.
    fn decode(entry: u64, level: u32) -> Entry;

    /// Whether the bytes from `first` to `last` (inclusive) can be mapped.
    fn spans(first: u64, last: u64) -> bool;
}

/// Bits 51:12, where every format holds the physical address.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Bit 7, in every format: the entry maps a large page.
const LARGE: u64 = 1 << 7;

/// The page that an entry of a table of `level` maps; malformed at the root, or where the page is not aligned to its size.
fn page(entry: u64, level: u32, access: Access, memory: Memory) -> Entry {
    let page = Hpa::new(entry & ADDRESS);
    match Size::of_level(level) {
        Some(size) if page.is_aligned(size.bytes()) => Entry::Leaf(Leaf { page, size, access, memory }),
        _ => Entry::Malformed,
    }
}

/// `start` with the bits whose condition holds.
fn with(start: Hpa, bits: &[(bool, u64)]) -> u64 {
    bits.iter().filter(|(set, _)| *set).fold(start.as_u64(), |entry, (_, bits)| entry | bits)
}

/// The hypervisor's own 4-level tables. SDM vol. 3A 4.5.4 "Linear-Address Translation with 4-Level Paging and 5-Level
/// Paging".
///
/// Counts on CR0.WP, EFER.NXE, and the first four entries of the PAT as at reset (4.9.2 "Paging and Memory Typing When the
/// PAT is Supported"). Accessed and dirty are set from the start: the processor then never writes to a table. No page is
/// global, since the same address is another frame in every compartment.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Host {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    /// Page-level write-through and cache disable together: PAT entry 3, uncached.
    const UNCACHED: u64 = 1 << 3 | 1 << 4;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    /// The third bit of the PAT index, in a 4-KiB leaf.
    const PAT: u64 = 1 << 7;
    /// The third bit of the PAT index, in a larger leaf.
    const PAT_LARGE: u64 = 1 << 12;
    const NO_EXECUTE: u64 = 1 << 63;

    const fn access(entry: u64) -> Access {
        Access {
            read: true,
            write: entry & Self::WRITE != 0,
            execute: entry & Self::NO_EXECUTE == 0,
            user: entry & Self::USER != 0,
        }
    }

    /// The entry for a page, whatever its access.
    fn page_entry(leaf: Leaf) -> u64 {
        let bits = &[
            (true, Self::PRESENT | Self::ACCESSED | Self::DIRTY),
            (leaf.access.write, Self::WRITE),
            (leaf.access.user, Self::USER),
            (!leaf.access.execute, Self::NO_EXECUTE),
            (leaf.memory == Memory::Uncached, Self::UNCACHED),
            (leaf.size != Size::Page4K, LARGE),
        ];
        with(leaf.page, bits)
    }
}

impl Format for Host {
    fn table(table: Hpa) -> u64 {
        table.as_u64() | Self::PRESENT | Self::WRITE | Self::ACCESSED
    }

    fn leaf(leaf: Leaf) -> Result<u64, PagingError> {
        let Access { read, write, execute, user } = leaf.access;
        if !read || user || (write && execute) {
            return Err(PagingError::Access);
        }
        Ok(Self::page_entry(leaf))
    }

    fn decode(entry: u64, level: u32) -> Entry {
        if entry & Self::PRESENT == 0 {
            return Entry::Absent;
        }
        if level != 1 && entry & LARGE == 0 {
            return Entry::Table { table: Hpa::new(entry & ADDRESS), allows: Self::access(entry) };
        }
        let pat = if level == 1 { Self::PAT } else { Self::PAT_LARGE };
        let memory = match entry & (Self::UNCACHED | pat) {
            0 => Memory::WriteBack,
            Self::UNCACHED => Memory::Uncached,
            _ => return Entry::Malformed,
        };
        page(entry, level, Self::access(entry), memory)
    }

    /// Canonical, and both ends in the same half. SDM vol. 1 3.3.7.1 "Canonical Addressing".
    fn spans(first: u64, last: u64) -> bool {
        const HALF: u32 = 47;
        let top = first >> HALF;
        first <= last && top == last >> HALF && (top == 0 || top == u64::MAX >> HALF)
    }
}

/// The nested tables of VT-x. SDM vol. 3C 29.3.2 "EPT Translation Mechanism" and 29.3.3.1 "EPT Misconfigurations".
///
/// Execute-only pages are not used (not every processor has them), nor are accessed and dirty bits (ignored when read).
#[derive(Clone, Copy, Debug)]
pub struct Ept;

impl Ept {
    const READ: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const EXECUTE: u64 = 1 << 2;
    const PERMISSIONS: u64 = Self::READ | Self::WRITE | Self::EXECUTE;
    /// Memory type of a leaf, as in the MTRRs: 0 uncached, 6 write-back.
    const TYPE: u64 = 0b111 << 3;
    const WRITE_BACK: u64 = 6 << 3;
    /// The guest's PAT is ignored.
    const IGNORE_PAT: u64 = 1 << 6;

    const fn access(entry: u64) -> Access {
        Access {
            read: entry & Self::READ != 0,
            write: entry & Self::WRITE != 0,
            execute: entry & Self::EXECUTE != 0,
            user: false,
        }
    }
}

impl Format for Ept {
    fn table(table: Hpa) -> u64 {
        table.as_u64() | Self::PERMISSIONS
    }

    fn leaf(leaf: Leaf) -> Result<u64, PagingError> {
        let Access { read, write, execute, user } = leaf.access;
        if !read || user {
            return Err(PagingError::Access);
        }
        let bits = &[
            (true, Self::READ),
            (write, Self::WRITE),
            (execute, Self::EXECUTE),
            (leaf.memory == Memory::WriteBack, Self::WRITE_BACK),
            (leaf.size != Size::Page4K, LARGE),
        ];
        Ok(with(leaf.page, bits))
    }

    fn decode(entry: u64, level: u32) -> Entry {
        if entry & Self::PERMISSIONS == 0 {
            return Entry::Absent;
        }
        let access = Self::access(entry);
        if !access.read {
            return Entry::Malformed;
        }
        if level != 1 && entry & LARGE == 0 {
            let reserved = entry & (Self::TYPE | Self::IGNORE_PAT) != 0;
            let table = Entry::Table { table: Hpa::new(entry & ADDRESS), allows: access };
            return if reserved { Entry::Malformed } else { table };
        }
        let memory = match entry & (Self::TYPE | Self::IGNORE_PAT) {
            0 => Memory::Uncached,
            Self::WRITE_BACK => Memory::WriteBack,
            _ => return Entry::Malformed,
        };
        page(entry, level, access, memory)
    }

    /// Below 2^48, the reach of four levels.
    fn spans(first: u64, last: u64) -> bool {
        first <= last && last >> crate::shift(LEVELS + 1) == 0
    }
}

/// The nested tables of SVM: the host's own format (4-level, since the host runs in long mode), in which every access of
/// the guest counts as one of a user. APM vol. 2 15.25.5 "Nested Table Walk", 5.3 "Long-Mode Page Translation".
///
/// A guest's page may be writable and executable: which of its pages are is the guest's affair. Counts on EFER.NXE of the
/// host, and on the first four entries of the host's PAT, as [`Host`] does.
#[derive(Clone, Copy, Debug)]
pub struct Npt;

impl Format for Npt {
    fn table(table: Hpa) -> u64 {
        Host::table(table) | Host::USER
    }

    fn leaf(leaf: Leaf) -> Result<u64, PagingError> {
        if !leaf.access.read || leaf.access.user {
            return Err(PagingError::Access);
        }
        Ok(Host::page_entry(Leaf { access: Access { user: true, ..leaf.access }, ..leaf }))
    }

    fn decode(entry: u64, level: u32) -> Entry {
        let guests = |access: Access| Access { user: false, ..access };
        match Host::decode(entry, level) {
            Entry::Table { table, allows } if allows.user => Entry::Table { table, allows: guests(allows) },
            Entry::Leaf(leaf) if leaf.access.user => Entry::Leaf(Leaf { access: guests(leaf.access), ..leaf }),
            // No access of a guest ever passes it.
            Entry::Table { .. } | Entry::Leaf(_) => Entry::Malformed,
            other => other,
        }
    }

    /// Below 2^48, the reach of four levels.
    fn spans(first: u64, last: u64) -> bool {
        Ept::spans(first, last)
    }
}
