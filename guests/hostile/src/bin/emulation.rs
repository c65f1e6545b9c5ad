//! Attacks on the instruction emulator, by instructions on device memory.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_hostile::{Random, hold, hold_eq, peek, poke, run, saw, vector, vector_of};
use bulkhead_rt::apic::register::{DIVIDE, INITIAL_COUNT, TIMER};
use bulkhead_rt::memory::Region;
use bulkhead_rt::paging::{self, P, U, W};
use bulkhead_rt::segments::USER_CODE;
use bulkhead_rt::{apic, catch, cpu, println, scenario, trap, user};
use core::arch::asm;

scenario!(main);

const BUFFER: u64 = 0x40_0000;
/// The test device: 256 bytes of memory, counts of accesses.
const DEVICE: u64 = 0xFED8_0000;
const HOLE: u64 = 0xC000_0000;
const WATCHDOG: u8 = 0x50;
const UD: Option<u64> = Some(6);

fn main() {
    run(&[
        ("widths", widths),
        ("page-crossing", page_crossing),
        ("crossing-fault", crossing_fault),
        ("rep-boundary", rep_boundary),
        ("rep-endless", rep_endless),
        ("lock", lock),
        ("segments", segments),
        ("long-instruction", long_instruction),
        ("changed-instruction", changed_instruction),
        ("string-io", string_io),
        ("refused-ring3", refused_ring3),
        ("refused-pop", || ends(|at| vector!("pop qword ptr [{}]", in(reg) at))),
        ("refused-shift", || ends(|at| vector!("shl dword ptr [{}], 1", in(reg) at))),
        ("refused-call", || ends(|at| vector!("call qword ptr [{}]", in(reg) at, clobber_abi("sysv64")))),
        ("refused-cmpxchg16b", || {
            ends(|at| vector!("lock cmpxchg16b [{}]", in(reg) at, in("rax") 0, in("rdx") 0, in("rcx") 0))
        }),
        ("refused-x87", || ends(|at| vector!("fld qword ptr [{}]", in(reg) at))),
        ("refused-sse", || ends(|at| vector!("movdqu xmm0, [{}]", in(reg) at))),
        ("refused-fxsave", || ends(|at| vector!("fxsave [{}]", in(reg) at))),
        ("refused-xsave", || {
            ends(|at| {
                let _ = vector!("mov cr4, {}", in(reg) cpu::cr4() | 1 << 18);
                vector!("xsave [{}]", in(reg) at, in("eax") 3, in("edx") 0)
            })
        }),
        ("refused-div", || {
            ends(|at| vector!("div dword ptr [{}]", in(reg) at, inout("eax") 1 => _, inout("edx") 0 => _))
        }),
        ("refused-enter", || {
            ends(
                |at| vector!("mov {s}, rsp", "lea rsp, [{d} + 128]", "enter 16, 3", "mov rsp, {s}", s = out(reg) _, d = in(reg) at),
            )
        }),
        ("refused-lgdt", || ends(|at| vector!("lgdt [{}]", in(reg) at))),
        ("random-memory", || random_memory(11)),
        ("random-code", random_code),
    ]);
}

/// An instruction on device memory that the emulator does not know, in ring 0: this guest's end.
fn ends(instruction: fn(u64) -> Option<u64>) {
    let at = paging::set(1, DEVICE | P | W);
    println!("saw the last of it");
    let seen = instruction(at);
    hold!(false, "it goes on with {seen:?}");
}

/// Every width at every offset, beyond the device's registers too.
fn widths() {
    let at = paging::set(1, DEVICE | P | W);
    paging::set(2, HOLE | P | W);
    for offset in (0..260_u64).step_by(3).chain(4088..4096) {
        let at = at + offset;
        let seen = vector!("mov al, [{0}]", "mov [{0}], al", "mov ax, [{0}]", "mov [{0}], ax", "mov eax, [{0}]", "mov [{0}], eax",
            "mov rax, [{0}]", "mov [{0}], rax", "movbe eax, [{0}]", "movsx rax, byte ptr [{0}]", "movzx eax, word ptr [{0}]",
            "adc qword ptr [{0}], 1", "not word ptr [{0}]", "neg byte ptr [{0}]", in(reg) at, out("rax") _);
        hold!(seen.is_none(), "offset {offset:#x}: {seen:?}");
    }
    saw!("no fault");
}

