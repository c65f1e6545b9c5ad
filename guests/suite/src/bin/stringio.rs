//! INS and OUTS: long, backwards, across pages, into faults, beside interrupts.
//!
//! SDM vol. 2A "INS/INSB/INSW/INSD", vol. 2B "OUTS/OUTSB/OUTSW/OUTSD".
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::apic::register::{DIVIDE, INITIAL_COUNT, TIMER};
use bulkhead_rt::cpu::{self, Machine, machine, wrmsr};
use bulkhead_rt::memory::Region;
use bulkhead_rt::segments::USER_CODE;
use bulkhead_rt::{apic, catch, check, check_eq, paging, port, println, scenario, serial, skip, trap, user};
use core::arch::{asm, global_asm};

scenario!(main);

/// COM1's scratch register: keeps a byte.
const SCRATCH: u16 = 0x3FF;
/// Nobody's: reads as ones.
const ABSENT: u16 = 0x1234;
const RAM: usize = 0x40_0000;
const BYTES: usize = 0x2_0000;

// SAFETY: RAM above the image, which holds no Rust object.
const BUFFER: Region = unsafe { Region::new(RAM, BYTES) };

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Registers {
    count: u64,
    rsi: u64,
    rdi: u64,
}

/// A line of string input or output with these registers; the registers behind it.
macro_rules! string_io {
    ($port:expr, $start:expr, $($line:literal),+) => {{
        let mut r: Registers = $start;
        // SAFETY: the pointers are into the buffer, or into window pages, which hold no Rust object.
        unsafe {
            asm!($($line,)+ "cld", in("dx") $port, inout("rcx") r.count, inout("rsi") r.rsi, inout("rdi") r.rdi, options(nostack))
        };
        r
    }};
}

fn at(count: u64, offset: usize) -> Registers {
    Registers { count, rsi: (RAM + offset) as u64, rdi: (RAM + offset) as u64 }
}

fn main() {
    single();
    directions();
    long();
    faults();
    console();
    interrupted();
    if machine() != Machine::Native {
        port::write16(0x510, 0);
        BUFFER.fill(0);
        let r = string_io!(0x511_u16, at(4, 0), "rep insb");
        check_eq!((r.count, BUFFER.read32(0)), (0, u32::from_le_bytes(*b"QEMU")), "REP INSB of the fw_cfg signature");
    }
}

fn single() {
    port::write8(SCRATCH, 0x5A);
    BUFFER.fill(0);
    let r = string_io!(SCRATCH, at(7, 1), "insb");
    check_eq!(
        (r, BUFFER.read32(0)),
        (Registers { count: 7, rsi: RAM as u64 + 1, rdi: RAM as u64 + 2 }, 0x5A00),
        "INSB"
    );
    let r = string_io!(ABSENT, at(7, 8), "insw");
    check_eq!((r.rdi - RAM as u64, BUFFER.read64(8)), (10, 0xFFFF), "INSW");
    let r = string_io!(ABSENT, at(7, 16), "insd");
    check_eq!((r.rdi - RAM as u64, BUFFER.read64(16)), (20, 0xFFFF_FFFF), "INSD");
    BUFFER.write8(32, 0xC3);
    let r = string_io!(SCRATCH, at(7, 32), "outsb");
    check_eq!(
        (r, port::read8(SCRATCH)),
        (Registers { count: 7, rsi: RAM as u64 + 33, rdi: RAM as u64 + 32 }, 0xC3),
        "OUTSB"
    );
    check!(wrmsr(0xC000_0100, 0x40).is_ok(), "FS base");
    BUFFER.write8(0x60, 0x3C);
    let _ = string_io!(SCRATCH, at(1, 0x20), "rep outs dx, byte ptr fs:[rsi]");
    check_eq!(port::read8(SCRATCH), 0x3C, "OUTSB from FS");
    check!(wrmsr(0xC000_0100, 0).is_ok(), "FS base back");
}

fn directions() {
    port::write8(SCRATCH, 0x77);
    BUFFER.fill(0);
    let r = string_io!(SCRATCH, at(3, 5), "std", "rep insb");
    check_eq!((r.count, r.rdi), (0, RAM as u64 + 2), "REP INSB downwards: registers");
    check_eq!(BUFFER.read64(0), 0x7777_7700_0000, "REP INSB downwards: memory");
    let r = string_io!(SCRATCH, at(0, 64), "rep insb");
    check_eq!((r, BUFFER.read8(64)), (at(0, 64), 0), "REP INSB of nothing");
    let mut start = at(2, 128);
    start.count |= 1 << 40;
    start.rdi |= 1 << 40;
    let r = string_io!(SCRATCH, start, ".byte 0x67", "rep insb");
    check_eq!((r.count & 0xFFFF_FFFF, r.rdi), (0, RAM as u64 + 130), "REP INSB with 32-bit addresses: registers");
    check_eq!(BUFFER.read32(128), 0x7777, "REP INSB with 32-bit addresses: memory");
}

