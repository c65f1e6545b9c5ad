//! Real mode, from long mode and back: interrupts, faults, segments, a flat segment, ports and HLT.
//!
//! SDM vol. 3B 21.1 "Real-Address Mode". The code is entered in 16-bit protected mode, see the runtime.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::apic::register::LINT0;
use bulkhead_rt::cpu::cpuid;
use bulkhead_rt::memory::Region;
use bulkhead_rt::modes::{REAL_CODE, REAL_DATA, call_real};
use bulkhead_rt::{apic, check_eq, check_or_defect, pic, pit, port, scenario};
use core::arch::global_asm;

scenario!(main);

global_asm!(
    ".section .rodata.real, \"a\"",
    ".global real_start",
    ".global real_end",
    ".code16",
    // Results: 4-byte slots from {data} on. At {data}+0x80: where a fault resumes, +0x82: its vector, +0x84: its IP.
    ".macro vector number, handler",
    ".byte 0xC7, 0x06", // mov word ptr [...], ...
    ".word 4 * \\number, \\handler - real_start + {code}",
    ".byte 0xC7, 0x06",
    ".word 4 * \\number + 2, 0",
    ".endm",
    ".macro resume label",
    ".byte 0xC7, 0x06",
    ".word {data} + 0x80, \\label - real_start + {code}",
    "mov dword ptr [{data} + 0x82], 0xFFFFFFFF",
    ".endm",
    // Slot \\slot: vector in the low half, saved IP minus the address of \\label in the high half; ones if none came.
    ".macro faulted slot, label",
    "mov ax, [{data} + 0x84]",
    ".byte 0x2D", // sub ax, ...
    ".word \\label - real_start + {code}",
    "shl eax, 16",
    "mov ax, [{data} + 0x82]",
    "cmp ax, 0xFFFF",
    "jne 9f",
    "mov eax, 0xFFFFFFFF", // no fault
    "9: mov [{data} + 4 * \\slot], eax",
    ".endm",
    "real_start:",
    "mov eax, cr0",
    "and al, 0xFE",
    "mov cr0, eax",
    ".byte 0xEA", // jmp far
    ".word real_real - real_start + {code}, 0",
    "real_real:",
    "xor ax, ax",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov sp, {code}",
    "vector 0x40, real_int",
    "vector 0, real_fault0",
    "vector 6, real_fault6",
    "vector 13, real_fault13",
    "vector 0x20, real_irq",
    // 0: INT n
    "sti",
    "stc",
    "int 0x40",
    "pushf",
    "cli",
    "pop ax",
    "mov [{data} + 2], ax",
    // 1: #DE
    "resume real_1b",
    "xor cx, cx",
    "real_1a: div cx",
    "real_1b: faulted 1, real_1a",
    // 2: #UD
    "resume real_2b",
    "real_2a: ud2",
    "real_2b: faulted 2, real_2a",
    // 3: #GP by an offset that crosses the segment's end
    "resume real_3b",
    "mov bx, 0xFFFF",
    "real_3a: mov ax, [bx]",
    "real_3b: faulted 3, real_3a",
    // 4: segment * 16 + offset
    "mov ax, 0x810",
    "mov es, ax",
    "mov dword ptr es:[0], 0x12345678",
    "mov eax, [0x8100]",
    "mov [{data} + 16], eax",
    // 5: the highest segment reaches beyond 1 MiB (A20 is on): the image's first bytes
    "mov ax, 0xFFFF",
    "mov es, ax",
    "mov eax, es:[0x10]",
    "mov [{data} + 20], eax",
    "xor ax, ax",
    "mov es, ax",
    // 6: FS still has its 4-GiB limit
    "mov ebx, 0x100000",
    "mov eax, fs:[ebx]",
    "mov [{data} + 24], eax",
    // 7: device registers through it
    "mov ebx, 0xFEE00030",
    "mov eax, fs:[ebx]",
    "mov [{data} + 28], eax",
    // 8: CPUID
    "xor eax, eax",
    "cpuid",
    "mov [{data} + 32], eax",
    // 9: ports
    "mov dx, 0x3FF",
    "mov al, 0xC7",
    "out dx, al",
    "mov al, 0",
    "in al, dx",
    "movzx eax, al",
    "mov [{data} + 36], eax",
    // 10: string input
    "mov di, 0x8200",
    "mov cx, 4",
    "rep insb",
    "mov eax, [0x8200]",
    "mov [{data} + 40], eax",
    // 11: DI and CX behind it
    "mov ax, di",
    "shl eax, 16",
    "mov ax, cx",
    "mov [{data} + 44], eax",
    // 12: SMSW
    "smsw ax",
    "movzx eax, ax",
    "mov [{data} + 48], eax",
    // 13: HLT until the interval timer interrupts
    "mov al, 0xFE",
    "out 0x21, al",
    "sti",
    "hlt",
    "cli",
    // 14: LMSW to protected mode, and back by MOV
    "mov ax, 1",
    "lmsw ax",
    "smsw ax",
    "movzx eax, ax",
    "mov [{data} + 56], eax",
    ".byte 0x66, 0xEA", // jmp far, 32 bits
    ".long mode_real_back",
    ".word 0x18",
    "real_int:",
    "pushf",
    "pop ax",
    "mov [{data}], ax",
    "iret",
    "real_irq:",
    "inc dword ptr [{data} + 52]",
    "mov al, 0x20",
    "out 0x20, al",
    "iret",
    "real_fault0: push 0",
    "jmp real_fault",
    "real_fault6: push 6",
    "jmp real_fault",
    "real_fault13: push 13",
    "real_fault:",
    "pop word ptr [{data} + 0x82]",
    "pop word ptr [{data} + 0x84]",
    "push word ptr [{data} + 0x80]",
    "iret",
    "real_end:",
    ".code64",
    ".text",
    code = const REAL_CODE,
    data = const REAL_DATA,
);

