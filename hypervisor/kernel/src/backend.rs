//! The two backends: which one this processor has, and what a vCPU of each is made of.

use crate::machine::{Facts, ONLINE};
use crate::make::StartError;
use bulkhead_core::frames::FrameTable;
use bulkhead_core::{BackendError, Vcpu};
use bulkhead_hw::compartment::Compartment;
use bulkhead_hw::cpu;
use bulkhead_hw::ram::WindowRam;
use bulkhead_hw::region::Region;
use bulkhead_paging::{Ept, Format, Npt, Size};
use bulkhead_svm::SvmVcpu;
use bulkhead_vmx::VmxVcpu;
use core::fmt;
use core::sync::atomic::Ordering;

/// What the processor can do, with the extension that it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Virtualization {
    /// VT-x.
    Vmx(bulkhead_vmx::Capabilities),
    /// SVM.
    Svm(bulkhead_svm::Capabilities),
}

/// What each lacks.
pub struct Neither(bulkhead_vmx::Missing, bulkhead_svm::Missing);

impl fmt::Display for Neither {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(bulkhead_vmx::Missing::VMX, bulkhead_svm::Missing::Svm) => f.write_str(
                "this processor shows neither VT-x (CPUID.1:ECX bit 5) nor SVM (CPUID.8000_0001:ECX bit 2): use an Intel \
                 processor with VT-x or an AMD processor with AMD-V; in a virtual machine, switch on nested virtualization.",
            ),
            Self(bulkhead_vmx::Missing::VMX, svm) => svm.fmt(f),
            Self(vmx, _) => vmx.fmt(f),
        }
    }
}

impl Virtualization {
    /// The extension's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vmx(_) => "VT-x",
            Self::Svm(_) => "SVM",
        }
    }

    /// What this processor has.
    ///
    /// # Errors
    /// What is missing, as a sentence.
    pub fn probe() -> Result<Self, Neither> {
        let vmx = match bulkhead_vmx::probe() {
            Ok(capabilities) => return Ok(Self::Vmx(capabilities)),
            Err(missing) => missing,
        };
        bulkhead_svm::probe().map(Self::Svm).map_err(|svm| Neither(vmx, svm))
    }

    /// The largest page that nested tables can have.
    #[must_use]
    pub fn largest_page(&self) -> Size {
        /// CPUID 8000_0001, EDX: 1-GiB pages, in nested tables too (APM vol. 2 15.25.5).
        const PAGE_1G: u32 = 1 << 26;
        let large = match self {
            Self::Vmx(capabilities) => capabilities.ept_1g(),
            Self::Svm(_) => cpu::cpuid(0x8000_0001, 0).edx & PAGE_1G != 0,
        };
        if large { Size::Page1G } else { Size::Page2M }
    }

    /// Whether a guest can use INVPCID.
    #[must_use]
    pub const fn invpcid(&self) -> bool {
        match self {
            Self::Vmx(capabilities) => capabilities.invpcid(),
            Self::Svm(_) => true,
        }
    }

    /// Whether a guest can use RDTSCP.
    #[must_use]
    pub const fn rdtscp(&self) -> bool {
        match self {
            Self::Vmx(capabilities) => capabilities.rdtscp(),
            Self::Svm(_) => true,
        }
    }

    /// Switches the extension on for this CPU, for good. `page` is the idle compartment's for good; called once on each.
    ///
    /// # Errors
    /// If the processor refuses.
    pub fn enable(&self, page: Region) -> Result<(), BackendError> {
        #[expect(unsafe_code, reason = "here the backend's promise meets start-up's")]
        // SAFETY: this CPU's first call, in ring 0; the capabilities were read from it, or from one that has the same; the
        // page is the idle compartment's for good.
        unsafe {
            match self {
                Self::Vmx(capabilities) => bulkhead_vmx::enable(capabilities, page),
                Self::Svm(_) => {
                    bulkhead_svm::enable(page);
                    Ok(())
                }
            }
        }
    }
}

/// A backend, as a guest's compartment sees it.
pub trait Backend: 'static {
    /// Its processors.
    type Vcpu: Vcpu;
    /// Format of its nested tables.
    type Nested: Format;

    /// Makes a vCPU of the guest, in the guest's compartment, which is current. `tag`, from 1, is no other vCPU's.
    ///
    /// # Errors
    /// If memory runs out, or the processor refuses.
    fn vcpu(
        facts: &Facts,
        tag: u16,
        compartment: &mut Compartment,
        frames: &mut FrameTable<'_>,
        memory: WindowRam,
    ) -> Result<Self::Vcpu, StartError>;
}

/// VT-x.
pub struct Vmx;
/// SVM.
pub struct Svm;

/// The processor has another extension.
const OTHER: StartError = StartError::Missing("the processor has another virtualization extension");

impl Backend for Vmx {
    type Vcpu = VmxVcpu;
    type Nested = Ept;

    fn vcpu(
        facts: &Facts,
        tag: u16,
        compartment: &mut Compartment,
        frames: &mut FrameTable<'_>,
        _: WindowRam,
    ) -> Result<VmxVcpu, StartError> {
        let Virtualization::Vmx(mut capabilities) = facts.capabilities else { return Err(OTHER) };
        // With several, interrupts of the host's come while a guest runs, and then the one processor on which all this can be
        // tried delivers a guest's with its RFLAGS.IF clear.
        if ONLINE.load(Ordering::Relaxed) > 1 {
            capabilities.forgo_delivery();
        }
        let [vmcs, msr_bitmap, virtual_apic, first, second] = compartment.add_control_pages(frames)?;
        let io_bitmaps = [first, second];
        let nested_root = compartment.nested_root();
        let resources = bulkhead_vmx::Resources { vmcs, msr_bitmap, virtual_apic, io_bitmaps, nested_root, vpid: tag };
        #[expect(unsafe_code, reason = "here the backend's promise meets the compartment's")]
        // SAFETY: VMX is on on every CPU (it was switched on before the first guest), with these capabilities; interrupts
        // are off outside `cpu::halt_until_interrupt`. The current address space is this compartment's, which
        // stays and has the stacks of its skeleton; its nested tables hold its own RAM only (`Compartment::map_nested`).
        Ok(unsafe { VmxVcpu::new(capabilities, resources) }?)
    }
}

impl Backend for Svm {
    type Vcpu = SvmVcpu<WindowRam>;
    type Nested = Npt;

    fn vcpu(
        facts: &Facts,
        tag: u16,
        compartment: &mut Compartment,
        frames: &mut FrameTable<'_>,
        memory: WindowRam,
    ) -> Result<Self::Vcpu, StartError> {
        let Virtualization::Svm(capabilities) = facts.capabilities else { return Err(OTHER) };
        let [vmcb, host, msr_first, msr_second, first, second, third] = compartment.add_control_pages(frames)?;
        let (msr_map, io_map) = ([msr_first, msr_second], [first, second, third]);
        let nested_root = compartment.nested_root();
        let resources = bulkhead_svm::Resources { vmcb, host, msr_map, io_map, nested_root, asid: tag, memory };
        #[expect(unsafe_code, reason = "here the backend's promise meets the compartment's")]
        // SAFETY: as for VT-x; an interrupt handler saves all registers.
        Ok(unsafe { SvmVcpu::new(capabilities, resources) }?)
    }
}
