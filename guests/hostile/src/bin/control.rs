//! Attacks on CPUID, control and debug registers, virtualization's instructions, and hypercalls.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_hostile::{Random, hold, hold_eq, run, saw, vector, vector_of, walking};
use bulkhead_rt::cpu::{self, cpuid, rdmsr, wrmsr};
use bulkhead_rt::paging::{self, P, U, W};
use bulkhead_rt::segments::USER_CODE;
use bulkhead_rt::{memory::Region, scenario, user};
use core::arch::asm;

scenario!(main);

const BUFFER: u64 = 0x40_0000;
const GP: Option<u64> = Some(13);
const UD: Option<u64> = Some(6);

fn main() {
    run(&[
        ("cpuid-leaves", cpuid_leaves),
        ("cpuid-wild", cpuid_wild),
        ("cr0", cr0),
        ("cr4", cr4),
        ("cr8", cr8),
        ("cr3", cr3),
        ("efer", efer),
        ("xcr0", xcr0),
        ("debug", debug),
        ("cache", cache),
        ("lmsw", lmsw),
        ("vmx", vmx),
        ("svm", svm),
        ("hidden", hidden),
        ("hypercall", hypercall),
        ("hypercall-ring3", hypercall_ring3),
    ]);
}

/// No leaf shows virtualization, monitoring, performance counters, or the host.
fn cpuid_leaves() {
    for (start, count) in [(0_u32, 64), (0x4000_0000, 0x200), (0x8000_0000, 64)] {
        for leaf in start..start + count {
            for subleaf in 0..8 {
                let (first, second) = (cpuid(leaf, subleaf), cpuid(leaf, subleaf));
                hold!(first == second || leaf == 0xD, "leaf {leaf:#x}.{subleaf} changes");
            }
        }
    }
    let (one, extended) = (cpuid(1, 0), cpuid(0x8000_0001, 0));
    hold_eq!(one.ecx & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 15), 0, "MONITOR, VMX, SMX, PDCM");
    hold_eq!(extended.ecx & (1 << 2 | 1 << 12), 0, "SVM, SKINIT");
    hold_eq!(one.ebx >> 24, 0, "APIC id");
    hold_eq!(cpuid(7, 0).ebx & (1 << 2 | 1 << 12 | 1 << 15 | 1 << 25), 0, "SGX, RDT, trace");
    for leaf in [5, 0xA, 0xF, 0x10, 0x12, 0x14, 0x1B, 0x8000_000A, 0x8000_001F] {
        let seen = cpuid(leaf, 0);
        hold_eq!([seen.eax, seen.ebx, seen.ecx, seen.edx], [0; 4], "leaf {leaf:#x}");
    }
    saw!("{} leaves", 64 + 0x200 + 64);
}

/// Leaves that do not exist.
fn cpuid_wild() {
    let mut random = Random::new();
    for _ in 0..5000 {
        let (leaf, subleaf) = (random.value() as u32, random.value() as u32);
        let _ = cpuid(leaf, subleaf);
    }
    let none = cpuid(0x2000_0000, 0);
    let beyond = cpuid(0xC000_0000, 0);
    hold!([none, beyond].iter().all(|leaf| leaf.eax | leaf.ebx | leaf.ecx | leaf.edx == 0), "{none:x?} {beyond:x?}");
    saw!("nothing");
}

/// Each illegal value of CR0 is #GP and changes nothing.
fn cr0() {
    let old = cpu::cr0();
    for bit in 32..64 {
        hold_eq!(vector!("mov cr0, {}", in(reg) old | 1 << bit), GP, "CR0 bit {bit}");
    }
    for (value, what) in [
        (old & !1, "paging without protection"),
        (old & !(1 << 31), "no paging in 64-bit code"),
        (old & !(1 << 30) | 1 << 29, "NW without CD"),
    ] {
        hold_eq!(vector!("mov cr0, {}", in(reg) value), GP, "{what}");
    }
    for bits in [1 << 30, 3 << 29, 1 << 17, 0xFFC0] {
        let _ = vector!("mov cr0, {}", in(reg) old | bits);
    }
    let _ = vector!("mov cr0, {}", in(reg) old);
    hold_eq!(cpu::cr0(), old, "CR0");
    saw!("protection faults");
}

