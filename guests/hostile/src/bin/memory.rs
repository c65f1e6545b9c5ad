//! Attacks on memory: what is not this guest's, or not there at all.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_hostile::{Random, hold, hold_eq, peek, physical_bits, poke, ram_end, run, saw, vector_of};
use bulkhead_rt::memory::Region;
use bulkhead_rt::paging::{self, P, U, W};
use bulkhead_rt::{cpu, port, println, scenario, word_value};
use core::arch::asm;

scenario!(main);

/// RAM that holds no Rust object.
const BUFFER: u64 = 0x40_0000;
const ONES: Option<u64> = Some(u64::MAX);
/// Places without RAM: holes and the pages of devices.
const OUTSIDE: [u64; 7] = [0xC000_0000, 0xFEE0_0000, 0xFEC0_0000, 0xFED8_0000, 0xFFFF_F000, 1 << 32, 1 << 35];

fn main() {
    run(&[
        ("holes", holes),
        ("edge", edge),
        ("beyond", beyond),
        ("reserved-bits", reserved_bits),
        ("scan", scan),
        ("tables-outside", tables_outside),
        ("root-outside", root_outside),
        ("a20", a20),
        ("alias", alias),
        ("self-modifying", self_modifying),
        ("stale-translation", stale_translation),
        ("lazy", lazy),
        ("windows", windows),
        ("fetch", fetch),
        ("huge-page", huge_page),
        ("self-map", self_map),
        ("stack-outside", stack_outside),
        ("idt-outside", idt_outside),
        ("gdt-outside", gdt_outside),
        ("firmware", firmware),
        ("non-canonical", non_canonical),
    ]);
}

/// Each hole below 4 GiB reads as ones, and keeps nothing.
fn holes() {
    let high = (ram_end()..0xFEC0_0000).step_by(8 << 20).map(|at| at + 0x128);
    let (mut seen, devices) = (0, [0xFEC0_1000, 0xFED0_0000, 0xFED8_1000, 0xFEE0_1000, 0xFFFF_FFF0]);
    for at in (0xA_0000..0xC_0000).step_by(4096).chain(high).chain(devices) {
        hold_eq!(peek(at).ok(), ONES, "read at {at:#x}");
        hold!(poke(at, 0x5EC2E7).is_ok(), "write at {at:#x} faults");
        hold_eq!(peek(at).ok(), ONES, "read behind a write at {at:#x}");
        seen += 1;
    }
    saw!("ones at {seen} places");
}

/// An access across the end of RAM reaches its own part only.
fn edge() {
    let end = ram_end();
    for inside in 1..8 {
        let at = end - inside;
        hold!(poke(at, 0x1122_3344_5566_7788).is_ok(), "write across the end");
        let kept = u64::MAX << (inside * 8) | 0x1122_3344_5566_7788 & !(u64::MAX << (inside * 8));
        hold_eq!(peek(at).ok(), Some(kept), "{inside} bytes before the end");
        hold_eq!(
            peek(0xA_0000 - inside).map(|v| v >> (inside * 8)).ok(),
            Some(u64::MAX >> (inside * 8)),
            "display memory"
        );
    }
    saw!("RAM ends at {end:#x}");
}

/// Addresses above all RAM, to the top of what the processor can say.
fn beyond() {
    let bits = physical_bits();
    for bit in 32..bits {
        for address in [1 << bit, (1 << bit) + (1 << 21), (2 << bit) - 4096] {
            let at = paging::set(1, address | P | W);
            hold_eq!(peek(at + 8).ok(), ONES, "read at {address:#x}");
            hold!(poke(at + 8, 1).is_ok(), "write at {address:#x} faults");
            hold_eq!(peek(at + 8).ok(), ONES, "read behind a write at {address:#x}");
        }
    }
    saw!("ones up to 2^{bits}");
}

/// Address bits that the processor does not have.
fn reserved_bits() {
    for bit in physical_bits()..52 {
        let at = paging::set(1, BUFFER | 1 << bit | P | W);
        let fault = peek(at).err().map(|e| (e.vector(), e.frame.error & 8, e.cr2));
        hold_eq!(fault, Some((14, 8, at)), "address bit {bit}");
    }
    saw!("reserved bits from {} on", physical_bits());
}

