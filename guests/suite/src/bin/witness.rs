//! A witness: holds known words in RAM, registers, vector and debug registers, and checks them all the time.
//!
//! `seed=N` gives the words, so that no image or pack holds them: word i is the output i of SplitMix64 with that seed.
//! Words 0 to 7 fill all RAM above 2 MiB, again and again; 8 to 15 are in R8 to R15; 16 to 23 in XMM0 to XMM3; 24 to
//! 27 in DR0 to DR3; 28 to 35 in registers of devices ([`Devices`]) and in MSRs. `rounds=N` ends it after so many rounds (for
//! ever if it is not given), `until-told` when `q` comes in on the console. Each round prints a line, the heartbeat. With
//! `share=1` a round is a known number of instructions, and its line says what of its time it had the CPU. A neighbour, or the
//! host, that changes a word is seen; where else a word is found, it has leaked.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::memory::Region;
use bulkhead_rt::{apic, check, cpu, has_word, ioapic, memory_map, port, println, scenario, word_value};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

scenario!(main);

/// The runtime's image and stack end below.
const START: u64 = 0x20_0000;
/// Words that the witness holds.
const WORDS: usize = 36;
/// Instructions that leave the guest, with the words in registers, in a round.
const EXITS: u64 = 200;

/// Output `index` of SplitMix64.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn main() {
    let seed = word_value("seed").unwrap_or(1);
    let rounds = word_value("rounds").unwrap_or(u64::MAX);
    let words: [u64; WORDS] = core::array::from_fn(|index| word(seed, index as u64));
    let ram = || {
        memory_map().filter_map(|(start, bytes, kind)| {
            let (first, end) = (start.max(START), start + bytes);
            // SAFETY: RAM by the memory map, mapped one to one, above all that this guest consists of.
            (kind == 1 && first < end && end <= 1 << 32)
                .then(|| unsafe { Region::new(first as usize, (end - first) as usize) })
        })
    };
    for part in ram() {
        (0..part.bytes()).step_by(8).for_each(|at| part.write64(at, words[at / 8 % 8]));
    }
    set_debug_registers(&words);
    let devices = Devices::set(&words);
    let mut done = 0;
    while done < rounds && !told() {
        done += 1;
        if word_value("share") == Some(1) {
            let (work, time) = share();
            println!("witness share {work} of {time}");
            // Its memory takes longer than it may look away from its share.
            if done % 16 != 0 {
                continue;
            }
        } else {
            println!("witness round {done}");
        }
        let kept = hold(&words);
        let wrong = ram().find_map(|part| {
            let wrong = (0..part.bytes()).step_by(8).find(|at| part.read64(*at) != words[at / 8 % 8]);
            wrong.map(|at| part.base() + at)
        });
        let seen = Devices::read();
        if kept != words[8..24] || debug_registers() != words[24..28] || wrong.is_some() || seen != devices {
            check!(false, "the witness keeps what it holds: RAM {wrong:x?}, {kept:x?}, {seen:x?}, not {devices:x?}");
            return;
        }
    }
    println!("witness {done} rounds, unchanged");
    check!(true, "the witness keeps what it holds");
}

/// Whether the console says that it is enough.
fn told() -> bool {
    const STATUS: u16 = 0x3FD;
    has_word("until-told") && port::read8(STATUS) & 1 != 0 && port::read8(0x3F8) == b'q'
}

/// Ticks that two million instructions, or a few more, take by themselves, and that they took: pieces of the work are timed one by
/// one, and the shortest time ever is that of a piece that nothing interrupted. Where others have turns, the work begins and ends
/// behind one: it has whole rounds of turns, not parts.
fn share() -> (u64, u64) {
    const PIECES: u64 = 1000;
    const TURNS: u64 = 1000;
    // Pieces that a pause takes which is taken for a turn of others, and most that are waited for one.
    const TURN: u64 = 25;
    const MOST: u64 = 200;
    static SHORTEST: AtomicU64 = AtomicU64::new(u64::MAX);
    let mut at = cpu::rdtsc();
    let mut pieces = |least: u64| {
        for count in 1.. {
            // SAFETY: counts a register down, and touches no memory.
            unsafe { asm!("2: dec {0}", "jnz 2b", inout(reg) TURNS => _, options(nomem, nostack)) };
            let took = cpu::rdtsc() - at;
            at += took;
            let shortest = SHORTEST.fetch_min(took, Ordering::Relaxed).min(took);
            if count >= least && (took / TURN > shortest || count >= least + MOST) {
                return (count * shortest, at);
            }
        }
        unreachable!()
    };
    let (_, begin) = pieces(1);
    let (work, end) = pieces(PIECES);
    (work, end - begin)
}

