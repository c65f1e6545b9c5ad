//! The real processor behind the traits of [`crate::vmcs`].

use crate::capabilities::{Capabilities, FEATURE_LOCK, FEATURE_VMX, Missing};
use crate::entry::{bulkhead_vmx_enter, exit_address};
use crate::fields as field;
use crate::host::{HostState, descriptor_base};
use crate::instructions;
use crate::vmcs::{Entered, Processor, VmcsAccess};
use bulkhead_arch::{Cr4, msr};
use bulkhead_core::BackendError;
use bulkhead_hw::cpu;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::probe::ThisProcessor;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::{Msrs, ProcessorMsrs};
use core::arch::asm;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control;
use x86_64::registers::debug::Dr6;
use x86_64::registers::segmentation::{CS, DS, ES, FS, GS, SS, Segment};

/// What this processor's VT-x can do.
///
/// # Errors
/// What is missing, as a sentence.
pub fn probe() -> Result<Capabilities, Missing> {
    // SAFETY: `Capabilities::read` asks only for registers that CPUID or another capability register has promised.
    Capabilities::read(&unsafe { ThisProcessor::new() })
}

/// Switches VMX on for this CPU, for good.
///
/// # Errors
/// [`BackendError::Instruction`] if VMXON fails.
///
/// # Safety
/// Once on each CPU, in ring 0, with the capabilities of this very CPU; the frame of `vmxon` is the processor's from
/// now on.
pub unsafe fn enable(capabilities: &Capabilities, mut vmxon: Region) -> Result<(), BackendError> {
    // SAFETY: a processor with VMX has the register; it is written only while it is not locked, and only with bits that
    // the same processor with VMX defines.
    unsafe {
        let value = cpu::read_msr(msr::FEATURE_CONTROL);
        if value & FEATURE_LOCK == 0 {
            cpu::write_msr(msr::FEATURE_CONTROL, value | FEATURE_VMX | FEATURE_LOCK);
        }
    }
    let Capabilities { cr0, cr4, .. } = capabilities;
    // SAFETY: only bits are changed that VMX operation fixes, and these change no translation: paging, protection and
    // the table format are on already, since this runs in 64-bit mode.
    unsafe {
        control::Cr0::write_raw((control::Cr0::read_raw() | cr0.must) & cr0.may);
        control::Cr4::write_raw((control::Cr4::read_raw() | cr4.must | Cr4::VMXE.bits()) & cr4.may);
    }
    vmxon.fill(0);
    vmxon.store(0, 4, capabilities.revision.into());
    // SAFETY: the conditions were made just above; the caller gave the frame for good.
    unsafe { instructions::vmxon(vmxon.hpa().as_u64()) }
}

/// The processor in VMX root operation, for the vCPU that owns this value.
#[derive(Debug)]
pub struct Hardware(ProcessorMsrs);

impl Hardware {
    /// The processor.
    ///
    /// # Safety
    /// [`enable`] has succeeded on each CPU on which the value is used, in ring 0 with interrupts off, and
    /// whoever holds it lets no guest run with host state or nested tables that break what the host relies on.
    #[must_use]
    pub const unsafe fn new() -> Self {
        // SAFETY: the vCPU uses it for the registers that `Capabilities::switched` has. The host itself uses none of them:
        // no SYSCALL, no SWAPGS, no RDTSCP; speculation control changes no result.
        Self(unsafe { ProcessorMsrs::new() })
    }
}

impl VmcsAccess for Hardware {
    #[inline]
    fn read(&self, encoding: u32) -> Result<u64, BackendError> {
        // SAFETY: a `Hardware` exists only in VMX root operation (`Hardware::new`).
        unsafe { instructions::vmread(encoding) }
    }

    #[inline]
    fn read_known(&self, encoding: u32) -> u64 {
        // SAFETY: as in `read`.
        unsafe { instructions::vmread_known(encoding) }
    }

    #[inline]
    fn write(&mut self, encoding: u32, value: u64) -> Result<(), BackendError> {
        // SAFETY: a `Hardware` exists only in VMX root operation, and its holder answers for the values (`new`).
        unsafe { instructions::vmwrite(encoding, value) }
    }
}

impl Processor for Hardware {
    fn number(&self) -> usize {
        cpu::number()
    }

    fn msrs(&mut self) -> &mut dyn Msrs {
        &mut self.0
    }

    fn clear(&mut self, vmcs: &Region) -> Result<(), BackendError> {
        // SAFETY: VMX root operation (`Hardware::new`); a `Region` is used by nothing else (`Region::new`).
        unsafe { instructions::vmclear(vmcs.hpa().as_u64()) }
    }

    fn load(&mut self, vmcs: &Region) -> Result<(), BackendError> {
        // SAFETY: as in `clear`; what its host state holds, the holder answers for.
        unsafe { instructions::vmptrld(vmcs.hpa().as_u64()) }
    }

    #[inline]
    fn enter(&mut self, frame: &mut Frame, launched: bool) -> Entered {
        // SAFETY: the holder has set the VMCS up so that an exit comes back to the stub with RSP at this frame, and so
        // that the guest reaches only its own memory (`Hardware::new`). The stub restores what the C ABI wants.
        match unsafe { bulkhead_vmx_enter(frame, launched.into()) } {
            0 => Entered::Exit,
            1 => Entered::FailInvalid,
            _ => Entered::FailValid,
        }
    }

