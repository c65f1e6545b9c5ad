//! Every exception that software can raise: vector, error code, saved RIP and registers.
//!
//! SDM vol. 3A 6.15 "Exception and Interrupt Reference". Each case puts the address of the instruction that is to be
//! saved (the faulting one, or the one behind a trap) into RDI.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine, machine};
use bulkhead_rt::segments::{self, FREE, TASK};
use bulkhead_rt::trap::{self, Exception, catch};
use bulkhead_rt::{check, check_eq, check_or_defect, scenario, skip};
use core::arch::asm;

scenario!(main);

const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// Runs the lines with RAX = `$rax`; label 2 is the address that is to be saved.
macro_rules! raise {
    ($rax:expr, $($line:literal),+) => {
        catch(|| {
            // SAFETY: the lines end in an exception, which catch() takes; it restores the stack pointer and what the
            // calling convention says is kept, and the lines change no memory but the scratch they are given.
            unsafe {
                asm!("push rbx", "lea rdi, [rip + 2f]", $($line),+, "pop rbx",
                    inout("rax") $rax => _, out("rcx") _, out("rdx") _, out("rdi") _, out("rsi") _, out("r8") _)
            }
        })
    };
}

/// Vector, error code, and how far the saved RIP is from where it should be.
type Outcome = Option<(u64, u64, u64)>;

fn outcome(exception: Option<Exception>) -> Outcome {
    exception.map(|e| (e.vector(), e.frame.error, e.frame.rip.wrapping_sub(e.frame.rdi)))
}

fn expect(name: &str, exception: Option<Exception>, vector: u64, error: u64) {
    check_eq!(outcome(exception), Some((vector, error, 0)), "{name}");
}

/// The same where QEMU's interpreter is known to do something else.
fn expect_or(defect: Outcome, name: &str, exception: Option<Exception>, vector: u64, error: u64) {
    check_or_defect!(outcome(exception), Some((vector, error, 0)), defect, "{name}");
}

fn main() {
    arithmetic();
    traps();
    undefined();
    own_bits();
    debug_registers();
    single_step();
    segment_faults();
    general_protection();
    double_fault();
    floating_point();
    registers();
}

fn arithmetic() {
    expect("#DE by zero", raise!(1_u64, "xor ecx, ecx", "xor edx, edx", "2: div ecx"), 0, 0);
    expect("#DE by overflow", raise!(1_u64 << 63, "mov rcx, -1", "cqo", "2: idiv rcx"), 0, 0);
}

fn traps() {
    expect("#BP by INT3", raise!(0_u64, "int3", "2: nop"), 3, 0);
    expect("#BP by INT 3", raise!(0_u64, ".byte 0xCD, 3", "2: nop"), 3, 0);
    expect("#OF by INT 4", raise!(0_u64, "int 4", "2: nop"), 4, 0);
    expect_or(Some((6, 0, u64::MAX)), "#DB by INT1", raise!(0_u64, ".byte 0xF1", "2: nop"), 1, 0);
    // INT n raises any vector, but pushes no error code: the trap entry would misread the stack of 8, 10-14, 17.
    expect("INT 18", raise!(0_u64, "int 18", "2: nop"), 18, 0);
}

fn undefined() {
    let caught = raise!(0_u64, "2: ud2");
    expect("#UD by UD2", caught, 6, 0);
    let resume = caught.map(|e| e.frame.rflags & 1 << 16);
    check_or_defect!(resume, Some(1 << 16), Some(0), "RF is set in the flags of another fault");
    expect("#UD by LOCK NOP", raise!(0_u64, "2: .byte 0xF0, 0x90"), 6, 0);
    expect("#UD by INTO in 64-bit mode", raise!(0_u64, "2: .byte 0xCE"), 6, 0);
    expect("#UD by VMREAD", raise!(0_u64, "2: vmread rax, rcx"), 6, 0);
    expect("#UD by VMXOFF", raise!(0_u64, "2: vmxoff"), 6, 0);
    expect("#UD by RSM", raise!(0_u64, "2: rsm"), 6, 0);
    expect("#UD by MOV to CR5", raise!(0_u64, "2: .byte 0x0F, 0x22, 0xE8"), 6, 0);
    if machine() == Machine::Virtual {
        expect("#UD by MONITOR", raise!(0_u64, "xor ecx, ecx", "xor edx, edx", "2: monitor"), 6, 0);
        expect("#UD by MWAIT", raise!(0_u64, "xor ecx, ecx", "2: mwait"), 6, 0);
        expect("#UD by VMRUN", raise!(0_u64, "2: vmrun"), 6, 0);
    }
    // SAFETY: TS makes floating-point instructions fault and changes nothing else.
    unsafe { cpu::set_cr0(cpu::cr0() | 8) };
    expect("#NM by x87", raise!(0_u64, "2: fld1"), 7, 0);
    expect("#NM by SSE", raise!(0_u64, "2: movaps xmm0, xmm1"), 7, 0);
    // SAFETY: as above, off again.
    unsafe { asm!("clts", options(nomem, nostack)) };
    check!(
        catch(|| {
            // SAFETY: no compiled code here has values in x87 registers.
            unsafe { asm!("fninit", options(nomem, nostack)) }
        })
        .is_none(),
        "CLTS ends #NM"
    );
}

