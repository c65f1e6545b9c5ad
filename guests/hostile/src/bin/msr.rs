//! Attacks on model-specific registers.
#![no_std]
#![no_main]
#![allow(clippy::cast_possible_truncation, reason = "a guest of 64 bits")]

use bulkhead_hostile::{Random, hold, hold_eq, peek, run, saw, walking};
use bulkhead_rt::cpu::{self, rdmsr, wrmsr};
use bulkhead_rt::{apic, scenario};

scenario!(main);

const EFER: u32 = 0xC000_0080;
const APIC_BASE: u32 = 0x1B;
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3B;

fn main() {
    run(&[
        ("low", || sweep(0)),
        ("high", || sweep(0xC000_0000)),
        ("vendor", || sweep(0xC001_0000)),
        ("hypervisor", || sweep(0x4000_0000)),
        ("wild", wild),
        ("addresses", addresses),
        ("apic-base", apic_base),
        ("x2apic", x2apic),
        ("counter", counter),
        ("memory-types", memory_types),
        ("clock", clock),
        ("stolen", stolen),
        ("tracing", tracing),
        ("registers-of-others", registers_of_others),
    ]);
}

/// Every index of a range of 0x2000: reads, and writes of walking values. What is taken is put back.
fn sweep(first: u32) {
    let (mut known, mut taken) = (0_u32, 0_u32);
    for msr in first..first + 0x2000 {
        let old = rdmsr(msr);
        known += u32::from(old.is_ok());
        // What this runs by: mode, the local APIC's place, its commands (INIT resets), time.
        if [EFER, APIC_BASE, TSC, TSC_ADJUST, 0x830].contains(&msr) {
            continue;
        }
        match old {
            Ok(old) => {
                for value in walking() {
                    taken += u32::from(wrmsr(msr, value).is_ok());
                }
                let _ = wrmsr(msr, old);
            }
            Err(fault) => {
                hold_eq!(fault.code(), (13, 0), "read of {msr:#x}");
                for value in [0, 1 << (msr % 64), u64::MAX] {
                    let write_only = [0x80B, 0x83F, 0x49, 0x10B].contains(&msr);
                    hold!(wrmsr(msr, value).is_err() || write_only, "{msr:#x} takes {value:#x}, and can not be read");
                }
            }
        }
    }
    saw!("{known} registers of 8192, {taken} writes taken");
}

/// Indexes from all over.
fn wild() {
    let mut random = Random::new();
    for _ in 0..5000 {
        let msr = (random.value() >> 8) as u32 | 0x0010_0000;
        if !(0xC000_0000..0xC001_2000).contains(&msr) {
            hold!(rdmsr(msr).is_err(), "read of {msr:#x}");
            hold!(wrmsr(msr, random.value()).is_err(), "write of {msr:#x}");
        }
    }
    saw!("protection faults");
}

/// Registers that take addresses: none takes what is no address. QEMU's processor does not check some of them, and its
/// guest then has what it wrote.
fn addresses() {
    let mut unchecked = 0;
    for msr in [0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0x175, 0x176] {
        let old = rdmsr(msr).unwrap_or(0);
        for value in [1 << 47, 1 << 63, 0x0000_8000_0000_0000 | 0xFFF, 0xFFFF_7FFF_FFFF_FFFF] {
            let taken = wrmsr(msr, value).is_ok();
            hold!(!taken || cpu::is_tcg(), "{msr:#x} takes {value:#x}");
            unchecked += u32::from(taken);
            let _ = cpu::cpuid(0, 0);
        }
        let _ = wrmsr(msr, old);
    }
    saw!("faults, and {unchecked} that the processor does not check");
}

/// The local APIC's page moves within this machine only, and never over its RAM; its mode can not be bent.
fn apic_base() {
    let old = rdmsr(APIC_BASE).unwrap_or(0);
    for page in [0, 0x1000, 0x40_0000, 0xFEC0_0000, 0xC000_0000, 1 << 32, 1 << 45] {
        let taken = wrmsr(APIC_BASE, page | 0x900).is_ok();
        let seen = peek(0x40_0030).ok();
        hold!(seen == Some(0), "it stands over RAM, moved to {page:#x}: {taken}, {seen:x?}");
        let _ = wrmsr(APIC_BASE, old);
    }
    for bits in [1 << 0, 1 << 7, 1 << 9, 1 << 52, 1 << 63] {
        hold!(wrmsr(APIC_BASE, old | bits).is_err(), "it takes {bits:#x}");
    }
    // To x2APIC, from there to what is illegal, off, on.
    let _ = (wrmsr(APIC_BASE, old & !(1 << 11) | 1 << 10), wrmsr(APIC_BASE, old | 1 << 10));
    hold!(wrmsr(APIC_BASE, old).is_err() || !apic::x2apic(), "from x2APIC back");
    let _ = (wrmsr(APIC_BASE, old & !(3 << 10)), wrmsr(APIC_BASE, old));
    for _ in 0..500 {
        let _ = (wrmsr(APIC_BASE, old & !(1 << 11)), wrmsr(APIC_BASE, old));
    }
    hold_eq!(rdmsr(APIC_BASE).map(|base| base >> 12).ok(), Some(0xFEE00), "its page");
    saw!("one page");
}

