//! An NMI is blocked in an NMI's handler, and not behind it, whatever the x87 unit of another processor does meanwhile.
//!
//! SDM vol. 3A 6.7.1 "Handling Multiple NMIs". Also the minimal case of what QEMU does wrong with a thread a processor: FLDENV (and
//! FXRSTOR, XRSTOR) of any processor rewrites the flags of the first one, among them those of NMIs and of nested paging.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_rt::{apic, check_eq, cpu, scenario, smp, time, trap};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

scenario!(main);

const NMI: u32 = 4 << 8 | 1 << 14;
const ROUNDS: u32 = 2000;
/// Most time that an NMI takes, in microseconds.
const LONG: u64 = 5_000_000;

/// NMIs that came, and those whose handler was not over when another one began.
static CAME: AtomicU32 = AtomicU32::new(0);
static NESTED: AtomicU32 = AtomicU32::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);
static OVER: AtomicBool = AtomicBool::new(false);

fn main() {
    check_eq!(smp::start(), 2, "both processors come up");
    trap::on(2, nmi);
    smp::run_on(1, |_| {
        while !OVER.load(Ordering::Relaxed) {
            let mut state = [0_u32; 7];
            for _ in 0..100 {
                // SAFETY: FNSTENV writes 28 bytes; what it changes, FLDENV takes back.
                unsafe { asm!("fnstenv [{0}]", "fldenv [{0}]", in(reg) &raw mut state, options(nostack)) };
            }
            cpu::pause();
        }
    });
    let both = (1..=ROUNDS).take_while(|round| {
        send();
        time::wait_until(LONG, || CAME.load(Ordering::SeqCst) == 2 * round)
    });
    check_eq!(both.count(), ROUNDS as usize, "an NMI that comes to an NMI's handler comes behind it");
    check_eq!(NESTED.load(Ordering::SeqCst), 0, "none comes into it");
    OVER.store(true, Ordering::Relaxed);
    check_eq!(smp::join(LONG), true, "the other processor ends");
}

fn send() {
    apic::send_to(smp::apic_id(0), NMI);
}

/// Of a round's two NMIs the first one's handler sends the second.
fn nmi(_: &mut trap::Frame) {
    if INSIDE.fetch_add(1, Ordering::SeqCst) != 0 {
        NESTED.fetch_add(1, Ordering::SeqCst);
    }
    if CAME.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
        send();
        (0..100).for_each(|_| cpu::pause());
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
}
