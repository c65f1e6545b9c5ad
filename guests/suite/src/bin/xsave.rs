//! x87, SSE and AVX state: kept over time beside a neighbour, saved and restored by XSAVE, XCR0 checked.
//!
//! `seed=N` makes the contents of two neighbours differ, `rounds=N` (20) sets for how long they are kept.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, cpuid};
use bulkhead_rt::{catch, check, check_eq, println, scenario, skip, time, word_value};
use core::arch::asm;

scenario!(main);

const GP: Option<(u64, u64)> = Some((13, 0));

/// Sixteen vector registers of 32 bytes.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq, Debug)]
struct Vectors([[u64; 4]; 16]);

/// An XSAVE area, for up to AVX-512.
#[repr(C, align(64))]
struct Area([u8; 4096]);

fn pattern(seed: u64) -> Vectors {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    Vectors([(); 16].map(|()| {
        [(); 4].map(|()| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
    }))
}

macro_rules! each_register {
    ($($number:literal)*; $before:literal $middle:literal $after:literal, $address:expr) => {
        // SAFETY: sixteen registers of 32 bytes are what `Vectors` holds; compiled code here uses none of them.
        unsafe { asm!($(concat!($before, $number, $middle, $number, $after)),*, in("rdi") $address, options(nostack)) }
    };
}

fn load(avx: bool, from: &Vectors) {
    let address = from.0.as_ptr();
    if avx {
        each_register!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; "vmovdqu ymm" ", [rdi + 32 * " "]", address);
    } else {
        each_register!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; "movdqu xmm" ", [rdi + 32 * " "]", address);
    }
}

/// The registers as they are; without AVX the upper halves come from `expected`.
fn store(avx: bool, expected: &Vectors) -> Vectors {
    let mut seen = expected.clone();
    let address = seen.0.as_mut_ptr();
    if avx {
        each_register!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; "vmovdqu [rdi + 32 * " "], ymm" "", address);
    } else {
        each_register!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; "movdqu [rdi + 32 * " "], xmm" "", address);
    }
    seen
}

fn main() {
    let seed = word_value("seed").unwrap_or(1);
    let xsave = cpuid(1, 0).ecx & 1 << 26 != 0;
    if xsave {
        // SAFETY: CR4.OSXSAVE lets XSAVE and its like work, nothing more.
        unsafe { cpu::set_cr4(cpu::cr4() | 1 << 18) };
    }
    let avx = xsave && cpuid(1, 0).ecx & 1 << 28 != 0 && xsetbv(0, 7).is_none();
    println!("seed {seed}, AVX {avx}");
    kept(avx, seed);
    if !xsave {
        return skip!("XSAVE");
    }
    control_register();
    if avx {
        check!(xsetbv(0, 7).is_none(), "AVX on again");
    }
    saved(avx, seed);
}

/// The registers keep their contents while time passes and others run.
fn kept(avx: bool, seed: u64) {
    let expected = pattern(seed);
    load(avx, &expected);
    let control = 0x1F80 | (seed as u32 & 3) << 13;
    // SAFETY: rounding control only, exceptions stay masked; one value on the x87 stack.
    unsafe {
        asm!("push {control}", "ldmxcsr [rsp]", "fninit", "mov [rsp], {seed}", "fild qword ptr [rsp]", "pop {control}",
            control = inout(reg) u64::from(control) => _, seed = in(reg) seed);
    }
    let rounds = word_value("rounds").unwrap_or(20);
    let wrong = (0..rounds).find(|_| {
        time::delay(5000);
        store(avx, &expected) != expected
    });
    check_eq!(wrong, None, "vector registers keep their contents");
    let (mxcsr, x87): (u64, u64);
    // SAFETY: stores what was loaded above, through one word of stack.
    unsafe {
        asm!("push 0", "stmxcsr [rsp]", "mov {mxcsr}, [rsp]", "fistp qword ptr [rsp]", "pop {x87}",
            mxcsr = out(reg) mxcsr, x87 = out(reg) x87);
    }
    check_eq!(mxcsr, u64::from(control), "MXCSR keeps its contents");
    check_eq!(x87, seed, "the x87 stack keeps its contents");
}

fn xsetbv(register: u32, value: u32) -> Option<(u64, u64)> {
    let caught = catch(|| {
        // SAFETY: a mask that the processor refuses faults, one that it takes enables states no compiled code here uses.
        unsafe { asm!("xsetbv", in("ecx") register, in("eax") value, in("edx") 0, options(nomem, nostack)) }
    });
    caught.map(|exception| exception.code())
}

fn xgetbv() -> u32 {
    let value;
    // SAFETY: reads XCR0; OSXSAVE is on.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack)) };
    value
}

/// SDM vol. 2D "XSETBV".
fn control_register() {
    check_eq!(xsetbv(0, 1), None, "XCR0 takes x87 alone");
    check_eq!(xgetbv(), 1, "and keeps it");
    check_eq!(xsetbv(0, 3), None, "XCR0 takes SSE");
    check_eq!(xgetbv(), 3, "and keeps it");
    check_eq!(xsetbv(0, 0), GP, "XCR0 refuses to lose x87");
    check_eq!(xsetbv(0, 5), GP, "XCR0 refuses AVX without SSE");
    check_eq!(xsetbv(0, 1 << 30 | 3), GP, "XCR0 refuses what CPUID does not list");
    check_eq!(xsetbv(1, 1), GP, "XCR1 is not there");
    check_eq!(xgetbv(), 3, "refused values change nothing");
}

/// SDM vol. 1 13.7 "Operation of XSAVE", 13.8 "Operation of XRSTOR".
fn saved(avx: bool, seed: u64) {
    let (expected, other) = (pattern(seed + 100), pattern(seed + 200));
    let mut area = Area([0; 4096]);
    let address = area.0.as_mut_ptr();
    load(avx, &expected);
    // SAFETY: the area is aligned to 64 bytes and larger than CPUID says for these states.
    unsafe { asm!("xsave64 [{}]", in(reg) address, in("eax") 7, in("edx") 0, options(nostack)) };
    load(avx, &other);
    check_eq!(store(avx, &other), other, "other contents");
    // SAFETY: as above; the area holds what XSAVE wrote.
    unsafe { asm!("xrstor64 [{}]", in(reg) address, in("eax") 7, in("edx") 0, options(nostack)) };
    check_eq!(store(avx, &expected), expected, "XRSTOR brings back what XSAVE saved");
    check_eq!(area.0[512] & 6, if avx { 6 } else { 2 }, "the header says what was saved");
}