/// Nothing in reach holds a word of the witness, whose seed this attacker knows.
fn scan() {
    let seed = word_value("witness").unwrap_or(0);
    let words: [u64; 28] = core::array::from_fn(|index| {
        let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    });
    let mut maybe = [false; 256];
    words.iter().for_each(|word| maybe[(word & 0xFF) as usize] = true);
    let mut dirty = 0;
    // SAFETY: RAM above the image and the stack, which holds no Rust object.
    let ram = unsafe { Region::new(0x20_0000, (ram_end() - 0x20_0000) as usize) };
    for at in (0..ram.bytes()).step_by(8) {
        let value = ram.read64(at);
        dirty += u64::from(value != 0);
        hold!(!maybe[(value & 0xFF) as usize] || !words.contains(&value), "a word of the witness at {at:#x}");
    }
    hold_eq!(dirty, 0, "words of fresh RAM that are not zero");
    for page in OUTSIDE {
        let at = paging::set(1, page | P | W);
        (0..4096).step_by(64).for_each(|offset| {
            hold!(!peek(at + offset).is_ok_and(|value| words.contains(&value)), "a word of the witness at {page:#x}");
        });
    }
    saw!("{} KiB of zeros", ram.bytes() / 1024);
}

/// Page tables that lie where no RAM is: a fault in this guest.
fn tables_outside() {
    for outside in OUTSIDE {
        // A directory outside, and a table outside.
        let at = paging::set_gigabyte(5, outside | P | W | U);
        let fault = peek(at + 0x123_4568).err().map(|e| e.vector());
        hold_eq!(fault, Some(14), "directory at {outside:#x}");
        let directory = Region::of(BUFFER);
        directory.write64(0, outside | P | W | U);
        paging::set_gigabyte(5, BUFFER | P | W | U);
        let fault = peek(at + 0x5678).err().map(|e| e.vector());
        hold_eq!(fault, Some(14), "table at {outside:#x}");
        let fault = poke(at + 0x5678, 1).err().map(|e| (e.vector(), e.frame.error & 2));
        hold_eq!(fault, Some((14, 2)), "write through a table at {outside:#x}");
    }
    saw!("page faults");
}

/// A root outside RAM: the guest can execute nothing more.
fn root_outside() {
    println!("saw the last of it");
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { cpu::set_cr3(0xC000_0000) };
    hold!(false, "it goes on without page tables");
}

/// There is no line A20 to bend addresses with.
fn a20() {
    // SAFETY: the page at 0 is firmware's and read only; 1 MiB is this image, read only.
    let low = peek(0x500);
    for value in [0x00, 0x02] {
        port::write8(0x92, value);
        port::write8(0x64, 0xD1);
        port::write8(0x60, 0xDD | value | 1);
        hold!(peek(0x10_0500).ok() != low.as_ref().ok().copied() || peek(0x10_0500).ok() == Some(0), "1 MiB wraps");
        hold!(poke(BUFFER, 7).is_ok() && peek(BUFFER ^ 1 << 20).ok() == Some(0), "bit 20 has no effect");
    }
    saw!("bit 20 of each address");
}

/// Two names of one page, of different memory types.
fn alias() {
    for (index, flags) in [0, 1 << 3, 1 << 4, 3 << 3, 1 << 7].into_iter().enumerate() {
        let (a, b) = (paging::set(1, BUFFER | P | W), paging::set(2, BUFFER | P | W | flags));
        for round in 0..50 {
            let value = round << 8 | index as u64;
            hold!(poke(a + 8 * round, value).is_ok(), "write");
            hold_eq!(peek(b + 8 * round).ok(), Some(value), "other name, flags {flags:#x}");
            let _ = cpu::cpuid(0, 0);
            hold!(poke(b + 8 * round, !value).is_ok(), "write");
            hold_eq!(peek(a + 8 * round).ok(), Some(!value), "first name, flags {flags:#x}");
        }
    }
    saw!("one page");
}

