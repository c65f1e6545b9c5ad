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
use bulkhead_rt::cpu::{self, Machine, cpuid, is_tcg, machine, rdmsr, rdtsc, wrmsr};
use bulkhead_rt::port::{read8, read32, write8};
use bulkhead_rt::{apic, check, check_eq, has_word, pic, pit, println, scenario, skip, time, trap};

scenario!(main);

const TICK: u8 = 0x50;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

/// Percents that a time may be off. QEMU's interpreter announces no rate of the TSC: without a hypervisor it is measured,
/// on a host that may be busy.
fn percent() -> u64 {
    if machine() == Machine::Tcg { 30 } else { 2 }
}

/// What a counter held, and when it was read.
struct Sample {
    before: u64,
    value: u64,
    after: u64,
}

fn sample(read: impl FnOnce() -> u64) -> Sample {
    let before = rdtsc();
    let value = read();
    Sample { before, value, after: rdtsc() }
}

/// Whether `count`, counted between two samples, is about what `hertz` makes of the time between them. Whatever came
/// between a reading and its time stamps does not matter.
fn at_rate(count: u64, hertz: u64, from: &Sample, to: &Sample, name: &str) {
    let expected = |ticks: u64| hertz * ticks / time::tsc_hertz();
    let (least, most) = (expected(to.before - from.after), expected(to.after - from.before));
    let right = count * 100 >= least * (100 - percent()) && count * 100 <= most * (100 + percent());
    report(right, count, most, name);
}

/// Whether a time that ends with an interrupt is right: it may be late, but not by more than `slack` early. A guest that
/// shares its processor (`shared` on the command line) may get it very late.
fn after(seen: u64, expected: u64, slack: u64, name: &str) {
    let off = expected * percent() / 100;
    let soon = seen <= expected + off + time::latency() || has_word("shared");
    report(seen + off + slack >= expected && soon, seen, expected, name);
}

/// Whether `seen` interrupts came. A guest that does not always run may find more than one waiting.
fn as_many(seen: u32, expected: u32, name: &str) {
    let late = has_word("shared") || is_tcg();
    report(seen == expected || late && seen > expected, seen.into(), expected.into(), name);
}

/// How much earlier the last of some periods may come if the first interrupt was late: one period in microseconds.
fn phase(period: u64) -> u64 {
    if is_tcg() { time::ticks(period) } else { 0 }
}

fn report(right: bool, seen: u64, expected: u64, name: &str) {
    if !check!(right, "{name}") {
        println!("  {seen} instead of {expected}");
    }
}

/// Takes the interrupts that are pending: printing takes time.
fn settle() {
    cpu::enable_interrupts();
    cpu::disable_interrupts();
}

/// Arms a timer and halts until `count` interrupts of `vector` have come; how long it took, and how many came.
fn wait_for(vector: u8, count: u32, arm: impl FnOnce()) -> (u64, u32) {
    let (start, before) = (rdtsc(), trap::count(vector));
    arm();
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
    let from = sample(|| {
        pit::start_channel2(23_864);
        0
    });
    let mut last = from.after;
    let done = time::wait_until(1_000_000, || {
        let now = rdtsc();
        let done = pit::channel2_done();
        last = if done { last } else { now };
        done
    });
    check!(done, "PIT channel 2 runs out");
    let to = Sample { before: last, value: 0, after: rdtsc() };
    at_rate(23_864, pit::HERTZ, &from, &to, "PIT channel 2 takes 20 ms");
    pit::start(2, 0);
    let from = sample(|| pit::count().into());
    time::delay(5000);
    let to = sample(|| pit::count().into());
    let counted = from.value.wrapping_sub(to.value) & 0xFFFF;
    at_rate(counted, pit::HERTZ, &from, &to, "PIT channel 0 counts down");
    check_eq!(pit::status() & 0x3F, 0x34, "PIT status: both bytes, mode 2");
}

