//! The host's local APIC: the timer that ends an idle wait.
//!
//! SDM vol. 3A 11.5.4 "APIC Timer", 11.12 "Extended XAPIC (x2APIC)".

use crate::cpu::{cpuid, read_msr, write_msr};
use crate::descriptors::{SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::layout::LOCAL_APIC;
use bulkhead_arch::msr;
use bulkhead_types::Hpa;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use volatile::VolatilePtr;

/// Register numbers (x2APIC; the xAPIC offset is 16 times as much).
const EOI: u32 = 0x0B;
const SPURIOUS: u32 = 0x0F;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

/// Where the xAPIC's page is mapped; 0 in x2APIC mode.
static PAGE: AtomicU64 = AtomicU64::new(0);

/// Whether this CPU's timer can be given a deadline by the time-stamp counter.
#[must_use]
pub fn has_deadline_timer() -> bool {
    cpuid(1, 0).ecx & (1 << 24) != 0
}

/// Physical page of the xAPIC's registers, `None` if the CPU has x2APIC and needs none.
#[must_use]
pub fn register_page() -> Option<Hpa> {
    // SAFETY: every 64-bit processor has the register.
    (cpuid(1, 0).ecx & (1 << 21) == 0).then(|| Hpa::new(unsafe { read_msr(msr::APIC_BASE) } & 0xF_FFFF_F000))
}

/// Turns the local APIC on, all its sources masked but the deadline timer. `mapped`: its page is at
/// [`crate::layout::LOCAL_APIC`]; else only a CPU with x2APIC is served.
pub fn enable(mapped: bool) {
    let x2apic = !mapped;
    // SAFETY: the register exists; enabling the APIC in the mode that the CPU has touches no memory.
    unsafe {
        let base = read_msr(msr::APIC_BASE) | BASE_ENABLE;
        write_msr(msr::APIC_BASE, if x2apic { base | BASE_X2APIC } else { base });
    }
    PAGE.store(if x2apic { 0 } else { LOCAL_APIC.as_u64() }, Ordering::Relaxed);
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_LINT1, LVT_MASKED);
    let timer = if has_deadline_timer() { LVT_TSC_DEADLINE | u32::from(TIMER_VECTOR) } else { LVT_MASKED };
    write(LVT_TIMER, timer);
    write(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
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

/// Ends the interrupt being handled.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Interrupts this CPU when its time-stamp counter reaches `deadline`; only with [`has_deadline_timer`].
pub fn set_deadline(deadline: u64) {
    // SAFETY: the caller saw that the CPU has the register; the interrupt's handler only ends it.
    unsafe { write_msr(msr::TSC_DEADLINE, deadline) }
}
