//! 32-bit protected mode: segment limits and types, INTO and BOUND, and 32-bit and PAE paging.
//!
//! SDM vol. 3A 5.3 "Limit Checking", 5.4 "Type Checking", 4.3 "32-Bit Paging", 4.4 "PAE Paging".
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{Machine, machine};
use bulkhead_rt::memory::Region;
use bulkhead_rt::modes::{Outcome, PAGED, PROTECTED, call32};
use bulkhead_rt::segments::{descriptor, set_descriptor};
use bulkhead_rt::{check_eq, check_or_defect, code32, scenario};

scenario!(main);

code32!("p_add", "mov eax, 0x7FFFFFFF", "add eax, 2", "2: nop");
code32!("p_into", "mov eax, 0x7FFFFFFF", "inc eax", "into", "2: nop");
code32!("p_bound", "push 5", "push 1", "mov eax, 6", "2: bound eax, [esp]");
code32!("p_bound_in", "push 5", "push 1", "mov eax, 5", "2: bound eax, [esp]", "add esp, 8");
code32!("p_divide", "xor ecx, ecx", "2: div ecx");
code32!("p_aam", "mov eax, 77", "aam", "aad", "daa", "2: nop");
code32!("p_pusha", "mov eax, 3", "mov ebx, 4", "pushad", "mov eax, [esp + 16]", "add esp, 32", "2: nop");
code32!("p_limit_in", "mov eax, 0x58", "mov ds, eax", "mov eax, [0xFFC]", "2: nop", "mov eax, 1");
code32!("p_limit", "mov eax, 0x58", "mov ds, eax", "2: mov eax, [0xFFD]");
code32!("p_limit_write", "mov eax, 0x58", "mov ds, eax", "2: mov [0x1000], al");
code32!("p_read_only", "mov eax, 0x60", "mov ds, eax", "2: mov [0], al");
code32!("p_execute_only", "2: mov al, cs:[0]", "mov eax, 1");
code32!("p_down", "mov eax, 0x68", "mov ds, eax", "mov al, [0x200000]", "2: mov al, [0xFFF]");
code32!("p_stack_limit", "mov eax, 0x70", "mov ss, eax", "mov ebp, 0x900000", "2: mov eax, [ebp]");
code32!("p_null", "xor eax, eax", "mov es, eax", "2: mov eax, es:[0x100000]");
code32!("p_code_to_ds", "mov eax, 0x78", "2: mov ds, eax");
code32!("p_far", "mov eax, cs", "push eax", "call 7f", "jmp 8f", "7: mov eax, 9", "2: retf", "8: nop");
code32!("p_lsl", "mov eax, 0x58", "lsl eax, eax", "2: nop");
code32!("p_read", "mov eax, [0xC00004]", "2: nop");
code32!("p_read_at", "2: mov eax, [0xC00004]");
code32!("p_write_at", "2: mov dword ptr [0xC00004], 7", "mov eax, [0x400004]");
code32!("p_high", "mov eax, [0xC0400004]", "2: nop");

unsafe extern "C" {
    static p_add: u8;
    static p_into: u8;
    static p_bound: u8;
    static p_bound_in: u8;
    static p_divide: u8;
    static p_aam: u8;
    static p_pusha: u8;
    static p_limit_in: u8;
    static p_limit: u8;
    static p_limit_write: u8;
    static p_read_only: u8;
    static p_execute_only: u8;
    static p_down: u8;
    static p_stack_limit: u8;
    static p_null: u8;
    static p_code_to_ds: u8;
    static p_far: u8;
    static p_lsl: u8;
    static p_read: u8;
    static p_read_at: u8;
    static p_write_at: u8;
    static p_high: u8;
}

// SAFETY: RAM above the image for tables and data, which holds no Rust object.
const TABLES: Region = unsafe { Region::new(0x60_0000, 0x8000) };
// SAFETY: as for the one above: no Rust object lies there.
const DATA: Region = unsafe { Region::new(0x40_0000, 0x2000) };

