//! 4-level paging: translation, protection, error codes, accessed and dirty, NX, WP, SMEP, SMAP, PCID, 1-GiB pages.
//!
//! SDM vol. 3A 4.6 "Access Rights", 4.7 "Page-Fault Exceptions", 4.8 "Accessed and Dirty Flags".
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine, cpuid, machine, rdmsr, wrmsr};
use bulkhead_rt::memory::Region;
use bulkhead_rt::paging::{A, D, NX, P, U, W, get, set, set_gigabyte};
use bulkhead_rt::segments::USER_CODE;
use bulkhead_rt::{Exception, catch, check, check_eq, check_or_defect, scenario, skip, user};
use core::arch::{asm, global_asm};

scenario!(main);

const RAM: u64 = 0x40_0000;
const EFER: u32 = 0xC000_0080;

// SAFETY: RAM above the image, which holds no Rust object.
const PAGES: Region = unsafe { Region::new(RAM as usize, 0x4000) };

global_asm!(
    ".global user_read",
    "user_read: mov eax, [rsi]",
    "ud2",
    ".global user_write",
    "user_write: mov [rsi], eax",
    "ud2",
    ".global user_jump",
    "user_jump: jmp rsi",
);

unsafe extern "C" {
    static user_read: u8;
    static user_write: u8;
    static user_jump: u8;
}

/// Outcome of an access: the value, or vector, error code and CR2.
type Outcome = Result<u64, (u64, u64, u64)>;

fn outcome(value: u64, caught: Option<Exception>) -> Outcome {
    caught.map_or(Ok(value), |e| Err((e.frame.vector, e.frame.error, e.cr2)))
}

fn read(address: u64) -> Outcome {
    let mut value = 0;
    // SAFETY: a page that holds no Rust object; a fault is caught.
    let caught = catch(|| unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack)) });
    outcome(value, caught)
}

fn write(address: u64, value: u64) -> Outcome {
    // SAFETY: a page that holds no Rust object; a fault is caught.
    let caught = catch(|| unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) });
    outcome(value, caught)
}

/// Calls `address`, where a RET lies if it can be executed at all.
fn execute(address: u64) -> Outcome {
    // SAFETY: RET comes right back; a fault is caught.
    let caught = catch(|| unsafe { asm!("call {}", in(reg) address, clobber_abi("sysv64")) });
    outcome(0, caught)
}

/// Runs a piece of code in ring 3; vector, error code and CR2 of the fault that ends it.
fn in_ring3(entry: *const u8, argument: u64) -> (u64, u64, u64) {
    // SAFETY: the pieces above end in a fault and write to the given page only, which holds no Rust object.
    let caught = unsafe { user::run(entry as u64, USER_CODE, 0, argument) };
    caught.map_or((0, 0, 0), |e| (e.frame.vector, e.frame.error, if e.frame.vector == 14 { e.cr2 } else { 0 }))
}

fn fault(error: u64, address: u64) -> Outcome {
    Err((14, error, address))
}

/// An entry has a reserved bit. QEMU's interpreter leaves P out of the error code.
fn check_reserved(seen: Outcome, error: u64, address: u64, name: &str) {
    check_or_defect!(seen, fault(error, address), fault(error & !1, address), "{name}");
}

fn main() {
    PAGES.write64(0, 0x1111);
    PAGES.write64(0x1000, 0x2222);
    translation();
    protection();
    reserved();
    execution();
    supervisor();
    identifiers();
    gigabyte();
}

fn translation() {
    let (one, two) = (set(0, RAM | P | W), set(1, RAM | P | W));
    check_eq!((read(one), read(two)), (Ok(0x1111), Ok(0x1111)), "two addresses of one page");
    check_eq!(get(0) & (A | D), A, "a read sets accessed");
    check_eq!(write(two, 0x3333), Ok(0x3333), "a write");
    check_eq!(get(1) & (A | D), A | D, "sets dirty");
    check_eq!(read(one), Ok(0x3333), "and is seen at the other address");
    set(0, (RAM + 0x1000) | P | W);
    check_eq!(read(one), Ok(0x2222), "INVLPG forgets the old translation");
    PAGES.write64(0xFF8, 0x8877_6655_4433_2211);
    set(0, RAM | P | W);
    set(1, (RAM + 0x1000) | P | W);
    check_eq!(read(one + 0xFFC), Ok(0x2222_8877_6655), "a read across pages");
    set(1, 0);
    check_eq!(read(one + 0xFFC), fault(0, one + 0x1000), "into an absent page: #PF there");
}

