//! Several processors: they come up, count together, agree on the time, and forget translations when told to.
//!
//! SDM vol. 3A 9.2 "Memory Ordering", 9.4 "Multiple-Processor (MP) Initialization", 9.9.2 "... Hierarchical Mapping of
//! CPUID", 4.10.5 "Propagation of Paging-Structure Changes to Multiple Processors".
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_rt::paging::{self, P, W};
use bulkhead_rt::{apic, check, check_eq, cpu, println, scenario, skip, smp, time, trap, word_value};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

scenario!(main);

const ROUNDS: u64 = 20_000;
const FLUSH: u8 = 0x50;
/// Most time that a loop of many turns takes, where a turn waits for another processor that may have to wait for a host's.
const LONGEST: u64 = 4_000_000;

fn main() {
    let expected = word_value("vcpus").unwrap_or(1) as usize;
    check_eq!(smp::start(), expected, "all processors come up");
    identify();
    atomics();
    load();
    clock();
    if smp::count() == 1 {
        skip!("shoot-down: there is one processor");
    } else {
        shoot_down();
        halted();
    }
}

static LEAF1: [AtomicU32; smp::MOST] = [const { AtomicU32::new(u32::MAX) }; smp::MOST];
static LEAFB: [AtomicU32; smp::MOST] = [const { AtomicU32::new(u32::MAX) }; smp::MOST];
static OWN: [AtomicU32; smp::MOST] = [const { AtomicU32::new(u32::MAX) }; smp::MOST];
static BOOTSTRAP: AtomicU32 = AtomicU32::new(0);

fn identify() {
    let came = smp::all(|me| {
        LEAF1[me].store(cpu::cpuid(1, 0).ebx, Ordering::Relaxed);
        LEAFB[me].store(cpu::cpuid(0xB, 0).edx, Ordering::Relaxed);
        let id = apic::read(apic::register::ID);
        OWN[me].store(if apic::x2apic() { id } else { id >> 24 }, Ordering::Relaxed);
        let bootstrap = cpu::rdmsr(0x1B).is_ok_and(|base| base & 1 << 8 != 0);
        BOOTSTRAP.fetch_add(if bootstrap { 1 << (4 * me) } else { 0 }, Ordering::Relaxed);
    });
    check!(came, "all do their work");
    let have_b = cpu::cpuid(0, 0).eax >= 0xB && cpu::cpuid(0xB, 0).ebx != 0;
    for me in 0..smp::count() {
        let id = smp::apic_id(me);
        check_eq!(LEAF1[me].load(Ordering::Relaxed) >> 24, id, "processor {me}: CPUID leaf 1 has the MADT's id");
        check_eq!(OWN[me].load(Ordering::Relaxed), id, "processor {me}: its APIC has the MADT's id");
        if have_b {
            check_eq!(LEAFB[me].load(Ordering::Relaxed), id, "processor {me}: CPUID leaf 0xB has the MADT's id");
        }
    }
    if !have_b {
        skip!("CPUID leaf 0xB");
    }
    check_eq!(BOOTSTRAP.load(Ordering::Relaxed), 1, "the first is the bootstrap processor, and no other");
    let logical = LEAF1[0].load(Ordering::Relaxed) >> 16 & 0xFF;
    check!(smp::count() == 1 || logical as usize >= smp::count(), "CPUID leaf 1 has room for {} ids", smp::count());
}

static ADDED: AtomicU64 = AtomicU64::new(0);
static EXCHANGED: AtomicU64 = AtomicU64::new(0);
static COMPARED: AtomicU64 = AtomicU64::new(0);
static LOCKED: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicBool = AtomicBool::new(false);
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// Waits until all processors are here. `round` counts from 1.
fn meet(round: usize) {
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    while ARRIVED.load(Ordering::SeqCst) < round * smp::count() {
        cpu::pause();
    }
}

fn with_lock(code: impl FnOnce()) {
    while LOCK.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        cpu::pause();
    }
    code();
    LOCK.store(false, Ordering::Release);
}

