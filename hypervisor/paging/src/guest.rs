//! A guest's own page tables, walked as its processor would.
//!
//! [`walk`] turns a linear address into a guest-physical one under the guest's control registers: no paging, 32-bit
//! paging with 4-MiB pages and PSE-36, PAE paging from the cached PDPTEs, and 4-level paging with 2-MiB and 1-GiB pages;
//! with write protection, no-execute, SMEP, SMAP, reserved bits, and accessed and dirty bits. The fault that it returns
//! carries the error code that the processor would push. Not there, since the machine does not offer them to a guest:
//! 5-level paging, protection keys, shadow stacks.
//!
//! Each table entry is read once. Accessed and dirty bits are set only after the whole access was found allowed, each by
//! a compare-exchange: an entry that another processor of the guest changes meanwhile is never overwritten.
//!
//! | what a hostile guest may try | what happens |
//! |---|---|
//! | tables outside its RAM (in a device, nowhere) | [`WalkError::Unreachable`]; nothing outside RAM is touched |
//! | tables that point at themselves | at most four levels are read, whatever they hold |
//! | changing an entry during the walk | [`WalkError::Raced`]: let the guest run the instruction again |
//!
//! SDM vol. 3A 4.3 "32-Bit Paging", 4.4 "PAE Paging", 4.5 "4-Level Paging and 5-Level Paging", 4.6 "Access Rights",
//! 4.7 "Page-Fault Exceptions", 4.8 "Accessed and Dirty Flags".

use bulkhead_arch::{Cr0, Cr4, Efer, Rflags};
use bulkhead_types::{Gpa, GuestMemory, Gva, Width};

/// What a processor knows when it translates an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingState {
    /// CR0 as the guest sees it.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// Flags; AC matters to SMAP.
    pub rflags: Rflags,
    /// The page-directory-pointer entries that PAE paging caches; any value where PAE paging is not in use.
    pub pdptes: [u64; 4],
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Width of a guest-physical address in bits (MAXPHYADDR), 32 to 52; bits above are reserved in table entries.
    pub physical_bits: u8,
}

impl PagingState {
    /// Whether linear addresses are 64 bits wide somewhere (IA-32e mode): 4-level paging.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }
}

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read data.
    Read,
    /// Write data, or read and write it.
    Write,
    /// Fetch an instruction.
    Execute,
}

/// Why an address has no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkError {
    /// #PF for the guest, with the faulting address in CR2.
    PageFault {
        /// Error code.
        error: u32,
    },
    /// Bits 63 to 47 of the address differ: #GP or #SS for the guest, by the segment used.
    NonCanonical,
    /// A table lies outside the guest's RAM. A processor would read whatever answers there (most likely ones); a guest
    /// that does this has lost its way, and the caller ends it.
    Unreachable {
        /// Where the entry would be.
        gpa: Gpa,
    },
    /// An entry changed during the walk: let the guest run the instruction again.
    Raced,
}

