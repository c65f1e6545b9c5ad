//! First program of the guest Linux: says when it began, then starts busybox. Run again from there, it is a load for all
//! processors ([`smp`]).
//!
//! The line `bulkhead-init tsc=N` on the console has the time-stamp counter at the program's first instruction, which
//! `hv bench boot` subtracts from. There is no C library below: four system calls are all that the first program needs (x86-64 numbers of
//! Linux' arch/x86/entry/syscalls/syscall_64.tbl).
#![no_std]
#![no_main]

mod smp;

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

const WRITE: u64 = 1;
const GETPID: u64 = 39;
const EXECVE: u64 = 59;
const EXIT: u64 = 60;
const STANDARD_OUTPUT: u64 = 1;

/// Decimal digits of the largest 64-bit number.
const DIGITS: usize = 20;

global_asm!(
    ".globl _start",
    "_start:",
    "rdtsc",
    "shl rdx, 32",
    "lea rdi, [rax + rdx]",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

extern "C" fn start(tsc: u64) -> ! {
    // SAFETY: getpid takes no pointer.
    if unsafe { system_call(GETPID, 0, 0, 0) } != 1 {
        exit(u64::from(!smp::run()));
    }
    let mut digits = [0; DIGITS];
    print(b"bulkhead-init tsc=");
    print(decimal(tsc, &mut digits));
    print(b"\n");
    let program = c"/bin/busybox";
    let arguments = [c"sh".as_ptr(), c"/etc/rc".as_ptr(), core::ptr::null()];
    let environment = [c"PATH=/bin".as_ptr(), c"HOME=/root".as_ptr(), c"TERM=linux".as_ptr(), core::ptr::null()];
    let arrays = (arguments.as_ptr() as u64, environment.as_ptr() as u64);
    // SAFETY: execve reads the zero-ended program name and two null-ended arrays of zero-ended strings, all of which
    // live to the end of this function.
    unsafe { system_call(EXECVE, program.as_ptr() as u64, arrays.0, arrays.1) };
    print(b"bulkhead-init: there is no /bin/busybox\n");
    exit(1)
}

/// The decimal digits of `value`, in the end of `digits`.
fn decimal(mut value: u64, digits: &mut [u8; DIGITS]) -> &[u8] {
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        if used > 0 && value == 0 {
            break;
        }
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        used += 1;
    }
    digits.get(DIGITS - used..).unwrap_or_default()
}

fn print(text: &[u8]) {
    // SAFETY: write reads exactly the bytes of `text`.
    unsafe { system_call(WRITE, STANDARD_OUTPUT, text.as_ptr() as u64, text.len() as u64) };
}

fn exit(code: u64) -> ! {
    loop {
        // SAFETY: exit takes no pointer.
        unsafe { system_call(EXIT, code, 0, 0) };
    }
}

/// # Safety
/// The arguments must be what system call `number` takes.
unsafe fn system_call(number: u64, first: u64, second: u64, third: u64) -> u64 {
    let result;
    // SAFETY: the x86-64 system call convention: number in RAX, arguments in RDI, RSI, RDX, R10 (none is needed there), and RCX and R11 are lost.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") first, in("rsi") second, in("rdx") third, in("r10") 0_u64,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(1)
}