/// CR4.MCE as the guest sees it, whoever takes machine checks; and LMSW and CLTS, which a hypervisor may carry out.
fn own_bits() {
    const MCE: u64 = 1 << 6;
    const TS: u64 = 1 << 3;
    let cr4 = cpu::cr4();
    for mce in [MCE, 0] {
        // SAFETY: no machine check comes here.
        unsafe { cpu::set_cr4(cr4 & !MCE | mce) };
        check_eq!(cpu::cr4() & MCE, mce, "CR4.MCE reads as it was written");
    }
    // SAFETY: as it was.
    unsafe { cpu::set_cr4(cr4) };
    let cr0 = cpu::cr0();
    let status = cr0 as u16 | 8;
    // SAFETY: TS makes floating-point instructions fault and changes nothing else.
    unsafe { asm!("lmsw [{}]", in(reg) &raw const status, options(nostack)) };
    check_eq!(cpu::cr0(), cr0 | TS, "LMSW from memory");
    // SAFETY: as above, off again.
    unsafe { asm!("clts", options(nomem, nostack)) };
    check_eq!(cpu::cr0(), cr0, "CLTS");
    // SAFETY: as for the one from memory, and off again.
    unsafe { asm!("lmsw {0:x}", "clts", in(reg) status, options(nomem, nostack)) };
    check_eq!(cpu::cr0(), cr0, "LMSW from a register, and CLTS");
    expect("#PF by LMSW from an absent page", raise!(0x1_0000_0000_u64, "2: lmsw [rax]"), 14, 0);
    check_eq!(cpu::cr2(), 0x1_0000_0000, "CR2 has its address behind LMSW");
}

/// SDM vol. 3B 18.2 "Debug Registers".
fn debug_registers() {
    let target = &raw const TARGET as u64;
    // SAFETY: a breakpoint on the own static; its trap is caught.
    unsafe {
        cpu::set_dr0(target);
        cpu::set_dr6(0xFFFF_0FF0);
        cpu::set_dr7(0x000D_0402); // G0, write, 4 bytes
    }
    expect("#DB by a data breakpoint", raise!(target, "mov dword ptr [rax], 7", "2: nop"), 1, 0);
    check_eq!(cpu::dr6() & 0xE00F, 1, "DR6 names breakpoint 0");
    // SAFETY: the sticky bits.
    unsafe { cpu::set_dr6(0xFFFF_0FF0) };
    let caught = raise!(0x402_u64, "mov dr0, rdi", "mov dr7, rax", "jmp 3f", "3: nop", "2: nop");
    // SAFETY: all breakpoints off.
    unsafe { cpu::set_dr7(0x400) };
    expect("#DB by an instruction breakpoint", caught, 1, 0);
    check_eq!(cpu::dr6() & 0xE00F, 1, "DR6 names breakpoint 0 again");
    check_eq!(caught.map(|e| e.frame.rflags & 1 << 16), Some(0), "RF is clear in the flags it saved");
    // SAFETY: DR7.GD makes the next access to a debug register fault; the processor clears it then.
    unsafe { cpu::set_dr7(0x2400) };
    let caught = raise!(0_u64, "2: mov rax, dr6");
    expect_or(None, "#DB by general detect", caught, 1, 0);
    check_or_defect!(cpu::dr6() & 0xE000, 0x2000, 0, "DR6 has BD");
    // SAFETY: all breakpoints off.
    unsafe { cpu::set_dr7(0x400) };
}

