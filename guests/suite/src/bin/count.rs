//! Counts how long it runs, by its own clock: where the time-stamp counter jumps, another had the processor.
//!
//! `warm=N` milliseconds after its start it counts for `window=N`, then goes on for as long as it warmed up, so that all who
//! count beside it count while all run. `by=cpuid`, `by=port`: what it does is exits of that kind. It prints what it ran in the
//! window, and in its life.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::{check, cpu, has_word, port, println, scenario, time, word_value};

scenario!(main);

fn main() {
    let hertz = time::announced_hertz().unwrap_or(10_000_000);
    // A millisecond is a tenth of a turn; what takes longer is none of its own exits.
    let jump = hertz / 1000;
    let ticks = |word, otherwise| word_value(word).unwrap_or(otherwise) * jump;
    let (warm, window) = (ticks("warm", 1000), ticks("window", 10_000));
    let (cpuid, ports) = (has_word("by=cpuid"), has_word("by=port"));
    let mut ran = 0;
    let mut last = cpu::rdtsc();
    let first = last;
    let mut until = |end: u64| {
        while last < end {
            match (cpuid, ports) {
                (true, _) => _ = cpu::cpuid(0x8000_0008, 0),
                (_, true) => _ = port::read8(0x70),
                _ => cpu::pause(),
            }
            let now = cpu::rdtsc();
            let passed = now - last;
            ran += if passed < jump { passed } else { 0 };
            last = now;
        }
        (last, ran)
    };
    let (begin, before) = until(first + warm);
    let (end, after) = until(begin + window);
    println!("count window {} of {}", after - before, end - begin);
    let (end, all) = until(end + warm);
    println!("count life {all} of {}", end - first);
    check!(all > 0, "it ran");
}
