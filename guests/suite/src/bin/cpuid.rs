//! CPUID: what the machine announces fits together.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine, cpuid};
use bulkhead_rt::{apic, check, check_eq, println, scenario, skip, time};
use core::arch::asm;

scenario!(main);

fn main() {
    let leaf0 = cpuid(0, 0);
    println!("highest leaf {:#x}", leaf0.eax);
    check!(leaf0.eax >= 7, "leaf 7 is there");
    registers();
    features();
    extended();
    xsave();
    if cpu::machine() == Machine::Virtual {
        virtual_machine();
    } else {
        skip!("hypervisor leaves");
    }
}

/// SDM vol. 2A "CPUID": the upper halves of all four registers are cleared.
fn registers() {
    let (mut rax, mut rcx, mut rdx): (u64, u64, u64) = (0xFFFF_FFFF_0000_0000, u64::MAX << 32, u64::MAX);
    let mut rbx = u64::MAX;
    // SAFETY: CPUID writes its four registers; RBX is kept in another one meanwhile.
    unsafe {
        asm!("xchg {0}, rbx", "cpuid", "xchg {0}, rbx", inout(reg) rbx, inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx,
            options(nomem, nostack));
    }
    check_eq!([rax >> 32, rbx >> 32, rcx >> 32, rdx >> 32], [0; 4], "upper halves are cleared");
    check_eq!(cpuid(1, 0), cpuid(1, 0), "two reads agree");
}

fn features() {
    let leaf1 = cpuid(1, 0);
    check_eq!(leaf1.ebx >> 24, apic::read(apic::register::ID) >> 24, "initial APIC identifier");
    // FPU, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, FXSR, SSE, SSE2: what every 64-bit kernel takes for granted.
    let expected =
        1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
    check_eq!(leaf1.edx & expected, expected, "features of every 64-bit processor");
    let os_xsave = 1 << 27;
    check_eq!(leaf1.ecx & os_xsave, 0, "OSXSAVE follows CR4, clear");
    if leaf1.ecx & 1 << 26 == 0 {
        return;
    }
    // SAFETY: CR4.OSXSAVE only lets XSETBV and its like work; no mapping changes.
    unsafe { cpu::set_cr4(cpu::cr4() | 1 << 18) };
    check_eq!(cpuid(1, 0).ecx & os_xsave, os_xsave, "OSXSAVE follows CR4, set");
}

fn extended() {
    let highest = cpuid(0x8000_0000, 0).eax;
    check!((0x8000_0008..0x8001_0000).contains(&highest), "extended leaves");
    let long = 1 << 29;
    check_eq!(cpuid(0x8000_0001, 0).edx & long, long, "long mode");
    let widths = cpuid(0x8000_0008, 0).eax;
    check!((32..=52).contains(&(widths & 0xFF)), "physical address width");
    check!([48, 57].contains(&(widths >> 8 & 0xFF)), "linear address width");
}

/// Offset and size of state component `index`.
fn component(index: u32) -> (u32, u32) {
    let leaf = cpuid(0xD, index);
    (leaf.ebx, leaf.eax)
}

/// Bytes of the standard-format area for `mask`. SDM vol. 1 13.4.3 "Extended Region of an XSAVE Area".
fn area_size(mask: u32) -> u32 {
    let ends = (2..32).filter(|n| mask & 1 << n != 0).map(|n| component(n).0 + component(n).1);
    ends.fold(576, u32::max)
}

fn set_xcr0(value: u32) {
    // SAFETY: the mask comes from CPUID, OSXSAVE is on, and compiled code here uses no vector register.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value, in("edx") 0, options(nomem, nostack)) };
}

fn xsave() {
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        return skip!("XSAVE");
    }
    let all = cpuid(0xD, 0);
    check_eq!(all.eax & 3, 3, "x87 and SSE states");
    check_eq!(area_size(all.eax), all.ecx, "size of the whole area");
    for (mask, name) in [(1, "x87"), (3, "SSE"), (7, "AVX"), (all.eax, "all")] {
        if mask & all.eax == mask {
            set_xcr0(mask);
            check_eq!(cpuid(0xD, 0).ebx, area_size(mask), "size of the area in use: {name}");
        }
    }
}

fn virtual_machine() {
    let leaf1 = cpuid(1, 0);
    check_eq!(leaf1.ecx >> 31, 1, "hypervisor bit");
    check_eq!(leaf1.ecx >> 5 & 1, 0, "no VMX inside");
    check_eq!(leaf1.ecx >> 3 & 1, 0, "no MONITOR");
    let threads = if leaf1.edx & 1 << 28 == 0 { 1 } else { leaf1.ebx >> 16 & 0xFF };
    check_eq!(threads, 1, "one logical processor");
    let base = cpuid(0x4000_0000, 0);
    check!((0x4000_0000..0x4001_0000).contains(&base.eax), "hypervisor leaves");
    check!([base.ebx, base.ecx, base.edx] != [0; 3], "hypervisor signature");
    check!(time::announced_hertz().is_some(), "leaf 0x15 announces the TSC");
    println!("TSC {} Hz", time::tsc_hertz());
    check_eq!(cpuid(0x8000_0007, 0).edx & 1 << 8, 1 << 8, "invariant TSC");
    if cpuid(0, 0).eax >= 0xB && cpuid(0xB, 0).ebx != 0 {
        check_eq!(cpuid(0xB, 1).ebx & 0xFFFF, 1, "one processor in the topology");
    }
}
