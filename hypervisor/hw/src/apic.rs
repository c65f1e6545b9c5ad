//! The host's local APICs: the timer, and how processors start and kick each other.
//!
//! It ends an idle wait, and a guest's turn where its processor has no timer for that. Where the timer takes no deadline it counts down; how fast, is measured once against the time-stamp counter.
//!
//! SDM vol. 3A 11.5.4 "APIC Timer", 11.6 "Issuing Interprocessor Interrupts", 11.12 "Extended XAPIC (x2APIC)".

use crate::cpu::{self, cpuid, read_msr, tsc, write_msr};
use crate::descriptors::{KICK_VECTOR, SELF_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::layout::LOCAL_APIC;
use bulkhead_arch::msr;
use bulkhead_types::{Frequency, Hpa, MAX_CPUS};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use volatile::VolatilePtr;

/// Register numbers (x2APIC; the xAPIC offset is 16 times as much).
const ID: u32 = 0x02;
const EOI: u32 = 0x0B;
const SPURIOUS: u32 = 0x0F;
/// Interrupt command; in xAPIC mode the destination is in a register of its own.
const COMMAND: u32 = 0x30;
const DESTINATION: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3E;
/// Divide configuration: count at the full rate.
const DIVIDE_BY_1: u32 = 0xB;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const LVT_EXTERNAL: u32 = 7 << 8;
/// Interrupt command: level asserted; NMI; INIT; start-up; not yet accepted.
const ASSERT: u32 = 1 << 14;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8;
const START_UP: u32 = 6 << 8;
const PENDING: u32 = 1 << 12;
/// Interrupt command: the destination is this processor, whatever else it says.
const TO_SELF: u32 = 1 << 18;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

/// Where the xAPIC's page is mapped; 0 in x2APIC mode.
static PAGE: AtomicU64 = AtomicU64::new(0);
/// Counts of the timer in [`TICKS`] ticks of the time-stamp counter; [`BY_DEADLINE`] if it takes deadlines, 0 if there is
/// no timer.
static COUNTS: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(1);
const BY_DEADLINE: u64 = u64::MAX;
/// For each processor the deadline that is set and has not rung, 0 for none.
static DEADLINES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// For each processor whether it was kicked since it looked last.
static KICKED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// This processor's of all.
fn own<T>(all: &'static [T; MAX_CPUS]) -> &'static T {
    let [first, ..] = all;
    all.get(cpu::number()).unwrap_or(first)
}

/// This processor's deadline.
fn deadline() -> &'static AtomicU64 {
    own(&DEADLINES)
}

/// Whether there is a timer for [`set_deadline`]; known once [`enable`] was called.
#[must_use]
pub fn has_timer() -> bool {
    COUNTS.load(Ordering::Relaxed) != 0
}

fn takes_deadlines() -> bool {
    cpuid(1, 0).ecx & (1 << 24) != 0
}

/// Physical page of the xAPIC's registers, `None` if the CPU has x2APIC and needs none.
#[must_use]
pub fn register_page() -> Option<Hpa> {
    // SAFETY: every 64-bit processor has the register.
    (cpuid(1, 0).ecx & (1 << 21) == 0).then(|| Hpa::new(unsafe { read_msr(msr::APIC_BASE) } & 0xF_FFFF_F000))
}

/// Turns this processor's local APIC on, all its sources masked but the timer. `mapped`: its page is at
/// [`crate::layout::LOCAL_APIC`]; else only a CPU with x2APIC is served. `tsc`: rate of the time-stamp counter.
pub fn enable(mapped: bool, tsc: Frequency) {
    let x2apic = !mapped;
    // SAFETY: the register exists; enabling the APIC in the mode that the CPU has touches no memory.
    unsafe {
        let base = read_msr(msr::APIC_BASE) | BASE_ENABLE;
        write_msr(msr::APIC_BASE, if x2apic { base | BASE_X2APIC } else { base });
    }
    PAGE.store(if x2apic { 0 } else { LOCAL_APIC.as_u64() }, Ordering::Relaxed);
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_LINT1, LVT_MASKED);
    write(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
    if takes_deadlines() {
        write(LVT_TIMER, LVT_TSC_DEADLINE | u32::from(TIMER_VECTOR));
        COUNTS.store(BY_DEADLINE, Ordering::Relaxed);
    } else {
        if !has_timer() {
            measure(tsc);
        }
        write(DIVIDE, DIVIDE_BY_1);
        write(LVT_TIMER, u32::from(TIMER_VECTOR));
    }
}

/// Lets the 8259A interrupt this processor.
pub(crate) fn take_external() {
    write(LVT_LINT0, LVT_EXTERNAL);
}

/// Counts down for about 10 ms.
fn measure(frequency: Frequency) {
    write(LVT_TIMER, LVT_MASKED);
    write(DIVIDE, DIVIDE_BY_1);
    write(INITIAL_COUNT, u32::MAX);
    let start = tsc();
    while tsc().wrapping_sub(start) < frequency.as_hertz() / 100 {
        core::hint::spin_loop();
    }
    let counted = u32::MAX - read(CURRENT_COUNT);
    TICKS.store(tsc().wrapping_sub(start).max(1), Ordering::Relaxed);
    COUNTS.store(counted.into(), Ordering::Relaxed);
    write(INITIAL_COUNT, 0);
}

/// The initial count that runs out `ticks` from now, in counts of `counts` for every `per` ticks: at least 1, and what is
/// too far off runs out early.
fn count_for(ticks: u64, counts: u64, per: u64) -> u32 {
    let count = u128::from(ticks) * u128::from(counts) / u128::from(per.max(1));
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

fn read(register: u32) -> u32 {
    match PAGE.load(Ordering::Relaxed) {
        // SAFETY: an x2APIC register that this module names; `enable` saw to the mode.
        0 => u32::try_from(unsafe { read_msr(msr::X2APIC_BASE + register) } & 0xFFFF_FFFF).unwrap_or(0),
        page => {
            let address = (page + u64::from(register) * 16) as *mut u32;
            // SAFETY: as for `write`.
            NonNull::new(address).map_or(0, |pointer| unsafe { VolatilePtr::new(pointer) }.read())
        }
    }
}

fn write(register: u32, value: u32) {
    match PAGE.load(Ordering::Relaxed) {
        // SAFETY: an x2APIC register that this module names, with a value the manual allows; `enable` saw to the mode.
        0 => unsafe { write_msr(msr::X2APIC_BASE + register, u64::from(value)) },
        page => {
            let address = (page + u64::from(register) * 16) as *mut u32;
            if let Some(pointer) = NonNull::new(address) {
                // SAFETY: inside the register page that start-up mapped for good; registers are 16-byte aligned.
                unsafe { VolatilePtr::new(pointer) }.write(value);
            }
        }
    }
}

/// The timer has rung: its interrupt is being handled.
pub(crate) fn timer_rang() {
    deadline().store(0, Ordering::Relaxed);
    end_of_interrupt();
}

/// Another processor has kicked this one: its interrupt is being handled.
pub(crate) fn was_kicked() {
    own(&KICKED).store(true, Ordering::Relaxed);
    end_of_interrupt();
}

/// Whether this processor was kicked, and took the interrupt, since the last call.
#[must_use]
pub fn take_kick() -> bool {
    own(&KICKED).swap(false, Ordering::Relaxed)
}

/// As [`set_deadline`], unless an earlier one is set: setting the timer is slow, ringing too early does no harm.
pub fn interrupt_by(until: u64) {
    let set = deadline().load(Ordering::Relaxed);
    if set == 0 || set > until {
        set_deadline(until);
    }
}

/// What is set is no more for whoever runs: the next [`interrupt_by`] replaces it, be it earlier.
pub fn forget_deadline() {
    deadline().store(0, Ordering::Relaxed);
}

/// Ends the interrupt being handled.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Interrupts this CPU when its time-stamp counter reaches `until`, or earlier if that is farther off than the timer
/// can count; 0 for never. Replaces the deadline before. Does nothing without [`has_timer`].
pub fn set_deadline(until: u64) {
    deadline().store(until, Ordering::Relaxed);
    match COUNTS.load(Ordering::Relaxed) {
        0 => {}
        // SAFETY: `enable` saw that the CPU has the register; the interrupt's handler only ends it.
        BY_DEADLINE => unsafe { write_msr(msr::TSC_DEADLINE, until) },
        _ if until == 0 => write(INITIAL_COUNT, 0),
        counts => {
            let ticks = until.saturating_sub(tsc());
            write(INITIAL_COUNT, count_for(ticks, counts, TICKS.load(Ordering::Relaxed)));
        }
    }
}

/// The number of this processor's local APIC, before [`enable`]. SDM vol. 3A 9.4.6 "Identifying the Processors".
#[must_use]
pub fn initial_id() -> u32 {
    let extended = cpuid(0, 0).eax >= 0xB && cpuid(0xB, 0).ebx != 0;
    if extended { cpuid(0xB, 0).edx } else { cpuid(1, 0).ebx >> 24 }
}

/// The number of this processor's local APIC.
#[must_use]
pub fn id() -> u32 {
    let id = read(ID);
    if PAGE.load(Ordering::Relaxed) == 0 { id } else { id >> 24 }
}

/// Interrupts the processor whose local APIC is number `to`, if only to make it look.
pub fn kick(to: u32) {
    command(to, ASSERT | u32::from(KICK_VECTOR));
}

/// Interrupts the processor whose local APIC is number `to` wherever it is: in a guest, too, and with interrupts off.
pub fn interrupt_anyway(to: u32) {
    command(to, ASSERT | NMI);
}

/// Interrupts this processor as soon as it lets interrupts in; that is no kick.
pub fn interrupt_self() {
    if PAGE.load(Ordering::Relaxed) == 0 {
        return command(0, TO_SELF | ASSERT | u32::from(SELF_VECTOR));
    }
    write(COMMAND, TO_SELF | ASSERT | u32::from(SELF_VECTOR));
}

/// Sends INIT to the processor whose local APIC is number `to`: it waits for [`start`] then, whatever it did.
pub fn reset(to: u32) {
    command(to, INIT | ASSERT);
}

/// Sends the start-up interrupt: a processor that waits for it begins at `vector` times 4096, in real mode.
pub fn start(to: u32, vector: u8) {
    command(to, START_UP | ASSERT | u32::from(vector));
}

fn command(to: u32, what: u32) {
    if PAGE.load(Ordering::Relaxed) == 0 {
        // SAFETY: the register exists in x2APIC mode; this module's commands touch no memory of this processor.
        return unsafe { write_msr(msr::X2APIC_BASE + COMMAND, u64::from(to) << 32 | u64::from(what)) };
    }
    // One at a time. What is accepted at all is accepted at once.
    for _ in 0..100_000 {
        if read(COMMAND) & PENDING == 0 {
            break;
        }
        core::hint::spin_loop();
    }
    write(DESTINATION, to << 24);
    write(COMMAND, what);
}

#[cfg(test)]
mod tests {
    use super::count_for;

    #[test]
    fn a_deadline_becomes_a_count() {
        assert_eq!(count_for(3000, 1000, 3000), 1000);
        assert_eq!(count_for(0, 1000, 3000), 1, "at once");
        assert_eq!(count_for(u64::MAX, u64::from(u32::MAX), 1), u32::MAX, "too far off");
        assert_eq!(count_for(1, 1, 0), 1);
    }
}