/// CR4: bits that are not shown, and combinations that are illegal.
fn cr4() {
    // SMEP and SMAP shall not end what runs on pages of ring 3.
    paging::image_user(false);
    let old = cpu::cr4();
    let mut taken = 0_u64;
    for bit in 0..64 {
        if vector!("mov cr4, {}", in(reg) old ^ 1 << bit).is_none() {
            taken |= 1 << bit;
        }
        let _ = vector!("mov cr4, {}", in(reg) old);
    }
    hold_eq!(
        taken & (1 << 13 | 1 << 14 | 1 << 15 | 1 << 19 | 1 << 23 | 1 << 5),
        0,
        "VMXE, SMXE, reserved, KL, CET, PAE"
    );
    hold_eq!(taken >> 25, 0, "high bits");
    hold_eq!(cpu::cr4(), old, "CR4");
    saw!("it takes {taken:#x}");
}

fn cr8() {
    for value in walking().filter(|value| *value > 15) {
        hold_eq!(vector!("mov cr8, {}", in(reg) value), GP, "CR8 {value:#x}");
    }
    for value in 0..16_u64 {
        hold_eq!(vector!("mov cr8, {}", in(reg) value), None, "CR8 {value:#x}");
    }
    let _ = vector!("mov cr8, {}", in(reg) 0_u64);
    saw!("protection faults");
}

/// CR3: reserved address bits.
fn cr3() {
    let old = cpu::cr3();
    for bit in bulkhead_hostile::physical_bits()..63 {
        // Bits above the address are reserved, but for those that processors ignore.
        let seen = vector!("mov cr3, {}", in(reg) old | 1 << bit);
        if seen.is_none() {
            let _ = vector!("mov cr3, {}", in(reg) old);
        }
        hold!(matches!(seen, None | Some(13)), "CR3 bit {bit}: {seen:?}");
    }
    hold_eq!(vector!("mov cr3, {}", in(reg) old | 0x18), None, "CR3 with cache bits");
    let _ = vector!("mov cr3, {}", in(reg) old);
    saw!("its own root");
}

/// EFER: SVM, and leaving long mode.
fn efer() {
    const EFER: u32 = 0xC000_0080;
    let old = rdmsr(EFER).unwrap_or(0);
    let mut taken = 0_u64;
    for bit in 0..64 {
        if wrmsr(EFER, old ^ 1 << bit).is_ok() {
            taken |= 1 << bit;
        }
        let _ = wrmsr(EFER, old);
    }
    hold_eq!(taken & !(1 | 1 << 10 | 1 << 11), 0, "bits beside SCE, LMA (ignored) and NXE");
    hold_eq!(rdmsr(EFER).ok(), Some(old), "EFER");
    saw!("it takes {taken:#x}");
}

fn xcr0() {
    const OSXSAVE: u64 = 1 << 18;
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        saw!("no XSAVE");
        return;
    }
    let old = cpu::cr4();
    let _ = vector!("mov cr4, {}", in(reg) old | OSXSAVE);
    let set = |index: u32, value: u64| vector!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32);
    for value in walking().filter(|value| ![1, 3, 7].contains(value)) {
        let seen = set(0, value);
        hold!(seen == GP || value & !0xE7 == 0 && value & 1 == 1, "XCR0 {value:#x}: {seen:?}");
    }
    for value in [0, 2, 4, 5, 6] {
        hold_eq!(set(0, value), GP, "XCR0 {value:#x}");
    }
    for index in [1, 2, 0x8000_0000, u32::MAX] {
        hold_eq!(set(index, 7), GP, "XCR {index:#x}");
    }
    let _ = (set(0, 1), vector!("mov cr4, {}", in(reg) old));
    saw!("protection faults");
}