const DEVICE: u32 = 0xFED8_0000;

/// The test device, where there is one.
fn device() -> Option<Region> {
    // SAFETY: the test device's page, which holds no Rust object.
    (machine() == Machine::Virtual).then(|| unsafe { Region::new(DEVICE as usize, 256) })
}

const fn fault(vector: u32, error: u32) -> Outcome {
    Outcome::Fault { vector, error, at_label: true, address: 0 }
}

const fn page_fault(error: u32) -> Outcome {
    Outcome::Fault { vector: 14, error, at_label: true, address: 0xC0_0004 }
}

fn flat(name: &str, entry: *const u8, expected: Outcome) {
    // SAFETY: the pieces above write nowhere but in their stack and segment.
    check_eq!(unsafe { call32(entry, PROTECTED, 0, 0) }, expected, "{name}");
}

fn main() {
    flat("arithmetic", &raw const p_add, Outcome::Done(0x8000_0001));
    flat("#OF by INTO", &raw const p_into, fault(4, 0));
    flat("#BR by BOUND", &raw const p_bound, fault(5, 0));
    flat("BOUND inside", &raw const p_bound_in, Outcome::Done(5));
    flat("#DE", &raw const p_divide, fault(0, 0));
    flat("decimal instructions", &raw const p_aam, Outcome::Done(0x53));
    flat("PUSHA", &raw const p_pusha, Outcome::Done(4));
    flat("RETF", &raw const p_far, Outcome::Done(9));
    segments();
    DATA.write32(4, 0x1111_2222);
    DATA.write32(0x1004, 0x3333_4444);
    paging32();
    paging_pae();
}

fn segments() {
    set_descriptor(0x58, descriptor(0x40_0000, 0xFFF, 0x93, 0x4));
    set_descriptor(0x60, descriptor(0x40_0000, 0xFFF, 0x91, 0x4));
    set_descriptor(0x68, descriptor(0, 0x1FF, 0x97, 0xC));
    set_descriptor(0x70, descriptor(0, 0x7FF, 0x93, 0xC));
    set_descriptor(0x78, descriptor(0, 0xFFFFF, 0x99, 0xC));
    flat("LSL", &raw const p_lsl, Outcome::Done(0xFFF));
    flat("inside the limit", &raw const p_limit_in, Outcome::Done(1));
    flat("#GP by an execute-only segment in DS", &raw const p_code_to_ds, fault(13, 0x78));
    flat("a readable code segment", &raw const p_execute_only, Outcome::Done(1));
    unchecked("#GP across the limit", &raw const p_limit, 13);
    unchecked("#GP beyond the limit", &raw const p_limit_write, 13);
    unchecked("#GP by a write to a read-only segment", &raw const p_read_only, 13);
    unchecked("#GP below an expand-down segment", &raw const p_down, 13);
    unchecked("#SS beyond the stack's limit", &raw const p_stack_limit, 12);
    unchecked("#GP by a null segment", &raw const p_null, 13);
}

/// A fault of segmentation that QEMU's interpreter does not raise: there the access is carried out.
fn unchecked(name: &str, entry: *const u8, vector: u32) {
    // SAFETY: as for `flat`; what is beyond the limits is RAM that holds no Rust object, or the image to be read.
    let seen = unsafe { call32(entry, PROTECTED, 0, 0) };
    let done = if let Outcome::Done(_) = seen { seen } else { fault(vector, 0) };
    check_or_defect!(seen, fault(vector, 0), done, "{name}");
}