    fn invalidate_nested(&mut self, ept_pointer: u64) -> Result<(), BackendError> {
        const SINGLE_CONTEXT: u64 = 1;
        // SAFETY: VMX root operation (`Hardware::new`).
        unsafe { instructions::invept(SINGLE_CONTEXT, [ept_pointer, 0]) }
    }

    fn invalidate_vpid(&mut self, vpid: u16, single: bool) -> Result<(), BackendError> {
        const SINGLE_CONTEXT: u64 = 1;
        const ALL_CONTEXTS: u64 = 2;
        let kind = if single { SINGLE_CONTEXT } else { ALL_CONTEXTS };
        // SAFETY: VMX root operation (`Hardware::new`).
        unsafe { instructions::invvpid(kind, [vpid.into(), 0]) }
    }

    fn host_state(&self) -> HostState {
        let (cr3, cr3_flags) = control::Cr3::read_raw();
        let gdt = sgdt();
        let tr = task_register();
        // SAFETY: these registers exist on every processor with 64-bit mode.
        let read = |index| unsafe { cpu::read_msr(index) };
        [
            (field::HOST_CR0.encoding(), control::Cr0::read_raw()),
            (field::HOST_CR3.encoding(), cr3.start_address().as_u64() | u64::from(cr3_flags)),
            (field::HOST_CR4.encoding(), control::Cr4::read_raw()),
            (field::HOST_EFER.encoding(), read(msr::EFER)),
            (field::HOST_PAT.encoding(), read(msr::PAT)),
            (field::HOST_ES_SELECTOR.encoding(), ES::get_reg().0.into()),
            (field::HOST_CS_SELECTOR.encoding(), CS::get_reg().0.into()),
            (field::HOST_SS_SELECTOR.encoding(), SS::get_reg().0.into()),
            (field::HOST_DS_SELECTOR.encoding(), DS::get_reg().0.into()),
            (field::HOST_FS_SELECTOR.encoding(), FS::get_reg().0.into()),
            (field::HOST_GS_SELECTOR.encoding(), GS::get_reg().0.into()),
            (field::HOST_TR_SELECTOR.encoding(), tr.into()),
            (field::HOST_FS_BASE.encoding(), read(msr::FS_BASE)),
            (field::HOST_GS_BASE.encoding(), read(msr::GS_BASE)),
            (field::HOST_TR_BASE.encoding(), tss_base(gdt.base.as_u64(), gdt.limit, tr)),
            (field::HOST_GDTR_BASE.encoding(), gdt.base.as_u64()),
            (field::HOST_IDTR_BASE.encoding(), sidt().base.as_u64()),
            (field::HOST_SYSENTER_CS.encoding(), read(msr::SYSENTER_CS)),
            (field::HOST_SYSENTER_ESP.encoding(), read(msr::SYSENTER_ESP)),
            (field::HOST_SYSENTER_EIP.encoding(), read(msr::SYSENTER_EIP)),
            (field::HOST_RIP.encoding(), exit_address()),
        ]
    }

    fn cr2(&self) -> u64 {
        control::Cr2::read_raw()
    }

    fn set_cr2(&mut self, value: u64) {
        // SAFETY: CR2 only records the address of a page fault; a page fault of the host ends it.
        unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
    }

    fn dr6(&self) -> u64 {
        Dr6::read_raw()
    }

    fn set_dr6(&mut self, value: u64) {
        // Bits 63:32 would fault.
        // SAFETY: DR6 only records which breakpoint was met; the host has none set (an exit makes DR7 400H).
        unsafe { asm!("mov dr6, {}", in(reg) value & 0xFFFF_FFFF, options(nomem, nostack, preserves_flags)) };
    }

    fn deliver_nmi(&mut self) {
        // SAFETY: vector 2 of the host's interrupt table is its NMI handler, with a stack of its own, which comes back
        // with all registers as they were. Its IRET is what allows the next NMI: an exit by an NMI leaves them blocked.
        unsafe { asm!("int 2") };
    }
}

/// The selector in TR.
fn task_register() -> u16 {
    let selector: u16;
    // SAFETY: STR only reads the register.
    unsafe { asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}

/// The base of the task-state segment `selector` in the table at `gdt`; 0 if it is not inside.
fn tss_base(gdt: u64, limit: u16, selector: u16) -> u64 {
    let offset = selector & !7;
    if offset == 0 || u32::from(offset) + 15 > u32::from(limit) {
        return 0;
    }
    let Ok(address) = usize::try_from(gdt.wrapping_add(offset.into())) else { return 0 };
    let place = core::ptr::with_exposed_provenance::<[u64; 2]>(address);
    // SAFETY: GDTR says that the table is there for `limit` + 1 bytes, the processor uses it as it is now, and the
    // descriptor was found to lie inside; it may not be aligned.
    let [low, high] = unsafe { place.read_unaligned() };
    descriptor_base(low, high)
}
