//! One virtual processor under VT-x.
//!
//! It lives in its guest's compartment. Between exits its registers rest in the VMCS and in the frame of the entry stub;
//! what neither holds (a few MSRs, CR2, DR6) stays in the processor while the vCPU is active, and here otherwise.

use crate::capabilities::Capabilities;
use crate::controls::{Primary, Secondary};
use crate::exit::{self, reason};
use crate::explain;
use crate::fields::{self as field, Fields};
use crate::hardware::Hardware;
use crate::host;
use crate::lent::Lent;
use crate::setup::{self, Addresses};
use crate::state;
use crate::switched;
use crate::vmcs::{Entered, Processor};
use bulkhead_arch::{Cr0, Gpr, Rflags, Segment, SegmentName, Vector};
use bulkhead_core::{BackendError, Event, Exit, Interruptibility, Register, Requests, Vcpu, Windows, injection, reset};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Switched;
use bulkhead_types::Hpa;
use core::fmt;

/// Exit reasons (modulo 64) after which something may have to be put right.
const SETTLED: u64 = 1 << reason::EXCEPTION_OR_NMI | 1 << reason::EPT_VIOLATION | 1 << reason::APIC_WRITE;

/// What a vCPU is made of; all of it its guest's.
#[derive(Debug)]
pub struct Resources {
    /// The VMCS.
    pub vmcs: Region,
    /// The MSR bitmap.
    pub msr_bitmap: Region,
    /// The virtual-APIC page.
    pub virtual_apic: Region,
    /// The I/O bitmaps.
    pub io_bitmaps: [Region; 2],
    /// The top table of the guest's EPT, four levels.
    pub nested_root: Hpa,
    /// Tag of its linear translations, not 0, of no other vCPU on this CPU.
    pub vpid: u16,
}

/// One virtual processor.
#[derive(Debug)]
pub struct VmxVcpu<P: Processor = Hardware> {
    frame: Frame,
    processor: P,
    capabilities: Capabilities,
    vmcs: Region,
    msr_bitmap: Region,
    /// Where the processor can, its local APIC.
    lent: Option<Lent>,
    /// Not used here again, but the processor's as long as the VMCS is.
    _io_bitmaps: [Region; 2],
    ept_pointer: u64,
    vpid: u16,
    /// The processor that its host state is of.
    number: usize,
    switched: Switched<{ switched::COUNT }>,
    cr2: u64,
    dr6: u64,
    launched: bool,
    /// As the VMCS has it; 0 before the first entry and after a failure.
    host_rsp: u64,
    /// As the VMCS has them.
    primary: u32,
    /// Ticks that the timer counts as one.
    timer_unit: u64,
    interrupted: Option<Event>,
    /// Why it can not run any more.
    failed: Option<BackendError>,
}

impl VmxVcpu {
    /// A vCPU in its state after reset. Its VMCS is the current one then: whichever vCPU was active has to be activated
    /// again. Exits will lead back to the address space, tables and segments that are current now.
    ///
    /// # Errors
    /// If the processor refuses.
    ///
    /// # Safety
    /// [`crate::enable`] has succeeded with these capabilities on each CPU on which the vCPU is activated. Interrupts are off
    /// at each [`Vcpu::run`]. The host's tables that are current now (CR3, GDT, IDT, TSS) stay as long as the vCPU, map
    /// the vCPU itself wherever it is run, and give NMI, #DF and #MC stacks of their own. `nested_root` maps only what
    /// the guest may touch.
    pub unsafe fn new(capabilities: Capabilities, resources: Resources) -> Result<Self, BackendError> {
        // SAFETY: VMX is on wherever the vCPU is active, says the caller; it also vouches for the host's tables and the
        // nested root, and this type writes no other host state.
        Self::with_processor(unsafe { Hardware::new() }, capabilities, resources)
    }
}

