//! The three formats of page-table entries, by the manuals.
//!
//! Host: SDM vol. 3, 4.5 "4-Level Paging and 5-Level Paging". EPT: SDM vol. 3, 29.3.2 "EPT Translation Mechanism" and
//! 29.3.3.1 "EPT Misconfigurations". Nested: APM vol. 2, 15.25 "Nested Paging", whose entries are those of long mode; a
//! guest's accesses count as user accesses, so that an entry without the user bit lets nothing through. Level 4 is the
//! root, level 1 the table of 4-KiB pages.

/// Which processor feature walks a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// 4-level paging of the hypervisor itself.
    Host,
    /// Intel's extended page tables.
    Ept,
    /// AMD's nested page tables.
    Npt,
}

impl Format {
    /// As people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host tables",
            Self::Ept => "EPT",
            Self::Npt => "NPT",
        }
    }
}

/// What an access through an entry may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// Write.
    pub write: bool,
    /// Fetch instructions.
    pub execute: bool,
    /// From privilege level 3 (host), or from a guest at all (nested).
    pub user: bool,
}

impl Rights {
    /// All of them.
    pub const ALL: Self = Self { write: true, execute: true, user: true };

    /// What passes both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { write: self.write && other.write, execute: self.execute && other.execute, user: self.user && other.user }
    }
}

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is there.
    Absent,
    /// The table of the next level.
    Table(u64, Rights),
    /// A page.
    Page(u64, Rights),
    /// The processor refuses it.
    Malformed,
}

/// Bits 51:12.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const LARGE: u64 = 1 << 7;

/// Bytes of the page that an entry of this level can map.
#[must_use]
pub const fn page_bytes(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// Understands an entry of this level, 4 to 1.
#[must_use]
pub fn decode(format: Format, level: u32, entry: u64) -> Entry {
    match format {
        Format::Host | Format::Npt => long_mode(level, entry),
        Format::Ept => ept(level, entry),
    }
}

fn long_mode(level: u32, entry: u64) -> Entry {
    if entry & 1 == 0 {
        return Entry::Absent;
    }
    let rights = Rights { write: entry & 2 != 0, execute: entry >> 63 == 0, user: entry & 4 != 0 };
    let large = entry & LARGE != 0;
    match level {
        1 => Entry::Page(entry & ADDRESS, rights),
        2 | 3 if large => {
            // Bit 12 is the PAT bit of a large page; the others below its address are reserved.
            let below = (page_bytes(level) - 1) & ADDRESS & !(1 << 12);
            if entry & below != 0 {
                return Entry::Malformed;
            }
            Entry::Page(entry & ADDRESS & !(page_bytes(level) - 1), rights)
        }
        4 if large => Entry::Malformed,
        _ => Entry::Table(entry & ADDRESS, rights),
    }
}

fn ept(level: u32, entry: u64) -> Entry {
    if entry & 7 == 0 {
        return Entry::Absent;
    }
    let rights = Rights { write: entry & 2 != 0, execute: entry & 4 != 0, user: true };
    // Writable and not readable.
    if entry & 3 == 2 {
        return Entry::Malformed;
    }
    let page = level == 1 || (level < 4 && entry & LARGE != 0);
    if page {
        let memory_type = (entry >> 3) & 7;
        let below = (page_bytes(level) - 1) & ADDRESS;
        if matches!(memory_type, 2 | 3 | 7) || entry & below != 0 {
            return Entry::Malformed;
        }
        return Entry::Page(entry & ADDRESS, rights);
    }
    // Bits 6:3 are reserved, and bit 7 in the root.
    let reserved = if level == 4 { 0xF8 } else { 0x78 };
    if entry & reserved != 0 { Entry::Malformed } else { Entry::Table(entry & ADDRESS, rights) }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Format, Rights, decode};

    const RW: Rights = Rights { write: true, execute: true, user: false };

    #[test]
    fn long_mode_entries_are_read_as_the_manual_has_them() {
        assert_eq!(decode(Format::Host, 4, 0x5000_0002), Entry::Absent);
        assert_eq!(decode(Format::Host, 4, 0x5063), Entry::Table(0x5000, RW));
        assert_eq!(decode(Format::Host, 4, 0x50E3), Entry::Malformed);
        assert_eq!(decode(Format::Host, 2, 0x0020_10E3), Entry::Page(0x20_0000, RW));
        assert_eq!(decode(Format::Host, 2, 0x0020_20E3), Entry::Malformed);
        assert_eq!(decode(Format::Host, 1, 0x50E3), Entry::Page(0x5000, RW));
        let none = Rights { write: false, execute: false, user: true };
        assert_eq!(decode(Format::Npt, 1, 1 << 63 | 0x5005), Entry::Page(0x5000, none));
    }

    #[test]
    fn ept_entries_are_read_as_the_manual_has_them() {
        let all = Rights::ALL;
        assert_eq!(decode(Format::Ept, 4, 0x5000), Entry::Absent);
        assert_eq!(decode(Format::Ept, 4, 0x5007), Entry::Table(0x5000, all));
        assert_eq!(decode(Format::Ept, 4, 0x5087), Entry::Malformed);
        assert_eq!(decode(Format::Ept, 2, 0x20_00B7), Entry::Page(0x20_0000, all));
        assert_eq!(decode(Format::Ept, 2, 0x20_10B7), Entry::Malformed);
        assert_eq!(decode(Format::Ept, 1, 0x5032), Entry::Malformed, "written, not read");
        assert_eq!(decode(Format::Ept, 1, 0x501F), Entry::Malformed, "memory type 3");
    }
}