/// Accesses across pages: device, hole and RAM each get their part.
fn page_crossing() {
    for (low, high) in
        [(DEVICE, BUFFER), (BUFFER, DEVICE), (HOLE, BUFFER), (BUFFER, HOLE), (HOLE, DEVICE), (0xFEE0_0000, 0xFEC0_0000)]
    {
        let at = paging::set(1, low | P | W);
        paging::set(2, high | P | W);
        for back in 1..8 {
            hold!(poke(at + 4096 - back, 0x0102_0304_0506_0708).is_ok(), "write {back} before {high:#x}");
            hold!(peek(at + 4096 - back).is_ok(), "read {back} before {high:#x}");
        }
        if high == BUFFER {
            hold_eq!(peek(BUFFER).map(|v| v & 0xFF).ok(), Some(1), "the part in RAM");
        }
    }
    saw!("each part in its place");
}

/// A fault in the second page leaves no trace in the first, which is a device.
fn crossing_fault() {
    let (device, end) = (paging::set(5, DEVICE | P | W), paging::set(1, (DEVICE - 4096) | P | W) + 4096);
    for second in [0, HOLE | 1 << 51 | P | W, BUFFER | P] {
        paging::set(2, second);
        hold!(poke(device + 0x400, 0).is_ok(), "clear the counts");
        let fault = poke(end - 4, u64::MAX).err().map(|e| (e.vector(), e.cr2));
        hold_eq!(fault, Some((14, end)), "write into {second:#x}");
        let seen = vector!("lock xadd [{}], {}", in(reg) end - 4, inout(reg) 1_u64 => _);
        hold_eq!(seen, Some(14), "exchange into {second:#x}");
    }
    // The device's own end: the first byte is the device's, the rest faults.
    let at = paging::set(1, DEVICE | P | W);
    paging::set(2, 0);
    hold!(poke(device + 0x400, 0).is_ok(), "clear the counts");
    hold_eq!(poke(at + 4092, 1).err().map(|e| e.vector()), Some(14), "across the device's end");
    hold_eq!(peek(device + 0x404).map(|v| v as u32).ok(), Some(0), "writes that the device saw");
    saw!("whole accesses only");
}

/// REP from RAM over a device into what is not there, in both directions.
fn rep_boundary() {
    let at = paging::set(10, BUFFER | P | W);
    paging::set(11, DEVICE | P | W);
    paging::set(12, BUFFER | P | W);
    paging::set(13, 0);
    paging::set(9, 0);
    for (start, count, down) in [
        (at, 4 * 4096, false),
        (at + 3 * 4096 - 1, 4 * 4096, true),
        (at + 4090, 12, false),
        (at + 100, u64::MAX, false),
    ] {
        let (mut left, mut to) = (count, start);
        // SAFETY: pages of the window, which hold no Rust object; a fault is caught.
        let fault = catch(|| unsafe {
            if down {
                asm!("std", "rep stosb", "cld", inout("rcx") left, inout("rdi") to, in("al") 0x5A_u8);
            } else {
                asm!("rep stosb", inout("rcx") left, inout("rdi") to, in("al") 0x5A_u8);
            }
        });
        match fault {
            Some(fault) => {
                let page = if down { at - 4096 } else { at + 3 * 4096 };
                hold_eq!(fault.cr2 & !0xFFF, page, "fault of {count} from {start:#x}");
                let done = count.wrapping_sub(fault.frame.rcx);
                hold_eq!(
                    fault.frame.rdi,
                    if down { start.wrapping_sub(done) } else { start + done },
                    "how far it came"
                );
            }
            None => hold!(left == 0 && count == 12, "it ends with {left} left"),
        }
        let _ = (&mut left, &mut to);
    }
    saw!("page faults");
}

