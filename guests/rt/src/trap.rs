//! Exceptions and interrupts: 256 vectors, handlers, and recovery from a fault.
//!
//! SDM vol. 3A 6.14 "Exception and Interrupt Handling in 64-bit Mode". [`catch`] runs code and comes back if it faults:
//! the state of the caller is saved as by `setjmp`, and the trap handler returns into it.

use crate::segments::{CODE, DATA, TablePointer};
use crate::{cpu, exit, println, smp};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::transmute;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

global_asm!(
    ".balign 16",
    ".global trap_entries",
    "trap_entries:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21",
    "push 0",
    ".endif",
    ".byte 0x68", // push
    ".long vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {trap}",
    "mov rsp, rbx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    // catch_call(context: rdi, function: rsi, argument: rdx) -> whether it faulted
    ".global catch_call",
    "catch_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "mov [rdi], rsp",
    "mov rdi, rdx",
    "call rsi",
    "xor eax, eax",
    ".global catch_resume",
    "catch_resume:",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    trap = sym trap,
);

unsafe extern "sysv64" {
    static trap_entries: u8;
    fn catch_call(context: *mut u64, function: extern "sysv64" fn(*mut ()), argument: *mut ()) -> u64;
    fn catch_resume();
}

/// The interrupted state, as it lies on the stack; a handler may change it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "registers, by their names")]
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
    /// Error code, 0 for vectors that have none.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A fault that [`catch`] took.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// State at the fault.
    pub frame: Frame,
    /// CR2 right after it.
    pub cr2: u64,
}

impl Exception {
    /// Its vector.
    #[must_use]
    pub fn vector(&self) -> u64 {
        self.frame.vector
    }

    /// Vector and error code.
    #[must_use]
    pub fn code(&self) -> (u64, u64) {
        (self.frame.vector, self.frame.error)
    }
}

#[repr(C, align(16))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: the table is written by one processor, before its reader can run; what was caught has a place for each processor,
// which its trap handler alone writes and its catch() reads only after that.
unsafe impl<T> Sync for Shared<T> {}

static IDT: Shared<[[u64; 2]; 256]> = Shared(UnsafeCell::new([[0; 2]; 256]));
static CAUGHT: [Shared<Option<Exception>>; smp::MOST] = [const { Shared(UnsafeCell::new(None)) }; smp::MOST];
/// Stack pointer of the innermost catch() of each processor, 0 outside.
static CONTEXT: [AtomicU64; smp::MOST] = [const { AtomicU64::new(0) }; smp::MOST];
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// A handler for a vector; it runs with interrupts off, on the interrupted stack.
pub type Handler = fn(&mut Frame);

/// Fills the interrupt descriptor table (interrupt gates, ring 0 only) and loads it.
pub(crate) fn load() {
    let entries = &raw const trap_entries as u64;
    for vector in 0..=255 {
        set_gate(vector, CODE, entries + u64::from(vector) * 16, 0x8E, 0);
    }
    reload();
}

/// Loads the interrupt descriptor table again.
pub fn reload() {
    let pointer = TablePointer { limit: 0xFFF, base: IDT.0.get() as u64 };
    // SAFETY: the table is static and all its gates lead to the stubs above.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

fn set_gate(vector: u8, selector: u16, entry: u64, access: u8, ist: u8) {
    let low = entry & 0xFFFF | u64::from(selector) << 16 | u64::from(ist) << 32 | u64::from(access) << 40;
    let gate = [low | (entry >> 16 & 0xFFFF) << 48, entry >> 32];
    // SAFETY: the index is below 256, and the processor reads a gate only at an event, which can not come between the
    // two halves of a gate that is in use: callers run with interrupts off and do not fault here.
    unsafe { IDT.0.get().cast::<[u64; 2]>().add(usize::from(vector)).write_volatile(gate) };
}

/// Changes how the gate of `vector` is entered: its code selector, access byte (0x8E interrupt gate, 0x8F trap gate,
/// 0xEE for ring 3 too, 0x0E not present) and stack (0, or 1 for the first of the task state).
pub fn set_gate_kind(vector: u8, selector: u16, access: u8, ist: u8) {
    let entry = &raw const trap_entries as u64 + u64::from(vector) * 16;
    set_gate(vector, selector, entry, access, ist);
}

/// Calls `handler` for `vector` from now on.
pub fn on(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Relaxed);
}

/// No handler for `vector` any more.
pub fn off(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Ordering::Relaxed);
}

/// How often `vector` was delivered, on all processors.
#[must_use]
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

extern "sysv64" fn trap(frame: &mut Frame) {
    let index = (frame.vector & 0xFF) as usize;
    COUNTS[index].fetch_add(1, Ordering::Relaxed);
    let handler = HANDLERS[index].load(Ordering::Relaxed);
    if handler != 0 {
        // SAFETY: only on() stores here, and it stores a `Handler`.
        let handler = unsafe { transmute::<usize, Handler>(handler) };
        handler(frame);
        return;
    }
    let exception = Exception { frame: *frame, cr2: cpu::cr2() };
    let number = smp::number();
    let context = CONTEXT[number].load(Ordering::Relaxed);
    if context == 0 || index >= 32 {
        println!("FAIL processor {number}: unexpected vector {index}, cr2 {:#x}, {frame:#x?}", exception.cr2);
        exit(1);
    }
    // SAFETY: catch() reads this only after the return from here, on the same processor.
    unsafe { *CAUGHT[number].0.get() = Some(exception) };
    frame.rip = catch_resume as *const () as u64;
    frame.rsp = context;
    frame.cs = u64::from(CODE);
    frame.ss = u64::from(DATA);
    frame.rflags = 2;
    frame.rax = 1;
}

/// Runs `code`; if it faults, it is left where it is (nothing is dropped) and the fault is returned.
pub fn catch<F: FnOnce()>(code: F) -> Option<Exception> {
    extern "sysv64" fn run<F: FnOnce()>(argument: *mut ()) {
        // SAFETY: catch() passes the address of its own `Option<F>`, which lives until catch_call is over.
        if let Some(code) = unsafe { (*argument.cast::<Option<F>>()).take() } {
            code();
        }
    }
    let mut code = Some(code);
    let number = smp::number();
    let outer = CONTEXT[number].load(Ordering::Relaxed);
    // SAFETY: catch_call saves the callee-saved registers and flags and runs `run::<F>` on `code`. A fault comes back as
    // its second return, with the saved registers in place; frames in between are abandoned, not unwound.
    let faulted = unsafe { catch_call(CONTEXT[number].as_ptr(), run::<F>, (&raw mut code).cast()) };
    CONTEXT[number].store(outer, Ordering::Relaxed);
    if faulted == 0 {
        return None;
    }
    // SAFETY: the trap handler wrote it before it resumed catch_call, and nothing else refers to it.
    unsafe { (*CAUGHT[number].0.get()).take() }
}
