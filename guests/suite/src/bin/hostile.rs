//! A guest that tries everything: random ports, registers, device memory, instructions.
//!
//! `what=1` ports, `2` model-specific registers, `3` device memory and holes, `4` random bytes as instructions in ring 3,
//! `5` as 3 with instructions that no hypervisor has to know there; `seed=N` and `rounds=N` as they say. Nothing is expected but that the guest itself comes to its end, and that the
//! machine around it does not mind. What would end the guest by design (resets, power-off, test exit) is left out.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_rt::apic::register::{DIVIDE, INITIAL_COUNT, TIMER};
use bulkhead_rt::cpu::{rdmsr, wrmsr};
use bulkhead_rt::memory::Region;
use bulkhead_rt::paging::{P, U, W};
use bulkhead_rt::segments::USER_CODE;
use bulkhead_rt::{apic, catch, check, paging, pic, port, println, scenario, serial, trap, user, word_value};
use core::arch::asm;

scenario!(main);

const BUFFER: u64 = 0x40_0000;
const WATCHDOG: u8 = 0x50;

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// Small, large, or a single bit.
    fn value(&mut self) -> u64 {
        let value = self.next();
        match self.below(4) {
            0 => value & 0xFF,
            1 => 1 << (value & 63),
            2 => u64::MAX << (value & 63),
            _ => value,
        }
    }
}

fn main() {
    let mut random = Random(word_value("seed").unwrap_or(1) | 1 << 63);
    let rounds = word_value("rounds").unwrap_or(5000);
    pic::init(0x20);
    apic::enable();
    trap::on(2, |_| ());
    for round in 0..rounds {
        match word_value("what") {
            Some(1) => ports(&mut random),
            Some(2) => registers(&mut random),
            Some(3) => memory(&mut random, 11),
            Some(5) => memory(&mut random, 16),
            _ => instructions(&mut random, round),
        }
    }
    serial::init();
    println!();
    check!(true, "still here after {rounds} rounds");
}

/// Whether a write to `bytes` ports from here on would end the guest: test exit, power management, resets.
fn ends(first: u16, bytes: u16) -> bool {
    [0xF4..0xF8, 0x600..0x606, 0x64..0x65, 0x92..0x93, 0xCF9..0xCFA]
        .iter()
        .any(|p| first < p.end && p.start < first.saturating_add(bytes))
}

fn ports(random: &mut Random) {
    let known = [
        0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x70, 0x71, 0xA0, 0xA1, 0x3F8, 0x3FB, 0x4D0, 0x510, 0x514, 0x600, 0x608,
        0xCF8, 0xCFC,
    ];
    let port = if random.below(4) == 0 { random.next() as u16 } else { random.one_of(&known) + random.below(4) as u16 };
    let (kind, value, count) = (random.below(12), random.value(), random.below(300));
    let width = 1 << (kind % 3);
    match kind {
        0 => _ = port::read8(port),
        1 => _ = port::read16(port),
        2 => _ = port::read32(port),
        _ if kind < 9 && ends(port, width) => {}
        3 | 6 => port::write8(port, value as u8),
        4 | 7 => port::write16(port, value as u16),
        5 | 8 => port::write32(port, value as u32),
        _ => string(port, kind, count, ends(port, 4)),
    }
}

fn string(port: u16, kind: u64, count: u64, input_only: bool) {
    // SAFETY: RAM above the image, 1.2 KiB at most, which holds no Rust object; a fault is caught.
    let _ = catch(|| unsafe {
        match kind {
            _ if input_only => asm!("rep insb", in("dx") port, inout("rcx") count => _, inout("rdi") BUFFER => _),
            9 => asm!("rep insw", in("dx") port, inout("rcx") count => _, inout("rdi") BUFFER => _),
            10 => asm!("rep outsb", in("dx") port, inout("rcx") count => _, inout("rsi") BUFFER => _),
            _ => asm!("rep outsd", in("dx") port, inout("rcx") count => _, inout("rsi") BUFFER => _),
        }
    });
}