impl<P: Processor> VmxVcpu<P> {
    /// As [`VmxVcpu::new`], on any processor.
    ///
    /// # Errors
    /// If the processor refuses; [`BackendError::Field`] if the VPID is 0.
    pub fn with_processor(
        mut processor: P,
        capabilities: Capabilities,
        resources: Resources,
    ) -> Result<Self, BackendError> {
        let Resources { mut vmcs, mut msr_bitmap, virtual_apic, mut io_bitmaps, nested_root, vpid } = resources;
        if vpid == 0 {
            return Err(BackendError::Field { field: field::VPID.encoding(), code: 0 });
        }
        msr_bitmap.fill(0xFF);
        for bitmap in &mut io_bitmaps {
            bitmap.fill(0xFF);
        }
        vmcs.fill(0);
        vmcs.store(0, 4, capabilities.revision.into());
        let ept_pointer = setup::ept_pointer(nested_root, capabilities.ept_accessed_dirty());
        let addresses = Addresses {
            msr_bitmap: msr_bitmap.hpa(),
            virtual_apic: virtual_apic.hpa(),
            io_bitmaps: [io_bitmaps[0].hpa(), io_bitmaps[1].hpa()],
            ept_pointer,
            vpid,
        };
        processor.clear(&vmcs)?;
        processor.load(&vmcs)?;
        setup::write_controls(&mut processor, &capabilities, &addresses)?;
        setup::write_guest(&mut processor, &capabilities)?;
        let number = processor.number();
        let host = processor.host_state();
        host::write(&mut processor, &host)?;
        exit::KNOWN.iter().try_for_each(|&encoding| processor.read(encoding).map(drop))?;
        // Whoever had this tag or these tables before has left nothing behind.
        processor.invalidate_nested(ept_pointer)?;
        processor.invalidate_vpid(vpid, capabilities.invvpid_single())?;
        Ok(Self {
            frame: Frame::ZERO,
            processor,
            capabilities,
            vmcs,
            msr_bitmap,
            lent: capabilities.delivers_interrupts().then(|| Lent::new(virtual_apic)),
            _io_bitmaps: io_bitmaps,
            ept_pointer,
            vpid,
            number,
            switched: Switched::new(switched::SWITCHED, capabilities.switched),
            cr2: 0,
            dr6: reset::DR6,
            launched: false,
            host_rsp: 0,
            primary: setup::primary_controls(&capabilities),
            timer_unit: 1_u64.wrapping_shl(capabilities.timer_shift),
            interrupted: None,
            failed: None,
        })
    }

    /// The processor, for tests.
    #[cfg(any(test, feature = "fake"))]
    pub const fn processor(&mut self) -> &mut P {
        &mut self.processor
    }