static mut TARGET: u32 = 0;

/// SDM vol. 3B 18.3.1.4 "Single-Step Exception Condition". An instruction that a hypervisor carries out must trap too.
fn single_step() {
    const STACK: u64 = segments::DATA as u64;
    expect_step("NOP", raise!(0_u64, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "2: nop", "nop"));
    expect_step("CPUID", raise!(0_u64, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "cpuid", "2: nop", "nop"));
    expect_step("IN", raise!(0_u64, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "in al, 0x61", "2: nop", "nop"));
    expect_step(
        "RDMSR",
        raise!(0_u64, "mov ecx, 0x1B", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "rdmsr", "2: nop", "nop"),
    );
    expect_step(
        "MOV SS",
        raise!(STACK, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov ss, eax", "nop", "2: nop"),
    );
    expect_step(
        "MOV SS, CPUID",
        raise!(STACK, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov ss, eax", "cpuid", "2: nop"),
    );
}

fn expect_step(name: &str, caught: Option<Exception>) {
    check_eq!(
        caught.map(|e| (e.vector(), e.frame.rip.wrapping_sub(e.frame.rdi))),
        Some((1, 0)),
        "#DB by single step behind {name}"
    );
    check_eq!(cpu::dr6() & 0x4000, 0x4000, "DR6 has BS after {name}");
    // SAFETY: clears the sticky bits.
    unsafe { cpu::set_dr6(0xFFFF_0FF0) };
}

/// Not-present and too short segments: #NP, #SS, #TS, #GP with the selector as error code.
fn segment_faults() {
    segments::set_descriptor(FREE, segments::descriptor(0, 0xFFFFF, 0x13, 0xC));
    let absent = u64::from(FREE);
    expect("#NP by a data segment", raise!(absent, "2: mov ds, eax"), 11, absent);
    expect("#SS by a stack segment", raise!(absent, "2: mov ss, eax"), 12, absent);
    expect("#GP by a selector beyond the table", raise!(0x1000_u64, "2: mov ds, eax"), 13, 0x1000);
    expect_or(None, "#GP by a null stack selector with RPL 3", raise!(3_u64, "2: mov ss, eax"), 13, 0);
    trap::set_gate_kind(0x60, segments::CODE, 0x0E, 0);
    expect_or(Some((11, 0x60 * 16 + 2, 0)), "#NP by a gate", raise!(0_u64, "2: int 0x60"), 11, 0x60 * 8 + 2);
    trap::set_gate_kind(0x60, u16::try_from(absent).unwrap_or(0), 0x8E, 0);
    expect("#GP by a gate to a data segment", raise!(0_u64, "2: int 0x60"), 13, absent);
    // A task state that ends before its seventh interrupt stack.
    let task = segments::get_descriptor(TASK);
    segments::set_descriptor(TASK, task & !0xFFFF | 0x40);
    segments::reload();
    trap::set_gate_kind(0x60, segments::CODE, 0x8E, 7);
    expect("#TS by a short task state", raise!(0_u64, "2: int 0x60"), 10, u64::from(TASK));
    segments::set_descriptor(TASK, task);
    segments::reload();
    trap::set_gate_kind(0x60, segments::CODE, 0x8E, 0);
    trap::on(0x60, |_| ());
    expect("INT 0x60 with its gate in order", raise!(0_u64, "int 0x60", "2: ud2"), 6, 0);
    check_eq!(trap::count(0x60), 1, "and its handler ran");
}

fn general_protection() {
    expect("#GP by a non-canonical load", raise!(NON_CANONICAL, "2: mov rcx, [rax]"), 13, 0);
    let caught = raise!(NON_CANONICAL, "2: jmp rax");
    let behind = caught.map_or(0, |e| NON_CANONICAL.wrapping_sub(e.frame.rdi));
    expect_or(Some((13, 0, behind)), "#GP by a non-canonical jump", caught, 13, 0);
    expect_or(
        Some((13, 0, 0)),
        "#SS by a non-canonical stack access",
        raise!(NON_CANONICAL, "xchg rax, rbp", "2: mov rcx, [rbp]"),
        12,
        0,
    );
    if machine() == Machine::Tcg {
        return skip!("#GP by reserved bits of control registers");
    }
    expect("#GP by a reserved bit of CR4", raise!(cpu::cr4() | 1 << 31, "2: mov cr4, rax"), 13, 0);
    expect("#GP by paging without protection in CR0", raise!(cpu::cr0() & !1, "2: mov cr0, rax"), 13, 0);
    expect("#GP by NW without CD in CR0", raise!(cpu::cr0() | 1 << 29, "2: mov cr0, rax"), 13, 0);
    expect("#GP by a reserved bit of DR7", raise!(1_u64 << 32, "2: mov dr7, rax"), 13, 0);
    expect("#GP by clearing CR4.PAE in long mode", raise!(cpu::cr4() & !0x20, "2: mov cr4, rax"), 13, 0);
    expect("#GP by a misaligned FXSAVE", raise!(0x20_0001_u64, "2: fxsave64 [rax]"), 13, 0);
    expect("#PF by an absent page", raise!(0x1_0000_0000_u64, "2: mov rcx, [rax]"), 14, 0);
    check_eq!(cpu::cr2(), 0x1_0000_0000, "CR2 has its address");
    expect("#PF by a write to an absent page", raise!(0x1_0000_0000_u64, "2: mov [rax], rcx"), 14, 2);
}

/// SDM vol. 3A 6.15 "Interrupt 8, Double Fault": #GP that can not be delivered since its gate is not present.
fn double_fault() {
    trap::set_gate_kind(13, segments::CODE, 0x0E, 0);
    trap::set_gate_kind(8, segments::CODE, 0x8E, 1);
    let caught = raise!(NON_CANONICAL, "2: mov rcx, [rax]");
    trap::set_gate_kind(13, segments::CODE, 0x8E, 0);
    check_eq!(caught.map(|e| e.code()), Some((8, 0)), "#DF by #NP in #GP");
    trap::set_gate_kind(8, segments::CODE, 0x8E, 0);
}

fn floating_point() {
    expect(
        "#MF by an unmasked division by zero",
        raise!(0_u64, "fninit", "push 0x37B", "fldcw [rsp]", "pop rcx", "fld1", "fldz", "fdivp", "2: fwait"),
        16,
        0,
    );
    // SAFETY: forgets the pending x87 exception.
    unsafe { asm!("fnclex", "fninit", options(nomem, nostack)) };
    expect_or(
        None,
        "#XM by an unmasked division by zero",
        raise!(
            0_u64,
            "push 0x1D80",
            "ldmxcsr [rsp]",
            "pop rcx",
            "mov ecx, 1",
            "cvtsi2ss xmm0, ecx",
            "xorps xmm1, xmm1",
            "2: divss xmm0, xmm1"
        ),
        19,
        0,
    );
    // SAFETY: all SIMD exceptions masked, as after reset.
    unsafe { asm!("push 0x1F80", "ldmxcsr [rsp]", "pop rcx", out("rcx") _) };
}

/// All general registers reach the handler as they were.
fn registers() {
    let caught = catch(|| {
        // SAFETY: UD2 leaves this block for good; catch() restores what the calling convention says is kept.
        unsafe {
            asm!(
                "mov rax, 0x100",
                "mov rbx, 0x101",
                "mov rcx, 0x102",
                "mov rdx, 0x103",
                "mov rsi, 0x104",
                "mov rdi, 0x105",
                "mov rbp, 0x106",
                "mov r8, 0x108",
                "mov r9, 0x109",
                "mov r10, 0x10A",
                "mov r11, 0x10B",
                "mov r12, 0x10C",
                "mov r13, 0x10D",
                "mov r14, 0x10E",
                "mov r15, 0x10F",
                "stc",
                "std",
                "ud2",
                options(noreturn)
            )
        }
    });
    let Some(Exception { frame: f, .. }) = caught else { return };
    let seen = [f.rax, f.rbx, f.rcx, f.rdx, f.rsi, f.rdi, f.rbp, f.r8, f.r9, f.r10, f.r11, f.r12, f.r13, f.r14, f.r15];
    let expected =
        [0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x108, 0x109, 0x10A, 0x10B, 0x10C, 0x10D, 0x10E, 0x10F];
    check_eq!(seen, expected, "general registers");
    check_eq!(f.rflags & 0x401, 0x401, "flags");
    check_eq!((f.cs, f.ss), (u64::from(segments::CODE), u64::from(segments::DATA)), "segments");
}
