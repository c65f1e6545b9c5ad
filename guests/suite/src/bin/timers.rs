//! All clocks agree: interval timer, local APIC timer, PM timer and real-time clock, each against the TSC.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::apic::register::{CURRENT_COUNT, DIVIDE, INITIAL_COUNT, TIMER};
use bulkhead_rt::cpu::{self, Machine, cpuid, machine, rdmsr, rdtsc, wrmsr};
use bulkhead_rt::port::{read8, read32, write8};
use bulkhead_rt::{apic, check, check_eq, has_word, pic, pit, println, scenario, skip, time, trap};

scenario!(main);

const TICK: u8 = 0x50;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

/// Ticks that an interrupt may take from its moment to its handler, besides the percentage.
const LATENCY: u64 = 10_000;

/// Whether `seen` is within 2 % of `expected` (30 % where the emulator's clock is the host's, which is busy).
fn near(seen: u64, expected: u64, name: &str) {
    let percent = if machine() == Machine::Tcg { 30 } else { 2 };
    let distance = seen.abs_diff(expected);
    check!(distance * 100 <= expected * percent, "{name}");
    if distance * 100 > expected * percent {
        println!("  {seen} instead of {expected}");
    }
}

/// The same for a time that ends with an interrupt. A guest that shares its processor (`shared` on the command line) may
/// get it late, never early.
fn after(seen: u64, expected: u64, name: &str) {
    if has_word("shared") {
        check!(seen + expected / 50 >= expected, "{name}");
    } else {
        near(seen, seen.clamp(expected, expected + LATENCY), name);
    }
}

/// Takes the interrupts that are pending: printing takes time.
fn settle() {
    cpu::enable_interrupts();
    cpu::disable_interrupts();
}

/// Halts until `count` interrupts of `vector` have come; how long it took, and how many came.
fn wait_for(vector: u8, count: u32) -> (u64, u32) {
    let (start, before) = (rdtsc(), trap::count(vector));
    while trap::count(vector) - before < count {
        cpu::wait_for_interrupt();
    }
    (rdtsc() - start, trap::count(vector) - before)
}

fn main() {
    println!("TSC {} Hz", time::tsc_hertz());
    pic::init(0x20);
    apic::enable();
    apic::write(apic::register::LINT0, 0x700); // the PICs' interrupts
    trap::on(TICK, |_| apic::end_of_interrupt());
    interval_timer();
    interval_interrupts();
    pm_timer();
    local_timer();
    deadline();
    clock_seconds();
    clock_interrupts();
}

fn interval_timer() {
    pit::start_channel2(23_864);
    let start = rdtsc();
    let done = time::wait_until(100_000, pit::channel2_done);
    let taken = rdtsc() - start;
    check!(done, "PIT channel 2 runs out");
    near(taken, time::ticks(20_000), "PIT channel 2 takes 20 ms");
    pit::start(2, 0);
    let (first, start) = (pit::count(), rdtsc());
    time::delay(5000);
    let counted = first.wrapping_sub(pit::count());
    let taken = rdtsc() - start;
    near(u64::from(counted), pit::HERTZ * taken / time::tsc_hertz(), "PIT channel 0 counts down");
    check_eq!(pit::status() & 0x3F, 0x34, "PIT status: both bytes, mode 2");
}

fn interval_interrupts() {
    trap::on(0x20, |_| pic::end_of_interrupt(0));
    pit::start(2, 11_932);
    pic::set_mask(!1);
    let _ = wait_for(0x20, 1);
    let (taken, count) = wait_for(0x20, 10);
    pit::start(0, 0);
    settle();
    pit::start(0, 11_932);
    let (one_shot, _) = wait_for(0x20, 1);
    pic::set_mask(0xFFFF);
    after(taken, time::ticks(100_000), "ten PIT periods of 10 ms");
    check_eq!(count, 10, "ten PIT interrupts");
    after(one_shot, time::ticks(10_000), "PIT one-shot of 10 ms");
}

/// ACPI 6.5, 4.8.3.3 "Power Management Timer"; 3.579545 MHz, at least 24 bits.
fn pm_timer() {
    let port = if read32(0x608) == u32::MAX { 0xB008 } else { 0x608 };
    let (first, start) = (read32(port), rdtsc());
    time::delay(20_000);
    let counted = read32(port).wrapping_sub(first) & 0xFF_FFFF;
    near(u64::from(counted), 3_579_545 * (rdtsc() - start) / time::tsc_hertz(), "PM timer");
}