/// What this guest's devices and model-specific registers were given.
#[derive(PartialEq, Eq, Debug)]
struct Devices {
    /// LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, SYSENTER_EIP, and the page attribute table.
    msrs: [u64; 6],
    /// Scratch and divisor of the serial port are its own; scratch register here.
    scratch: u8,
    /// CMOS bytes 0x40 to 0x47.
    cmos: [u8; 8],
    /// Mode of the interval timer's channel 2.
    timer: u8,
    /// Redirection entries 16 to 19 of the I/O APIC, masked.
    lines: [u64; 4],
    /// Task priority, logical destination and error entry of the local APIC.
    local: [u32; 3],
    /// Masks of the interrupt controllers.
    masks: u16,
    /// Address register of the PCI configuration mechanism.
    pci: u32,
}

const MSRS: [u32; 6] = [0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102, 0x176, 0x277];

impl Devices {
    /// Gives them what words 28 to 35 say; what they have then.
    fn set(words: &[u64; WORDS]) -> Self {
        let word = |index: usize| words[28 + index];
        for (index, msr) in MSRS.into_iter().enumerate() {
            // Canonical addresses, 32 bits of mask, legal memory types.
            let value = match msr {
                0xC000_0084 => word(index) & 0xFFFF_FFFF,
                0x277 => 0x0007_0406_0007_0406,
                _ => word(index) & 0x7FFF_FFFF_FFFF,
            };
            check!(cpu::wrmsr(msr, value).is_ok(), "MSR {msr:#x} takes its word");
        }
        port::write8(0x3FF, word(6) as u8);
        for (index, byte) in word(7).to_le_bytes().into_iter().enumerate() {
            port::write8(0x70, 0x40 + index as u8);
            port::write8(0x71, byte);
        }
        port::write8(0x43, 0xB6);
        for line in 16..20 {
            ioapic::set_entry(line, ioapic::MASKED | (0x40 + u64::from(line)) | (word(6) >> line & 0xF) << 56);
        }
        apic::enable();
        apic::write(apic::register::TPR, 0xF0);
        apic::write(apic::register::LDR, (word(7) as u32 & 0xFF) << 24);
        apic::write(apic::register::LVT_ERROR, 1 << 16 | 0x5A);
        port::write8(0x21, word(5) as u8);
        port::write32(0xCF8, 0x8000_0000 | word(4) as u32 & 0xFF_FFFC);
        Self::read()
    }

    fn read() -> Self {
        let cmos = |index| {
            port::write8(0x70, 0x40 + index);
            port::read8(0x71)
        };
        port::write8(0x43, 0xE8);
        Self {
            msrs: MSRS.map(|msr| cpu::rdmsr(msr).unwrap_or(0)),
            scratch: port::read8(0x3FF),
            cmos: core::array::from_fn(|index| cmos(index as u8)),
            timer: port::read8(0x42) & 0x3F,
            lines: [16, 17, 18, 19].map(ioapic::entry),
            local: [apic::register::TPR, apic::register::LDR, apic::register::LVT_ERROR].map(apic::read),
            masks: bulkhead_rt::pic::mask(),
            pci: port::read32(0xCF8),
        }
    }
}

/// Has words 8 to 23 in registers while it leaves the guest many times; what the registers hold then.
fn hold(words: &[u64; WORDS]) -> [u64; 16] {
    let mut kept = [0; 16];
    // SAFETY: loads and stores in `words` and `kept`; port 0x80 is nobody's. Compiled code here uses no vector
    // registers.
    unsafe {
        asm!(
            "mov r8, [rsi + 64]", "mov r9, [rsi + 72]", "mov r10, [rsi + 80]", "mov r11, [rsi + 88]",
            "mov r12, [rsi + 96]", "mov r13, [rsi + 104]", "mov r14, [rsi + 112]", "mov r15, [rsi + 120]",
            "movdqu xmm0, [rsi + 128]", "movdqu xmm1, [rsi + 144]",
            "movdqu xmm2, [rsi + 160]", "movdqu xmm3, [rsi + 176]",
            "2:", "out 0x80, al", "pause", "dec rcx", "jnz 2b",
            "mov [rdi], r8", "mov [rdi + 8], r9", "mov [rdi + 16], r10", "mov [rdi + 24], r11",
            "mov [rdi + 32], r12", "mov [rdi + 40], r13", "mov [rdi + 48], r14", "mov [rdi + 56], r15",
            "movdqu [rdi + 64], xmm0", "movdqu [rdi + 80], xmm1",
            "movdqu [rdi + 96], xmm2", "movdqu [rdi + 112], xmm3",
            in("rsi") words.as_ptr(), in("rdi") kept.as_mut_ptr(), inout("rcx") EXITS => _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            options(nostack),
        );
    }
    kept
}

fn set_debug_registers(words: &[u64; WORDS]) {
    // SAFETY: DR7 enables none of them: they are four words that the processor keeps.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) words[24], in(reg) words[25],
            in(reg) words[26], in(reg) words[27], options(nomem, nostack, preserves_flags));
    }
}

fn debug_registers() -> [u64; 4] {
    let (a, b, c, d);
    // SAFETY: reading them changes nothing.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) a, out(reg) b, out(reg) c,
            out(reg) d, options(nomem, nostack, preserves_flags));
    }
    [a, b, c, d]
}