    /// Runs it for the first time, the first time after it was moved, or when it has failed.
    #[cold]
    #[inline(never)]
    fn run_prepared(&mut self) -> Result<Exit, BackendError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let rsp = self.frame.host_rsp();
        self.processor.set(field::HOST_RSP, rsp)?;
        self.host_rsp = rsp;
        self.run()
    }

    /// Ends the vCPU: it does not run again.
    #[cold]
    #[inline(never)]
    fn fail(&mut self, error: BackendError) -> Result<Exit, BackendError> {
        self.failed = Some(error);
        self.host_rsp = 0;
        Err(error)
    }

    /// After an entry that was refused with VMfail.
    #[cold]
    #[inline(never)]
    fn refused(&mut self, how: Entered) -> Result<Exit, BackendError> {
        let number = match how {
            Entered::FailValid => self.processor.get(field::INSTRUCTION_ERROR).unwrap_or(0),
            _ => 0,
        };
        self.fail(BackendError::Entry { code: number.into() })
    }

    /// Records the event whose delivery was interrupted.
    #[cold]
    #[inline(never)]
    fn record_interrupted(&mut self, info: u32) -> Result<(), BackendError> {
        let error = self.processor.get(field::IDT_ERROR_CODE)?;
        let length = self.processor.get(field::EXIT_INSTRUCTION_LENGTH)?;
        self.interrupted = injection::decode(info, error, length);
        if self.interrupted == Some(Event::Nmi) {
            // It has not been handled yet; as long as it seems so it could not be injected. SDM vol. 3C 32.7.1.2
            // "Resuming Guest Software after Handling an Exception".
            let bits = self.processor.get(field::INTERRUPTIBILITY)?;
            self.processor.set(field::INTERRUPTIBILITY, bits & !state::BY_NMI)?;
        }
        Ok(())
    }

    /// Goes on after an entry that failed, the interruption of an event's delivery, an exception or a nested fault: puts
    /// right what they leave behind, and decodes the exit.
    #[inline(never)]
    fn settle(&mut self, reason: u32, vectoring: u32) -> Result<Exit, BackendError> {
        if reason & reason::ENTRY_FAILED != 0 {
            return self.fail(BackendError::Entry { code: reason.into() });
        }
        if vectoring & injection::VALID != 0 {
            self.record_interrupted(vectoring)?;
        }
        match reason & 0xFFFF {
            reason::EXCEPTION_OR_NMI => self.settle_exception(vectoring)?,
            reason::EPT_VIOLATION
                if self.processor.known(field::EXIT_QUALIFICATION) & exit::NESTED_NMI_UNBLOCKED != 0 =>
            {
                self.block_nmis_again(vectoring)?;
            }
            // The offset in the page. SDM vol. 3C 30.4.3.3 "APIC-Write VM Exits".
            reason::APIC_WRITE => {
                let [register, ..] = (self.processor.get(field::EXIT_QUALIFICATION)? >> 4).to_le_bytes();
                let value = self.lent.as_ref().map_or(0, |lent| lent.written(register));
                return Ok(Exit::RegisterWritten { register, value });
            }
            _ => {}
        }
        exit::decode(&self.processor, reason, self.capabilities.string_info)
    }

    /// The controls of a local APIC that is lent, or is not.
    fn write_lending(&mut self, lent: Secondary) -> Result<(), BackendError> {
        let secondary = setup::secondary_controls(&self.capabilities) | lent.bits();
        self.processor.set(field::SECONDARY_CONTROLS, secondary)?;
        self.processor.set(field::PRIMARY_CONTROLS, self.primary)
    }

    #[inline(never)]
    fn settle_exception(&mut self, vectoring: u32) -> Result<(), BackendError> {
        let info = self.processor.get(field::EXIT_INTERRUPTION)?;
        let vector = Vector(u8::try_from(info & 0xFF).unwrap_or(0));
        if info & injection::TYPE == injection::NMI {
            self.processor.deliver_nmi();
            return Ok(());
        }
        if info & exit::NMI_UNBLOCKED != 0 && vector != Vector::DF {
            self.block_nmis_again(vectoring)?;
        }
        if vector == Vector::DB {
            self.settle_debug(info & injection::TYPE)?;
        }
        Ok(())
    }

    /// IRET had ended the blocking of NMIs when it faulted; it will run again. SDM vol. 3C 28.2.3 "Information About NMI
    /// Unblocking Due to IRET".
    #[cold]
    #[inline(never)]
    fn block_nmis_again(&mut self, vectoring: u32) -> Result<(), BackendError> {
        if vectoring & injection::VALID != 0 {
            return Ok(());
        }
        let bits = self.processor.get(field::INTERRUPTIBILITY)?;
        self.processor.set(field::INTERRUPTIBILITY, bits | state::BY_NMI)
    }

    /// INT1 exits before it is done: go past it, so that its exception is a trap. And single-stepping in a shadow must
    /// have its trap pending, or the entry is refused. SDM vol. 3C 27.3.1.5 "Checks on Guest Non-Register State".
    #[cold]
    fn settle_debug(&mut self, kind: u32) -> Result<(), BackendError> {
        if kind == injection::PRIVILEGED_EXCEPTION {
            return state::skip_instruction(&mut self.processor);
        }
        let shadow = self.processor.get(field::INTERRUPTIBILITY)? & (state::BY_STI | state::BY_MOV_SS) != 0;
        if shadow && self.processor.get(field::GUEST_RFLAGS)? & Rflags::TF.bits() != 0 {
            state::make_step_pending(&mut self.processor)?;
        }
        Ok(())
    }

    /// Makes exits lead back to this processor, and forgets what it remembers of an earlier stay.
    #[cold]
    fn arrive(&mut self, number: usize) -> Result<(), BackendError> {
        let host = self.processor.host_state();
        host::write(&mut self.processor, &host)?;
        self.processor.invalidate_nested(self.ept_pointer)?;
        self.flush_linear()?;
        self.number = number;
        Ok(())
    }

    /// Forgets this vCPU's linear translations: an emulated write to a control register does what the real one does.
    fn flush_linear(&mut self) -> Result<(), BackendError> {
        self.processor.invalidate_vpid(self.vpid, self.capabilities.invvpid_single())
    }
}

