//! The real processor behind [`crate::vmcb::Processor`].

use crate::capabilities::{Capabilities, Missing};
use crate::entry::bulkhead_svm_enter;
use crate::vmcb::{Processor, Vmcb};
use bulkhead_arch::{Efer, msr};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::probe::ThisProcessor;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::{Msrs, ProcessorMsrs};
use bulkhead_hw::{apic, cpu};
use core::arch::asm;

/// What this processor's SVM can do.
///
/// # Errors
/// What is missing, as a sentence.
pub fn probe() -> Result<Capabilities, Missing> {
    // SAFETY: `Capabilities::read` asks only for registers that CPUID or another capability register has promised.
    Capabilities::read(&unsafe { ThisProcessor::new() })
}

/// Switches SVM on for this CPU, for good.
///
/// # Safety
/// Once on each CPU, in ring 0, after [`probe`] found it there; the frame is the processor's from now on.
pub unsafe fn enable(mut host_save: Region) {
    host_save.fill(0);
    // SAFETY: a processor with SVM has both registers; the caller gave the frame for good.
    unsafe {
        cpu::write_msr(msr::EFER, cpu::read_msr(msr::EFER) | Efer::SVME.bits());
        cpu::write_msr(msr::VM_HSAVE_PA, host_save.hpa().as_u64());
    }
}

/// The processor with SVM switched on, for the vCPU that owns this value.
#[derive(Debug)]
pub struct Hardware(ProcessorMsrs);

impl Hardware {
    /// The processor.
    ///
    /// # Safety
    /// [`enable`] was called on each CPU on which the value is used, in ring 0 with interrupts off, and whoever
    /// holds it lets no guest run with nested tables or permission maps that break what the host relies on.
    #[must_use]
    pub const unsafe fn new() -> Self {
        // SAFETY: the vCPU uses it for the registers that `Capabilities::switched` has. The host itself uses none of them:
        // no SYSCALL, no SWAPGS, no RDTSCP; speculation control changes no result.
        Self(unsafe { ProcessorMsrs::new() })
    }
}

impl Processor for Hardware {
    fn number(&self) -> usize {
        cpu::number()
    }

    fn msrs(&mut self) -> &mut dyn Msrs {
        &mut self.0
    }

    fn save_host(&mut self, host: &Region) {
        // SAFETY: SVM is on (`Hardware::new`); a `Region` is used by nothing else (`Region::new`).
        unsafe { asm!("vmsave rax", in("rax") host.hpa().as_u64(), options(nostack, preserves_flags)) }
    }

    #[inline]
    fn enter(&mut self, frame: &mut Frame, vmcb: &mut Vmcb, host: &Region) {
        // SAFETY: the holder has set the VMCB up so that the guest reaches only its own memory (`Hardware::new`), and
        // `save_host` has filled `host`. The stub restores what the C ABI wants.
        unsafe { bulkhead_svm_enter(frame, vmcb.hpa().as_u64(), host.hpa().as_u64()) }
    }

    fn take_interrupts(&mut self) -> bool {
        cpu::take_interrupts();
        apic::take_kick()
    }

    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn interrupt_by(&mut self, deadline: u64) {
        apic::interrupt_by(deadline);
    }

    fn interrupt_self(&mut self) {
        // What was taken between turns has been minded.
        let _ = apic::take_kick();
        apic::interrupt_self();
    }
}
