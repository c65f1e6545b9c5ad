//! Interrupts and exceptions of the host itself.
//!
//! An exception means a bug of the hypervisor (or broken hardware): it is reported by the handler that the kernel
//! installed, and the machine stops: [`stop_others`]. Interrupts only end a halt; NMIs are counted.

use crate::descriptors::{KICK_VECTOR, LEGACY_VECTOR, SELF_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::{apic, legacy};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

global_asm!(include_str!("trap.S"), options(att_syntax));

/// What the stub saved. SDM vol. 3A 6.14.2 "64-Bit Mode Stack Frame".
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Non-maskable interrupts that came.
pub static NMI_COUNT: AtomicU64 = AtomicU64::new(0);
/// Interrupts nobody asked for.
pub static STRAY_COUNT: AtomicU64 = AtomicU64::new(0);
/// Address of the report function, 0 if none.
static REPORT: AtomicUsize = AtomicUsize::new(0);

/// The machine stops: an NMI stops the processor that takes it.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// Processors that were stopped so.
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// Where a fault of the hypervisor is reported; does not return.
pub type Report = fn(&Frame) -> !;

/// Installs the function that reports a fault.
pub fn set_report(report: Report) {
    REPORT.store(report as usize, Ordering::Relaxed);
}

unsafe extern "C" {
    static trap_stubs: u8;
}

/// Address of the stub of `vector`.
#[must_use]
pub fn stub(vector: usize) -> u64 {
    // Only the address of the label is taken: stubs are 16 bytes apart.
    (&raw const trap_stubs) as u64 + 16 * vector as u64
}

/// Called by the stubs.
// SAFETY: the name is used by trap.S alone.
#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &Frame) {
    match frame.vector {
        2 if STOPPING.load(Ordering::SeqCst) => {
            STOPPED.fetch_add(1, Ordering::SeqCst);
            crate::cpu::stop()
        }
        2 => {
            NMI_COUNT.fetch_add(1, Ordering::Relaxed);
        }
        0..32 => report(frame),
        v if v == u64::from(TIMER_VECTOR) => apic::timer_rang(),
        v if v == u64::from(KICK_VECTOR) => apic::was_kicked(),
        v if v == u64::from(SELF_VECTOR) => apic::end_of_interrupt(),
        v if (u64::from(LEGACY_VECTOR)..u64::from(LEGACY_VECTOR) + 16).contains(&v) => legacy::came(v),
        v => {
            STRAY_COUNT.fetch_add(1, Ordering::Relaxed);
            // One that is never ended would keep the timer's away. A spurious one was never begun.
            if v != u64::from(SPURIOUS_VECTOR) {
                apic::end_of_interrupt();
            }
        }
    }
}

/// Stops the processors whose local APICs have these numbers, for good: by an NMI, since INIT waits while VMX is on (SDM vol.
/// 3C 24.8 "Restrictions on VMX Operation"). What does not answer is not waited for.
pub fn stop_others(others: impl Iterator<Item = u32>) {
    STOPPING.store(true, Ordering::SeqCst);
    let count = others.map(apic::interrupt_anyway).count();
    for _ in 0..1_000_000 {
        if STOPPED.load(Ordering::SeqCst) >= count {
            return;
        }
        core::hint::spin_loop();
    }
}

fn report(frame: &Frame) -> ! {
    let address = REPORT.load(Ordering::Relaxed);
    if address == 0 {
        crate::cpu::stop();
    }
    // SAFETY: the only other value ever stored is a `Report`, by `set_report`.
    let report: Report = unsafe { core::mem::transmute::<usize, Report>(address) };
    report(frame)
}

/// Most frames of a stack that are looked at.
const DEPTH: usize = 32;

/// Names the return addresses of the current stack, or of that of an interrupted piece of code, innermost first.
pub fn frames_of_stack(interrupted: Option<&Frame>, found: &mut dyn FnMut(u64)) {
    let mut pointer: u64 = match interrupted {
        Some(frame) => frame.rbp,
        None => {
            let here: u64;
            // SAFETY: reads a register.
            unsafe { core::arch::asm!("mov {}, rbp", out(reg) here, options(nomem, nostack, preserves_flags)) }
            here
        }
    };
    let image = crate::layout::image();
    let stacks = [(crate::layout::WINDOW, crate::layout::TABLES), image.data];
    for _ in 0..DEPTH {
        let inside = stacks.iter().any(|(start, end)| pointer >= start.as_u64() && pointer < end.as_u64() - 16);
        if !inside || !pointer.is_multiple_of(8) {
            return;
        }
        // SAFETY: the chain of frame pointers is inside a stack: if one is not, a second fault stops the machine at once.
        let [next, address] = unsafe { (pointer as *const [u64; 2]).read_volatile() };
        let code = address >= image.text.0.as_u64() && address < image.text.1.as_u64();
        if !code {
            return;
        }
        found(address);
        pointer = next;
    }
}