/// Debug registers: reserved bits, breakpoints on what the host uses, general detect.
fn debug() {
    for bit in 32..64 {
        hold_eq!(vector!("mov dr7, {}", in(reg) 0x400_u64 | 1 << bit), GP, "DR7 bit {bit}");
        hold_eq!(vector!("mov dr6, {}", in(reg) 0xFFFF_0FF0_u64 | 1 << bit), GP, "DR6 bit {bit}");
    }
    // The host's own addresses: its exit path must not stop at a guest's breakpoint.
    let host = [0xFFFF_FFFF_8000_0000_u64, 0xFFFF_8000_0001_0000, 0xFFFF_8080_0000_0000, 0xFFFF_FF80_0000_0000];
    // SAFETY: breakpoints at addresses that this guest never reaches, on all kinds of access.
    let seen = vector_of(|| unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr7, {}", in(reg) host[0], in(reg) host[1],
            in(reg) host[2], in(reg) host[3], in(reg) 0xFFFF_07FF_u64 & !(1 << 13) & !0xC000_0000_u64 & !0xC000_0000);
    });
    hold!(seen.is_none(), "breakpoints: {seen:?}");
    for leaf in 0..2000 {
        let _ = cpuid(leaf, 0);
    }
    let _ = vector!("mov dr7, {}", in(reg) 0x400_u64);
    saw!("no breakpoint in the host");
}

/// Cache control: INVD drops nothing, WBINVD and CR0.CD stop nobody.
fn cache() {
    let old = cpu::cr0();
    // SAFETY: a page of RAM above the image.
    let page = unsafe { Region::new(BUFFER as usize, 4096) };
    for round in 0..500 {
        page.write64(0, round);
        let seen = vector!("invd", "wbinvd", "clflush [{}]", in(reg) BUFFER);
        hold!(seen.is_none() && page.read64(0) == round, "round {round}: {seen:?}");
        let _ = vector!("mov cr0, {}", "invd", "mov cr0, {}", in(reg) old | 1 << 30, in(reg) old);
        hold_eq!(page.read64(0), round, "without caches");
    }
    saw!("its own words");
}

fn lmsw() {
    let old = cpu::cr0();
    for value in [0_u16, 0xFFFF, 0xFFF0, 0x8001] {
        let seen = vector!("lmsw {:x}", in(reg) value);
        hold!(seen.is_none(), "LMSW {value:#x}: {seen:?}");
        hold!(cpu::cr0() & 1 == 1, "LMSW left protected mode");
        let _ = vector!("mov cr0, {}", in(reg) old);
    }
    let _ = vector!("clts");
    hold_eq!(cpu::cr0(), old & !8, "CR0");
    let _ = vector!("mov cr0, {}", in(reg) old);
    saw!("protected mode");
}

/// Each instruction of VT-x is #UD, with and without an attempt at CR4.VMXE.
fn vmx() {
    let region = BUFFER;
    hold_eq!(vector!("mov cr4, {}", in(reg) cpu::cr4() | 1 << 13), GP, "CR4.VMXE");
    hold_eq!(vector!("vmxon [{}]", in(reg) &raw const region), UD, "VMXON");
    hold_eq!(vector!("vmxoff"), UD, "VMXOFF");
    hold_eq!(vector!("vmlaunch"), UD, "VMLAUNCH");
    hold_eq!(vector!("vmresume"), UD, "VMRESUME");
    hold_eq!(vector!("vmclear [{}]", in(reg) &raw const region), UD, "VMCLEAR");
    hold_eq!(vector!("vmptrld [{}]", in(reg) &raw const region), UD, "VMPTRLD");
    hold_eq!(vector!("vmptrst [{}]", in(reg) BUFFER), UD, "VMPTRST");
    for field in [0x0_u64, 0x2000, 0x4402, 0x6C00, 0x6C16, 0x201A, u64::MAX] {
        hold_eq!(vector!("vmread {}, {}", out(reg) _, in(reg) field), UD, "VMREAD {field:#x}");
        hold_eq!(vector!("vmwrite {}, {}", in(reg) field, in(reg) field), UD, "VMWRITE {field:#x}");
    }
    for kind in 0..4_u64 {
        hold_eq!(vector!("invept {}, [{}]", in(reg) kind, in(reg) BUFFER), UD, "INVEPT {kind}");
        hold_eq!(vector!("invvpid {}, [{}]", in(reg) kind, in(reg) BUFFER), UD, "INVVPID {kind}");
    }
    hold_eq!(vector!("vmfunc", in("eax") 0, in("ecx") 0), UD, "VMFUNC");
    saw!("invalid opcodes");
}