fn atomics() {
    ARRIVED.store(0, Ordering::SeqCst);
    let came = smp::all(|_| {
        meet(1);
        for _ in 0..ROUNDS {
            ADDED.fetch_add(3, Ordering::Relaxed);
            if EXCHANGED.fetch_add(1, Ordering::Relaxed) == u64::MAX {
                return; // the old value is used, so this is XADD
            }
            let mut old = COMPARED.load(Ordering::Relaxed);
            while let Err(now) = COMPARED.compare_exchange_weak(old, old + 7, Ordering::SeqCst, Ordering::Relaxed) {
                old = now;
            }
        }
        for _ in 0..ROUNDS / 8 {
            with_lock(|| LOCKED.store(LOCKED.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
        }
    });
    let total = smp::count() as u64 * ROUNDS;
    check!(came, "all count");
    check_eq!(ADDED.load(Ordering::SeqCst), total * 3, "LOCK ADD loses nothing");
    check_eq!(EXCHANGED.load(Ordering::SeqCst), total, "LOCK XADD loses nothing");
    check_eq!(COMPARED.load(Ordering::SeqCst), total * 7, "LOCK CMPXCHG loses nothing");
    check_eq!(LOCKED.load(Ordering::SeqCst), total / 8, "a spin lock keeps others out");
}

static RESULTS: [AtomicU64; smp::MOST] = [const { AtomicU64::new(0) }; smp::MOST];

/// A computation of each, in parts; before each part all meet, so that none can do it for the others.
fn load() {
    ARRIVED.store(0, Ordering::SeqCst);
    let came = smp::all(|me| {
        let mut value = 1_u64;
        for part in 1..=10 {
            meet(part);
            for _ in 0..50_000 {
                value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            }
        }
        RESULTS[me].store(value, Ordering::SeqCst);
    });
    check!(came, "all have computed");
    let first = RESULTS[0].load(Ordering::SeqCst);
    let same = RESULTS.iter().take(smp::count()).all(|r| r.load(Ordering::SeqCst) == first);
    check!(same && first != 0, "all have the same result");
}

static LAST: AtomicU64 = AtomicU64::new(0);
static OWNER: AtomicUsize = AtomicUsize::new(0);
static BACK: AtomicU64 = AtomicU64::new(0);
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Each reads the counter under a lock: no reading is behind the one before it, whoever made that.
fn clock() {
    ARRIVED.store(0, Ordering::SeqCst);
    let came = smp::all(|me| {
        meet(1);
        for _ in 0..ROUNDS / 4 {
            with_lock(|| {
                let now = cpu::rdtsc();
                let last = LAST.swap(now, Ordering::SeqCst);
                BACK.fetch_max(last.saturating_sub(now), Ordering::SeqCst);
                if OWNER.swap(me, Ordering::SeqCst) != me {
                    CHANGES.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    check!(came, "all read the time");
    check_eq!(BACK.load(Ordering::SeqCst), 0, "the time-stamp counter never goes back from one to another");
    println!("{} changes of the reader", CHANGES.load(Ordering::SeqCst));
}

#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

static PAGES: [Page; 4] = [const { Page([const { AtomicU64::new(0) }; 512]) }; 4];
static ROUND: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
static FLUSHED: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicUsize = AtomicUsize::new(0);
static STALE: AtomicU64 = AtomicU64::new(0);

/// What the window's page leads to now.
fn look() -> u64 {
    // SAFETY: the window's first page is mapped to one of PAGES before anybody looks.
    unsafe { (paging::WINDOW as *const u64).read_volatile() }
}

/// Processor 0 maps another page, tells all others, and waits for each to have dropped the old translation; then all look.
fn shoot_down() {
    let others = smp::count() - 1;
    for (number, page) in PAGES.iter().enumerate() {
        page.0[0].store(number as u64, Ordering::SeqCst);
    }
    paging::set(0, PAGES[0].0.as_ptr() as u64 | P | W);
    trap::on(FLUSH, |_| {
        cpu::invlpg(paging::WINDOW);
        FLUSHED.fetch_add(1, Ordering::SeqCst);
        apic::end_of_interrupt();
    });
    (1..=others).for_each(|number| smp::run_on(number, looker));
    let (begin, limit) = (cpu::rdtsc(), time::ticks(LONGEST));
    let mut round = 0;
    let mut lost = false;
    while round < 4000 && cpu::rdtsc() - begin < limit && !lost {
        round += 1;
        paging::set(0, PAGES[(round % 4) as usize].0.as_ptr() as u64 | P | W);
        apic::send(0xC_4000 | u32::from(FLUSH));
        lost |= !time::wait_until(10_000_000, || FLUSHED.load(Ordering::SeqCst) == round as usize * others);
        ROUND.store(round, Ordering::SeqCst);
        lost |= !time::wait_until(10_000_000, || SEEN.load(Ordering::SeqCst) == round as usize * others);
    }
    OVER.store(true, Ordering::SeqCst);
    check!(smp::join(10_000_000), "all have looked");
    check!(!lost, "each shoot-down reaches each processor once");
    check_eq!(FLUSHED.load(Ordering::SeqCst), round as usize * others, "no shoot-down comes twice");
    check_eq!(STALE.load(Ordering::SeqCst), 0, "no translation outlives its shoot-down");
    check!(round >= 20, "many shoot-downs");
    println!("{round} shoot-downs");
}

fn looker(_: usize) {
    let mut known = 0;
    cpu::enable_interrupts();
    while !OVER.load(Ordering::SeqCst) {
        let round = ROUND.load(Ordering::SeqCst);
        let page = look(); // in between too, so that the translation is in use
        if round != known {
            known = round;
            // The next page may be mapped, but not before this one has been seen.
            STALE.fetch_add(u64::from(page != round % 4), Ordering::SeqCst);
            SEEN.fetch_add(1, Ordering::SeqCst);
        }
        cpu::pause();
    }
}

static WOKEN: AtomicU32 = AtomicU32::new(0);

/// The others halt between two pieces of work: each wakes up by its interrupt.
fn halted() {
    for round in 1..=200 {
        for number in 1..smp::count() {
            smp::run_on(number, |_| _ = WOKEN.fetch_add(1, Ordering::SeqCst));
            if !time::wait_until(10_000_000, || smp::idle(number)) {
                check!(false, "processor {number} wakes up in round {round}");
                return;
            }
        }
    }
    check_eq!(WOKEN.load(Ordering::SeqCst) as usize, 200 * (smp::count() - 1), "halted processors wake up");
}
