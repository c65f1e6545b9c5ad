//! The real processor behind [`crate::vmcb::Processor`].

use crate::capabilities::{Capabilities, Missing, Source};
use crate::entry::bulkhead_svm_enter;
use crate::switched::SWITCHED;
use crate::vmcb::{Processor, Vmcb};
use bulkhead_arch::{Efer, msr};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::{apic, cpu};
use core::arch::asm;

/// The processor that runs this code.
struct ThisProcessor;

impl Source for ThisProcessor {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        if leaf > cpu::cpuid(leaf & 0x8000_0000, 0).eax {
            return [0; 4];
        }
        let answer = cpu::cpuid(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    fn msr(&self, index: u32) -> u64 {
        // SAFETY: `Capabilities::read` asks only for registers that CPUID has promised.
        unsafe { cpu::read_msr(index) }
    }
}

/// What this processor's SVM can do.
///
/// # Errors
/// What is missing, as a sentence.
pub fn probe() -> Result<Capabilities, Missing> {
    Capabilities::read(&ThisProcessor)
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
pub struct Hardware(());

impl Hardware {
    /// The processor.
    ///
    /// # Safety
    /// [`enable`] was called on this CPU; the value is used on this CPU only, in ring 0 with interrupts off, and whoever
    /// holds it lets no guest run with nested tables or permission maps that break what the host relies on.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Processor for Hardware {
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

    fn take_interrupts(&mut self) {
        cpu::take_interrupts();
    }

    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn interrupt_by(&mut self, deadline: u64) {
        apic::interrupt_by(deadline);
    }

    fn switched_msr(&self, index: usize) -> u64 {
        // SAFETY: the vCPU asks only for registers that `Capabilities::switched` has.
        SWITCHED.get(index).map_or(0, |&number| unsafe { cpu::read_msr(number) })
    }

    fn set_switched_msr(&mut self, index: usize, value: u64) {
        if let Some(&number) = SWITCHED.get(index) {
            // SAFETY: the vCPU sets only registers that `Capabilities::switched` has, to 0 or to what the processor had
            // accepted from the guest. The host does not use them.
            unsafe { cpu::write_msr(number, value) }
        }
    }
}