/// Code that is changed between, and while, it runs; also through another name.
fn self_modifying() {
    let code = Region::of(BUFFER);
    let other = paging::set(1, BUFFER | P | W);
    for round in 0..2000_u32 {
        // mov eax, ROUND; cpuid in every second round; ret
        code.copy_in(0, &[0xB8]);
        if round % 2 == 0 {
            code.copy_in(1, &round.to_le_bytes());
        } else {
            let _ = poke(other + 1, u64::from(round) | 0xC3 << 32);
        }
        code.write8(5, 0xC3);
        let mut seen: u32;
        // SAFETY: the code above: it loads EAX and returns.
        unsafe { asm!("call {}", in(reg) BUFFER, out("eax") seen, clobber_abi("sysv64")) };
        hold_eq!(seen, round, "what it executes");
        // SAFETY: the attack's own page, executed one to one.
        unsafe {
            asm!("mov eax, {v:e}", "mov dword ptr [{p} + 1], eax", "call {p}", p = in(reg) BUFFER, v = in(reg) !round, out("eax") seen, clobber_abi("sysv64"))
        };
        hold_eq!(seen, !round, "what it executes right behind the write");
    }
    saw!("the new code");
}

/// A translation that is kept too long leads to one of this guest's own pages at worst.
fn stale_translation() {
    // SAFETY: RAM above the image, 64 pages.
    let pages = unsafe { Region::new(BUFFER as usize, 64 * 4096) };
    (0..64).for_each(|page| pages.write64(page * 4096, 0xA000 + page as u64));
    let mut random = Random::new();
    for round in 0..2000 {
        let (page, outside) = (random.below(64), random.one_of(&OUTSIDE));
        let at = paging::set(1, (BUFFER + page * 4096) | P | W);
        hold_eq!(peek(at).ok(), Some(0xA000 + page), "mapped");
        if round % 3 == 0 {
            let _ = cpu::cpuid(0, 0);
        }
        paging::set(1, 0);
        hold_eq!(
            vector_of(|| {
                let _ = unsafe_read(at);
            }),
            Some(14),
            "unmapped"
        );
        let at = paging::set(1, outside | P | W);
        hold!(peek(at + 0x820).ok() != Some(0xA000 + page), "the old page stands for {outside:#x}");
    }
    saw!("what is mapped now");
}

fn unsafe_read(address: u64) -> u64 {
    // SAFETY: a read; the caller catches its fault.
    unsafe { (address as *const u64).read_volatile() }
}

/// First touches in random order: zeros each time.
fn lazy() {
    let mut random = Random::new();
    let (start, end) = (0x20_0000, ram_end());
    for _ in 0..4000 {
        let at = start + random.below((end - start) / 8) * 8;
        let seen = peek(at).ok();
        hold!(seen == Some(0) || seen == Some(at), "{at:#x} is {seen:x?} at first");
        hold!(poke(at, at).is_ok(), "write");
    }
    saw!("zeros");
}

/// Every device window at every offset, and what lies before and behind it.
fn windows() {
    for page in [0xFEC0_0000_u64, 0xFED8_0000, 0xFEE0_0000] {
        paging::set(1, (page - 4096) | P | W);
        paging::set(3, (page + 4096) | P | W);
        let at = paging::set(2, page | P | W);
        for offset in (0..4096).step_by(8).chain([1, 3, 5, 7, 4093]) {
            hold!(peek(at + offset).is_ok(), "read at {page:#x} + {offset:#x} faults");
        }
        hold_eq!(peek(at - 8).ok(), ONES, "before {page:#x}");
        hold_eq!(peek(at + 4096).ok(), ONES, "behind {page:#x}");
    }
    saw!("registers, and ones around them");
}

/// Code that is not there.
fn fetch() {
    for outside in OUTSIDE.into_iter().chain([0xA_0000, ram_end()]) {
        let at = paging::set(1, outside | P | W);
        // SAFETY: nothing is there to be executed: a fault, which is caught.
        let seen = vector_of(|| unsafe { asm!("call {}", in(reg) at, clobber_abi("sysv64")) });
        hold_eq!(seen, Some(6), "fetch from {outside:#x}");
    }
    // From the last bytes of RAM into nothing: a MOV whose immediate is not there.
    let end = ram_end();
    Region::of(end - 4096).copy_in(4094, &[0x48, 0xB8]);
    let (at, _) = (paging::set(1, (end - 4096) | P | W), paging::set(2, end | P | W));
    // SAFETY: nothing is there to be executed: a fault, which is caught.
    let seen = vector_of(|| unsafe { asm!("call {}", in(reg) at + 4094, clobber_abi("sysv64")) });
    hold_eq!(seen, Some(6), "an instruction across the end of RAM");
    saw!("invalid opcodes");
}

