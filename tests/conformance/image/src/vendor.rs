//! What the two backends' vCPUs are made of.

use crate::place::Place;
use bulkhead_conformance::bench::Entries;
use bulkhead_conformance::{svm, vmx};
use bulkhead_core::{BackendError, Vcpu};
use bulkhead_hw::ram::WindowRam;
use bulkhead_kernel::backend::Virtualization;
use bulkhead_paging::{Ept, Format, Npt};
use bulkhead_svm::SvmVcpu;
use bulkhead_vmx::VmxVcpu;
use bulkhead_vmx::vmcs::Processor as _;

/// A backend.
pub trait Vendor: Sized + 'static {
    /// Its vCPU, with a recorder before the processor.
    type Vcpu: Vcpu;
    /// Format of its nested tables.
    type Nested: Format;
    /// VMCALL or VMMCALL.
    const HYPERCALL: [u8; 3];

    /// Makes a vCPU in this place.
    fn vcpu(place: &Place<'_, Self>, entries: &Entries) -> Result<Self::Vcpu, BackendError>;
}

/// VT-x.
pub struct Vmx;
/// SVM.
pub struct Svm;

/// The processor has another extension.
const OTHER: BackendError = BackendError::Instruction { name: "none", code: 0 };

impl Vendor for Vmx {
    type Vcpu = VmxVcpu<vmx::Recorder<bulkhead_vmx::Hardware>>;
    type Nested = Ept;
    const HYPERCALL: [u8; 3] = [0x0F, 0x01, 0xC1];

    fn vcpu(place: &Place<'_, Self>, entries: &Entries) -> Result<Self::Vcpu, BackendError> {
        let Virtualization::Vmx(capabilities) = place.facts().capabilities else { return Err(OTHER) };
        let [vmcs, msr_bitmap, virtual_apic, first, second, ..] = place.control_pages();
        #[expect(unsafe_code, reason = "here the backend's promise meets the compartment's")]
        // SAFETY: VMX is on (the dispatcher did it before the first guest), with these capabilities; there is one CPU, and
        // interrupts are off but in `cpu::take_interrupts`. The current address space is this compartment's, which stays
        // and has the stacks of its skeleton; its nested tables hold its own RAM only.
        let mut processor = unsafe { bulkhead_vmx::Hardware::new() };
        // The processor may still hold the VMCS of the vCPU before.
        processor.clear(&vmcs)?;
        let recorder = vmx::Recorder::new(processor, capabilities.timer_shift, entries.clone());
        let (io_bitmaps, nested_root) = ([first, second], place.nested_root());
        let resources = bulkhead_vmx::Resources {
            vmcs,
            msr_bitmap,
            virtual_apic,
            io_bitmaps,
            nested_root,
            vpid: place.id().number(),
        };
        VmxVcpu::with_processor(recorder, capabilities, resources)
    }
}

impl Vendor for Svm {
    type Vcpu = SvmVcpu<WindowRam, svm::Recorder<bulkhead_svm::Hardware>>;
    type Nested = Npt;
    const HYPERCALL: [u8; 3] = [0x0F, 0x01, 0xD9];

    fn vcpu(place: &Place<'_, Self>, entries: &Entries) -> Result<Self::Vcpu, BackendError> {
        let Virtualization::Svm(capabilities) = place.facts().capabilities else { return Err(OTHER) };
        let [vmcb, host, msr_first, msr_second, first, second, third] = place.control_pages();
        #[expect(unsafe_code, reason = "here the backend's promise meets the compartment's")]
        // SAFETY: as for VT-x; an interrupt handler saves all registers.
        let processor = unsafe { bulkhead_svm::Hardware::new() };
        let recorder = svm::Recorder::new(processor, entries.clone());
        let (msr_map, io_map) = ([msr_first, msr_second], [first, second, third]);
        let (nested_root, asid, memory) = (place.nested_root(), place.id().number(), place.ram());
        let resources = bulkhead_svm::Resources { vmcb, host, msr_map, io_map, nested_root, asid, memory };
        SvmVcpu::with_processor(recorder, capabilities, resources)
    }
}
