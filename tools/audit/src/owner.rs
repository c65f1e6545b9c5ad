//! The hypervisor's own view of who owns a frame: its frame table, read from the dump.
//!
//! Four bytes a frame: bits 15:0 the guest (0 the idle compartment) or the channel's two guests (7:0, 15:8), 23:16 what
//! it is, 24 may hold what an earlier owner left, 31:30 marks that mean nothing here. The audit does not trust it: what
//! tables map is held against it, and each difference is a violation.

use crate::PAGE;
use crate::dump::{Dump, read32};
use crate::layout;
use crate::walk::translate;
use std::fmt;

/// What a guest's frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// The guest's own memory.
    Ram,
    /// Page tables.
    Tables,
    /// What the hypervisor keeps about it.
    State,
    /// What it was started from.
    Image,
}

/// Whose a frame is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// No memory, or an entry that means nothing.
    Absent,
    /// The firmware's.
    Firmware,
    /// A device's registers.
    Device,
    /// Nobody's.
    Free,
    /// The hypervisor's: its shared part. The code as in the table.
    Hypervisor(u8),
    /// A compartment's.
    Guest(u16, Use),
    /// Shared by two guests.
    Channel(u8, u8),
}

impl Owner {
    /// Understands an entry.
    #[must_use]
    pub fn of(entry: u32) -> Self {
        let [low, high, code, _] = entry.to_le_bytes();
        let guest = u16::from_le_bytes([low, high]);
        match code {
            1 => Self::Firmware,
            2 => Self::Device,
            3 => Self::Free,
            0x10..=0x15 => Self::Hypervisor(code),
            0x20 => Self::Guest(guest, Use::Ram),
            0x21 => Self::Guest(guest, Use::Tables),
            0x22 => Self::Guest(guest, Use::State),
            0x23 => Self::Guest(guest, Use::Image),
            0x30 => Self::Channel(low, high),
            _ => Self::Absent,
        }
    }

    /// Page tables, of whatever.
    pub(crate) fn is_tables(self) -> bool {
        matches!(self, Self::Hypervisor(0x13) | Self::Guest(_, Use::Tables))
    }

    /// Whether the hypervisor keeps its own data there, shared or a compartment's; no page tables.
    pub(crate) fn is_hypervisors_data(self) -> bool {
        matches!(self, Self::Hypervisor(0x12) | Self::Guest(_, Use::State))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nobody (no memory)"),
            Self::Firmware => f.write_str("the firmware"),
            Self::Device => f.write_str("a device"),
            Self::Free => f.write_str("nobody (free)"),
            Self::Hypervisor(code) => {
                let parts = ["code", "constants", "variables", "shared tables", "frame table", "start-up"];
                let part = parts.get(usize::from(code & 0xF)).copied().unwrap_or("?");
                write!(f, "the hypervisor ({part})")
            }
            Self::Guest(0, what) => write!(f, "the idle compartment ({what:?})"),
            Self::Guest(guest, what) => write!(f, "guest {guest} ({what:?})"),
            Self::Channel(a, b) => write!(f, "the channel of guests {a} and {b}"),
        }
    }
}

/// The frame table of a dump.
#[derive(Clone, Debug)]
pub struct Owners {
    entries: Vec<u32>,
}

impl Owners {
    /// Reads it through the tables of `root`.
    #[must_use]
    pub fn read(dump: &Dump, root: u64) -> Self {
        let mut entries = Vec::new();
        for offset in (0..layout::FRAME_TABLE_BYTES).step_by(4096) {
            let page = translate(dump, root, layout::FRAME_TABLE + offset).and_then(|(page, _)| dump.frame(page));
            let Some(page) = page else { break };
            entries.extend((0..4096).step_by(4).map(|at| read32(page, at).unwrap_or_default()));
        }
        Self { entries }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whose the frame at this physical address is said to be.
    #[must_use]
    pub fn of(&self, address: u64) -> Owner {
        let index = usize::try_from(address / PAGE).ok();
        index.and_then(|index| self.entries.get(index)).map_or(Owner::Absent, |entry| Owner::of(*entry))
    }
}
