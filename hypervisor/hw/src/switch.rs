//! Going from one compartment's stack and address space to another's.

use crate::{clear_given_up, pop_kept, push_kept};
use bulkhead_types::Hpa;
use core::arch::global_asm;

// System V ABI: RDI = where the current stack pointer is kept, RSI = the new one, RDX = the new CR3. The words pushed
// rest on the old compartment's stack, which is not mapped once CR3 is loaded; the caller-saved registers are cleared
// so that none of its values crosses over.
global_asm!(
    ".section .text.switch_context, \"ax\"",
    ".global switch_context",
    "switch_context:",
    push_kept!(),
    "mov [rdi], rsp",
    "mov cr3, rdx",
    "mov rsp, rsi",
    pop_kept!(),
    "xor eax, eax",
    clear_given_up!(),
    "ret",
    ".global enter_context",
    "enter_context:",
    "mov cr3, rsi",
    "mov rsp, rdi",
    "xor ebp, ebp",
    "call rdx",
    "ud2",
);

unsafe extern "C" {
    fn switch_context(keep: *mut u64, stack: u64, root: u64);
    fn enter_context(stack: u64, root: u64, entry: extern "C" fn() -> !) -> !;
}

/// Words that a fresh context's stack must hold from its stack pointer up: six zeros (the saved registers), the entry,
/// and a zero as the return address of the entry (the end of a backtrace).
#[must_use]
pub fn fresh_stack(entry: extern "C" fn() -> !) -> [u64; 8] {
    [0, 0, 0, 0, 0, 0, entry as usize as u64, 0]
}

/// Leaves the current stack and address space, and goes on where the other ones were left; returns when somebody
/// switches back.
///
/// # Safety
/// `stack` was kept by an earlier switch away from the address space at `root`, or points to [`fresh_stack`] in it; the
/// image is mapped there as here. `keep` stays valid until the switch back, and is in the shared part. What the caller
/// holds of the window is not used by others meanwhile.
pub unsafe fn switch(keep: *mut u64, stack: u64, root: Hpa) {
    // SAFETY: as the caller vouches; the assembly keeps the ABI's registers.
    unsafe { switch_context(keep, stack, root.as_u64()) }
}

/// Leaves the current stack and address space for good, and calls `entry` on `stack` in the one at `root`.
///
/// # Safety
/// `stack` is the 16-byte aligned top of a mapped stack of the address space at `root`, in which the image is mapped as
/// here. Nothing on the old stack is used again.
pub unsafe fn enter(stack: u64, root: Hpa, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: as the caller vouches.
    unsafe { enter_context(stack, root.as_u64(), entry) }
}