impl<P: Processor> Vcpu for VmxVcpu<P> {
    fn activate(&mut self) -> Result<(), BackendError> {
        self.processor.load(&self.vmcs)?;
        let number = self.processor.number();
        if self.number != number {
            self.arrive(number)?;
        }
        if self.switched.load(self.processor.msrs()) {
            self.processor.set_cr2(self.cr2);
            self.processor.set_dr6(self.dr6);
        }
        Ok(())
    }

    fn deactivate(&mut self) -> Result<(), BackendError> {
        if self.switched.save(self.processor.msrs()) {
            self.cr2 = self.processor.cr2();
            self.dr6 = self.processor.dr6();
        }
        // It may go on elsewhere, and what this processor has not written back would be missing there. SDM vol. 3C 25.11.1
        // "Software Use of Virtual-Machine Control Structures".
        self.launched = false;
        self.processor.clear(&self.vmcs)
    }

    #[inline(always)]
    fn run(&mut self) -> Result<Exit, BackendError> {
        if self.frame.host_rsp() != self.host_rsp {
            return self.run_prepared();
        }
        match self.processor.enter(&mut self.frame, self.launched) {
            Entered::Exit => self.launched = true,
            how => return self.refused(how),
        }
        let reason = self.processor.known(field::EXIT_REASON);
        let vectoring = self.processor.known(field::IDT_VECTORING);
        self.interrupted = None;
        // Most exits need nothing more: two tests for all that is rare.
        if (reason | vectoring) >> 31 != 0 || SETTLED.wrapping_shr(reason) & 1 != 0 {
            return self.settle(reason, vectoring);
        }
        exit::decode(&self.processor, reason, self.capabilities.string_info)
    }

