//! Works for `work=N` milliseconds, halts for `rest=N`, and again, for `seconds=N`.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::apic::{self, DEADLINE_MSR, register::TIMER};
use bulkhead_rt::cpu::{rdtsc, wait_for_interrupt, wrmsr};
use bulkhead_rt::{check, check_eq, pic, scenario, time, trap, word_value};

scenario!(main);

const VECTOR: u8 = 0x50;
/// The timer's entry of the local vector table: interrupts come at deadlines.
const DEADLINE: u32 = 1 << 18;

fn main() {
    pic::init(0x20);
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    apic::write(TIMER, DEADLINE | u32::from(VECTOR));
    let milliseconds = |word| word_value(word).unwrap_or(10) * 1000;
    let end = rdtsc() + time::ticks(word_value("seconds").unwrap_or(1) * 1_000_000);
    let mut rests = 0;
    while rdtsc() < end {
        time::delay(milliseconds("work"));
        let until = rdtsc() + time::ticks(milliseconds("rest"));
        if wrmsr(DEADLINE_MSR, until).is_err() {
            check!(false, "there are deadlines");
            return;
        }
        while rdtsc() < until {
            wait_for_interrupt();
        }
        rests += 1;
    }
    check_eq!(trap::count(VECTOR), rests, "each rest was ended by one interrupt");
}
