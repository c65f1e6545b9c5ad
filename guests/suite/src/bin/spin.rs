//! Never ends; with `interrupts` on the command line, not even with interrupts on. For time-outs and for neighbours.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::{cpu, has_word, println, scenario};

scenario!(main);

fn main() {
    println!("spinning");
    if has_word("interrupts") {
        cpu::enable_interrupts();
    }
    loop {
        cpu::pause();
    }
}