    #[inline]
    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        match self.frame.get(gpr) {
            Some(value) => Ok(value),
            None => self.processor.get(field::GUEST_RSP),
        }
    }

    #[inline]
    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), BackendError> {
        match self.frame.get_mut(gpr) {
            Some(place) => {
                *place = value;
                Ok(())
            }
            None => self.processor.set(field::GUEST_RSP, value),
        }
    }

    // Nearly always of one register by name: a few instructions then.
    #[inline(always)]
    fn read(&self, register: Register) -> Result<u64, BackendError> {
        match register {
            Register::Cr2 => Ok(if self.switched.is_loaded() { self.processor.cr2() } else { self.cr2 }),
            Register::Dr6 => Ok(if self.switched.is_loaded() { self.processor.dr6() } else { self.dr6 }),
            _ => Ok(state::read(&self.processor, &self.capabilities, register)),
        }
    }

    fn write(&mut self, register: Register, value: u64) -> Result<(), BackendError> {
        match register {
            Register::Cr2 if self.switched.is_loaded() => self.processor.set_cr2(value),
            Register::Cr2 => self.cr2 = value,
            Register::Dr6 if self.switched.is_loaded() => self.processor.set_dr6(value),
            Register::Dr6 => self.dr6 = value,
            Register::Cr0 | Register::Cr3 | Register::Cr4 => {
                state::write(&mut self.processor, &self.capabilities, register, value)?;
                self.flush_linear()?;
            }
            _ => state::write(&mut self.processor, &self.capabilities, register, value)?,
        }
        Ok(())
    }

    #[inline]
    fn segment(&self, name: SegmentName) -> Result<Segment, BackendError> {
        Ok(state::segment(&self.processor, name))
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) -> Result<(), BackendError> {
        state::set_segment(&mut self.processor, name, value)
    }

    #[inline]
    fn privilege(&self) -> Result<u8, BackendError> {
        // SS.DPL is the privilege level, in all modes. SDM vol. 3C 25.4.1 "Guest Register State".
        let [low, ..] = self.processor.known(field::GUEST_SS_ATTRIBUTES).to_le_bytes();
        Ok(low >> 5 & 3)
    }

    fn skip_instruction(&mut self) -> Result<(), BackendError> {
        state::skip_instruction(&mut self.processor)
    }

    fn skip_bytes(&mut self, length: u8) -> Result<(), BackendError> {
        state::skip_bytes(&mut self.processor, length.into())
    }

    fn inject(&mut self, event: Event) -> Result<(), BackendError> {
        let protected = self.processor.get(field::GUEST_CR0)? & Cr0::PE.bits() != 0;
        let injection = injection::encode(event, protected);
        if let Some(error) = injection.error {
            self.processor.set(field::ENTRY_ERROR_CODE, error)?;
        }
        if let Some(length) = injection.length {
            self.processor.set(field::ENTRY_INSTRUCTION_LENGTH, length)?;
        }
        self.processor.set(field::ENTRY_INTERRUPTION, injection.info)
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take()
    }

    #[inline]
    fn interruptibility(&self) -> Result<Interruptibility, BackendError> {
        Ok(state::interruptibility(&self.processor))
    }

    fn set_interruptibility(&mut self, value: Interruptibility) -> Result<(), BackendError> {
        state::set_interruptibility(&mut self.processor, value)
    }

    #[inline]
    fn request_windows(&mut self, windows: Windows) -> Result<(), BackendError> {
        let mut primary = self.primary & !Primary::WINDOWS.bits();
        if windows.interrupt {
            primary |= Primary::INTERRUPT_WINDOW.bits();
        }
        if windows.nmi {
            primary |= Primary::NMI_WINDOW.bits();
        }
        if primary != self.primary {
            self.processor.set(field::PRIMARY_CONTROLS, primary)?;
            self.primary = primary;
        }
        Ok(())
    }

    fn delivers_interrupts(&self) -> bool {
        self.lent.is_some()
    }

    fn lend(&mut self, register: &dyn Fn(u8) -> u32) -> Result<(), BackendError> {
        let Some(lent) = &mut self.lent else { return Ok(()) };
        lent.begin(&mut self.processor, &mut self.msr_bitmap, register)?;
        self.primary = self.primary & !Primary::CR8_EXITING.bits() | Primary::TPR_SHADOW.bits();
        self.write_lending(Secondary::LENT)
    }

    fn take_back(&mut self) -> Result<(), BackendError> {
        let ended = self.lent.as_mut().is_some_and(|lent| lent.end(&mut self.msr_bitmap));
        if !ended {
            return Ok(());
        }
        self.primary = self.primary & !Primary::TPR_SHADOW.bits() | Primary::CR8_EXITING.bits();
        self.write_lending(Secondary::empty())
    }

    fn request(&mut self, requests: &Requests) -> Result<(), BackendError> {
        let Some(lent) = &mut self.lent else { return Ok(()) };
        lent.request(&mut self.processor, &mut self.msr_bitmap, requests)
    }

    fn has_interrupt(&self) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.has_interrupt(&self.processor))
    }

    fn flush_nested(&mut self) {
        if let Err(error) = self.processor.invalidate_nested(self.ept_pointer) {
            // The guest could go on using what was taken from it: it must not go on.
            let _ = self.fail(error);
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), BackendError> {
        self.processor.set(field::TSC_OFFSET, offset)
    }

    #[inline]
    fn set_timer(&mut self, ticks: u64) -> Result<(), BackendError> {
        // The timer counts bit `timer_shift` of the counter, which changes within the first unit: one unit more is never
        // too early. What is far off fires too early, and does no harm.
        const LONGEST: u64 = u32::MAX as u64 / 2;
        let units = (ticks.min(LONGEST) + self.timer_unit).wrapping_shr(self.capabilities.timer_shift);
        self.processor.write(field::TIMER_VALUE.encoding(), units)
    }

    fn allow_msr(&mut self, index: u32, write: bool) {
        let allowable = switched::allowable(index, &self.switched);
        let Some((read_byte, write_byte, bit)) = switched::bitmap_place(index) else { return };
        if allowable.read {
            self.msr_bitmap.clear_bit(read_byte, bit);
        }
        if write && allowable.write {
            self.msr_bitmap.clear_bit(write_byte, bit);
        }
    }

    fn explain_entry_failure(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        explain::write(&self.processor, &self.capabilities, self.failed, out)
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for (index, &number) in field::ALL.iter().enumerate() {
            if let Ok(value) = self.processor.read(number) {
                let end = if index % 6 == 5 { '\n' } else { ' ' };
                write!(out, "{}={value:x}{end}", field::name(number))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