/// A REP without end on a device: interrupts end it.
fn rep_endless() {
    apic::enable();
    trap::on(WATCHDOG, |frame| {
        apic::end_of_interrupt();
        frame.rcx = 0;
    });
    apic::write(DIVIDE, 0xB);
    apic::write(TIMER, 1 << 17 | u32::from(WATCHDOG));
    let at = paging::set(1, DEVICE | P | W);
    for _ in 0..5 {
        apic::write(INITIAL_COUNT, 300_000);
        // SAFETY: LODSB reads the device's page until the handler takes its count away; the pages behind are mapped or fault.
        let seen = vector_of(|| unsafe {
            asm!("sti", "2: mov rsi, {at}", "mov ecx, 4096", "rep lodsb", "cmp rsi, {end}", "je 2b", "cli", at = in(reg) at, end = in(reg) at + 4096,
                out("rcx") _, out("rsi") _, out("al") _);
        });
        hold!(seen.is_none(), "{seen:?}");
    }
    apic::write(INITIAL_COUNT, 0);
    hold!(trap::count(WATCHDOG) >= 5, "the watchdog came {} times", trap::count(WATCHDOG));
    saw!("interrupts");
}

/// Lock prefixes where they may stand, and where not.
fn lock() {
    let at = paging::set(1, DEVICE | P | W);
    let seen = vector!("lock add dword ptr [{0}], 1", "lock xadd [{0}], eax", "lock cmpxchg [{0}], ecx", "xchg [{0}], eax",
        "lock bts dword ptr [{0}], 3", "lock neg dword ptr [{0}]", in(reg) at, out("eax") _, out("ecx") _);
    hold!(seen.is_none(), "legal ones: {seen:?}");
    for bytes in
        [[0xF0, 0x8B, 0x07, 0xC3], [0xF0, 0x89, 0x07, 0xC3], [0xF0, 0x39, 0x07, 0xC3], [0xF0, 0xA4, 0xC3, 0x90]]
    {
        // SAFETY: a page of RAM above the image.
        unsafe { Region::new(BUFFER as usize, 4096) }.copy_in(0, &bytes);
        // SAFETY: the bytes above fault or return.
        hold_eq!(
            // SAFETY: code that was just written there, which returns or faults; the buffer holds no Rust object.
            vector_of(|| unsafe { asm!("call {}", in(reg) BUFFER, in("rdi") at, in("rsi") at, clobber_abi("sysv64")) }),
            UD,
            "{bytes:x?}"
        );
    }
    saw!("invalid opcodes");
}

/// Segment bases that lead out of the address space, and bit offsets that lead far away.
fn segments() {
    let at = paging::set(1, DEVICE | P | W);
    let set = |base: u64| cpu::wrmsr(0xC000_0100, base).is_ok();
    hold!(set(at), "FS base");
    hold_eq!(vector!("mov eax, fs:[0]", out("eax") _), None, "through FS");
    hold!(set(0xFFFF_FFFF_FFFF_F000), "FS base");
    hold_eq!(
        vector!("mov eax, fs:[{}]", in(reg) at.wrapping_sub(0xFFFF_FFFF_FFFF_F000), out("eax") _),
        None,
        "over the top"
    );
    hold!(set(0x7FFF_FFFF_F000), "FS base");
    let seen = vector!("mov eax, fs:[0x1000]", out("eax") _);
    hold!(matches!(seen, Some(13 | 14)), "no address: {seen:?}");
    for bit in [1_u64 << 40, 1 << 62, (1_u64 << 63), 0xFFFF_8000_0000_0000] {
        let seen = vector!("bts qword ptr [{}], {}", in(reg) at, in(reg) bit);
        hold!(matches!(seen, Some(12..=14)), "bit {bit:#x}: {seen:?}");
    }
    hold_eq!(vector!("bts qword ptr [{}], {}", in(reg) at + 64, in(reg) -65_i64), None, "a bit before");
    let _ = set(0);
    saw!("faults");
}

/// Fifteen bytes are the most; prefixes without end are not decoded for ever.
fn long_instruction() {
    let at = paging::set(1, DEVICE | P | W);
    // SAFETY: a page of RAM above the image.
    let code = unsafe { Region::new(BUFFER as usize, 4096) };
    for prefix in [0x66_u8, 0x67, 0x2E, 0x3E, 0x64, 0xF2, 0xF3] {
        for count in 0..20 {
            code.fill(prefix);
            code.copy_in(count, &[0x8B, 0x07, 0xC3]);
            // SAFETY: a load with prefixes, and RET; a fault is caught.
            let seen = vector_of(|| unsafe {
                asm!("call {}", in(reg) BUFFER, in("rdi") at & 0xFFFF_FFFF, clobber_abi("sysv64"))
            });
            let legal = count + 2 <= 15;
            hold!(legal == seen.is_none() || prefix == 0x64, "{count} times {prefix:#x}: {seen:?}");
        }
    }
    saw!("fifteen bytes");
}

