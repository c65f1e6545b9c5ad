//! Keeps the processor busy: for ever, or for `seconds=N`; `interrupts`: with them on.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::{cpu, has_word, println, scenario, time, word_value};

scenario!(main);

fn main() {
    println!("spinning");
    if has_word("interrupts") {
        cpu::enable_interrupts();
    }
    match word_value("seconds") {
        Some(seconds) => time::delay(seconds * 1_000_000),
        None => loop {
            cpu::pause();
        },
    }
}
