//! Code in ring 3.

use crate::segments::USER_DATA;
use crate::trap::{Exception, catch};
use core::arch::{asm, global_asm};

global_asm!(
    ".section .bss.user, \"aw\", @nobits",
    ".balign 16",
    ".skip 4096",
    ".global user_stack_top",
    "user_stack_top:",
    ".text"
);

unsafe extern "C" {
    static user_stack_top: u8;
}

/// Runs the code at `entry` in ring 3, with code segment `code`, RFLAGS `flags` and RSI = `argument`, until it faults.
///
/// # Safety
/// The code at `entry` ends by a fault, and writes only to its stack and to memory that is the scenario's.
pub unsafe fn run(entry: u64, code: u16, flags: u64, argument: u64) -> Option<Exception> {
    let stack = &raw const user_stack_top as u64;
    catch(|| {
        // SAFETY: the frame on the stack is a full ring-3 frame; the caller vouches for the code. The fault comes back
        // through catch(), on the trap stack of the task state.
        unsafe {
            asm!(
                "mov ds, {data_segment:e}", "mov es, {data_segment:e}", "push {data}", "push {stack}", "push {flags}", "push {code}", "push {entry}", "iretq",
                data = const USER_DATA,
                data_segment = in(reg) u32::from(USER_DATA), stack = in(reg) stack, flags = in(reg) flags | 2,
                code = in(reg) u64::from(code), entry = in(reg) entry, in("rsi") argument,
                options(noreturn),
            )
        }
    })
}