fn protection() {
    let page = set(2, 0);
    check_eq!(read(page + 8), fault(0, page + 8), "read of an absent page");
    check_eq!(write(page + 8, 0), fault(2, page + 8), "write to an absent page");
    check_eq!(in_ring3(&raw const user_read, page), (14, 4, page), "ring-3 read of an absent page");
    check_eq!(in_ring3(&raw const user_jump, page).1 & !0x10, 4, "ring-3 fetch from an absent page");
    set(2, RAM | P);
    check_eq!(read(page), Ok(0x3333), "read of a read-only page");
    check_eq!(write(page, 1), fault(3, page), "write to a read-only page");
    check_eq!(in_ring3(&raw const user_read, page), (14, 5, page), "ring-3 read of a supervisor page");
    set(2, RAM | P | U);
    check_eq!(in_ring3(&raw const user_read, page), (6, 0, 0), "ring-3 read of a user page");
    check_eq!(in_ring3(&raw const user_write, page), (14, 7, page), "ring-3 write to a read-only user page");
    set(2, RAM | P | W | U);
    check_eq!(in_ring3(&raw const user_write, page), (6, 0, 0), "ring-3 write to a user page");
    set(2, RAM | P);
    // SAFETY: WP lets ring 0 write to read-only pages, of which Rust has none here.
    unsafe { cpu::set_cr0(cpu::cr0() & !(1 << 16)) };
    check_eq!(write(page, 0x4444), Ok(0x4444), "without WP ring 0 writes to a read-only page");
    // SAFETY: as it was.
    unsafe { cpu::set_cr0(cpu::cr0() | 1 << 16) };
    check_eq!(write(page, 0x5555), fault(3, page), "and with WP it does not");
}

fn reserved() {
    let width = u64::from(cpuid(0x8000_0008, 0).eax & 0xFF);
    let page = set(3, RAM | P | W | 1 << 51);
    if width == 52 {
        skip!("reserved address bits");
    } else {
        check_reserved(read(page), 9, page, "a reserved address bit");
        check_reserved(write(page, 0), 0xB, page, "a reserved address bit on a write");
    }
    if machine() == Machine::Virtual {
        let page = set(3, RAM | P | W | 1 << width);
        check_reserved(read(page), 9, page, "the first bit beyond the announced width");
    }
    set(3, 0);
}

/// Execute-disable.
fn execution() {
    let page = set(4, RAM | P | W | NX);
    PAGES.write8(0, 0xC3); // RET
    if cpuid(0x8000_0001, 0).edx & 1 << 20 == 0 {
        return skip!("NX");
    }
    check_reserved(read(page), 9, page, "without NXE bit 63 is reserved");
    let efer = rdmsr(EFER).unwrap_or_default();
    check!(wrmsr(EFER, efer | 1 << 11).is_ok(), "NXE");
    set(4, RAM | P | W | NX);
    check_eq!(read(page).map(|v| v & 0xFF), Ok(0xC3), "with it the page reads");
    check_eq!(execute(page), fault(0x11, page), "and does not execute");
    check_eq!(in_ring3(&raw const user_jump, set(5, RAM | P | U | NX)).1, 0x15, "nor in ring 3");
    set(4, RAM | P);
    check_eq!(execute(page), Ok(0), "a page without NX executes");
    set(4, 0);
    check_eq!(execute(page), fault(0x10, page), "a fetch from an absent page says so");
}

