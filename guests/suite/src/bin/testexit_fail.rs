//! Reports a failure: exit code 1 at the test exit.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::{check, scenario};

scenario!(main);

fn main() {
    check!(false, "meant to fail");
}
