//! Ticks of each class of exit, net of the same loop with nothing in it: `bench NAME TICKS`.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{Machine, machine, rdtsc};
use bulkhead_rt::{println, scenario};
use core::arch::asm;

scenario!(main);

const N: u64 = 1000;
/// RAM that nothing has touched yet, for N + 1 pages.
const UNTOUCHED: u64 = 0x40_0000;

/// Least ticks of three runs of N rounds of a loop with `$line` in it.
macro_rules! ticks {
    ($($line:literal),* ; runs $runs:expr) => {{
        let mut least = u64::MAX;
        for _ in 0..$runs {
            let start = rdtsc();
            // SAFETY: the lines use RAX, RBX (restored), RCX, RDX, RSI and R8 only and touch no memory that Rust uses.
            unsafe {
                asm!("push rbx", "mov r9, {n}", "2:", $($line,)* "dec r9", "jnz 2b", "pop rbx", n = const N,
                    out("rax") _, out("rcx") _, out("rdx") _, inout("rsi") UNTOUCHED => _, out("r8") _, out("r9") _);
            }
            least = least.min(rdtsc() - start);
        }
        least
    }};
}

fn report(name: &str, ticks: u64, empty: u64) {
    println!("bench {name} {}", ticks.saturating_sub(empty) / N);
}

fn main() {
    let empty = ticks!("mov eax, 1", "mov ecx, 0"; runs 3);
    report("cpuid", ticks!("mov eax, 1", "mov ecx, 0", "cpuid"; runs 3), empty);
    if machine() == Machine::Virtual {
        report("vmcall", ticks!("mov eax, 1", "mov ecx, 0", "vmcall"; runs 3), empty);
    }
    report("rdmsr", ticks!("mov eax, 1", "mov ecx, 0x1B", "rdmsr"; runs 3), empty);
    report("port", ticks!("mov eax, 1", "mov edx, 0x3FF", "in al, dx"; runs 3), empty);
    report("mmio", ticks!("mov eax, 1", "mov r8d, 0xFEC00000", "mov eax, [r8]"; runs 3), empty);
    report("first-touch", ticks!("mov eax, [rsi]", "add rsi, 4096"; runs 1), empty);
}
