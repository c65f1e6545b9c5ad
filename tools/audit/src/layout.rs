//! What of the hypervisor's layout the audit relies on; ARCHITECTURE.md promises it.

/// The entry of a host root on which all that is shared hangs.
pub const SHARED_SLOT: u64 = 511;
/// Where the frame table is mapped: four bytes a frame, from frame 0 on.
pub const FRAME_TABLE: u64 = 0xFFFF_FF80_0000_0000;
/// Most bytes that the frame table has: a tebibyte of memory.
pub const FRAME_TABLE_BYTES: u64 = 1 << 30;
/// The one page outside RAM that host tables may map: the local APIC's registers.
pub const LOCAL_APIC: u64 = 0xFEE0_0000;
/// A guest's RAM goes up to here, and on from 4 GiB.
pub const GUEST_HOLE: u64 = 0xC000_0000;
/// First guest-physical address behind the hole.
pub const GUEST_HIGH: u64 = 1 << 32;
