//! Single instructions.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};
use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};
use x86_64::registers::model_specific::Msr;

/// CPUID.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Which processor this is, from 0: what [`crate::descriptors::load`] made it.
#[inline]
#[must_use]
pub fn number() -> usize {
    let selector: u16;
    // SAFETY: STR only reads the register.
    unsafe { asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    crate::descriptors::owner(selector)
}

/// The time-stamp counter, in ticks.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every 64-bit processor, and reads nothing but the counter.
    unsafe { _rdtsc() }
}

/// Sets the time-stamp counter.
pub fn set_tsc(value: u64) {
    const TSC: u32 = 0x10;
    // SAFETY: the register is there on every 64-bit processor, and changes nothing but the counter.
    unsafe { write_msr(TSC, value) }
}

/// Reads a model-specific register.
///
/// # Safety
/// The processor has the register: otherwise this faults, which stops the hypervisor.
#[must_use]
pub unsafe fn read_msr(index: u32) -> u64 {
    // SAFETY: the caller vouches for the register's presence; reading has no effect on memory.
    unsafe { Msr::new(index).read() }
}

/// Writes a model-specific register.
///
/// # Safety
/// The processor has the register and takes the value, and what the register controls keeps memory as Rust assumes it.
pub unsafe fn write_msr(index: u32, value: u64) {
    // SAFETY: as the caller vouches.
    unsafe { Msr::new(index).write(value) }
}

/// CR0, CR2, CR3, CR4.
#[must_use]
pub fn control_registers() -> [u64; 4] {
    let (frame, low) = Cr3::read_raw();
    [Cr0::read_raw(), Cr2::read_raw(), frame.start_address().as_u64() | u64::from(low), Cr4::read_raw()]
}

/// Sets bits of CR4.
///
/// # Safety
/// The processor has the features, and none of them changes how mapped memory is reached.
pub unsafe fn set_cr4(bits: u64) {
    // SAFETY: the caller vouches for the bits; those set before stay.
    unsafe { Cr4::write_raw(Cr4::read_raw() | bits) }
}

/// Forgets this address space's translations.
pub fn flush_translations() {
    x86_64::instructions::tlb::flush_all();
}

/// Takes the interrupts that are pending, and none after.
pub fn take_interrupts() {
    // SAFETY: the interrupt handlers save all registers, and touch no memory of the interrupted code; NOP gives the
    // shadow of STI time to end.
    unsafe { asm!("sti", "nop", "cli") }
}

/// Gives a machine check that ended a guest's entry to the host's own handler, which stops the machine.
pub fn take_machine_check() {
    // SAFETY: vector 18 of the host's interrupt table is that handler, with a stack of its own; it does not return.
    unsafe { asm!("int 18") }
}

/// Halts until an interrupt has been taken.
pub fn halt_until_interrupt() {
    // SAFETY: as for `take_interrupts`; STI's shadow covers HLT, so that no interrupt slips in before it.
    unsafe { asm!("sti", "hlt", "cli") }
}

/// Stops this processor for good.
pub fn stop() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