fn interval_interrupts() {
    trap::on(0x20, |_| pic::end_of_interrupt(0));
    pit::start(2, 11_932);
    pic::set_mask(!1);
    let _ = wait_for(0x20, 1, || ());
    let (taken, count) = wait_for(0x20, 10, || ());
    pit::start(0, 0);
    settle();
    let (one_shot, _) = wait_for(0x20, 1, || pit::start(0, 11_932));
    pic::set_mask(0xFFFF);
    after(taken, time::ticks(100_000), phase(10_000), "ten PIT periods of 10 ms");
    as_many(count, 10, "ten PIT interrupts");
    after(one_shot, time::ticks(10_000), 0, "PIT one-shot of 10 ms");
}

/// ACPI 6.5, 4.8.3.3 "Power Management Timer"; 3.579545 MHz, at least 24 bits.
fn pm_timer() {
    let port = if read32(0x608) == u32::MAX { 0xB008 } else { 0x608 };
    let from = sample(|| read32(port).into());
    time::delay(20_000);
    let to = sample(|| read32(port).into());
    at_rate(to.value.wrapping_sub(from.value) & 0xFF_FFFF, 3_579_545, &from, &to, "PM timer");
}

fn local_timer() {
    apic::write(TIMER, MASKED | u32::from(TICK));
    apic::write(DIVIDE, 0xB);
    let from = sample(|| {
        apic::write(INITIAL_COUNT, u32::MAX);
        0
    });
    time::delay(20_000);
    let to = sample(|| u64::from(u32::MAX - apic::read(CURRENT_COUNT)));
    let crystal = u64::from(cpuid(0x15, 0).ecx);
    let hertz = if machine() == Machine::Virtual {
        at_rate(to.value, crystal, &from, &to, "local APIC timer counts the announced crystal");
        crystal
    } else {
        to.value * time::tsc_hertz() / (to.after - from.after)
    };
    println!("local APIC timer {hertz} Hz");
    check_eq!(trap::count(TICK), 0, "a masked timer does not interrupt");
    let count = (hertz / 100) as u32;
    apic::write(TIMER, u32::from(TICK));
    let (one_shot, _) = wait_for(TICK, 1, || apic::write(INITIAL_COUNT, count));
    let left = apic::read(CURRENT_COUNT);
    apic::write(TIMER, PERIODIC | u32::from(TICK));
    let (periods, ticks) = wait_for(TICK, 10, || apic::write(INITIAL_COUNT, count / 2));
    apic::write(INITIAL_COUNT, 0);
    apic::write(TIMER, u32::from(TICK));
    settle();
    apic::write(DIVIDE, 0x3);
    let (divided, _) = wait_for(TICK, 1, || apic::write(INITIAL_COUNT, count / 16));
    after(one_shot, time::ticks(10_000), 0, "one-shot of 10 ms");
    check_eq!(left, 0, "one-shot stays at 0");
    after(periods, time::ticks(50_000), 0, "ten periods of 5 ms");
    as_many(ticks, 10, "ten periodic interrupts");
    after(divided, time::ticks(10_000), 0, "one-shot of 10 ms, divided by 16");
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
    let _ = wait_for(TICK, 1, || ());
    let late = rdtsc().checked_sub(due);
    let met = rdmsr(apic::DEADLINE_MSR);
    check!(written.is_ok(), "deadline takes a value");
    check_eq!(armed.ok(), Some(due), "armed deadline reads back");
    println!("deadline met {late:?} ticks late");
    check!(late.is_some_and(|late| late < time::latency() || has_word("shared")), "deadline in 5 ms is met");
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
    // Each is seen a little after it has come.
    after(second - first, time::tsc_hertz(), time::latency(), "an RTC second");
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
    let _ = wait_for(0x28, 1, || ());
    let (taken, count) = wait_for(0x28, 32, || ());
    after(taken, time::ticks(31_250), phase(977), "32 RTC periods of 1/1024 s");
    as_many(count, 32, "32 RTC interrupts");
    pic::set_mask(0xFFFF);
    write8(0x70, 0x0B);
    write8(0x71, control);
}