unsafe extern "C" {
    static real_start: u8;
    static real_end: u8;
}

const MULTIBOOT_MAGIC: u32 = 0x1BAD_B002;
/// What a slot holds where a fault was expected and none came.
const NO_FAULT: u32 = u32::MAX;

fn main() {
    // SAFETY: low RAM that no Rust object lies in; the loader's structures there are not needed any more.
    let low = unsafe { Region::new(REAL_CODE, 0x2000) };
    let bytes = &raw const real_end as usize - &raw const real_start as usize;
    assert!(bytes < 0x1000, "the code fits below its data");
    // SAFETY: the bytes between two symbols of one section.
    low.copy_in(0, unsafe { core::slice::from_raw_parts(&raw const real_start, bytes) });
    let results = REAL_DATA - REAL_CODE;
    for at in 0..0x400 {
        low.write8(results + at, 0);
    }
    apic::enable();
    apic::write(LINT0, 0x700);
    pic::init(0x20);
    pit::start(0, 20_000);
    // SAFETY: the code above comes back and touches low RAM only.
    unsafe { call_real() };
    pic::set_mask(0xFFFF);
    let slot = |n: usize| low.read32(results + 4 * n);
    check_eq!(slot(0) & 0x0200_0201, 0x0200_0001, "INT clears IF, IRET restores it");
    check_eq!(slot(1), 0, "#DE: vector and saved IP");
    check_eq!(slot(2), 6, "#UD: vector and saved IP");
    check_or_defect!(slot(3), 13, NO_FAULT, "#GP at the segment's end: vector and saved IP");
    check_eq!(slot(4), 0x1234_5678, "segment times 16 plus offset");
    check_eq!(slot(5), MULTIBOOT_MAGIC, "the first bytes above 1 MiB");
    check_eq!(slot(6), MULTIBOOT_MAGIC, "a segment with a 4-GiB limit");
    check_eq!(slot(7), apic::read(apic::register::VERSION), "the local APIC's registers through it");
    check_eq!(slot(8), cpuid(0, 0).eax, "CPUID");
    check_eq!(slot(9), 0xC7, "ports");
    check_eq!(slot(10), 0xC7C7_C7C7, "REP INSB: memory");
    check_eq!(slot(11), 0x8204_0000, "REP INSB: registers");
    check_eq!(slot(12) & 1, 0, "SMSW says real mode");
    check_eq!(slot(13), 1, "HLT ends by the interval timer");
    check_eq!(slot(14) & 1, 1, "LMSW enters protected mode");
    check_eq!(port::read8(0x3FF), 0xC7, "and the machine is the same behind it");
}
