//! Ends by a triple fault: an exception without a descriptor table to find its handler in.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::segments::TablePointer;
use bulkhead_rt::{println, scenario, serial};
use core::arch::asm;

scenario!(main);

fn main() {
    println!("going down");
    serial::drain();
    let empty = TablePointer { limit: 0, base: 0 };
    // SAFETY: the point of it: #UD can not be delivered, nor the double fault of that, and the processor shuts down.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) };
}
