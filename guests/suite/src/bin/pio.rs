//! Port input and output: widths, absent ports, the configuration ports.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine};
use bulkhead_rt::port::{read8, read16, read32, write8, write16, write32};
use bulkhead_rt::{check, check_eq, expect_eq, println, scenario, skip};
use core::arch::asm;

scenario!(main);

/// The scratch register of COM1: eight bits that mean nothing.
const SCRATCH: u16 = 0x3FF;
const CONFIG_ADDRESS: u16 = 0xCF8;
const CONFIG_DATA: u16 = 0xCFC;

fn main() {
    for value in 0..=255 {
        write8(SCRATCH, value);
        expect_eq!(read8(SCRATCH), value, "scratch register");
    }
    check!(true, "scratch register keeps bytes");
    registers();
    absent();
    for value in 0..100 {
        write8(0x80, value);
        write8(0xED, value);
    }
    check!(true, "delay ports");
    pci();
    cmos();
    if cpu::machine() == Machine::Native {
        skip!("fw_cfg");
    } else {
        write16(0x510, 0);
        let signature = [(); 4].map(|()| read8(0x511));
        check_eq!(&signature, b"QEMU", "fw_cfg signature");
        write16(0x510, 5);
        check_eq!(read8(0x511), 1, "fw_cfg: one processor");
    }
}

/// IN AL and IN AX leave the rest of RAX, IN EAX clears the upper half.
fn registers() {
    write8(SCRATCH, 0x5A);
    let (mut byte, mut word, mut dword) = (u64::MAX, u64::MAX, u64::MAX);
    let mut immediate = 0_u64;
    // SAFETY: reads of the scratch register, of an absent port and of the system control port change nothing.
    unsafe {
        asm!("in al, dx", in("dx") SCRATCH, inout("rax") byte, options(nomem, nostack));
        asm!("in ax, dx", in("dx") 0x1234_u16, inout("rax") word, options(nomem, nostack));
        asm!("in eax, dx", in("dx") 0x1234_u16, inout("rax") dword, options(nomem, nostack));
        asm!("in al, 0x61", inout("rax") immediate, options(nomem, nostack));
    }
    check_eq!(byte, 0xFFFF_FFFF_FFFF_FF5A, "IN AL leaves the rest of RAX");
    check_eq!(word, u64::MAX, "IN AX leaves the rest of RAX");
    check_eq!(dword, 0xFFFF_FFFF, "IN EAX clears the upper half");
    check_eq!(immediate >> 8, 0, "IN AL, imm8");
}

fn absent() {
    for port in [0x1234, 0x2F8 - 8, 0x5678, 0xABCC, 0xFFF8] {
        expect_eq!(read8(port), 0xFF, "byte of absent port {port:#x}");
        expect_eq!(read16(port), 0xFFFF, "word of absent port {port:#x}");
        expect_eq!(read32(port), 0xFFFF_FFFF, "dword of absent port {port:#x}");
        write8(port, 0);
        write16(port, 0);
        write32(port, 0);
    }
    check!(true, "absent ports read as ones");
}

fn config(device: u32, register: u32) -> u32 {
    write32(CONFIG_ADDRESS, 1 << 31 | device << 11 | register);
    read32(CONFIG_DATA)
}

/// PCI Local Bus Specification 3.0, 3.2.2.3.2 "Software Generation of Configuration Transactions".
fn pci() {
    write32(CONFIG_ADDRESS, 0x8000_F8FC);
    check_eq!(read32(CONFIG_ADDRESS), 0x8000_F8FC, "configuration address reads back");
    let bridge = config(0, 0);
    println!("host bridge {bridge:#010x}");
    check!(bridge != u32::MAX && bridge != 0, "host bridge at 0:0.0");
    check_eq!(config(0, 8) >> 16, 0x0600, "its class");
    check_eq!(u32::from(read16(CONFIG_DATA + 2)), config(0, 8) >> 16, "a word of the data port");
    check_eq!(u32::from(read8(CONFIG_DATA + 3)), 6, "a byte of the data port");
    check_eq!(config(0x1E, 0), u32::MAX, "an absent device reads as ones");
    write32(CONFIG_ADDRESS, 0);
    check_eq!(read32(CONFIG_DATA), u32::MAX, "without the enable bit too");
}

/// Motorola MC146818A.
fn cmos() {
    write8(0x70, 0x0D);
    check_eq!(read8(0x71) & 0x80, 0x80, "RTC time is valid");
    for value in [0x55, 0xAA, 0] {
        write8(0x70, 0x7E);
        write8(0x71, value);
        write8(0x70, 0x7E);
        expect_eq!(read8(0x71), value, "CMOS byte");
    }
    check!(true, "CMOS keeps bytes");
}
