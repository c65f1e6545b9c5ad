//! HLT: an interrupt ends it, at the right time; nothing else does.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::apic::register::{INITIAL_COUNT, TIMER};
use bulkhead_rt::cpu::{is_tcg, rdtsc, wait_for_interrupt};
use bulkhead_rt::{apic, check, check_eq, pic, println, scenario, time, trap};

scenario!(main);

const VECTOR: u8 = 0x50;

fn main() {
    pic::init(0x20);
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    // A pending interrupt: HLT does not wait at all.
    apic::send_self(VECTOR);
    wait_for_interrupt();
    check_eq!(trap::count(VECTOR), 1, "a pending interrupt ends HLT");
    // How fast the timer counts, from one long run; where the host may be busy, the shortest of several.
    apic::write(apic::register::DIVIDE, 0xB);
    let runs = if is_tcg() { 20 } else { 1 };
    let count = 4_000_000;
    let length = (0..runs).map(|_| measure(count)).min().unwrap_or_default();
    println!("{count} counts are {length} TSC ticks");
    for part in [2, 10, 100] {
        let (expected, seen) = (length / part, measure(count / part as u32));
        println!("asked {expected} slept {seen}");
        check!(seen * 100 >= expected * 98, "HLT of 1/{part} does not end early");
        check!(
            seen <= expected + expected / 20 + time::ticks(2000) + time::latency(),
            "HLT of 1/{part} does not end late"
        );
    }
    check_eq!(trap::count(VECTOR), 4 + runs, "each HLT took one interrupt");
}

/// Halts until the one-shot timer has counted `count` down; TSC ticks that it took.
fn measure(count: u32) -> u64 {
    apic::write(TIMER, u32::from(VECTOR));
    let start = rdtsc();
    apic::write(INITIAL_COUNT, count);
    wait_for_interrupt();
    rdtsc() - start
}
