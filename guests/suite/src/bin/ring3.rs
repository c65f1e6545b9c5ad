//! Ring 3: what it may not do, stack switch to ring 0, alignment check, SYSCALL.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, cpuid, rdmsr, wrmsr};
use bulkhead_rt::segments::{CODE, USER_CODE, USER_CODE32, USER_DATA};
use bulkhead_rt::{check, check_eq, check_or_defect, scenario, skip, trap, user};
use core::arch::global_asm;

scenario!(main);

global_asm!(
    "user_cli: cli",
    "user_hlt: hlt",
    "user_in: in al, 0x61",
    "user_rdmsr: rdmsr",
    "user_cr0: mov rax, cr0",
    "user_int: int 0x60",
    "user_int_open: int 0x61",
    "user_unaligned: mov eax, [rsp - 7]",
    "user_syscall: syscall",
    "user_ud: ud2",
    "user_into: .code32",
    "mov eax, 0x7FFFFFFF",
    "inc eax",
    "into",
    "user_bound: bound eax, [esi]",
    ".code64",
    "user_sgdt: sgdt [rsp - 16]",
    "ud2",
    "user_rdtsc: rdtsc",
    "ud2",
    "kernel_syscall: ud2",
);

unsafe extern "C" {
    static user_cli: u8;
    static user_hlt: u8;
    static user_in: u8;
    static user_rdmsr: u8;
    static user_cr0: u8;
    static user_int: u8;
    static user_int_open: u8;
    static user_unaligned: u8;
    static user_syscall: u8;
    static user_ud: u8;
    static user_into: u8;
    static user_bound: u8;
    static user_sgdt: u8;
    static user_rdtsc: u8;
    static kernel_syscall: u8;
}

/// Runs `entry` in ring 3; vector, error code and distance of the saved RIP from `entry`.
fn run(entry: *const u8, code: u16, flags: u64, argument: u64) -> Option<(u64, u64, u64)> {
    // SAFETY: each piece above ends by an exception in its first instructions and writes at most to its stack.
    let caught = unsafe { user::run(entry as u64, code, flags, argument) };
    caught.map(|e| (e.vector(), e.frame.error, e.frame.rip.wrapping_sub(entry as u64)))
}

fn main() {
    let privileged = [
        ("CLI", &raw const user_cli),
        ("HLT", &raw const user_hlt),
        ("IN", &raw const user_in),
        ("RDMSR", &raw const user_rdmsr),
        ("MOV from CR0", &raw const user_cr0),
    ];
    for (name, entry) in privileged {
        check_eq!(run(entry, USER_CODE, 0, 0), Some((13, 0, 0)), "{name} in ring 3 is #GP");
    }
    check_or_defect!(
        run(&raw const user_int, USER_CODE, 0, 0),
        Some((13, 0x60 * 8 + 2, 0)),
        Some((13, 0x60 * 16 + 2, 0)),
        "INT through a gate of ring 0 is #GP"
    );
    trap::set_gate_kind(0x61, CODE, 0xEE, 0);
    trap::on(0x61, |frame| {
        check_eq!((frame.cs, frame.ss), (u64::from(USER_CODE), u64::from(USER_DATA)), "INT through a gate of ring 3");
        frame.rip = &raw const user_ud as u64;
    });
    check_eq!(run(&raw const user_int_open, USER_CODE, 0, 0).map(|c| c.0), Some(6), "and back to ring 3");
    compatibility();
    alignment();
    syscall();
    controls();
}

/// 32-bit code under long mode: the instructions that 64-bit mode lacks.
fn compatibility() {
    trap::set_gate_kind(4, CODE, 0xEE, 0);
    check_eq!(run(&raw const user_into, USER_CODE32, 0, 0), Some((4, 0, 7)), "#OF by INTO");
    let bounds: [i32; 2] = [i32::MAX, i32::MAX];
    let caught = run(&raw const user_bound, USER_CODE32, 0, &raw const bounds as u64);
    check_eq!(caught, Some((5, 0, 0)), "#BR by BOUND");
}

/// SDM vol. 3A 6.15 "Interrupt 17, Alignment Check Exception".
fn alignment() {
    // SAFETY: CR0.AM matters in ring 3 only.
    unsafe { cpu::set_cr0(cpu::cr0() | 1 << 18) };
    let caught = run(&raw const user_unaligned, USER_CODE, 1 << 18, 0);
    check_or_defect!(caught, Some((17, 0, 0)), Some((6, 0, 4)), "#AC in ring 3");
    // SAFETY: as it was.
    unsafe { cpu::set_cr0(cpu::cr0() & !(1 << 18)) };
}

/// SDM vol. 2B "SYSCALL": to ring 0 without touching the stack.
fn syscall() {
    let efer = rdmsr(0xC000_0080).unwrap_or_default();
    check!(wrmsr(0xC000_0081, u64::from(CODE) << 32 | 0x30 << 48).is_ok(), "STAR");
    check!(wrmsr(0xC000_0082, &raw const kernel_syscall as u64).is_ok(), "LSTAR");
    check!(wrmsr(0xC000_0084, 0x200).is_ok() && wrmsr(0xC000_0080, efer | 1).is_ok(), "SCE");
    // SAFETY: SYSCALL leads to the UD2 at kernel_syscall, in ring 0, on the ring-3 stack, which is mapped.
    let caught = unsafe { user::run(&raw const user_syscall as u64, USER_CODE, 0x200, 0) };
    let Some(e) = caught else {
        check!(false, "SYSCALL ends in #UD");
        return;
    };
    check_eq!(e.frame.rip, &raw const kernel_syscall as u64, "SYSCALL goes to LSTAR");
    check_eq!(e.frame.rcx, &raw const user_syscall as u64 + 2, "and leaves the return address in RCX");
    check_eq!((e.frame.r11 & 0x200, e.frame.rflags & 0x200), (0x200, 0), "and masks the flags");
    check_eq!(e.frame.cs, u64::from(CODE), "and enters ring 0");
    check!(wrmsr(0xC000_0080, efer).is_ok(), "SCE off");
    check_eq!(run(&raw const user_syscall, USER_CODE, 0, 0), Some((6, 0, 0)), "SYSCALL without SCE is #UD");
}

/// CR4 bits that take things from ring 3.
fn controls() {
    let cr4 = cpu::cr4();
    // SAFETY: CR4.TSD and UMIP matter in ring 3 only.
    unsafe { cpu::set_cr4(cr4 | 1 << 2) };
    check_eq!(run(&raw const user_rdtsc, USER_CODE, 0, 0), Some((13, 0, 0)), "CR4.TSD keeps RDTSC from ring 3");
    // SAFETY: as it was.
    unsafe { cpu::set_cr4(cr4) };
    check_eq!(run(&raw const user_rdtsc, USER_CODE, 0, 0), Some((6, 0, 2)), "and without it RDTSC works");
    if cpuid(7, 0).ecx & 1 << 2 == 0 {
        return skip!("UMIP");
    }
    // SAFETY: UMIP matters in ring 3 only.
    unsafe { cpu::set_cr4(cr4 | 1 << 11) };
    check_eq!(run(&raw const user_sgdt, USER_CODE, 0, 0), Some((13, 0, 0)), "CR4.UMIP keeps SGDT from ring 3");
    // SAFETY: as it was.
    unsafe { cpu::set_cr4(cr4) };
}
