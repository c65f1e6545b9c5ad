//! Attacks by hardware task switches, from 32-bit protected mode. SDM vol. 3A 8.3 "Task Switching", 8.4 "Task Linking".
//!
//! The second task goes on behind the switch on the same stack, with 1 in EAX, so that a processor which carries the switch
//! out by itself comes back from it.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_hostile::{hold_eq, run, saw};
use bulkhead_rt::memory::Region;
use bulkhead_rt::modes::{Outcome, PROTECTED, call32};
use bulkhead_rt::segments::{CODE32, DATA, FREE, descriptor, set_descriptor};
use bulkhead_rt::{code32, scenario};
use core::arch::global_asm;

scenario!(main);

/// Task states: the one that is left, and the one that is entered.
const FIRST: u32 = 0x40_1000;
const SECOND: u32 = 0x40_2000;
const LIMIT: u32 = 0x67;
/// Types of task-state segments of 32 bits.
const AVAILABLE: u8 = 0x89;
const BUSY: u8 = 0x8B;
/// Where no RAM is.
const HOLE: u32 = 0xC000_0000;

// Takes the first task state, and lets the second go on at EDX when the caller's own return is done.
global_asm!(
    ".code32",
    "task_prepare:",
    "mov eax, 0x58",
    "ltr ax",
    "mov [{second} + 0x20], edx",
    "lea eax, [esp + 4]",
    "mov [{second} + 0x38], eax",
    "ret",
    ".code64",
    second = const SECOND,
);

code32!(
    "task_jump",
    "mov edx, offset task_jump_next",
    "call task_prepare",
    "2: .byte 0xEA",
    ".long 0",
    ".word 0x60",
    "task_jump_next: nop"
);
code32!(
    "task_call",
    "mov edx, offset task_call_next",
    "call task_prepare",
    "2: .byte 0x9A",
    ".long 0",
    ".word 0x60",
    "task_call_next: nop"
);
code32!(
    "task_return",
    "mov edx, offset task_return_next",
    "call task_prepare",
    "pushfd",
    "or dword ptr [esp], 0x4000", // NT
    "popfd",
    "2: iretd",
    "task_return_next: nop"
);
code32!(
    "task_gate",
    "mov edx, offset task_gate_next",
    "call task_prepare",
    "mov dword ptr [mode_idt + 31 * 8], 0x600000",
    "mov dword ptr [mode_idt + 31 * 8 + 4], 0x8500", // a task gate
    "2: int 31",
    "task_gate_next: nop"
);

unsafe extern "C" {
    static task_jump: u8;
    static task_call: u8;
    static task_return: u8;
    static task_gate: u8;
}

fn main() {
    run(&[
        ("jump", || switch(&raw const task_jump, SECOND, AVAILABLE)),
        ("call", || switch(&raw const task_call, SECOND, AVAILABLE)),
        ("return", || switch(&raw const task_return, SECOND, BUSY)),
        ("gate", || switch(&raw const task_gate, SECOND, AVAILABLE)),
        ("outside", || switch(&raw const task_jump, HOLE, AVAILABLE)),
    ]);
}

/// Runs `code`, which switches to the task whose state is at `state`, a segment of this type.
fn switch(code: *const u8, state: u32, kind: u8) {
    // SAFETY: RAM above the image for both task states, which holds no Rust object.
    let (first, second) = unsafe { (Region::new(FIRST as usize, 0x68), Region::new(SECOND as usize, 0x68)) };
    (0..0x68).step_by(4).for_each(|at| first.write32(at, 0));
    first.write32(0, u32::from(FREE + 8));
    let selectors = (0x48..0x60).step_by(4).map(|at| (at, u32::from(if at == 0x4C { CODE32 } else { DATA })));
    (0..0x68).step_by(4).for_each(|at| second.write32(at, 0));
    selectors.chain([(0x24, 2), (0x28, 1)]).for_each(|(at, value)| second.write32(at, value));
    set_descriptor(FREE, descriptor(FIRST, LIMIT, AVAILABLE, 0));
    set_descriptor(FREE + 8, descriptor(state, LIMIT, kind, 0));
    saw!("the task switch begins");
    // SAFETY: the code writes to its stack, the gates of 32-bit mode and the task states only.
    let seen = unsafe { call32(code, PROTECTED, 0, 0) };
    hold_eq!(seen, Outcome::Done(1), "the second task");
}