/// Other bytes at an address whose instruction was emulated before.
fn changed_instruction() {
    let at = paging::set(1, DEVICE | P | W);
    // SAFETY: a page of RAM above the image.
    let code = unsafe { Region::new(BUFFER as usize, 4096) };
    for round in 0..600_u32 {
        let value = round * 0x0101_0101;
        hold!(poke(at, u64::from(value)).is_ok(), "write");
        // mov eax, [rdi] / movzx eax, byte [rdi] / movzx eax, word [rdi]
        let (bytes, expected): ([u8; 3], u32) = match round % 3 {
            0 => ([0x8B, 0x07, 0x90], value),
            1 => ([0x0F, 0xB6, 0x07], value & 0xFF),
            _ => ([0x0F, 0xB7, 0x07], value & 0xFFFF),
        };
        code.copy_in(0, &bytes);
        code.write8(3, 0xC3);
        let mut seen = 0_u32;
        // SAFETY: one of the loads above, and RET.
        let fault = vector_of(|| unsafe {
            asm!("call {}", in(reg) BUFFER, in("rdi") at, out("eax") seen, clobber_abi("sysv64"))
        });
        hold_eq!((fault, seen), (None, expected), "round {round}");
    }
    saw!("the new instruction each time");
}

/// INS and OUTS to and from devices, holes, read-only pages and no pages.
fn string_io() {
    let at = paging::set(1, DEVICE | P | W);
    let hole = paging::set(20, HOLE | P | W);
    let read_only = paging::set(30, BUFFER | P);
    paging::set(31, 0);
    for port in [0x80_u16, 0x60, 0x3F9, 0x510, 0xCFC] {
        for (to, fault) in [(at, None), (hole, None), (read_only, Some(14)), (read_only + 4096, Some(14))] {
            for count in [0_u64, 1, 7, 200] {
                let wanted = if count == 0 { None } else { fault };
                hold_eq!(
                    vector!("rep insb", in("dx") port, inout("rcx") count => _, inout("rdi") to => _),
                    wanted,
                    "input at {to:#x}"
                );
                hold_eq!(
                    vector!("rep insd", in("dx") port, inout("rcx") count => _, inout("rdi") to => _),
                    wanted,
                    "input at {to:#x}"
                );
                if port == 0x80 {
                    let wanted = if to == read_only { None } else { wanted };
                    hold_eq!(
                        vector!("rep outsw", in("dx") port, inout("rcx") count => _, inout("rsi") to => _),
                        wanted,
                        "output from {to:#x}"
                    );
                }
            }
        }
    }
    hold!(
        matches!(
            vector!("rep insb", in("dx") 0x80_u16, inout("rcx") 8_u64 => _, inout("rdi") 0x7FFF_FFFF_FFFC_u64 => _),
            Some(13 | 14)
        ),
        "no address"
    );
    saw!("page faults");
}

/// What ends the guest in ring 0 is #UD in ring 3.
fn refused_ring3() {
    paging::image_user(false);
    let at = paging::set(3, BUFFER | P | W | U);
    let device = paging::set(4, DEVICE | P | W | U);
    // SAFETY: a page of RAM above the image.
    let code = unsafe { Region::new(BUFFER as usize, 4096) };
    let instructions: [&[u8]; 7] = [
        &[0xD1, 0x26],             // shl dword [rsi], 1
        &[0xFF, 0x16],             // call [rsi]
        &[0xF0, 0x0F, 0xC7, 0x0E], // lock cmpxchg8b [rsi]
        &[0xDD, 0x06],             // fld qword [rsi]
        &[0x0F, 0x10, 0x06],       // movups xmm0, [rsi]
        &[0x0F, 0xAE, 0x06],       // fxsave [rsi]
        &[0xF7, 0x36],             // div dword [rsi]
    ];
    for bytes in instructions {
        code.copy_in(0, bytes);
        // SAFETY: the instruction faults.
        let seen = unsafe { user::run(at, USER_CODE, 0x200, device) };
        hold_eq!(seen.map(|e| (e.vector(), e.frame.rip - at)), Some((6, 0)), "{bytes:x?}");
    }
    saw!("invalid opcodes");
}

