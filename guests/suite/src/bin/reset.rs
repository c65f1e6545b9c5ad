//! Ends by a reset: `how=1` reset control register, `how=2` keyboard controller.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::{exit, port, println, scenario, serial, word_value};

scenario!(main);

fn main() {
    println!("PASS");
    serial::drain();
    match word_value("how") {
        Some(2) => port::write8(0x64, 0xFE),
        _ => {
            port::write8(0xCF9, 0x02);
            port::write8(0xCF9, 0x06);
        }
    }
    println!("still here");
    exit(1);
}