fn long() {
    port::write8(SCRATCH, 0xA5);
    BUFFER.fill(0);
    let r = string_io!(SCRATCH, at(0x1_0000, 3), "rep insb");
    check_eq!((r.count, r.rdi), (0, RAM as u64 + 0x1_0003), "REP INSB of 64 KiB: registers");
    let wrong = (0..BYTES).find(|at| BUFFER.read8(*at) != if (3..0x1_0003).contains(at) { 0xA5 } else { 0 });
    check_eq!(wrong, None, "REP INSB of 64 KiB: memory");
    BUFFER.write8(0x8002, 0x42);
    let r = string_io!(SCRATCH, at(0x8000, 3), "rep outsb");
    check_eq!((r.count, r.rsi), (0, RAM as u64 + 0x8003), "REP OUTSB of 32 KiB: registers");
    check_eq!(port::read8(SCRATCH), 0x42, "REP OUTSB of 32 KiB: last byte");
    let r = string_io!(ABSENT, at(0x1000, 2), "rep insd");
    check_eq!((r.count, r.rdi), (0, RAM as u64 + 0x4002), "REP INSD across pages: registers");
    check_eq!((BUFFER.read16(0x4000), BUFFER.read8(0x4002)), (0xFFFF, 0xA5), "REP INSD across pages: memory");
}

/// A page fault in the middle: the registers say how far it came.
fn faults() {
    use paging::{P, U, W};
    let mapped = paging::set(20, RAM as u64 | P | W | U);
    let absent = paging::set(21, 0);
    let near_end = Registers { count: 20, rsi: mapped + 4096 - 5, rdi: mapped + 4096 - 5 };
    port::write8(SCRATCH, 0x99);
    BUFFER.fill(0);
    let caught = catch(|| {
        let _ = string_io!(SCRATCH, near_end, "rep insb");
    });
    let seen = caught.map(|e| (e.code(), e.cr2, e.frame.rcx, e.frame.rdi));
    check_eq!(seen, Some(((14, 2), absent, 15, absent)), "REP INSB into an absent page");
    check_eq!(BUFFER.read64(4088), 0x9999_9999_9900_0000, "what came before is there");
    let caught = catch(|| {
        let _ = string_io!(SCRATCH, near_end, "rep outsb");
    });
    let seen = caught.map(|e| (e.code(), e.cr2, e.frame.rcx, e.frame.rsi));
    check_eq!(seen, Some(((14, 0), absent, 15, absent)), "REP OUTSB from an absent page");
    let read_only = paging::set(22, RAM as u64 | P | U);
    let caught = catch(|| {
        let _ = string_io!(SCRATCH, Registers { count: 1, rsi: 0, rdi: read_only }, "rep insb");
    });
    check_eq!(caught.map(|e| e.code()), Some((14, 3)), "INSB into a read-only page");
    // SAFETY: one privileged instruction, which faults at once.
    let caught = unsafe { user::run(&raw const user_insb as u64, USER_CODE, 0, 0) };
    check_eq!(caught.map(|e| e.code()), Some((13, 0)), "INSB in ring 3 is #GP");
}

global_asm!(".global user_insb", "user_insb: rep insb");

unsafe extern "C" {
    static user_insb: u8;
}

/// Text by REP OUTSB, sixteen bytes at a time: as many as the transmitter's FIFO takes.
fn console() {
    let text = b"string output on the console: 0123456789 abcdefghijklmnopqrstuvwxyz\n";
    BUFFER.copy_in(4090, text);
    port::write8(0x3FA, 0x01);
    let mut sent = 0;
    while sent < text.len() {
        serial::drain();
        let count = (text.len() - sent).min(16);
        let _ = string_io!(0x3F8_u16, at(count as u64, 4090 + sent), "rep outsb");
        sent += count;
    }
    serial::drain();
    port::write8(0x3FA, 0x00);
}

/// Interrupts are taken between the iterations, and the instruction goes on behind them.
fn interrupted() {
    const VECTOR: u8 = 0x50;
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    apic::write(DIVIDE, 0xB);
    apic::write(TIMER, u32::from(VECTOR));
    BUFFER.fill(0);
    port::write8(SCRATCH, 0x66);
    apic::write(INITIAL_COUNT, 5000);
    let r = string_io!(SCRATCH, at(0x1_0000, 0), "sti", "rep insb", "cli");
    let taken = trap::count(VECTOR);
    println!("{taken} interrupt");
    if machine() == Machine::Tcg {
        skip!("an interrupt inside REP INSB (time is the host's)");
    } else {
        check_eq!(taken, 1, "an interrupt inside REP INSB");
    }
    check_eq!(
        (r.count, BUFFER.read8(0xFFFF), BUFFER.read8(0x1_0000)),
        (0, 0x66, 0),
        "and it is carried out to its end"
    );
    cpu::disable_interrupts();
    apic::write(INITIAL_COUNT, 0);
}
