//! Descriptor table and task state. SDM vol. 3A 3.4.5 "Segment Descriptors", 8.7 "Task Management in 64-bit Mode".

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::size_of;

/// 64-bit code, ring 0.
pub const CODE: u16 = 0x08;
/// Flat data, ring 0.
pub const DATA: u16 = 0x10;
/// 32-bit flat code, ring 0.
pub const CODE32: u16 = 0x18;
/// 16-bit code with base 0 and limit 0xFFFF, ring 0.
pub const CODE16: u16 = 0x20;
/// 16-bit data with base 0 and limit 0xFFFF, ring 0.
pub const DATA16: u16 = 0x28;
/// Flat data, ring 3.
pub const USER_DATA: u16 = 0x33;
/// 64-bit code, ring 3.
pub const USER_CODE: u16 = 0x3B;
/// 32-bit flat code, ring 3.
pub const USER_CODE32: u16 = 0x43;
/// The task state (16 bytes of table).
pub const TASK: u16 = 0x48;
/// First of [`FREE_COUNT`] entries that a scenario can fill with [`set_descriptor`].
pub const FREE: u16 = 0x58;
/// Entries from [`FREE`] on.
pub const FREE_COUNT: u16 = 5;

const ENTRIES: usize = 16;

#[repr(C, align(16))]
struct Table(UnsafeCell<[u64; ENTRIES]>);

// SAFETY: one processor; written at start-up and by set_descriptor(), both outside of handlers.
unsafe impl Sync for Table {}

static GDT: Table = Table(UnsafeCell::new([
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_9B00_0000_FFFF,
    0x0000_9B00_0000_FFFF,
    0x0000_9300_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
]));

// The task state lies in memory that the processor reads by itself: its stacks are symbols of the assembler.
global_asm!(
    ".section .data.task, \"aw\"",
    ".balign 16",
    ".global guest_task",
    "guest_task:",
    ".long 0",
    ".quad trap_stack_top, 0, 0, 0", // RSP0-2, reserved
    ".quad ist_stack_top",           // IST1
    ".fill 14, 4, 0",
    ".word 0, 104",
    ".section .bss.stacks, \"aw\", @nobits",
    ".balign 16",
    ".skip 16384",
    ".global trap_stack_top",
    "trap_stack_top:",
    ".skip 16384",
    "ist_stack_top:",
    ".text",
);

unsafe extern "C" {
    static guest_task: u8;
}

/// Operand of LGDT and LIDT.
#[repr(C, packed)]
pub struct TablePointer {
    /// Size of the table in bytes, less one.
    pub limit: u16,
    /// Address of the table.
    pub base: u64,
}

/// The pointer to the table in use.
#[must_use]
pub fn gdt_pointer() -> TablePointer {
    TablePointer { limit: (ENTRIES * 8 - 1) as u16, base: GDT.0.get() as u64 }
}

/// Fills entry `selector` (its privilege bits are ignored) of the descriptor table.
pub fn set_descriptor(selector: u16, descriptor: u64) {
    let index = usize::from(selector >> 3);
    assert!(index < ENTRIES, "no such descriptor");
    // SAFETY: the index is inside the table, and no reference to the table exists (one processor, not in a handler).
    unsafe { GDT.0.get().cast::<u64>().add(index).write_volatile(descriptor) };
}

/// Entry `selector` of the descriptor table.
#[must_use]
pub fn get_descriptor(selector: u16) -> u64 {
    let index = usize::from(selector >> 3);
    assert!(index < ENTRIES, "no such descriptor");
    // SAFETY: the index is inside the table; the processor may have set its busy and accessed bits, hence volatile.
    unsafe { GDT.0.get().cast::<u64>().add(index).read_volatile() }
}

/// An 8-byte descriptor of `base`, 20-bit `limit`, access byte and flags (bit 3 granularity, 2 default size, 1 long).
#[must_use]
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xF) << 48
        | u64::from(flags) << 52
        | (base >> 24) << 56
}

/// Sets the top of interrupt stack 1, on which gates with that stack are entered.
pub fn set_interrupt_stack(top: u64) {
    let task = &raw const guest_task as u64;
    // SAFETY: IST1 is the 8 bytes at offset 0x24 of the task state; the caller's stack is its own affair.
    unsafe { ((task + 0x24) as *mut u64).write_unaligned(top) };
}

/// Loads the table, all segment registers and the task register.
pub(crate) fn load() {
    let task = &raw const guest_task as u64;
    #[expect(clippy::cast_possible_truncation, reason = "linked below 4 GiB")]
    set_descriptor(TASK, descriptor(task as u32, 103, 0x89, 0));
    reload();
}

/// Loads the table alone: for a processor whose segment registers hold the same descriptors already, and without task state.
pub(crate) fn load_table() {
    let pointer = gdt_pointer();
    // SAFETY: the table is static, and its code and data descriptors are those in use.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

/// Loads the table, all segment registers and the task register again, with the task marked available.
pub fn reload() {
    let pointer = gdt_pointer();
    assert_eq!(size_of::<TablePointer>(), 10);
    let task_access = GDT.0.get() as u64 + u64::from(TASK) + 5;
    // SAFETY: the table is static and its entries 1 and 2 are the flat segments that the code runs with already;
    // the far return goes to the next instruction. The task state is static. Bit 1 of the access byte is "busy".
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "and byte ptr [{task_access}], 0xFD",
            "lea {scratch}, [rip + 2f]",
            "push {code}",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "mov fs, {data:e}",
            "mov gs, {data:e}",
            "ltr {task:x}",
            pointer = in(reg) &raw const pointer,
            task_access = in(reg) task_access,
            scratch = out(reg) _,
            code = const CODE,
            data = in(reg) u32::from(DATA),
            task = in(reg) TASK,
        );
    }
}
