//! The guest of the rules: what lies where in its memory.
//!
//! It has tables for real mode, flat 32-bit code and 64-bit code, all one to one, and for each vector a handler that
//! does nothing but go on: where the guest is then and what lies on its stack tell which event came and how.

use alloc::vec::Vec;
use bulkhead_types::{Gpa, GuestMemory, MemoryError};

/// Where rules put code.
pub const CODE: u64 = 0x1000;
/// The global descriptor table.
pub const GDT: u64 = 0x2000;
/// Its selectors: 32-bit code, data, 64-bit code, the task, another task.
pub const CODE_32: u16 = 0x08;
/// Data.
pub const DATA_FLAT: u16 = 0x10;
/// 64-bit code.
pub const CODE_64: u16 = 0x18;
/// The task that runs.
pub const TASK: u16 = 0x20;
/// A task that does not.
pub const OTHER_TASK: u16 = 0x28;
/// Last byte of the global descriptor table.
pub const GDT_LIMIT: u64 = 0x37;
/// The task-state segment of [`TASK`]; that of [`OTHER_TASK`] follows it.
pub const TASK_STATE: u64 = 0x2800;
/// Last byte of a task-state segment.
pub const TASK_LIMIT: u32 = 0x67;
/// Interrupt descriptors of 32-bit code.
pub const IDT_32: u64 = 0x3000;
/// Interrupt descriptors of 64-bit code.
pub const IDT_64: u64 = 0x4000;
/// Handlers, [`HANDLER_BYTES`] each.
pub const HANDLERS: u64 = 0x5000;
/// Bytes from one handler to the next.
pub const HANDLER_BYTES: u64 = 16;
/// Root of the page tables of 64-bit code.
pub const ROOT: u64 = 0x6000;
const FIRST_GIGABYTES: u64 = 0x7000;
/// A byte to write to.
pub const DATA: u64 = 0x8000;
/// End of the stack.
pub const STACK: u64 = 0xA000;
/// End of what is mapped for the guest from address 0 on.
pub const MAPPED: u64 = 0x10000;
/// A page of RAM that is mapped only when the bench is told to.
pub const SPARE: u64 = 0x3_0000;
/// A page of RAM that is not mapped, or so that the access of [`crate::bench::Fault`] is not allowed.
pub const FORBIDDEN: u64 = 0x3_1000;
/// An address without RAM that a 32-bit access can name.
pub const ABSENT: u64 = 0xFEC0_0000;
/// An address without RAM above 4 GiB.
pub const ABSENT_HIGH: u64 = 0x1_FEE0_0000;
/// Where page tables of the guest lie that it can not reach: the processor walks to them for linear addresses from
/// `(index + 1) << 39` on.
pub const OUTER_TABLES: [u64; 2] = [FORBIDDEN, ABSENT_HIGH];

const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;
/// `jmp $`.
const SPIN: [u8; 2] = [0xEB, 0xFE];

/// The handler of a vector.
#[must_use]
pub const fn handler(vector: u8) -> u64 {
    HANDLERS + vector as u64 * HANDLER_BYTES
}

/// The vector whose handler is at `rip`.
#[must_use]
pub fn vector_of(rip: u64) -> Option<u8> {
    let offset = rip.checked_sub(HANDLERS)?;
    if !offset.is_multiple_of(HANDLER_BYTES) {
        return None;
    }
    u8::try_from(offset / HANDLER_BYTES).ok()
}

/// The linear address whose translation reads the entry at `gpa` of [`OUTER_TABLES`].
#[must_use]
pub fn linear_by_way_of(gpa: u64) -> Option<u64> {
    let place = OUTER_TABLES.iter().position(|table| *table == gpa & !0xFFF)?;
    let (table, index) = (place as u64 + 1, (gpa & 0xFFF) / 8);
    Some(table << 39 | index << 30)
}

/// Writes the handlers.
///
/// # Errors
/// If the guest has too little memory.
pub fn write_handlers(memory: &mut impl GuestMemory) -> Result<(), MemoryError> {
    let slot: Vec<u8> = SPIN.into_iter().chain((2..HANDLER_BYTES).map(|_| 0x90)).collect();
    memory.write(Gpa::new(HANDLERS), &slot.repeat(256))
}

/// Writes everything.
///
/// # Errors
/// If the guest has too little memory.
pub fn write(memory: &mut impl GuestMemory) -> Result<(), MemoryError> {
    let mut put = |at: u64, words: Vec<u64>| {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        memory.write(Gpa::new(at), &bytes)
    };
    put(GDT, descriptors())?;
    // The stack and the segments of a task that is switched to do not matter: the switch never comes to be.
    put(TASK_STATE, alloc::vec![0; 32])?;
    put(IDT_32, vectors().map(|vector| handler(vector) | 0x8E00 << 32 | u64::from(CODE_32) << 16).collect())?;
    let wide = |vector| [handler(vector) | 0x8E00 << 32 | u64::from(CODE_64) << 16, 0];
    put(IDT_64, vectors().flat_map(wide).collect())?;
    // Real mode: offset and segment of each handler. A word holds two vectors.
    let short = |vector: u8| handler(vector) | handler(vector.wrapping_add(1)) << 32;
    put(0, vectors().step_by(2).map(short).collect())?;
    let mut root = alloc::vec![FIRST_GIGABYTES | PRESENT_WRITABLE];
    root.extend(OUTER_TABLES.map(|table| table | PRESENT_WRITABLE));
    put(ROOT, root)?;
    put(FIRST_GIGABYTES, (0..512).map(|index| index << 30 | LARGE | PRESENT_WRITABLE).collect())?;
    write_handlers(memory)
}

fn vectors() -> impl DoubleEndedIterator<Item = u8> + ExactSizeIterator {
    (0..256_u16).map(|vector| u8::try_from(vector).unwrap_or(0))
}

fn descriptors() -> Vec<u64> {
    let task = |kind: u64, at: u64| u64::from(TASK_LIMIT) | at << 16 | kind << 40;
    alloc::vec![
        0,
        0x00CF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00AF_9B00_0000_FFFF,
        task(0x8B, TASK_STATE),
        task(0x89, TASK_STATE + 0x80),
        0,
    ]
}