/// Each instruction of SVM is #UD.
fn svm() {
    hold!(wrmsr(0xC000_0080, rdmsr(0xC000_0080).unwrap_or(0) | 1 << 12).is_err(), "EFER.SVME");
    hold!(wrmsr(0xC001_0117, BUFFER).is_err(), "VM_HSAVE_PA");
    hold_eq!(vector!("vmrun rax", in("rax") BUFFER), UD, "VMRUN");
    hold_eq!(vector!("vmload rax", in("rax") BUFFER), UD, "VMLOAD");
    hold_eq!(vector!("vmsave rax", in("rax") BUFFER), UD, "VMSAVE");
    hold_eq!(vector!("stgi"), UD, "STGI");
    hold_eq!(vector!("clgi"), UD, "CLGI");
    hold_eq!(vector!("invlpga rax, ecx", in("rax") BUFFER, in("ecx") 0), UD, "INVLPGA");
    hold_eq!(vector!("skinit eax", in("eax") 0), UD, "SKINIT");
    saw!("invalid opcodes");
}

/// What CPUID does not show is not there.
fn hidden() {
    hold_eq!(vector!("monitor", in("rax") BUFFER, in("ecx") 0, in("edx") 0), UD, "MONITOR");
    hold_eq!(vector!("mwait", in("eax") 0, in("ecx") 0), UD, "MWAIT");
    hold!(matches!(vector!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _), Some(6 | 13)), "RDPMC");
    hold!(matches!(vector!(".byte 0x0F, 0x37", in("eax") 0), Some(6 | 13)), "GETSEC");
    hold!(matches!(vector!(".byte 0x0F, 0x01, 0xCF", in("eax") 0), Some(6 | 13)), "ENCLS");
    hold!(matches!(vector!(".byte 0x0F, 0xAA"), Some(6)), "RSM");
    hold!(matches!(vector!(".byte 0x0F, 0x01, 0xC5", in("eax") 0), Some(6)), "PCONFIG");
    saw!("invalid opcodes");
}

/// Calls that nobody offers, with registers full of nonsense.
fn hypercall() {
    let mut random = Random::new();
    let intel = vector!("vmcall", inout("rax") 0_u64 => _).is_none();
    for _ in 0..3000 {
        let (rax, rbx, rcx, rdx) = (random.value(), random.value(), random.value(), random.value());
        let (mut answer, kept) = (rax, rcx);
        let mut after = 0_u64;
        // SAFETY: a call to the hypervisor; RBX is put back.
        let seen = vector_of(|| unsafe {
            if intel {
                asm!("xchg rbx, {b}", "vmcall", "xchg rbx, {b}", b = inout(reg) rbx => _, inout("rax") answer, inout("rcx") rcx => after, in("rdx") rdx, in("rsi") rdx, in("rdi") rax);
            } else {
                asm!("xchg rbx, {b}", "vmmcall", "xchg rbx, {b}", b = inout(reg) rbx => _, inout("rax") answer, inout("rcx") rcx => after, in("rdx") rdx, in("rsi") rdx, in("rdi") rax);
            }
        });
        hold_eq!((seen, answer as i64, after), (None, -1000, kept), "call {rax:#x}");
    }
    let other = if intel { vector!("vmmcall") } else { vector!("vmcall") };
    hold_eq!(other, UD, "the other maker's instruction");
    saw!("no such call");
}

/// A call from ring 3.
fn hypercall_ring3() {
    paging::image_user(false);
    let at = paging::set(3, BUFFER | P | W | U);
    // SAFETY: a page of RAM above the image.
    let code = unsafe { Region::new(BUFFER as usize, 4096) };
    for call in [[0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9]] {
        code.copy_in(0, &call);
        code.copy_in(3, &[0x0F, 0x0B]);
        // SAFETY: the code ends by UD2.
        let end = unsafe { user::run(at, USER_CODE, 0x200, 0) };
        let seen = end.map(|e| (e.vector(), e.frame.rip - at, e.frame.rax as i64));
        hold!(matches!(seen, Some((6, 3, -1) | (6, 0, _))), "{seen:?}");
    }
    saw!("not permitted");
}
