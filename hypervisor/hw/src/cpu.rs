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

/// The core that this processor is a thread of, a number of its own. SDM vol. 3A 9.9.3 "Hierarchical ID of Logical
/// Processors in an MP System"; APM vol. 3 E.4.7, CPUID 8000_001E.
#[must_use]
pub fn core() -> u16 {
    const THREADS: u32 = 1;
    const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
    let shift = if cpuid(0, 0).eax >= 0xB && cpuid(0xB, 0).ecx >> 8 & 0xFF == THREADS {
        cpuid(0xB, 0).eax & 0x1F
    } else if cpuid(0x8000_0000, 0).eax >= 0x8000_001E && cpuid(0x8000_0001, 0).ecx & TOPOLOGY_EXTENSIONS != 0 {
        (cpuid(0x8000_001E, 0).ebx >> 8 & 0xFF).checked_ilog2().map_or(0, |log| log + 1)
    } else {
        0
    };
    u16::try_from(crate::apic::initial_id().wrapping_shr(shift) & 0xFFFF).unwrap_or(0)
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
