//! The other processors: start, work for each, end.
//!
//! SDM vol. 3A 9.4.4 "MP Initialization Example": INIT, a wait of 10 ms, then start-up interrupts. Which processors there are
//! says ACPI's MADT (ACPI 6.5, 5.2.12 "Multiple APIC Description Table"). A started processor shares the page tables, the
//! segments and the interrupt table of the first, has a stack of its own and no task state, and halts with interrupts open
//! until there is work for it: whatever is sent to it then is received.

use crate::{apic, boot, cpu, segments, time, trap};
use core::arch::{asm, global_asm};
use core::mem::transmute;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Most processors that are started, the first one included.
pub const MOST: usize = 8;
/// Vector that tells a processor to look for work.
pub const WAKE: u8 = 0xFE;
/// Where a started processor begins, in real mode: the page that holds the way to long mode.
pub const TRAMPOLINE: usize = 0x7000;
/// Interrupt command: INIT, asserted.
pub const INIT: u32 = 0x4500;
/// Interrupt command: start-up; the page's number is the vector.
pub const STARTUP: u32 = 0x4600;

const STACK: usize = 1 << STACK_SHIFT;
const STACK_SHIFT: u32 = 14;

global_asm!(
    ".section .rodata.trampoline, \"a\"",
    ".balign 16",
    ".global ap_trampoline",
    "ap_trampoline:",
    ".code16",
    "cli",
    "mov ax, cs",
    "mov ds, ax",
    ".byte 0x66, 0x0F, 0x01, 0x16", // lgdt with a base of 32 bits
    ".word ap_gdt_pointer - ap_trampoline",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xEA", // jmp far to 32-bit code
    ".long ap_protected",
    ".word 0x18",
    ".balign 8",
    "ap_gdt: .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF",
    "ap_gdt_pointer: .word 31",
    ".long {trampoline} + ap_gdt - ap_trampoline",
    ".global ap_trampoline_end",
    "ap_trampoline_end:",
    ".text",
    ".code32",
    "ap_protected:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov eax, 0x620",
    "mov cr4, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, 0x80010033",
    "mov cr0, eax",
    ".byte 0xEA",
    ".long ap_long",
    ".word 8",
    ".code64",
    "ap_long:",
    "mov eax, 1",
    "cpuid",
    "shr ebx, 24",
    "mov edi, [{index} + rbx * 4]",
    "mov eax, edi",
    "shl eax, {shift}",
    "lea rsp, [ap_stacks + rax]",
    "mov eax, 0x10",
    "mov fs, eax",
    "mov gs, eax",
    "cld",
    "fninit",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".section .bss.ap, \"aw\", @nobits",
    ".balign 4096",
    ".global ap_stacks",
    "ap_stacks: .skip {stacks}",
    ".text",
    trampoline = const TRAMPOLINE,
    index = sym INDEX,
    shift = const STACK_SHIFT,
    stacks = const STACK * (MOST - 1),
    start = sym start_other,
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_stacks: u8;
}

/// The work of a processor: it is given its number.
pub type Work = fn(usize);

/// Number of the processor with a local APIC id.
static INDEX: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static IDS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(1);
static WORK: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];
static STARTS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];

/// Processors that run, the first one included.
#[must_use]
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Local APIC id, by the MADT, of processor `number`.
#[must_use]
pub fn apic_id(number: usize) -> u32 {
    IDS[number].load(Ordering::Relaxed)
}

/// How often processor `number` was started.
#[must_use]
pub fn starts(number: usize) -> u32 {
    STARTS[number].load(Ordering::SeqCst)
}

/// Number of the processor that asks, by its stack: 0 is the first one.
#[must_use]
pub fn number() -> usize {
    let stack: usize;
    // SAFETY: reads the stack pointer.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    let below = stack.wrapping_sub(&raw const ap_stacks as usize);
    if below < STACK * (MOST - 1) { below / STACK + 1 } else { 0 }
}

/// Starts all others that the MADT lists; how many run now. The local APIC is enabled.
pub fn start() -> usize {
    apic::enable();
    trap::on(WAKE, |_| apic::end_of_interrupt());
    let (from, to) = (&raw const ap_trampoline as usize, &raw const ap_trampoline_end as usize);
    // SAFETY: the page is RAM below 640 KiB that holds no Rust object, and all of the code is in the image.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, TRAMPOLINE as *mut u8, to - from) };
    let own = cpu::cpuid(1, 0).ebx >> 24;
    IDS[0].store(own, Ordering::Relaxed);
    for id in boot::local_apics().filter(|id| *id != own && *id < 256) {
        let number = count();
        if number == MOST {
            break;
        }
        IDS[number].store(id, Ordering::Relaxed);
        INDEX[id as usize].store(number as u32, Ordering::SeqCst);
        COUNT.store(number + 1, Ordering::Relaxed);
        if !restart(number) {
            COUNT.store(number, Ordering::Relaxed);
            break;
        }
    }
    count()
}

/// INIT and start-up interrupts for processor `number`; whether it came.
pub fn restart(number: usize) -> bool {
    let before = starts(number);
    apic::send_to(apic_id(number), INIT);
    time::delay(10_000);
    for _ in 0..2 {
        apic::send_to(apic_id(number), STARTUP | (TRAMPOLINE as u32 >> 12));
        if time::wait_until(200_000, || starts(number) != before) {
            return true;
        }
    }
    time::wait_until(5_000_000, || starts(number) != before)
}

extern "sysv64" fn start_other(number: usize) -> ! {
    segments::load_table();
    trap::reload();
    WORK[number].store(0, Ordering::SeqCst);
    apic::enable();
    STARTS[number].fetch_add(1, Ordering::SeqCst);
    loop {
        let work = WORK[number].load(Ordering::SeqCst);
        if work == 0 {
            cpu::wait_for_interrupt();
            continue;
        }
        // SAFETY: only run_on() stores here, and it stores a `Work`.
        let work = unsafe { transmute::<usize, Work>(work) };
        work(number);
        cpu::disable_interrupts();
        WORK[number].store(0, Ordering::SeqCst);
    }
}

/// Has processor `number`, not this one, do `work`, with interrupts off. It must not have any.
pub fn run_on(number: usize, work: Work) {
    WORK[number].store(work as usize, Ordering::SeqCst);
    apic::send_to(apic_id(number), 0x4000 | u32::from(WAKE));
}

/// Whether processor `number` has done its work.
#[must_use]
pub fn idle(number: usize) -> bool {
    WORK[number].load(Ordering::SeqCst) == 0
}

/// Waits until all others have done their work, at most `microseconds`; whether they have.
pub fn join(microseconds: u64) -> bool {
    time::wait_until(microseconds, || (1..count()).all(idle))
}

/// Has all processors do `work` and waits for them, at most a minute; whether all have done it.
pub fn all(work: Work) -> bool {
    (1..count()).for_each(|number| run_on(number, work));
    work(0);
    join(60_000_000)
}