/// Bits of a page-fault error code. SDM vol. 3A 4.7 "Page-Fault Exceptions".
pub mod error {
    /// A translation was there, but forbade the access.
    pub const PRESENT: u32 = 1 << 0;
    /// It was a write.
    pub const WRITE: u32 = 1 << 1;
    /// It was made at CPL 3.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// It was an instruction fetch (reported with NXE or SMEP only).
    pub const FETCH: u32 = 1 << 4;
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u32 = 1 << 5;
const DIRTY: u32 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51 to 12.
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

/// Translates `gva` for `access` and sets accessed and dirty bits.
///
/// Outside 4-level paging, linear addresses have 32 bits and the others are ignored.
///
/// # Errors
/// See [`WalkError`]; no bit was set, except with [`WalkError::Raced`].
pub fn walk<M: GuestMemory + ?Sized>(
    memory: &mut M,
    state: &PagingState,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    let address = gva.as_u64();
    let low = address & 0xFFFF_FFFF;
    if !state.cr0.contains(Cr0::PG) {
        return Ok(Gpa::new(low));
    }
    if state.is_long() {
        let upper = address >> 47;
        if upper != 0 && upper != 0x1_FFFF {
            return Err(WalkError::NonCanonical);
        }
        let reserved = reserved_address(51, state) | reserved_no_execute(state);
        return Walk { memory, state, access, reserved }.descend::<true>(state.cr3 & FRAME, 4, address);
    }
    if !state.cr4.contains(Cr4::PAE) {
        return Walk { memory, state, access, reserved: 0 }.descend::<false>(state.cr3 & 0xFFFF_F000, 2, low);
    }
    let [first, second, third, fourth] = state.pdptes;
    let pdpte = match low >> 30 {
        0 => first,
        1 => second,
        2 => third,
        _ => fourth,
    };
    // Its reserved bits were checked when it was loaded; it has no rights and no accessed bit.
    if pdpte & PRESENT == 0 {
        return Err(fault(state, access, 0));
    }
    let reserved = reserved_address(62, state) | reserved_no_execute(state);
    Walk { memory, state, access, reserved }.descend::<true>(pdpte & FRAME, 2, low)
}

/// A walk on its way down.
struct Walk<'a, M: ?Sized> {
    memory: &'a mut M,
    state: &'a PagingState,
    access: Access,
    /// Bits reserved at every level.
    reserved: u64,
}

impl<M: GuestMemory + ?Sized> Walk<'_, M> {
    /// From the table at `table` of this level down to the page. `WIDE` entries have 8 bytes, others 4.
    fn descend<const WIDE: bool>(&mut self, table: u64, level: u32, address: u64) -> Result<Gpa, WalkError> {
        let (entry_shift, index_bits) = if WIDE { (3, 9) } else { (2, 10) };
        let (mut table, mut level) = (table, level);
        // Entries above the leaf, from the top.
        let mut path = [(Gpa::new(0), 0_u64); 4];
        let mut all = u64::MAX;
        let mut no_execute = 0;
        for depth in 0..path.len() {
            let shift = 12_u32.wrapping_add(level.wrapping_sub(1).wrapping_mul(index_bits));
            let index = (address >> shift) & ((1 << index_bits) - 1);
            let at = Gpa::new(table | (index << entry_shift));
            let entry = if WIDE { self.memory.read_u64(at) } else { self.memory.read_u32(at).map(u64::from) }
                .map_err(|_| WalkError::Unreachable { gpa: at })?;
            if entry & PRESENT == 0 {
                return Err(fault(self.state, self.access, 0));
            }
            let large = entry & LARGE != 0 && if WIDE { level != 4 } else { self.state.cr4.contains(Cr4::PSE) };
            let leaf = level == 1 || large;
            if entry & (self.reserved | reserved_here::<WIDE>(self.state, level, leaf)) != 0 {
                return Err(fault(self.state, self.access, error::PRESENT | error::RESERVED));
            }
            all &= entry;
            no_execute |= entry & NO_EXECUTE;
            if leaf {
                if !is_allowed(self.state, self.access, all, no_execute != 0) {
                    return Err(fault(self.state, self.access, error::PRESENT));
                }
                let wanted = if self.access == Access::Write { ACCESSED | DIRTY } else { ACCESSED };
                if all & entry & u64::from(ACCESSED) == 0 || entry & u64::from(wanted) != u64::from(wanted) {
                    for &(at, entry) in path.iter().take(depth) {
                        mark(self.memory, at, entry, ACCESSED)?;
                    }
                    mark(self.memory, at, entry, wanted)?;
                }
                let offset = address & ((1 << shift) - 1);
                return Ok(Gpa::new(frame::<WIDE>(level, entry, shift) | offset));
            }
            if let Some(above) = path.get_mut(depth) {
                *above = (at, entry);
            }
            table = entry & FRAME;
            level = level.wrapping_sub(1);
        }
        // Level 1 is always a leaf, and no walk starts above level 4.
        Err(WalkError::Raced)
    }
}

/// Bits `high` to `low` set, none if `high` is below `low`; both below 64.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

