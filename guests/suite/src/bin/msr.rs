//! Model-specific registers: the allowed ones keep what is written, wrong values and unknown registers are #GP.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine, cpuid, rdmsr, rdtsc, wrmsr};
use bulkhead_rt::{Exception, check, check_eq, check_or_defect, expect_eq, println, scenario, skip};

scenario!(main);

const GP: Option<(u64, u64)> = Some((13, 0));
const APIC_BASE: u32 = 0x1B;
const EFER: u32 = 0xC000_0080;
const LSTAR: u32 = 0xC000_0082;
const PAT: u32 = 0x277;
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3B;

/// Ticks that may pass between two readings: far fewer than those that the counter is set off by.
const SOON: u64 = 1 << 34;

/// Registers that keep any canonical value: number, value, name.
const KEEP: [(u32, u64, &str); 11] = [
    (0x174, 0x1234, "SYSENTER_CS"),
    (0x175, 0xFFFF_8000_1234_5678, "SYSENTER_ESP"),
    (0x176, 0x0000_7FFF_FFFF_FFFF, "SYSENTER_EIP"),
    (PAT, 0x0001_0405_0607_0106, "PAT"),
    (0xC000_0081, 0x0123_4567_89AB_CDEF, "STAR"),
    (LSTAR, 0xFFFF_FFFF_8123_4567, "LSTAR"),
    (0xC000_0083, 0xFFFF_8123_4567_89AB, "CSTAR"),
    (0xC000_0084, 0x0004_7700, "FMASK"),
    (0xC000_0100, 0x0000_1234_5678_9ABC, "FS_BASE"),
    (0xC000_0101, 0xFFFF_9234_5678_9ABC, "GS_BASE"),
    (0xC000_0102, 0x0000_0BCD_EF01_2345, "KERNEL_GS_BASE"),
];

fn code(result: Result<u64, Exception>) -> Option<(u64, u64)> {
    result.err().map(|exception| exception.code())
}

fn written(msr: u32, value: u64) -> Option<(u64, u64)> {
    wrmsr(msr, value).err().map(|exception| exception.code())
}

fn main() {
    for (msr, value, name) in KEEP {
        let old = rdmsr(msr);
        expect_eq!(written(msr, value), None, "{name} takes a value");
        check_eq!(rdmsr(msr).ok(), Some(value), "{name} keeps it");
        if let Ok(old) = old {
            expect_eq!(written(msr, old), None, "{name} takes its old value");
        }
    }
    refused();
    efer();
    time_stamp();
    let base = rdmsr(APIC_BASE).ok();
    check_eq!(base.map(|b| b & 0xF_FFFF_FFFF_F900), Some(0xFEE0_0900), "APIC_BASE: enabled, bootstrap processor");
    mtrr();
    configuration();
    if cpu::machine() == Machine::Virtual {
        denied();
    } else {
        skip!("unknown registers (these machines let them read)");
    }
}

/// Values that a register refuses.
fn refused() {
    check_or_defect!(written(LSTAR, 0x8000_0000_0000_0000), GP, None, "LSTAR refuses a non-canonical address");
    expect_eq!(written(LSTAR, 0), None, "LSTAR takes 0");
    check_or_defect!(written(0xC000_0101, 0x0001_0000_0000_0000), GP, None, "GS_BASE refuses a non-canonical address");
    expect_eq!(written(0xC000_0101, 0), None, "GS_BASE takes 0");
    if cpu::machine() == Machine::Tcg {
        return skip!("PAT and MTRRCAP");
    }
    check_eq!(written(PAT, 0x02), GP, "PAT refuses memory type 2");
    check_eq!(written(0xFE, 0), GP, "MTRRCAP is read-only");
    let base = rdmsr(APIC_BASE).unwrap_or_default();
    for bit in cpuid(0x8000_0008, 0).eax & 0xFF..64 {
        check_eq!(written(APIC_BASE, base | 1 << bit), GP, "APIC_BASE refuses bit {bit}, no address's");
    }
    check_eq!(rdmsr(APIC_BASE).ok(), Some(base), "APIC_BASE stays as it was");
}

