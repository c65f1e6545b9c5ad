//! Time by the time-stamp counter.

use crate::{cpu, pit};
use core::sync::atomic::{AtomicU64, Ordering};

static HERTZ: AtomicU64 = AtomicU64::new(0);

/// The announced rate of the time-stamp counter. SDM vol. 3B 18.7.3 "Determining the Processor Base Frequency".
#[must_use]
pub fn announced_hertz() -> Option<u64> {
    if cpu::cpuid(0, 0).eax < 0x15 {
        return None;
    }
    let leaf = cpu::cpuid(0x15, 0);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

/// Rate of the time-stamp counter: as announced, else measured against the interval timer over 50 ms.
#[must_use]
pub fn tsc_hertz() -> u64 {
    let known = HERTZ.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let hertz = announced_hertz().unwrap_or_else(|| {
        const COUNT: u16 = 59_659;
        pit::start_channel2(COUNT);
        let start = cpu::rdtsc();
        while !pit::channel2_done() {}
        (cpu::rdtsc() - start) * pit::HERTZ / u64::from(COUNT)
    });
    HERTZ.store(hertz, Ordering::Relaxed);
    hertz
}

/// Ticks of the time-stamp counter in `microseconds`.
#[must_use]
pub fn ticks(microseconds: u64) -> u64 {
    tsc_hertz() * microseconds / 1_000_000
}

/// Waits until `condition` holds, at most `microseconds`; whether it held.
pub fn wait_until(microseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let (start, limit) = (cpu::rdtsc(), ticks(microseconds));
    loop {
        if condition() {
            return true;
        }
        if cpu::rdtsc() - start > limit {
            return condition();
        }
        cpu::pause();
    }
}

/// Spins for `microseconds`.
pub fn delay(microseconds: u64) {
    wait_until(microseconds, || false);
}

/// Ticks that an interrupt may take from its moment to its handler. Where time is the host's, which may be busy: 20 ms.
#[must_use]
pub fn latency() -> u64 {
    if cpu::is_tcg() { ticks(20_000) } else { 10_000 }
}
