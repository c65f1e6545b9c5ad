//! Counts how long it runs, by its own clock: where the time-stamp counter jumps, another had the processor.
//!
//! `warm=N` milliseconds after its start it counts for `window=N`, then goes on for as long as it warmed up, so that all who
//! count beside it count while all run. `by=cpuid`, `by=port`: what it does is exits of that kind. It prints what it ran in the
//! window, and in its life; with `every=N`, the least that it ran in any N milliseconds of the window, the least of those that
//! begin at the best moment for it, one after the other, and the most, from its start on; and what was stolen from it meanwhile, as it is told by KVM's convention (Linux,
//! Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME), in the same ticks.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::{check, check_eq, cpu, has_word, port, println, scenario, skip, time, word_value};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

scenario!(main);

const STEAL_TIME: u32 = 0x4B56_4D03;

/// What the hypervisor writes.
#[repr(C, align(64))]
struct Stolen {
    nanoseconds: AtomicU64,
    version: AtomicU32,
    flags: AtomicU32,
    preempted: AtomicU32,
}

static STOLEN: Stolen = Stolen {
    nanoseconds: AtomicU64::new(u64::MAX),
    version: AtomicU32::new(1),
    flags: AtomicU32::new(u32::MAX),
    preempted: AtomicU32::new(u32::MAX),
};

/// Asks to be told what is stolen; whether the processor can.
fn ask() -> bool {
    if cpu::cpuid(0x4000_0100, 0).ebx != 0x4B4D_564B || cpu::cpuid(0x4000_0101, 0).eax & 1 << 5 == 0 {
        skip!("stolen time: no such feature");
        return false;
    }
    let at = &raw const STOLEN as u64 | 1;
    check!(
        cpu::wrmsr(STEAL_TIME, at | 2).is_err() && cpu::wrmsr(STEAL_TIME, at | 1 << 50).is_err(),
        "what is wrong is refused"
    );
    check_eq!(cpu::rdmsr(STEAL_TIME).ok(), Some(0), "nothing is told until it is asked for");
    check!(cpu::wrmsr(STEAL_TIME, at).is_ok(), "stolen time can be asked for");
    check_eq!(cpu::rdmsr(STEAL_TIME).ok(), Some(at), "the register reads as it was written");
    true
}

/// Ticks that were stolen since the processor was made. Only who runs reads this. It says nothing: that would take time.
fn stolen(hertz: u64) -> u64 {
    let now = loop {
        let version = STOLEN.version.load(Ordering::SeqCst);
        let now = STOLEN.nanoseconds.load(Ordering::SeqCst);
        if version.is_multiple_of(2) && STOLEN.version.load(Ordering::SeqCst) == version {
            break now;
        }
    };
    (u128::from(now) * u128::from(hertz) / 1_000_000_000) as u64
}

/// A bin is one of so many in each stretch of time.
const BINS: usize = 400;

/// What it ran in each stretch of time of one length, whichever bin it begins with.
struct Stretches {
    /// Ticks.
    bin: u64,
    /// The end of the bin that is being filled, and what it ran in it.
    end: u64,
    ran: u64,
    /// The last ones, and their sum.
    bins: [u64; BINS],
    sum: u64,
    count: usize,
    /// The least of those that end with each bin of a stretch.
    least: [u64; BINS],
    most: u64,
}

impl Stretches {
    const fn new(ticks: u64, now: u64) -> Self {
        let bin = ticks / BINS as u64;
        Self { bin, end: now + bin, ran: 0, bins: [0; BINS], sum: 0, count: 0, least: [u64::MAX; BINS], most: 0 }
    }

    /// Up to `now` it ran so many ticks more.
    fn pass(&mut self, now: u64, ran: u64) {
        while self.end <= now {
            let at = self.count % BINS;
            let ran = core::mem::take(&mut self.ran);
            self.sum = self.sum + ran - core::mem::replace(&mut self.bins[at], ran);
            (self.end, self.count) = (self.end + self.bin, self.count + 1);
            if self.count >= BINS {
                self.least[at] = self.least[at].min(self.sum);
                self.most = self.most.max(self.sum);
            }
        }
        self.ran += ran;
    }
}

fn main() {
    let hertz = time::announced_hertz().unwrap_or(10_000_000);
    // Longer than its own exits take, and shorter than it takes to end a turn and begin the next, even if that is its own, too:
    // else who has two turns in a row would count more. To count by stretches takes longer.
    let every = word_value("every").map(|every| every * hertz / 1000);
    let jump = if every.is_some() { hertz / 1000 } else { hertz / 5000 };
    let ticks = |word, otherwise| word_value(word).unwrap_or(otherwise) * hertz / 1000;
    let (warm, window) = (ticks("warm", 1000), ticks("window", 10_000));
    let (cpuid, ports) = (has_word("by=cpuid"), has_word("by=port"));
    let told = ask();
    let stolen = || if told { stolen(hertz) } else { 0 };
    let mut ran = 0;
    let mut last = cpu::rdtsc();
    let first = last;
    let mut stretches = every.map(|every| Stretches::new(every, first));
    let mut until = |end: u64, stretches: &mut Option<Stretches>| {
        while last < end {
            match (cpuid, ports) {
                (true, _) => _ = cpu::cpuid(0x8000_0008, 0),
                (_, true) => _ = port::read8(0x70),
                _ => cpu::pause(),
            }
            let now = cpu::rdtsc();
            let passed = now - last;
            let own = if passed < jump { passed } else { 0 };
            if let Some(stretches) = stretches {
                stretches.pass(now, own);
            }
            ran += own;
            last = now;
        }
        (last, ran)
    };
    let (begin, before) = until(first + warm, &mut stretches);
    if let Some(stretches) = &mut stretches {
        // While others were made, their turns were long.
        stretches.least = [u64::MAX; BINS];
    }
    let stolen_before = stolen();
    let (end, after) = until(begin + window, &mut stretches);
    let stolen_after = stolen();
    println!("count window {} of {}", after - before, end - begin);
    println!("count stolen {} of {}", stolen_after - stolen_before, end - begin - (after - before));
    let (end, all) = until(end + warm, &mut None);
    println!("count stolen in all {}", stolen());
    if let Some(Stretches { bin, least, most, .. }) = stretches {
        let (worst, best) = (least.iter().min(), least.iter().max());
        println!(
            "count stretches least {} {} most {most} of {}",
            worst.unwrap_or(&0),
            best.unwrap_or(&0),
            bin * BINS as u64
        );
    }
    println!("count life {all} of {}", end - first);
    if told {
        let other = (STOLEN.flags.load(Ordering::SeqCst), STOLEN.preempted.load(Ordering::SeqCst) & 0xFF);
        check_eq!(other, (0, 0), "flags; a processor that runs is not preempted");
    }
    check!(all > 0, "it ran");
}