fn registers(random: &mut Random) {
    let bases = [
        0,
        0x100,
        0x170,
        0x1D0,
        0x200,
        0x268,
        0x2F0,
        0x3F0,
        0x480,
        0x600,
        0x6E0,
        0x800,
        0x820,
        0xC00,
        0x4000_0000,
        0x4B56_4D00,
        0xC000_0080,
        0xC000_0100,
        0xC001_0000,
        0xC001_0110,
    ];
    let msr = random.one_of(&bases) + random.below(32) as u32;
    let old = rdmsr(msr);
    // What the runtime itself runs by: EFER, the local APIC's place and mode, GS and FS bases are not in use.
    if [0xC000_0080, 0x1B].contains(&msr) {
        return;
    }
    let value = random.value();
    if wrmsr(msr, value).is_ok()
        && let Ok(old) = old
    {
        let _ = wrmsr(msr, old);
    }
}

/// One access of the first `kinds` below.
fn memory(random: &mut Random, kinds: u64) {
    let pages = [
        0xFEE0_0000,
        0xFEC0_0000,
        0xFED8_0000,
        0xA_0000,
        0xC000_0000,
        0xFED0_0000,
        0xFFFF_F000,
        0x8000_0000,
        0x1_0000_0000,
        1 << 35,
        (1 << 38) + (1 << 21),
    ];
    let page = random.one_of(&pages);
    let address = paging::set(1, page | P | W) + random.below(4096);
    paging::set(2, (page + 4096) | P | W);
    // The interrupt command register may not send INIT or start-up: that resets.
    if page == 0xFEE0_0000 && (0x2F0..0x310).contains(&(address & 0xFFF)) {
        return;
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
            10 => asm!("call {}", in(reg) address, clobber_abi("sysv64")),
            11 => asm!("movdqu xmm0, [{}]", in(reg) address),
            12 => asm!("movdqu [{}], xmm0", in(reg) address),
            13 => asm!("fxsave [{}]", in(reg) address & !15),
            14 => {
                asm!("lock cmpxchg16b [{}]", in(reg) address & !15, inout("rax") value => _, inout("rdx") value => _, in("rcx") value)
            }
            _ => asm!("fld qword ptr [{}]", "fninit", in(reg) address),
        }
    });
}

/// Random bytes in ring 3, with a watchdog against endless loops.
fn instructions(random: &mut Random, round: u64) {
    // SAFETY: RAM above the image, which holds no Rust object.
    let code = unsafe { Region::new(BUFFER as usize, 4096) };
    if round == 0 {
        paging::image_user(false);
        apic::write(DIVIDE, 0xB);
        apic::write(TIMER, u32::from(WATCHDOG));
        trap::on(WATCHDOG, |frame| {
            apic::end_of_interrupt();
            if frame.cs & 3 == 3 {
                frame.rip = 0; // which ring 3 can not reach
            }
        });
    }
    let address = paging::set(3, BUFFER | P | W | U);
    for at in (0..64).step_by(8) {
        code.write64(at, random.next());
    }
    // Half of them begin with an opcode that matters to a hypervisor.
    let openings: [&[u8]; 12] = [
        &[0x0F, 0xA2],
        &[0x0F, 0x01],
        &[0x0F, 0xC7],
        &[0x0F, 0x78],
        &[0x0F, 0x00],
        &[0xCD],
        &[0x0F, 0xAE],
        &[0x66, 0x0F, 0x38],
        &[0x0F, 0x0B],
        &[0xF3, 0x6C],
        &[0xC4, 0xE2],
        &[0x0F, 0x01, 0xD0],
    ];
    if random.below(2) == 0 {
        code.copy_in(0, random.one_of(&openings));
    }
    apic::write(INITIAL_COUNT, 20_000);
    // SAFETY: ring 3 reaches this one page of code and data, and nothing that Rust uses.
    let _ = unsafe { user::run(address, USER_CODE, 0x200, address + 2048) };
    apic::write(INITIAL_COUNT, 0);
}