/// SDM vol. 3A 2.2.1 "Extended Feature Enable Register".
fn efer() {
    let old = rdmsr(EFER).unwrap_or_default();
    check_eq!(old & 0x500, 0x500, "EFER: LME and LMA");
    expect_eq!(written(EFER, old | 1), None, "EFER takes SCE");
    check_eq!(rdmsr(EFER).ok(), Some(old | 1), "EFER keeps SCE");
    if cpuid(0x8000_0001, 0).edx & 1 << 20 != 0 {
        expect_eq!(written(EFER, old | 1 << 11), None, "EFER takes NXE");
        check_eq!(rdmsr(EFER).ok(), Some(old | 1 << 11), "EFER keeps NXE");
    }
    expect_eq!(written(EFER, old), None, "EFER takes its old value");
    if cpu::machine() == Machine::Tcg {
        return skip!("EFER's reserved bits");
    }
    check_eq!(written(EFER, old | 1 << 1), GP, "EFER refuses a reserved bit");
    check_eq!(written(EFER, old & !0x100), GP, "EFER refuses to clear LME under paging");
}

fn time_stamp() {
    if cpu::machine() == Machine::Tcg {
        return skip!("TSC (not the same clock as RDTSC here)");
    }
    let before = rdtsc();
    check!(rdmsr(TSC).is_ok_and(|tsc| tsc >= before && tsc - before < SOON), "TSC reads as RDTSC");
    if cpuid(7, 0).ebx & 2 == 0 {
        return skip!("TSC_ADJUST");
    }
    let old = rdmsr(TSC_ADJUST).unwrap_or(1);
    check_eq!(old, 0, "TSC_ADJUST starts at 0");
    let before = rdtsc();
    expect_eq!(written(TSC_ADJUST, 1 << 40), None, "TSC_ADJUST takes a value");
    let jump = rdtsc() - before;
    check!((1 << 40..(1 << 40) + SOON).contains(&jump), "TSC_ADJUST moves the TSC");
    check_eq!(rdmsr(TSC_ADJUST).ok(), Some(1 << 40), "TSC_ADJUST keeps it");
    expect_eq!(written(TSC_ADJUST, 0), None, "TSC_ADJUST takes 0");
    check!(rdtsc() - before < SOON, "and moves it back");
}

/// SDM vol. 3A 12.11 "Memory Type Range Registers".
fn mtrr() {
    if cpuid(1, 0).edx & 1 << 12 == 0 {
        return skip!("MTRRs");
    }
    let (capabilities, default) = (rdmsr(0xFE), rdmsr(0x2FF));
    println!("MTRRCAP {capabilities:x?} default {default:x?}");
    check!(capabilities.is_ok() && default.is_ok(), "MTRRs read");
}

/// What the machine does not have. Deny by default: no register reads as something by accident.
fn denied() {
    let unknown =
        [0x3A, 0x480, 0x48F, 0x345, 0x1234, 0x4000_1234, 0x4B56_4D02, 0xC000_0105, 0xC001_0114, 0xC001_1234, u32::MAX];
    for msr in unknown {
        check_eq!(code(rdmsr(msr)), GP, "RDMSR {msr:#x} is refused");
        check_eq!(written(msr, 0), GP, "WRMSR {msr:#x} is refused");
    }
    check_eq!(code(rdmsr(0x802)), GP, "an x2APIC register in xAPIC mode is refused");
}

/// Registers that only AMD's processors have, and that kernels use there unasked. APM vol. 2 appendix A.
fn configuration() {
    const SYSCFG: u32 = 0xC001_0010;
    const HWCR: u32 = 0xC001_0015;
    const PERF_EVENT_SELECT0: u32 = 0xC001_0000;
    const FIXED_RATE: u64 = 1 << 24;
    if cpu::machine() != Machine::Virtual {
        return;
    }
    if cpuid(0, 0).ecx != u32::from_le_bytes(*b"cAMD") {
        check_eq!(code(rdmsr(SYSCFG)), GP, "no SYSCFG where the processor has none");
        return;
    }
    check_eq!(rdmsr(SYSCFG).ok(), Some(0), "SYSCFG");
    check_eq!(rdmsr(HWCR).ok(), Some(FIXED_RATE), "HWCR: the counter runs at one rate");
    check_eq!(written(HWCR, FIXED_RATE | 1 << 6), None, "HWCR takes a fix of an erratum");
    check_eq!(rdmsr(HWCR).ok(), Some(FIXED_RATE), "and drops it");
    check_eq!(written(HWCR, FIXED_RATE | 1), GP, "HWCR refuses to lock");
    check_eq!(written(PERF_EVENT_SELECT0, 0), None, "an event selector can be cleared");
    check_eq!(written(PERF_EVENT_SELECT0, 1 << 22), GP, "and not set");
}
