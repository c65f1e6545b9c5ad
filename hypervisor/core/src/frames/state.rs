//! What the frame table says of one frame.

use bulkhead_types::GuestId;
use core::fmt;

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Nobody's: there is no memory there.
    Absent,
    /// The firmware's, or reserved in its memory map.
    Firmware,
    /// A device's registers.
    Device,
    /// Nobody's yet.
    Free,
    /// The hypervisor's: shared by all compartments, and without any guest's content.
    Hypervisor(Part),
    /// A guest's compartment's ([`GuestId::IDLE`]: of a CPU that serves no guest).
    Guest(GuestId, Use),
}

/// A part of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Code of its image.
    Text,
    /// Constants of its image.
    Rodata,
    /// Variables of its image.
    Data,
    /// Page tables of what all compartments share.
    Tables,
    /// The frame table itself.
    FrameTable,
    /// What the boot loader left and nobody has taken over.
    Boot,
}

/// What a guest's frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Its memory.
    Ram,
    /// Page tables: its host address space's own, and its nested ones.
    Tables,
    /// Everything the hypervisor keeps about it: vCPUs, control structures, bitmaps, devices, stacks.
    State,
    /// What it is started from: kernel and modules as the boot loader brought them.
    Image,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nobody (no memory)"),
            Self::Firmware => f.write_str("the firmware"),
            Self::Device => f.write_str("a device"),
            Self::Free => f.write_str("nobody (free)"),
            Self::Hypervisor(part) => write!(f, "the hypervisor ({part:?})"),
            Self::Guest(GuestId::IDLE, what) => write!(f, "the idle compartment ({what:?})"),
            Self::Guest(guest, what) => write!(f, "guest {guest} ({what:?})"),
        }
    }
}

/// One entry of the frame table. Every value of its 32 bits is one: what means nothing reads as [`Owner::Absent`].
///
/// Bits 15:0 the guest, 23:16 what it is, 24 may hold what an earlier owner left, 31:30 marks of an audit under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct FrameState(u32);

const _: () = assert!(size_of::<FrameState>() == 4);

/// What an audit has seen a frame as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Mark {
    /// As a page table.
    Table = 1 << 30,
    /// As a page of nested tables.
    Nested = 1 << 31,
}

impl FrameState {
    /// Set in the code of what is a guest's, and in no other.
    const GUESTS: u32 = 0x20 << 16;
    const DIRTY: u32 = 1 << 24;
    const MARKS: u32 = 3 << 30;

    pub(crate) fn new(owner: Owner, dirty: bool) -> Self {
        let (code, guest) = match owner {
            Owner::Absent => (0, 0),
            Owner::Firmware => (1, 0),
            Owner::Device => (2, 0),
            Owner::Free => (3, 0),
            Owner::Hypervisor(Part::Text) => (0x10, 0),
            Owner::Hypervisor(Part::Rodata) => (0x11, 0),
            Owner::Hypervisor(Part::Data) => (0x12, 0),
            Owner::Hypervisor(Part::Tables) => (0x13, 0),
            Owner::Hypervisor(Part::FrameTable) => (0x14, 0),
            Owner::Hypervisor(Part::Boot) => (0x15, 0),
            Owner::Guest(guest, Use::Ram) => (0x20, guest.number()),
            Owner::Guest(guest, Use::Tables) => (0x21, guest.number()),
            Owner::Guest(guest, Use::State) => (0x22, guest.number()),
            Owner::Guest(guest, Use::Image) => (0x23, guest.number()),
        };
        Self(code << 16 | u32::from(guest) | if dirty { Self::DIRTY } else { 0 })
    }

    /// Whatever memory held.
    #[cfg(test)]
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) fn owner(&self) -> Owner {
        let [low, high, code, _] = self.0.to_le_bytes();
        let guest = GuestId::new(u16::from_le_bytes([low, high]));
        match code {
            1 => Owner::Firmware,
            2 => Owner::Device,
            3 => Owner::Free,
            0x10 => Owner::Hypervisor(Part::Text),
            0x11 => Owner::Hypervisor(Part::Rodata),
            0x12 => Owner::Hypervisor(Part::Data),
            0x13 => Owner::Hypervisor(Part::Tables),
            0x14 => Owner::Hypervisor(Part::FrameTable),
            0x15 => Owner::Hypervisor(Part::Boot),
            0x20 => Owner::Guest(guest, Use::Ram),
            0x21 => Owner::Guest(guest, Use::Tables),
            0x22 => Owner::Guest(guest, Use::State),
            0x23 => Owner::Guest(guest, Use::Image),
            _ => Owner::Absent,
        }
    }

    /// Whether it is nobody's; quicker than to ask for the owner.
    pub(crate) fn is_free(&self) -> bool {
        self.0 & !(Self::DIRTY | Self::MARKS) == Self::new(Owner::Free, false).0
    }

    /// Whether it is a guest's; quicker than to ask for the owner.
    pub(crate) fn is_guests(&self) -> bool {
        self.0 & Self::GUESTS != 0
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    pub(crate) fn set_clean(&mut self) {
        self.0 &= !Self::DIRTY;
    }

    pub(crate) fn without_marks(self) -> Self {
        Self(self.0 & !Self::MARKS)
    }

    /// Sets a mark; says whether it was set already.
    pub(crate) fn note(&mut self, mark: Mark) -> bool {
        let before = self.0;
        self.0 |= mark as u32;
        self.0 == before
    }
}
