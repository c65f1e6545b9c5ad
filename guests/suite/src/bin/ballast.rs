//! Touches all its RAM: zeros at first, then its own pattern, round after round.
//!
//! `seed=N` makes the pattern of two neighbours differ, `rounds=N` (1) keeps it busy for longer.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine};
use bulkhead_rt::memory::Region;
use bulkhead_rt::{check_eq, memory_map, println, scenario, skip, word_value};

scenario!(main);

/// The runtime's image and stack end below; the boot loader's tables lie below 1 MiB, in the image or, on other
/// machines than ours, at the end of RAM.
const START: u64 = 0x20_0000;

fn pattern(address: u64, seed: u64) -> u64 {
    (address ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn main() {
    let seed = word_value("seed").unwrap_or(1);
    let mut words = 0;
    for (start, bytes, kind) in memory_map() {
        let (first, end) = (start.max(START), start + bytes);
        if kind == 1 && first < end && end <= 1 << 32 {
            // SAFETY: RAM by the memory map, mapped one to one, above all that this guest consists of.
            let ram = unsafe { Region::new(first as usize, (end - first) as usize) };
            words += fill_and_check(&ram, seed);
        }
    }
    println!("{words} words of seed {seed}");
}

/// Checks one range; the number of its 8-byte words.
fn fill_and_check(ram: &Region, seed: u64) -> usize {
    let base = ram.base() as u64;
    let offsets = || (0..ram.bytes()).step_by(8);
    if cpu::machine() == Machine::Virtual {
        check_eq!(offsets().find(|at| ram.read64(*at) != 0), None, "RAM at {base:#x} is zero at first");
    } else {
        skip!("zeros (firmware was here)");
    }
    for round in 0..word_value("rounds").unwrap_or(1) {
        let seed = seed + (round << 32);
        for at in offsets() {
            ram.write64(at, pattern(base + at as u64, seed));
        }
        let wrong = offsets().find(|at| ram.read64(*at) != pattern(base + *at as u64, seed));
        check_eq!(wrong, None, "RAM at {base:#x} keeps its pattern");
    }
    ram.bytes() / 8
}