/// Every register of x2APIC mode with walking values.
fn x2apic() {
    hold!(apic::enter_x2apic(), "no x2APIC mode");
    for msr in 0x800..0x900 {
        let _ = rdmsr(msr);
        for value in walking() {
            // INIT and start-up, to oneself: a reset.
            if msr != 0x830 || !matches!(value >> 8 & 7, 5 | 6) {
                let _ = wrmsr(msr, value);
            }
        }
    }
    hold_eq!(rdmsr(0x802).ok(), Some(0), "its id");
    saw!("256 indexes");
}

/// The time-stamp counter, to and over all ends.
fn counter() {
    for value in walking() {
        hold!(wrmsr(TSC, value).is_ok() && wrmsr(TSC_ADJUST, value).is_ok(), "it does not take {value:#x}");
        for deadline in [1, value, value.wrapping_add(1000), u64::MAX] {
            let _ = wrmsr(apic::DEADLINE_MSR, deadline);
        }
    }
    let _ = wrmsr(TSC_ADJUST, 0);
    let (a, b) = (cpu::rdtsc(), cpu::rdtsc());
    hold!(a < b, "it goes backwards");
    saw!("its own time");
}

/// Memory types: what is illegal is refused, what is legal has no effect on others.
fn memory_types() {
    const PAT: u32 = 0x277;
    let old = rdmsr(PAT).unwrap_or(0);
    for byte in 0..8 {
        for kind in (0..256_u64).step_by(3).chain([2, 3, 8]) {
            let legal = matches!(kind, 0 | 1 | 4..=7);
            let value = old & !(0xFF << (byte * 8)) | kind << (byte * 8);
            hold_eq!(wrmsr(PAT, value).is_ok(), legal, "PAT {value:#x}");
        }
    }
    let _ = wrmsr(PAT, old);
    for msr in (0x200..0x210).chain([0x250, 0x258, 0x259]).chain(0x268..0x270).chain([0x2FF]) {
        for value in walking() {
            let _ = wrmsr(msr, value);
        }
        let _ = cpu::cpuid(0, 0);
    }
    saw!("legal types");
}

/// KVM's clock: addresses that are not, or not wholly, this guest's RAM; what is written besides the structure.
fn clock() {
    const WALL_CLOCK: u32 = 0x4B56_4D00;
    const SYSTEM_TIME: u32 = 0x4B56_4D01;
    let end = bulkhead_hostile::ram_end();
    for at in [end - 16, end - 4, end, 0xC000_0000, 0xFEC0_0000, 0xFEE0_0000, 1 << 40, 1 << 51, u64::MAX - 40] {
        hold!(wrmsr(SYSTEM_TIME, at | 1).is_err(), "the time goes to {at:#x}");
        hold!(wrmsr(WALL_CLOCK, at.max(end - 8)).is_err(), "the date goes to {at:#x}");
    }
    let at = 0x30_0000;
    for offset in (0..96).step_by(8) {
        hold!(bulkhead_hostile::poke(at + offset, u64::MAX).is_ok(), "its own memory");
    }
    hold!(wrmsr(SYSTEM_TIME, (at + 32) | 1).is_ok(), "its own memory is not taken");
    let words: [u64; 12] = core::array::from_fn(|index| peek(at + 8 * index as u64).unwrap_or(0));
    hold!(words[..4].iter().chain(&words[8..]).all(|word| *word == u64::MAX), "more than the structure: {words:x?}");
    hold!((words[4] as u32).is_multiple_of(2) && words[7] as u32 != u32::MAX, "no time: {words:x?}");
    // The time-stamp counter set again and again: the structure is written anew, and nothing else.
    for round in 0..200 {
        hold!(wrmsr(TSC_ADJUST, round << 40).is_ok(), "the counter can not be set");
        hold_eq!(peek(at + 40).unwrap_or(u64::MAX), round << 40, "round {round}");
    }
    let _ = (wrmsr(TSC_ADJUST, 0), wrmsr(SYSTEM_TIME, 0));
}