/// SMEP and SMAP.
fn supervisor() {
    let features = cpuid(7, 0).ebx;
    let page = set(6, RAM | P | W | U);
    let cr4 = cpu::cr4();
    if features & 1 << 7 == 0 {
        skip!("SMEP");
    } else {
        check_eq!(execute(page), Ok(0), "without SMEP ring 0 executes a user page");
        // The image's own pages are user pages: it runs on a mapping of the same memory without that bit.
        bulkhead_rt::paging::image_user(false);
        // SAFETY: no page that ring 0 executes has the user bit any more.
        unsafe { cpu::set_cr4(cr4 | 1 << 20) };
        check_eq!(execute(page), fault(0x11, page), "SMEP");
        // SAFETY: as it was.
        unsafe { cpu::set_cr4(cr4) };
    }
    if features & 1 << 20 == 0 {
        skip!("SMAP");
    } else {
        bulkhead_rt::paging::image_user(false);
        // SAFETY: no page that Rust uses has the user bit any more.
        unsafe { cpu::set_cr4(cr4 | 1 << 21) };
        check_eq!(read(page), fault(1, page), "SMAP: read");
        check_eq!(write(page, 0), fault(3, page), "SMAP: write");
        // SAFETY: AC lets ring 0 at user pages; compiled code does not care.
        unsafe { asm!("stac", options(nomem, nostack)) };
        check!(read(page).is_ok(), "SMAP: STAC lets it");
        // SAFETY: as it was.
        unsafe { asm!("clac", options(nomem, nostack)) };
        // SAFETY: as it was.
        unsafe { cpu::set_cr4(cr4) };
    }
    bulkhead_rt::paging::image_user(true);
}

/// SDM vol. 3A 4.10.1 "Process-Context Identifiers (PCIDs)".
fn identifiers() {
    if cpuid(1, 0).ecx & 1 << 17 == 0 {
        return skip!("PCID");
    }
    let (cr3, cr4) = (cpu::cr3(), cpu::cr4());
    let page = set(7, RAM | P | W);
    // SAFETY: the same tables under other identifiers; nothing that Rust uses changes.
    unsafe {
        cpu::set_cr4(cr4 | 1 << 17);
        cpu::set_cr3(cr3 | 5);
    }
    check_eq!(cpu::cr3(), cr3 | 5, "CR3 keeps the identifier");
    check!(read(page).is_ok(), "a page under it");
    // SAFETY: as above, without a flush.
    unsafe { cpu::set_cr3(cr3 | 6 | 1 << 63) };
    check_eq!(cpu::cr3(), cr3 | 6, "bit 63 is not kept");
    check!(read(page).is_ok(), "the page under another");
    if cpuid(7, 0).ebx & 1 << 10 != 0 {
        let descriptor = [0_u64; 2];
        // SAFETY: forgets translations of all identifiers.
        unsafe { asm!("invpcid {}, [{}]", in(reg) 2_u64, in(reg) descriptor.as_ptr(), options(nostack)) };
        check!(read(page).is_ok(), "INVPCID");
    }
    // SAFETY: as it was.
    unsafe { cpu::set_cr3(cr3) };
    let clear = catch(|| {
        // SAFETY: identifier 0 is loaded, which clearing PCIDE asks for.
        unsafe { cpu::set_cr4(cr4) }
    });
    check!(clear.is_none(), "PCIDE off again");
    // SAFETY: a value with an identifier; setting PCIDE then is #GP.
    unsafe { cpu::set_cr3(cr3 | 0x18) };
    let set = catch(|| {
        // SAFETY: it faults and changes nothing.
        unsafe { cpu::set_cr4(cr4 | 1 << 17) }
    });
    check_eq!(set.map(|e| e.code()), Some((13, 0)), "PCIDE with low bits in CR3 is #GP");
    // SAFETY: as it was.
    unsafe { cpu::set_cr3(cr3) };
}

fn gigabyte() {
    if cpuid(0x8000_0001, 0).edx & 1 << 26 == 0 {
        return skip!("1-GiB pages");
    }
    PAGES.write64(0x2000, 0x6666);
    let base = set_gigabyte(4, P | W | 1 << 7);
    check_eq!(read(base + RAM + 0x2000), Ok(0x6666), "a 1-GiB page");
    set_gigabyte(4, P | W | 1 << 7 | 1 << 20);
    check_reserved(read(base + RAM), 9, base + RAM, "a 1-GiB page with a reserved bit");
    set_gigabyte(4, 0);
}