/// Random accesses to device pages and holes, of the first `kinds` below.
fn random_memory(kinds: u64) {
    let mut random = Random::new();
    let pages = [
        0xFEE0_0000,
        0xFEC0_0000,
        DEVICE,
        0xA_0000,
        HOLE,
        0xFED0_0000,
        0xFFFF_F000,
        0x8000_0000,
        1 << 32,
        1 << 35,
        (1 << 38) + (1 << 21),
    ];
    trap::on(2, |_| ());
    for _ in 0..4000 {
        let page = random.one_of(&pages);
        let address = paging::set(1, page | P | W) + random.below(4096);
        paging::set(2, (page + 4096) | P | W);
        // The interrupt command register may not send INIT or start-up: that resets.
        if page == 0xFEE0_0000 && (0x2F0..0x310).contains(&(address & 0xFFF)) {
            continue;
        }
        let (value, kind) = (random.value(), random.below(kinds));
        // SAFETY: device pages and holes, and the RAM buffer, which hold no Rust object; a fault is caught.
        let _ = catch(|| unsafe {
            match kind {
                0 => asm!("mov [{}], {:r}", in(reg) address, in(reg) value),
                1 => asm!("mov {:r}, [{}]", out(reg) _, in(reg) address),
                2 => asm!("mov [{}], {:e}", in(reg) address, in(reg) value),
                3 => asm!("mov {:e}, [{}]", out(reg) _, in(reg) address),
                4 => asm!("mov [{}], {}", in(reg) address, in(reg_byte) value as u8),
                5 => asm!("lock xadd [{}], {:e}", in(reg) address, inout(reg) value => _),
                6 => asm!("xchg [{}], {:x}", in(reg) address, inout(reg) value => _),
                7 => asm!("lock bts [{}], {:r}", in(reg) address, in(reg) value & 63),
                8 => asm!("rep movsb", inout("rcx") 64_u64 => _, inout("rsi") address => _, inout("rdi") BUFFER => _),
                9 => asm!("rep stosd", inout("rcx") 0_u64 => _, inout("rdi") address => _, in("eax") value as u32),
                _ => asm!("call {}", in(reg) address, clobber_abi("sysv64")),
            }
        });
    }
    saw!("4000 accesses");
}

/// Random bytes in ring 3, with a watchdog against endless loops.
fn random_code() {
    let mut random = Random::new();
    paging::image_user(false);
    apic::enable();
    apic::write(DIVIDE, 0xB);
    apic::write(TIMER, u32::from(WATCHDOG));
    trap::on(WATCHDOG, |frame| {
        apic::end_of_interrupt();
        if frame.cs & 3 == 3 {
            frame.rip = 0; // which ring 3 can not reach
        }
    });
    // SAFETY: RAM above the image, which holds no Rust object.
    let code = unsafe { Region::new(BUFFER as usize, 4096) };
    let address = paging::set(3, BUFFER | P | W | U);
    // Half of them begin with an opcode that matters to a hypervisor.
    let openings: [&[u8]; 10] = [
        &[0x0F, 0xA2],
        &[0x0F, 0x01],
        &[0x0F, 0xC7],
        &[0x0F, 0x78],
        &[0x0F, 0x00],
        &[0xCD],
        &[0x0F, 0xAE],
        &[0xF3, 0x6C],
        &[0xC4, 0xE2],
        &[0x0F, 0x01, 0xD0],
    ];
    for _ in 0..3000 {
        (0..64).step_by(8).for_each(|at| code.write64(at, random.number()));
        if random.below(2) == 0 {
            code.copy_in(0, random.one_of(&openings));
        }
        apic::write(INITIAL_COUNT, 20_000);
        // SAFETY: ring 3 reaches this one page of code and data, and nothing that Rust uses.
        let _ = unsafe { user::run(address, USER_CODE, 0x200, address + 2048) };
        apic::write(INITIAL_COUNT, 0);
    }
    saw!("3000 pieces of code");
}