/// KVM's account of stolen time: addresses that are not this guest's RAM, reserved bits, a structure that is named anew all the
/// time, and one that the guest writes to itself.
fn stolen() {
    const STEAL_TIME: u32 = 0x4B56_4D03;
    let words = |at: u64| -> [u64; 24] { core::array::from_fn(|index| peek(at + 8 * index as u64).unwrap_or(0)) };
    let fill = |at: u64| {
        for offset in (0..192).step_by(8) {
            hold!(bulkhead_hostile::poke(at + offset, u64::MAX).is_ok(), "its own memory");
        }
    };
    let end = bulkhead_hostile::ram_end();
    let display = 0xA_0000;
    for at in [display, 0xB_FFC0, end, 0xC000_0000, 0xFEC0_0000, 0xFED8_0000, 0xFEE0_0000, 1 << 40, 1 << 51, !0x3F] {
        hold!(wrmsr(STEAL_TIME, at | 1).is_err(), "what is stolen is told at {at:#x}");
    }
    // Behind what is not touched before: its memory is mapped when first touched.
    let at = 0x30_0000;
    for bit in 1..6 {
        hold!(wrmsr(STEAL_TIME, at | 1 << bit | 1).is_err(), "reserved bit {bit}");
        hold!(wrmsr(STEAL_TIME, at | 1 << bit).is_err(), "reserved bit {bit}, switched off");
    }
    hold_eq!(rdmsr(STEAL_TIME).unwrap_or(1), 0, "what was refused");
    hold!(wrmsr(STEAL_TIME, at | 1).is_ok(), "its own memory is not taken");
    hold!(words(at)[1] as u32 >= 2, "nothing is told");
    fill(at - 64);
    hold!(wrmsr(STEAL_TIME, at | 1).is_ok(), "its own memory is not taken");
    let told = words(at - 64);
    let rest = told[..8].iter().chain(&told[11..]).all(|word| *word == u64::MAX);
    hold!(rest && told[8] != u64::MAX && (told[9] as u32).is_multiple_of(2), "more than the structure: {told:x?}");
    hold!(told[9] >> 32 == 0 && told[10] == !0xFF, "flags, or that it does not run: {told:x?}");
    // Turns come and go meanwhile.
    let mut random = Random::new();
    for round in 0..20_000 {
        let place = at + random.below(64) * 64;
        hold!(wrmsr(STEAL_TIME, place | 1).is_ok(), "round {round}");
        hold!(bulkhead_hostile::poke(place + random.below(8) * 8, random.value()).is_ok(), "its own memory");
    }
    hold!(wrmsr(STEAL_TIME, (end - 64) | 1).is_ok(), "the last structure in RAM");
    (0..2000).for_each(|_| _ = cpu::cpuid(0, 0));
    let _ = wrmsr(STEAL_TIME, 0);
    fill(at);
    (0..200_000).for_each(|_| cpu::pause());
    hold!(words(at).iter().all(|word| *word == u64::MAX), "it is told, and is switched off");
}

/// Branch records, performance counters, processor trace, power and voltage.
fn tracing() {
    let refused = [
        0x1A1_u32,
        0x1A4,
        0x1AA,
        0x570,
        0x571,
        0x560,
        0x600,
        0x150,
        0x610,
        0x38F,
        0x38D,
        0x186,
        0xC1,
        0x79,
        0x9E,
        0x1F2,
        0x3A,
        0x480,
        0x48C,
        0xC001_0015,
        0xC001_0114,
        0xC001_0117,
        0xC001_0118,
        0xC001_1030,
        0xC000_0104,
    ];
    for msr in refused {
        for value in [1, 0xFFFF, u64::MAX] {
            let taken = wrmsr(msr, value).is_ok();
            hold!(!taken || msr == 0x79, "{msr:#x} takes {value:#x}");
        }
    }
    for value in walking().filter(|value| *value != 0) {
        hold!(wrmsr(0x1D9, value).is_err(), "DEBUGCTL takes {value:#x}");
    }
    saw!("protection faults");
}

/// Registers that the processor does not switch: what this guest writes stays its own, over many turns.
fn registers_of_others() {
    const OWN: [u32; 5] = [0xC000_0082, 0xC000_0083, 0xC000_0102, 0x175, 0x176];
    for round in 0..400_u64 {
        OWN.iter().for_each(|msr| hold!(wrmsr(*msr, round << 12 | 0xABC).is_ok(), "{msr:#x}"));
        for _ in 0..30 {
            let _ = cpu::cpuid(0, 0);
        }
        OWN.iter().for_each(|msr| hold_eq!(rdmsr(*msr).ok(), Some(round << 12 | 0xABC), "{msr:#x}"));
    }
    saw!("its own words");
}
