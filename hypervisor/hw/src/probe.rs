//! What the processor says of itself: CPUID and capability registers, or a test's table in their place.

use crate::cpu;

/// Where CPUID and MSR values come from.
pub trait Source {
    /// EAX, EBX, ECX and EDX of a CPUID leaf; zeros past the last leaf.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// The value of an MSR that exists.
    fn msr(&self, index: u32) -> u64;
}

/// The processor that runs this code.
#[derive(Debug)]
pub struct ThisProcessor(());

impl ThisProcessor {
    /// The processor.
    ///
    /// # Safety
    /// In ring 0; whoever holds it asks only for MSRs that CPUID or another capability register has promised.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Source for ThisProcessor {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        if leaf > cpu::cpuid(leaf & 0xC000_0000, 0).eax {
            return [0; 4];
        }
        let answer = cpu::cpuid(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    fn msr(&self, index: u32) -> u64 {
        // SAFETY: RDMSR reads no memory; the holder asks only for registers that are there (`new`).
        unsafe { cpu::read_msr(index) }
    }
}