/// 0xC0_0000 is mapped to 0x40_0000 by a 4-KiB page with `bits`, all else below 16 MiB one to one by 4-MiB pages.
fn paging32() {
    let tables = TABLES.base() as u32;
    for index in 0..8 {
        TABLES.write32(index * 4, (index as u32) << 22 | 0x83);
    }
    TABLES.write32(3 * 4, tables + 0x1000 + 7);
    TABLES.write32(0x301 * 4, 0x40_0000 | 0x83);
    let run = |entry: *const u8, bits: u32| {
        TABLES.write32(0x1000, if bits >> 12 == 0 { 0x40_0000 | bits } else { bits });
        // SAFETY: the tables map the image one to one; the pieces write to the data page only.
        unsafe { call32(entry, PAGED, tables, 0x10) }
    };
    check_eq!(run(&raw const p_read, 3), Outcome::Done(0x1111_2222), "32-bit paging: a 4-KiB page");
    check_eq!(TABLES.read32(0x1000) & 0x60, 0x20, "32-bit paging: accessed");
    check_eq!(run(&raw const p_write_at, 3), Outcome::Done(7), "32-bit paging: a write");
    check_eq!(TABLES.read32(0x1000) & 0x60, 0x60, "32-bit paging: dirty");
    check_eq!(run(&raw const p_read_at, 0), page_fault(0), "32-bit paging: an absent page");
    check_eq!(run(&raw const p_write_at, 1), page_fault(3), "32-bit paging: a read-only page");
    check_eq!(run(&raw const p_high, 3), Outcome::Done(7), "32-bit paging: a 4-MiB page");
    if let Some(device) = device() {
        device.write32(4, 0x7777_8888);
        check_eq!(run(&raw const p_read, DEVICE | 3), Outcome::Done(0x7777_8888), "32-bit paging: a device page");
        check_eq!(run(&raw const p_write_at, DEVICE | 1), page_fault(3), "32-bit paging: a read-only device page");
    }
}

/// The same with PAE: 2-MiB pages, four page-directory-pointer entries.
fn paging_pae() {
    let tables = TABLES.base() as u64;
    TABLES.fill(0);
    for index in 0..4 {
        TABLES.write64(index * 8, tables + 0x1000 + index as u64 * 0x1000 + 1);
    }
    for index in 0..16 {
        TABLES.write64(0x1000 + index * 8, (index as u64) << 21 | 0x83);
    }
    TABLES.write64(0x1000 + 6 * 8, tables + 0x5000 + 7);
    TABLES.write64(0x4000 + 2 * 8, 0x40_0000 | 0x83);
    let run = |entry: *const u8, bits: u64| {
        TABLES.write64(0x5000, if bits << 2 >> 14 == 0 { 0x40_0000 | bits } else { bits });
        // SAFETY: the tables map the image one to one; the pieces write to the data page only.
        unsafe { call32(entry, PAGED, tables as u32, 0x20) }
    };
    DATA.write32(4, 0x5555_6666);
    check_eq!(run(&raw const p_read, 3), Outcome::Done(0x5555_6666), "PAE: a 4-KiB page");
    check_eq!(run(&raw const p_write_at, 3), Outcome::Done(7), "PAE: a write");
    check_eq!(TABLES.read64(0x5000) & 0x60, 0x60, "PAE: dirty");
    check_eq!(run(&raw const p_read_at, 0), page_fault(0), "PAE: an absent page");
    check_eq!(run(&raw const p_write_at, 1), page_fault(3), "PAE: a read-only page");
    check_eq!(run(&raw const p_high, 3), Outcome::Done(7), "PAE: a 2-MiB page, by the fourth pointer");
    if let Some(device) = device() {
        device.write32(4, 0x9999_AAAA);
        check_eq!(run(&raw const p_read, u64::from(DEVICE) | 3), Outcome::Done(0x9999_AAAA), "PAE: a device page");
        let _ = run(&raw const p_write_at, u64::from(DEVICE) | 3);
        check_eq!(device.read32(4), 7, "PAE: a write to a device page");
        check_eq!(run(&raw const p_write_at, u64::from(DEVICE) | 1), page_fault(3), "PAE: a read-only device page");
    }
    check_or_defect!(run(&raw const p_read_at, 3 | 1 << 62), page_fault(9), page_fault(8), "PAE: a reserved bit");
    check_or_defect!(TABLES.read64(0) & 0xFFF, 1, 0x21, "PAE: a pointer has no accessed bit");
}
