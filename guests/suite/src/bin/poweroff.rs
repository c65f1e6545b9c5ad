//! Ends by ACPI power-off.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::exit::power_off;
use bulkhead_rt::{println, scenario};

scenario!(main);

fn main() {
    println!("PASS");
    power_off();
}
