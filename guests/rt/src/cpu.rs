//! Processor instructions that no other module owns.

use crate::trap::{Exception, catch};
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// CPUID.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// What runs this guest, by the hypervisor's signature in CPUID 0x4000_0000.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// A hypervisor.
    Virtual,
    /// QEMU's interpreter and the machine that it comes with.
    Tcg,
    /// No hypervisor: metal or an emulator of it.
    Native,
}

/// What runs this guest.
#[must_use]
pub fn machine() -> Machine {
    if cpuid(1, 0).ecx >> 31 == 0 {
        return Machine::Native;
    }
    let leaf = cpuid(0x4000_0000, 0);
    let tcg = [leaf.ebx, leaf.ecx, leaf.edx]
        == [u32::from_le_bytes(*b"TCGT"), u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG")];
    if tcg { Machine::Tcg } else { Machine::Virtual }
}

/// Whether QEMU's interpreter (TCG) executes this guest, below a hypervisor or not: by the processor's name in CPUID, which
/// is the processor's own. It leaves out some checks of a processor; see
/// [`check_or_defect!`](crate::check_or_defect).
#[must_use]
pub fn is_tcg() -> bool {
    let name = cpuid(0x8000_0002, 0);
    let start = [name.eax, name.ebx, name.ecx].map(u32::to_le_bytes);
    start.as_flattened() == b"QEMU TCG CPU"
}

/// Time-stamp counter, after all earlier loads (LFENCE).
#[must_use]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC only reads the counter into two registers.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

fn rdmsr_raw(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDMSR writes two registers; the #GP of an absent register is handled by catch() or reported.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads a model-specific register.
///
/// # Errors
/// The exception (#GP) of a register that is not there.
pub fn rdmsr(msr: u32) -> Result<u64, Exception> {
    let mut value = 0;
    match catch(|| value = rdmsr_raw(msr)) {
        None => Ok(value),
        Some(exception) => Err(exception),
    }
}

/// Writes a model-specific register. The caller sees to it that what the value switches on finds its tables in place.
///
/// # Errors
/// The exception (#GP) of a register that is not there or a value that it does not take.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Exception> {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    let (low, high) = (value as u32, (value >> 32) as u32);
    let caught = catch(|| {
        // SAFETY: the registers that scenarios write are restored by them or inert in long mode with these tables; a
        // refused value is the #GP that catch() takes.
        unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack, preserves_flags)) }
    });
    caught.map_or(Ok(()), Err)
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[must_use]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a control register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The code, stack and data in use must stay mapped at their addresses, and the mode must stay 64-bit.
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller upholds that what runs goes on to be mapped.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(cr0, set_cr0, "cr0");
control_register!(cr3, set_cr3, "cr3");
control_register!(cr4, set_cr4, "cr4");
control_register!(cr8, set_cr8, "cr8");
control_register!(dr6, set_dr6, "dr6");
control_register!(dr7, set_dr7, "dr7");
control_register!(dr0, set_dr0, "dr0");

/// Address of the last page fault.
#[must_use]
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Forgets the translation of the page at `address`.
pub fn invlpg(address: u64) {
    // SAFETY: dropping a cached translation only makes the processor walk the tables again.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// RFLAGS.
#[must_use]
pub fn rflags() -> u64 {
    let value;
    // SAFETY: pushes and pops one word of the own stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) };
    value
}

/// Lets maskable interrupts in.
pub fn enable_interrupts() {
    // SAFETY: every vector has a handler from start-up on, which saves and restores all registers.
    unsafe { asm!("sti", "nop", options(nostack)) };
}

/// Keeps maskable interrupts out.
pub fn disable_interrupts() {
    // SAFETY: delays handlers, nothing more.
    unsafe { asm!("cli", options(nostack)) };
}

/// Lets interrupts in and halts until one (or an NMI) has been handled, then keeps them out again.
pub fn wait_for_interrupt() {
    // SAFETY: STI takes effect behind HLT, so no wake-up is lost; handlers save and restore all registers.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// A hint that this is a waiting loop.
pub fn pause() {
    core::hint::spin_loop();
}