fn local_timer() {
    apic::write(TIMER, MASKED | u32::from(TICK));
    apic::write(DIVIDE, 0xB);
    apic::write(INITIAL_COUNT, u32::MAX);
    let start = rdtsc();
    time::delay(20_000);
    let counted = u64::from(u32::MAX - apic::read(CURRENT_COUNT));
    let hertz = counted * time::tsc_hertz() / (rdtsc() - start);
    println!("local APIC timer {hertz} Hz");
    if machine() == Machine::Virtual {
        near(hertz, u64::from(cpuid(0x15, 0).ecx), "local APIC timer counts the announced crystal");
    }
    check_eq!(trap::count(TICK), 0, "a masked timer does not interrupt");
    let count = (hertz / 100) as u32;
    apic::write(TIMER, u32::from(TICK));
    apic::write(INITIAL_COUNT, count);
    let (one_shot, _) = wait_for(TICK, 1);
    let left = apic::read(CURRENT_COUNT);
    apic::write(TIMER, PERIODIC | u32::from(TICK));
    apic::write(INITIAL_COUNT, count / 2);
    let (periods, ticks) = wait_for(TICK, 10);
    apic::write(INITIAL_COUNT, 0);
    apic::write(TIMER, u32::from(TICK));
    settle();
    apic::write(DIVIDE, 0x3);
    apic::write(INITIAL_COUNT, count / 16);
    let (divided, _) = wait_for(TICK, 1);
    after(one_shot, time::ticks(10_000), "one-shot of 10 ms");
    check_eq!(left, 0, "one-shot stays at 0");
    after(periods, time::ticks(50_000), "ten periods of 5 ms");
    check_eq!(ticks, 10, "ten periodic interrupts");
    after(divided, time::ticks(10_000), "one-shot of 10 ms, divided by 16");
}

/// SDM vol. 3A 11.5.4.1 "TSC-Deadline Mode".
fn deadline() {
    if cpuid(1, 0).ecx & 1 << 24 == 0 {
        return skip!("TSC deadline");
    }
    apic::write(TIMER, DEADLINE | u32::from(TICK));
    let due = rdtsc() + time::ticks(5000);
    let written = wrmsr(apic::DEADLINE_MSR, due);
    let armed = rdmsr(apic::DEADLINE_MSR);
    let _ = wait_for(TICK, 1);
    let late = rdtsc().checked_sub(due);
    let met = rdmsr(apic::DEADLINE_MSR);
    check!(written.is_ok(), "deadline takes a value");
    check_eq!(armed.ok(), Some(due), "armed deadline reads back");
    println!("deadline met {late:?} ticks late");
    check!(late.is_some_and(|late| late < LATENCY || has_word("shared")), "deadline in 5 ms is met");
    if machine() == Machine::Virtual {
        check_eq!(met.ok(), Some(0), "met deadline reads as 0");
    } else {
        skip!("met deadline reads as 0 (Bochs keeps it)");
    }
    let before = trap::count(TICK);
    check!(wrmsr(apic::DEADLINE_MSR, 1).is_ok(), "deadline takes a past time");
    settle();
    check_eq!(trap::count(TICK) - before, 1, "a past deadline interrupts at once");
    let armed = wrmsr(apic::DEADLINE_MSR, rdtsc() + time::ticks(5000));
    let disarmed = wrmsr(apic::DEADLINE_MSR, 0);
    cpu::enable_interrupts();
    time::delay(10_000);
    cpu::disable_interrupts();
    check!(armed.is_ok() && disarmed.is_ok(), "deadline takes 0");
    check_eq!(trap::count(TICK) - before, 1, "a disarmed deadline does not interrupt");
    apic::write(TIMER, MASKED);
}

fn cmos(index: u8) -> u8 {
    write8(0x70, index);
    read8(0x71)
}

/// Motorola MC146818A, "Update Cycle".
fn clock_seconds() {
    let next_second = || {
        let second = cmos(0);
        let advanced = time::wait_until(1_500_000, || cmos(0x0A) & 0x80 == 0 && cmos(0) != second);
        (advanced, rdtsc())
    };
    let ((_, first), (advanced, second)) = (next_second(), next_second());
    check!(advanced, "RTC advances");
    near(second - first, time::tsc_hertz(), "an RTC second");
}

/// Motorola MC146818A, "Periodic Interrupt Selection".
fn clock_interrupts() {
    trap::on(0x28, |_| {
        let _ = cmos(0x0C);
        pic::end_of_interrupt(8);
    });
    let (rate, control) = (cmos(0x0A), cmos(0x0B));
    write8(0x70, 0x0A);
    write8(0x71, rate & 0xF0 | 6);
    write8(0x70, 0x0B);
    write8(0x71, control | 0x40);
    let _ = cmos(0x0C);
    pic::set_mask(!0x0104);
    let _ = wait_for(0x28, 1);
    let (taken, count) = wait_for(0x28, 32);
    after(taken, time::ticks(31_250), "32 RTC periods of 1/1024 s");
    // A guest that shares its processor may find more than one waiting.
    check!(count == 32 || has_word("shared") && count > 32, "32 RTC interrupts");
    pic::set_mask(0xFFFF);
    write8(0x70, 0x0B);
    write8(0x71, control);
}
