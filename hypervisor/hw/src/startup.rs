//! Start-up: from the loader's address space to the idle compartment.
//!
//! While start-up runs, physical memory up to 4 GiB is mapped at its own address (see `boot/entry.S`). [`Identity`] stands
//! for that; whoever enters the idle compartment gives it up, and no such mapping exists after.

use crate::layout;
use crate::ram::clear;
use crate::tables::MappedTables;
use bulkhead_core::frames::FrameState;
use bulkhead_paging::{Access, Host, Mapping, Memory, PagingError, ReadTables, Size, Tables, map, tables_needed};
use bulkhead_types::{Frame, Hpa, Hva, PAGE_SIZE};
#[cfg(target_os = "none")]
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(target_os = "none")]
global_asm!(include_str!("../../../boot/entry.S"), options(att_syntax));

/// The mapping of the first 4 GiB at their own addresses.
#[derive(Debug)]
pub struct Identity(());

const END: u64 = 1 << 32;

impl Identity {
    /// Takes the mapping over; `None` the second time.
    #[must_use]
    pub fn take() -> Option<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        (!TAKEN.swap(true, Ordering::Relaxed)).then_some(Self(()))
    }

    /// Address at which `bytes` bytes from `at` on can be reached.
    fn locate(at: Hpa, bytes: u64) -> Option<u64> {
        // Address 0 is left out: it can be no Rust object's.
        at.checked_add(bytes).is_some_and(|end| end.as_u64() <= END && at.as_u64() != 0).then_some(at.as_u64())
    }

    /// Copies bytes of physical memory; `None` if they are out of reach.
    #[must_use]
    pub fn read(&self, at: Hpa, into: &mut [u8]) -> Option<()> {
        let from = Self::locate(at, into.len() as u64)? as *const u8;
        for (offset, byte) in into.iter_mut().enumerate() {
            // SAFETY: `locate` found it below 4 GiB, all of which is mapped while this value lives; reading RAM or
            // firmware tables byte for byte has no effect.
            *byte = unsafe { from.add(offset).read_volatile() };
        }
        Some(())
    }

    /// Bytes of physical memory that nobody changes while start-up runs: the pack.
    #[must_use]
    pub fn bytes(&self, at: Hpa, bytes: u64) -> Option<&[u8]> {
        let from = Self::locate(at, bytes)? as *const u8;
        // SAFETY: mapped as in `read`; start-up is single-threaded, and writes to frames of its own choice only, which
        // are none that the loader filled.
        Some(unsafe { core::slice::from_raw_parts(from, usize::try_from(bytes).ok()?) })
    }
}

unsafe extern "C" {
    /// Stack, root and entry of the processor that is started next (`boot/entry.S`).
    static secondary: [AtomicU64; 3];
    /// First and end physical address of what it executes first.
    static secondary_code: [u64; 2];
    static mut startup_stack: u8;
    static startup_stack_top: u8;
}

/// Wipes the stack that start-up used: it is in all address spaces, and had the control line's key on it.
///
/// # Safety
/// Nothing executes on it any more.
pub unsafe fn wipe_stack() {
    let stack = &raw mut startup_stack;
    let bytes = (&raw const startup_stack_top as usize).saturating_sub(stack as usize);
    // SAFETY: the image's own bytes, between two labels of `boot/entry.S`; nobody has a reference to them, as told above.
    unsafe { stack.write_bytes(0, bytes) }
}

/// Where other processors begin: a page below 1 MiB.
#[derive(Clone, Copy, Debug)]
pub struct FirstPage(Hpa);

impl FirstPage {
    /// Puts their first instructions into the page at `at`; `None` if it is no page below 640 KiB.
    ///
    /// # Safety
    /// The page is RAM that nobody uses.
    #[must_use]
    pub unsafe fn new(_identity: &mut Identity, at: Hpa) -> Option<Self> {
        if !at.is_aligned(PAGE_SIZE) || !(1..=0x9F).contains(&(at.as_u64() / PAGE_SIZE)) {
            return None;
        }
        // SAFETY: a constant of the image.
        let [start, end] = unsafe { secondary_code };
        let bytes = usize::try_from(end.checked_sub(start)?).ok().filter(|bytes| *bytes <= 4096)?;
        // SAFETY: both are mapped while `Identity` lives; the caller gave the page, and the code lies in the image.
        unsafe { core::ptr::copy_nonoverlapping(start as *const u8, at.as_u64() as *mut u8, bytes) }
        Some(Self(at))
    }

    /// The vector of the start-up interrupt that leads there.
    #[must_use]
    pub fn vector(self) -> u8 {
        u8::try_from(self.0.as_u64() / PAGE_SIZE).unwrap_or(0)
    }
}

/// Says where the processor that is started next goes: execution `index` of the idle compartment, whose root is `root`. The
/// loader's page tables are still there.
pub fn lead_to(root: Hpa, index: usize, entry: extern "C" fn() -> !) {
    let words = [layout::stack(index).end().as_u64(), root.as_u64(), entry as usize as u64];
    // SAFETY: words of the image's variables, for this alone.
    let places = unsafe { &secondary };
    places.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Release));
}

