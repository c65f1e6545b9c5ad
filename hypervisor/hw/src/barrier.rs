//! The instructions behind [`bulkhead_core::barrier`].

use crate::cpu;
use bulkhead_arch::msr;
use bulkhead_core::barrier::{Present, Step};
use bulkhead_core::host::CpuidResult;
use core::arch::asm;

/// What this CPU has.
#[must_use]
pub fn probe() -> Present {
    let cpuid = |leaf, subleaf| {
        let result = cpu::cpuid(leaf, subleaf);
        CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
    };
    // SAFETY: `Present::of` asks only where CPUID promises the register.
    Present::of(cpuid, || unsafe { cpu::read_msr(msr::ARCH_CAPABILITIES) })
}

/// Does what [`Present::between`] says for this CPU.
///
/// # Safety
/// The steps are of a [`Present`] that [`probe`] found on this CPU.
pub unsafe fn obey(steps: [Option<Step>; 4]) {
    for step in steps.into_iter().flatten() {
        match step {
            // SAFETY: the CPU has the register and the bits (the caller's promise); they change timing only.
            Step::Write { index, value } => unsafe { cpu::write_msr(index, value) },
            Step::Verw => {
                let selector: u16;
                // SAFETY: reads a selector, and has the processor check it: no memory but the local one is touched.
                unsafe {
                    asm!("mov {:x}, ss", out(reg) selector, options(nomem, nostack, preserves_flags));
                    asm!("verw word ptr [{}]", in(reg) &raw const selector, options(readonly, nostack));
                }
            }
        }
    }
}
