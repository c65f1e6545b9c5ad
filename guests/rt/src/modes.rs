//! Out of long mode and back: 32-bit protected mode, with paging as wanted, and 16-bit real mode.
//!
//! SDM vol. 3A 10.8.5 "Initializing IA-32e Mode", 10.9 "Mode Switching". The code to run is a scenario's, in assembler.
//! A fault in 32-bit code is recorded and resumed at the address in `mode_fixup` with the stack of `mode_fixup_esp`; the
//! macro [`code32!`](crate::code32) sets them.

use crate::segments::{CODE, CODE16, CODE32, DATA, DATA16};
use crate::trap;
use core::arch::global_asm;

global_asm!(
    // mode_call32(entry: edi, cr0: esi, cr3: edx, cr4: ecx) -> eax
    ".global mode_call32",
    "mode_call32:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "cli",
    "mov [mode_rsp], rsp",
    "mov rax, cr0",
    "mov [mode_cr0], eax",
    "mov rax, cr3",
    "mov [mode_cr3], eax",
    "mov rax, cr4",
    "mov [mode_cr4], eax",
    "push {code32}",
    "lea rax, [rip + 2f]",
    "push rax",
    "retfq",
    ".code32",
    "2: mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov esp, offset mode_stack_top",
    "mov ebx, ecx",
    "mov ebp, edx",
    "mov eax, cr0",
    "and eax, 0x7FFFFFFF",
    "mov cr0, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "and eax, 0xFFFFFEFF",
    "wrmsr",
    "lidt [mode_idt_pointer]",
    "mov cr4, ebx",
    "mov cr3, ebp",
    "mov cr0, esi",
    "jmp 3f",
    "3: call edi",
    "mov [mode_result], eax",
    "mov eax, cr0",
    "and eax, 0x7FFFFFFF",
    "mov cr0, eax",
    "mov eax, [mode_cr4]",
    "mov cr4, eax",
    "mov eax, [mode_cr3]",
    "mov cr3, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, [mode_cr0]",
    "mov cr0, eax",
    "push {code}",
    "mov eax, offset mode_long",
    "push eax",
    "retf",
    ".code64",
    "mode_long: mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov rsp, [mode_rsp]",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "mov eax, [mode_result]",
    "ret",
    // 32-bit exceptions: the record is vector, error code, EIP, CR2.
    ".code32",
    ".balign 16",
    ".global mode_entries",
    "mode_entries:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    ".if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21",
    "push 0",
    ".endif",
    ".byte 0x68", // push
    ".long vector",
    "jmp mode_trap",
    ".set vector, vector + 1",
    ".endr",
    "mode_trap:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "pop dword ptr [mode_record]",
    "pop dword ptr [mode_record + 4]",
    "pop dword ptr [mode_record + 8]",
    "mov ss, eax",
    "mov eax, cr2",
    "mov [mode_record + 12], eax",
    "mov esp, [mode_fixup_esp]",
    "jmp dword ptr [mode_fixup]",
    // 32-bit code, called by mode_call32: to the real-mode code at {real} and back.
    ".global mode_real",
    "mode_real:",
    "mov [mode_fixup_esp], esp",
    "lidt [mode_real_idt_pointer]",
    "mov eax, {data}",
    "mov fs, eax", // its 4-GiB limit stays on in real mode
    "mov eax, {data16}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    ".byte 0xEA", // jmp far
    ".long {real}",
    ".word {code16}",
    ".global mode_real_back",
    "mode_real_back:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov esp, [mode_fixup_esp]",
    "lidt [mode_idt_pointer]",
    "ret",
    ".code64",
    ".section .data.modes, \"aw\"",
    ".balign 8",
    "mode_idt_pointer: .word 255",
    ".long mode_idt",
    ".balign 8",
    "mode_real_idt_pointer: .word 0x3FF",
    ".long 0",
    ".section .bss.modes, \"aw\", @nobits",
    ".balign 16",
    ".skip 8192",
    "mode_stack_top:",
    ".global mode_idt",
    "mode_idt: .skip 256",
    "mode_rsp: .skip 8",
    "mode_cr0: .skip 4",
    "mode_cr3: .skip 4",
    "mode_cr4: .skip 4",
    "mode_result: .skip 4",
    ".global mode_fixup",
    "mode_fixup: .skip 4",
    ".global mode_fixup_esp",
    "mode_fixup_esp: .skip 4",
    ".global mode_expected",
    "mode_expected: .skip 4",
    ".global mode_record",
    "mode_record: .skip 16",
    ".text",
    code = const CODE,
    code32 = const CODE32,
    code16 = const CODE16,
    data = const DATA,
    data16 = const DATA16,
    real = const REAL_CODE,
);