/// The part that all address spaces share.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// The root's entry for it.
    pub entry: u64,
    /// First frame of its page tables.
    pub tables: Frame,
    /// How many frames they have.
    pub count: u64,
    /// Entries that the frame table has room for.
    pub states: u64,
}

/// Bytes of one entry of the frame table.
const STATE_BYTES: u64 = size_of::<FrameState>() as u64;

/// Frames that [`build_shared`] needs for its tables, for a frame table of `bytes` bytes.
#[must_use]
pub fn shared_tables_needed(bytes: u64) -> u64 {
    let image = layout::image();
    let image_bytes = image.data.1.as_u64() - image.text.0.as_u64();
    let sum = tables_needed(layout::FRAME_TABLE.as_u64(), bytes, Size::Page4K)
        + tables_needed(image.text.0.as_u64(), image_bytes, Size::Page4K);
    // The root that is thrown away, the local APIC's, and the tables' own page tables.
    sum + 8
}

/// Builds the shared part: image, frame table, its own tables, the local APIC's page; and puts it into force in the
/// loader's address space. The frame table of `state_bytes` is at `room`, the tables' `count` frames behind it.
///
/// # Errors
/// [`PagingError`] if the tables do not suffice, or the room is out of reach.
///
/// # Safety
/// The room is RAM that nobody uses.
pub unsafe fn build_shared(
    _identity: &Identity,
    room: Hpa,
    state_bytes: u64,
    count: u64,
    local_apic: Option<Hpa>,
) -> Result<Shared, PagingError> {
    let (states, tables) = (room, room.wrapping_add(state_bytes));
    if Identity::locate(room, state_bytes.saturating_add(count.saturating_mul(PAGE_SIZE))).is_none() {
        return Err(PagingError::OutOfRange);
    }
    let at = Hva::new(tables.as_u64());
    // SAFETY: the caller vouches for the frames; they are mapped at their own address.
    let mut mapped = unsafe {
        clear(tables.as_u64() as *mut u8, usize::try_from(count * PAGE_SIZE).unwrap_or(0));
        clear(states.as_u64() as *mut u8, usize::try_from(state_bytes).unwrap_or(0));
        MappedTables::new(at, tables, count, 1)
    };
    let image = layout::image();
    let part = |(start, end): (Hva, Hva), access| {
        (start, layout::image_physical(start), end.as_u64() - start.as_u64(), access)
    };
    let parts = [
        part(image.text, Access::READ_EXECUTE),
        part(image.rodata, Access::READ),
        part(image.data, Access::READ_WRITE),
        (layout::FRAME_TABLE, states, state_bytes, Access::READ_WRITE),
        (layout::SHARED_TABLES, tables, count * PAGE_SIZE, Access::READ),
    ];
    for (from, to, bytes, access) in parts {
        let mapping =
            Mapping { from: from.as_u64(), to, bytes, access, memory: Memory::WriteBack, largest: Size::Page4K };
        map::<Host>(&mut mapped, tables, mapping)?;
    }
    if let Some(page) = local_apic {
        let mapping = Mapping {
            from: layout::LOCAL_APIC.as_u64(),
            to: page,
            bytes: PAGE_SIZE,
            access: Access::READ_WRITE,
            memory: Memory::Uncached,
            largest: Size::Page4K,
        };
        map::<Host>(&mut mapped, tables, mapping)?;
    }
    let entry = mapped.read(tables, layout::SHARED_INDEX)?;
    let shared = Shared { entry, tables: Frame::containing(tables), count, states: state_bytes / STATE_BYTES };
    let root = Hpa::new(crate::cpu::control_registers()[2] & !0xFFF);
    // SAFETY: the loader's root is `root` in `entry.S`, below 4 GiB and in nobody's use but the processor's. The new
    // entry maps the image as before, with the protection that each part asks for.
    unsafe {
        let mut current = MappedTables::new(Hva::new(root.as_u64()), root, 1, 1);
        current.write(root, layout::SHARED_INDEX, entry)?;
    }
    crate::cpu::flush_translations();
    Ok(shared)
}

/// The frame table's memory, `count` entries at most; `None` the second time.
#[must_use]
pub fn frame_states(shared: &Shared, count: u64) -> Option<&'static mut [FrameState]> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let count = usize::try_from(count.min(shared.states)).ok()?;
    let first = layout::FRAME_TABLE.as_u64() as *mut FrameState;
    // SAFETY: a `Shared` is made by `build_shared` alone, which mapped and zeroed so much, for good; every value is a
    // `FrameState`; handed out once.
    (!TAKEN.swap(true, Ordering::Relaxed)).then(|| unsafe { core::slice::from_raw_parts_mut(first, count) })
}

/// The shared part's tables, to be read.
#[must_use]
pub fn shared_tables(shared: &Shared) -> impl ReadTables + use<> {
    // SAFETY: mapped there, read-only, in every address space; only ever read.
    unsafe { MappedTables::new(layout::SHARED_TABLES, shared.tables.start(), shared.count, shared.count) }
}