/// Address bits from MAXPHYADDR to `high`, which must be zero in every 8-byte entry. SDM vol. 3A tables 4-9 to 4-11 and
/// 4-15 to 4-20.
fn reserved_address(high: u32, state: &PagingState) -> u64 {
    bits(high, u32::from(state.physical_bits.clamp(32, 52)))
}

/// The execute-disable bit, while it is not enabled.
const fn reserved_no_execute(state: &PagingState) -> u64 {
    if state.efer.contains(Efer::NXE) { 0 } else { NO_EXECUTE }
}

/// Further bits that must be zero at this level.
fn reserved_here<const WIDE: bool>(state: &PagingState, level: u32, leaf: bool) -> u64 {
    match (WIDE, level, leaf) {
        (true, 2, true) => const { bits(20, 13) },
        (true, 3, true) => const { bits(29, 13) },
        (true, 4, _) => LARGE,
        // PSE-36: bits 20 to 13 of a 4-MiB entry are bits 39 to 32 of the address, as far as it is that wide. SDM vol.
        // 3A table 4-4.
        (false, 2, true) => bits(21, u32::from(state.physical_bits.clamp(32, 40)).wrapping_sub(19)),
        _ => 0,
    }
}

/// The address of the page that a leaf maps.
const fn frame<const WIDE: bool>(level: u32, entry: u64, shift: u32) -> u64 {
    if !WIDE && level == 2 {
        return (entry & 0xFFC0_0000) | ((entry & const { bits(20, 13) }) << 19);
    }
    entry & FRAME & (u64::MAX << shift)
}

/// Access rights. SDM vol. 3A 4.6.1 "Determination of Access Rights".
const fn is_allowed(state: &PagingState, access: Access, rights: u64, no_execute: bool) -> bool {
    let user_page = rights & USER != 0;
    let writable = rights & WRITABLE != 0;
    if state.cpl == 3 {
        return user_page
            && match access {
                Access::Read => true,
                Access::Write => writable,
                Access::Execute => !no_execute,
            };
    }
    let denied_data = user_page && state.cr4.contains(Cr4::SMAP) && !state.rflags.contains(Rflags::AC);
    match access {
        Access::Read => !denied_data,
        Access::Write => !denied_data && (writable || !state.cr0.contains(Cr0::WP)),
        Access::Execute => !(no_execute || user_page && state.cr4.contains(Cr4::SMEP)),
    }
}

/// The page fault of `access` with `cause` among its error bits.
#[cold]
fn fault(state: &PagingState, access: Access, cause: u32) -> WalkError {
    let user = if state.cpl == 3 { error::USER } else { 0 };
    let paging64 = state.cr4.contains(Cr4::PAE) && state.efer.contains(Efer::NXE);
    let kind = match access {
        Access::Read => 0,
        Access::Write => error::WRITE,
        Access::Execute if paging64 || state.cr4.contains(Cr4::SMEP) => error::FETCH,
        Access::Execute => 0,
    };
    WalkError::PageFault { error: cause | user | kind }
}

/// Sets the `wanted` bits in the entry at `at`, which read as `entry`; bits that others set meanwhile stay. (An entry of
/// tables that map themselves can be on the path more than once.)
#[cold]
fn mark<M: GuestMemory + ?Sized>(memory: &mut M, at: Gpa, entry: u64, wanted: u32) -> Result<(), WalkError> {
    let unreachable = |_| WalkError::Unreachable { gpa: at };
    // Both bits and the present bit are in the low half.
    let read = u32::try_from(entry & 0xFFFF_FFFF).unwrap_or(0);
    let mut old = read;
    let exchange =
        |memory: &mut M, old: u32| memory.compare_exchange(at, Width::Dword, old.into(), (old | wanted).into());
    for _ in 0..3 {
        if old & wanted == wanted || exchange(memory, old).map_err(unreachable)? {
            return Ok(());
        }
        old = memory.read_u32(at).map_err(unreachable)?;
        if (old ^ read) & !(ACCESSED | DIRTY) != 0 {
            break;
        }
    }
    Err(WalkError::Raced)
}