unsafe extern "sysv64" {
    fn mode_call32(entry: u32, cr0: u32, cr3: u32, cr4: u32) -> u32;
    static mode_entries: u8;
    static mode_real: u8;
    static mut mode_idt: [u64; 32];
    static mut mode_record: [u32; 4];
    static mode_expected: u32;
}

/// Where real-mode code is put and entered (segment 0).
pub const REAL_CODE: usize = 0x7000;
/// Free for the results of real-mode code.
pub const REAL_DATA: usize = 0x8000;
/// CR0 for protected mode without paging.
pub const PROTECTED: u32 = 0x0001_0031;
/// CR0 for protected mode with paging.
pub const PAGED: u32 = 0x8001_0031;

/// What 32-bit code came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It came to its end with this value in EAX.
    Done(u32),
    /// It faulted.
    Fault {
        /// Vector.
        vector: u32,
        /// Error code, 0 for vectors without.
        error: u32,
        /// Whether the saved EIP was that of label 2.
        at_label: bool,
        /// CR2, for #PF; else 0.
        address: u32,
    },
}

/// Defines 32-bit code `$name` for [`call32`]; label 2 stands where a fault is expected to be saved.
#[macro_export]
macro_rules! code32 {
    ($name:literal, $($line:literal),+) => {
        ::core::arch::global_asm!(
            ".code32", concat!(".global ", $name), concat!($name, ":"),
            concat!("mov ecx, [", $name, "_labels]"), "mov [mode_expected], ecx",
            concat!("mov ecx, [", $name, "_labels + 4]"), "mov [mode_fixup], ecx", "mov [mode_fixup_esp], esp",
            $($line,)+
            "9: mov ecx, 0x10", "mov ds, ecx", "mov es, ecx", "mov ss, ecx", "ret",
            concat!($name, "_labels: .long 2b, 9b"), ".code64"
        );
    };
}

/// Runs the 32-bit code at `entry` in protected mode with these control registers (`cr4` without PAE: 32-bit paging).
///
/// # Safety
/// `entry` is the address of [`code32!`] code, which changes no memory that Rust uses; with paging, the tables at `cr3`
/// map the first 4 MiB one to one.
pub unsafe fn call32(entry: *const u8, cr0: u32, cr3: u32, cr4: u32) -> Outcome {
    let entries = &raw const mode_entries as u64;
    for vector in 0..32 {
        let stub = entries + vector * 16;
        let gate = stub & 0xFFFF | u64::from(CODE32) << 16 | 0x8E00 << 32 | (stub >> 16) << 48;
        // SAFETY: static table of 32 gates, used in 32-bit mode only.
        unsafe { (&raw mut mode_idt).cast::<u64>().add(vector as usize).write_volatile(gate) };
    }
    // SAFETY: the record is static and written by the exception entry only; the caller vouches for the code. All
    // registers that the calling convention keeps are restored, and with them the mode.
    let (value, record, expected) = unsafe {
        (&raw mut mode_record).write_volatile([u32::MAX, 0, 0, 0]);
        let value = mode_call32(entry as u32, cr0, cr3, cr4);
        (value, (&raw const mode_record).read_volatile(), (&raw const mode_expected).read_volatile())
    };
    trap::reload();
    let [vector, error, eip, cr2] = record;
    if vector == u32::MAX {
        return Outcome::Done(value);
    }
    Outcome::Fault { vector, error, at_label: eip == expected, address: if vector == 14 { cr2 } else { 0 } }
}

/// Enters the real-mode code at [`REAL_CODE`] as 16-bit protected mode (CS and the data segments have base 0 and limit
/// 0xFFFF, FS has base 0 and limit 4 GiB); it comes back by a far jump to `mode_real_back` in segment `CODE32` with CR0.PE on.
///
/// # Safety
/// The code does so, and changes no memory that Rust uses.
pub unsafe fn call_real() {
    // SAFETY: mode_real is 32-bit code that leaves through the code the caller vouches for.
    unsafe { mode_call32(&raw const mode_real as u32, PROTECTED, 0, 0) };
    trap::reload();
}