/// One page of 1 GiB over RAM, hole and devices.
fn huge_page() {
    let at = paging::set_gigabyte(6, P | W | 1 << 7);
    hold!(poke(BUFFER, 0xC0DE).is_ok(), "write");
    hold_eq!(peek(at + BUFFER).ok(), Some(0xC0DE), "RAM");
    hold_eq!(peek(at + ram_end()).ok(), ONES, "behind RAM");
    hold_eq!(peek(at + 0xB_8000).ok(), ONES, "display memory");
    let at = paging::set_gigabyte(7, 0xC000_0000 | P | W | 1 << 7);
    hold_eq!(peek(at).ok(), ONES, "hole");
    hold!(peek(at + 0x3EE0_0030).is_ok_and(|v| v & 0xFF == 0x14 || v & 0xF0 == 0x10), "local APIC");
    let at = paging::set_gigabyte(8, 1 << 38 | P | W | 1 << 7);
    hold_eq!(peek(at + 0x1234_5678).ok(), ONES, "beyond");
    saw!("its own RAM once more");
}

/// A root that is its own table: the guest edits its tables, and reaches no others.
fn self_map() {
    let root = cpu::cr3() & !0xFFF;
    let entry = root + 8 * 256;
    hold!(poke(entry, root | P | W).is_ok(), "write");
    // SAFETY: the same tables again.
    unsafe { cpu::set_cr3(root) };
    let recursive = 0xFFFF_8000_0000_0000_u64 | 256 << 39 | 256 << 30 | 256 << 21 | 256 << 12;
    let seen = peek(recursive).ok();
    hold_eq!(
        seen.map(|v| v & !0xFFF & 0xF_FFFF_FFFF_F000),
        peek(root).ok().map(|v| v & 0xF_FFFF_FFFF_F000),
        "own root"
    );
    for bits in [1_u64 << 51, 0xC000_0000, 1 << 39] {
        hold!(poke(recursive + 8 * 300, bits | P | W).is_ok(), "write through itself");
        let through = 0xFFFF_0000_0000_0000 | 300 << 39;
        hold_eq!(peek(through).err().map(|e| e.vector()), Some(14), "a root entry {bits:#x}");
    }
    saw!("its own root");
}

/// An interrupt on a stack that is not there.
fn stack_outside() {
    println!("saw the last of it");
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) 0xC000_1000_u64, options(noreturn)) };
}

/// Gates that are not there.
fn idt_outside() {
    println!("saw the last of it");
    let pointer: [u16; 5] = [0xFFF, 0, 0xC000, 0, 0];
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const pointer, options(noreturn)) };
}

/// Descriptors that are not there.
fn gdt_outside() {
    println!("saw the last of it");
    let pointer: [u16; 5] = [0xFFF, 0, 0xC000, 0, 0];
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { asm!("lgdt [{}]", "mov eax, 0x10", "mov fs, eax", "ud2", in(reg) &raw const pointer, options(noreturn)) };
}

/// The tables of the firmware are RAM like any other: overwriting them harms nobody else.
fn firmware() {
    for at in (0xE_0000..0x10_0000_u64).step_by(8).chain((0..0x500).step_by(8)) {
        hold!(poke(at, u64::MAX).is_ok(), "write at {at:#x}");
    }
    hold_eq!(peek(0xE_0000).ok(), ONES, "what was written");
    saw!("its own tables gone");
}

/// Addresses that are none.
fn non_canonical() {
    for address in [0x8000_0000_0000_u64, 0xFFFF_7FFF_FFFF_FFF8, 1 << 63, 0x8000_0000_0000 - 4] {
        let vector = peek(address).err().map(|e| e.vector());
        hold!(matches!(vector, Some(13 | 14)), "read at {address:#x}: {vector:?}");
        hold!(poke(address, 0).is_err(), "write at {address:#x}");
    }
    saw!("faults");
}

trait Page {
    fn of(address: u64) -> Region;
}

impl Page for Region {
    fn of(address: u64) -> Region {
        // SAFETY: a page of RAM above the image, which holds no Rust object.
        unsafe { Region::new(address as usize, 4096) }
    }
}
