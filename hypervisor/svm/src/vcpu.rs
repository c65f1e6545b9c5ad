//! One virtual processor under SVM.
//!
//! It lives in its guest's compartment. Between exits its registers rest in the VMCB and in the frame of the entry stub;
//! two MSRs stay in the processor while the vCPU is active. The end of a turn is an interrupt of the host's own timer.
//!
//! APM vol. 2 15.21 "Interrupt and Local APIC Support", 15.16 "TLB Control", 15.7.1 "State Saved on Exit".

use crate::capabilities::Capabilities;
use crate::exit;
use crate::fields as field;
use crate::hardware::Hardware;
use crate::setup::{self, Addresses};
use crate::step::{Outcome, SINGLE_STEP, Step};
use crate::vmcb::{Processor, Vmcb};
use crate::{explain, inject, state, switched};
use bulkhead_arch::{Cr0, Gpr, Rflags, Segment, SegmentName, Vector};
use bulkhead_core::{BackendError, Event, Exit, Interruptibility, Register, Vcpu, Windows, paging_state};
use bulkhead_emulate::Named;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Switched;
use bulkhead_types::{Gpa, GuestMemory, Hpa, PAGE_SIZE};
use core::fmt;

/// INTERRUPT_CONTROL: a virtual interrupt is pending, of the highest priority, whatever CR8 holds.
const WINDOW_REQUEST: u64 = 1 << 8 | 0xF << 16 | 1 << 20;
/// Ticks after which the end of a shadow is looked for: a shadow is one instruction long.
const SHADOW_TICKS: u64 = 2000;

/// What a vCPU is made of; all of it its guest's.
#[derive(Debug)]
pub struct Resources<M> {
    /// The VMCB.
    pub vmcb: Region,
    /// Where the host's own state is while the guest runs.
    pub host: Region,
    /// The MSR permission map: two frames in a row.
    pub msr_map: [Region; 2],
    /// The I/O permission map: three frames in a row.
    pub io_map: [Region; 3],
    /// The top table of the guest's nested tables, four levels.
    pub nested_root: Hpa,
    /// Tag of its translations, not 0, of no other vCPU. Where the processor has not so many tags, the rest share the last.
    pub asid: u16,
    /// The guest's memory, for the instructions that the processor does not measure.
    pub memory: M,
}

/// One virtual processor.
#[derive(Debug)]
pub struct SvmVcpu<M, P: Processor = Hardware> {
    frame: Frame,
    processor: P,
    capabilities: Capabilities,
    vmcb: Vmcb,
    host: Region,
    msr_map: [Region; 2],
    /// Not used here again, but the processor's as long as the VMCB is.
    _io_map: [Region; 3],
    memory: M,
    /// The processor that its host state is of.
    number: usize,
    /// Others have its tag too.
    tag_shared: bool,
    switched: Switched<{ switched::COUNT }>,
    /// Where the instruction of the last exit ends, if that is known.
    next_rip: Option<u64>,
    interrupted: Option<Event>,
    windows: Windows,
    /// An NMI is being handled.
    in_nmi: bool,
    /// The next instruction is the IRET that ends an NMI's handling.
    at_iret: bool,
    /// This entry steps over it.
    step: Option<Step>,
    /// The single step of an instruction that was gone past is due.
    step_due: bool,
    /// This entry was made to end behind the delivery of an interrupt.
    ends_at_once: bool,
    /// When the turn ends.
    deadline: u64,
    /// Why it can not run any more.
    failed: Option<BackendError>,
}

impl<M: GuestMemory> SvmVcpu<M> {
    /// A vCPU in its state after reset.
    ///
    /// # Errors
    /// If the permission maps are not in a row.
    ///
    /// # Safety
    /// [`crate::enable`] was called on each CPU on which the vCPU is activated, and these are its capabilities. Interrupts are off
    /// at each [`Vcpu::run`]; taking them is harmless then. `nested_root` maps only what the guest may touch.
    pub unsafe fn new(capabilities: Capabilities, resources: Resources<M>) -> Result<Self, BackendError> {
        // SAFETY: as the caller vouches.
        Self::with_processor(unsafe { Hardware::new() }, capabilities, resources)
    }
}

impl<M: GuestMemory, P: Processor> SvmVcpu<M, P> {
    /// As [`SvmVcpu::new`], on any processor.
    ///
    /// # Errors
    /// [`BackendError::Field`] if a permission map is not in a row, or the tag is not one.
    pub fn with_processor(
        processor: P,
        capabilities: Capabilities,
        resources: Resources<M>,
    ) -> Result<Self, BackendError> {
        let Resources { vmcb, host, mut msr_map, mut io_map, nested_root, asid, memory } = resources;
        let row = |map: &[Region]| {
            map.is_sorted_by(|first, second| first.hpa().wrapping_add(PAGE_SIZE).as_u64() == second.hpa().as_u64())
        };
        for (good, code) in
            [(row(&msr_map), field::MSRPM_BASE), (row(&io_map), field::IOPM_BASE), (asid != 0, field::ASID)]
        {
            if !good {
                return Err(BackendError::Field { field: u32::try_from(code.offset).unwrap_or(0), code: 0 });
            }
        }
        msr_map.iter_mut().chain(&mut io_map).for_each(|page| page.fill(0xFF));
        let mut vmcb = Vmcb::new(vmcb);
        let [msr_first, _] = &msr_map;
        let [io_first, ..] = &io_map;
        let last = u16::try_from(capabilities.asids.saturating_sub(1)).unwrap_or(u16::MAX);
        let (tag_shared, asid) = (asid >= last, asid.min(last));
        let addresses = Addresses { msr_map: msr_first.hpa(), io_map: io_first.hpa(), nested_root, asid };
        setup::write_controls(&mut vmcb, &addresses);
        setup::write_guest(&mut vmcb);
        let mut this = Self {
            frame: Frame::ZERO,
            number: processor.number(),
            tag_shared,
            processor,
            capabilities,
            vmcb,
            host,
            msr_map,
            _io_map: io_map,
            memory,
            switched: Switched::new(switched::SWITCHED, capabilities.switched),
            next_rip: None,
            interrupted: None,
            windows: Windows::default(),
            in_nmi: false,
            at_iret: false,
            step: None,
            step_due: false,
            ends_at_once: false,
            deadline: u64::MAX,
            failed: None,
        };
        // Whoever had this tag or these tables before has left nothing behind.
        this.flush();
        Ok(this)
    }

    /// The processor, for tests.
    #[cfg(any(test, feature = "fake"))]
    pub const fn processor(&mut self) -> &mut P {
        &mut self.processor
    }

    /// Makes the next entry forget the guest's translations.
    fn flush(&mut self) {
        const ALL: u64 = 1;
        const THIS_ASID: u64 = 3;
        self.vmcb.set(field::TLB_CONTROL, if self.capabilities.flush_by_asid { THIS_ASID } else { ALL });
    }

    /// Enters the guest once; `None` if nobody needs to know of the exit.
    #[inline]
    fn enter(&mut self) -> Result<Option<Exit>, BackendError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.prepare();
        self.processor.enter(&mut self.frame, &mut self.vmcb, &self.host);
        let code = self.vmcb.get(field::EXIT_CODE);
        if code == exit::INVALID {
            let error = BackendError::Entry { code };
            self.failed = Some(error);
            return Err(error);
        }
        self.vmcb.set(field::TLB_CONTROL, 0);
        self.vmcb.set(field::EVENT_INJECTION, 0);
        self.interrupted = inject::decode(self.vmcb.get(field::EXIT_EVENT));
        if self.interrupted == Some(Event::Nmi) {
            // It has not been handled yet; as long as it seems so it could not be injected.
            self.set_in_nmi(false);
        }
        let info = [self.vmcb.get(field::EXIT_INFO_1), self.vmcb.get(field::EXIT_INFO_2)];
        self.next_rip = match code {
            exit::IO => Some(info[1]),
            _ if self.capabilities.next_rip => Some(self.vmcb.get(field::NEXT_RIP)).filter(|&rip| rip != 0),
            _ => None,
        };
        if let Some(step) = self.step.take()
            && let Some(exit) = self.end_step(step)
        {
            return Ok(Some(exit));
        }
        Ok(Some(match code {
            exit::INTERRUPT => return Ok(self.interrupted_by_host()),
            exit::READ_CR4 | exit::READ_CR8 | exit::WRITE_CR0..=exit::WRITE_CR8 => {
                self.control_register(code, info[0])?
            }
            exit::IRET => {
                self.at_iret = true;
                return Ok(None);
            }
            exit::DEBUG => self.debug(),
            _ => exit::decode(code, info),
        }))
    }

    /// Sets what the next entry needs beside the guest's registers.
    fn prepare(&mut self) {
        let deadline = if self.nmi_waits() { self.processor.tsc().saturating_add(SHADOW_TICKS) } else { self.deadline };
        self.processor.interrupt_by(deadline.min(self.deadline));
        if self.vmcb.get(field::EVENT_INJECTION) & inject::VALID == 0 {
            if core::mem::take(&mut self.step_due) {
                let status = self.vmcb.get(field::DR6);
                self.vmcb.set(field::DR6, status | SINGLE_STEP);
                // An injection leaves general detect as it is, which #DB switches off.
                let control = self.vmcb.get(field::DR7);
                self.vmcb.set(field::DR7, control & !(1 << 13));
                self.vmcb.set(field::EVENT_INJECTION, inject::encode(Event::exception(Vector::DB), true));
            } else if self.at_iret {
                self.intercept(setup::IRET, false);
                self.step = Some(Step::begin(&mut self.vmcb));
            }
        }
        self.at_iret = false;
        if self.capabilities.repeats_interrupts && inject::is_interrupt(self.vmcb.get(field::EVENT_INJECTION)) {
            // The exit comes behind the delivery, before the handler's first instruction.
            self.processor.interrupt_self();
            self.ends_at_once = true;
        }
        if self.windows.interrupt {
            self.vmcb.set(field::INTERRUPT_CONTROL, setup::INTERRUPTS_MASKED | WINDOW_REQUEST);
        }
        self.vmcb.declare_clean(self.capabilities.clean_bits);
    }

    fn in_shadow(&self) -> bool {
        self.vmcb.get(field::INTERRUPT_STATE) & state::SHADOW != 0
    }

    /// An NMI waits for nothing but the end of a shadow, for which there is no window.
    fn nmi_waits(&self) -> bool {
        self.windows.nmi && !self.in_nmi && self.in_shadow()
    }

    /// Sets or clears one bit of the intercepts.
    fn intercept(&mut self, bit: u64, on: bool) {
        let bits = self.vmcb.get(field::INTERCEPT_MISC);
        self.vmcb.set(field::INTERCEPT_MISC, if on { bits | bit } else { bits & !bit });
    }

    fn set_in_nmi(&mut self, on: bool) {
        self.in_nmi = on;
        self.intercept(setup::IRET, on);
    }

    /// Ends the step over IRET; the exit, if that is all of it.
    #[cold]
    fn end_step(&mut self, step: Step) -> Option<Exit> {
        let outcome = step.end(&mut self.vmcb);
        self.set_in_nmi(outcome == Outcome::Not);
        match outcome {
            Outcome::Done => Some(Exit::NmiWindow),
            Outcome::Debug => Some(self.debug()),
            Outcome::Not => {
                if self.vmcb.get(field::EXIT_CODE) == exit::PAGE_FAULT {
                    let address = self.vmcb.get(field::EXIT_INFO_2);
                    self.vmcb.set(field::CR2, address);
                }
                None
            }
        }
    }

    /// #DB of the guest's. The processor has written DR6. Policy clears B0 to B3 before it adds what is told here: those,
    /// general detect, single step, task switch.
    #[cold]
    fn debug(&self) -> Exit {
        exit::decode(exit::DEBUG, [self.vmcb.get(field::DR6) & 0xE00F, 0])
    }

    /// An interrupt of the host's: it takes it now, or it would end every entry at once.
    fn interrupted_by_host(&mut self) -> Option<Exit> {
        let kicked = self.processor.take_interrupts();
        let meant = core::mem::take(&mut self.ends_at_once) && !kicked && self.interrupted.is_none();
        if self.processor.tsc() >= self.deadline {
            Some(Exit::Timer)
        } else if self.windows.nmi && !self.in_nmi && !self.in_shadow() {
            Some(Exit::NmiWindow)
        } else {
            (!meant).then_some(Exit::Host)
        }
    }

    /// A control register, or the machine status word.
    #[inline(never)]
    fn control_register(&mut self, code: u64, info: u64) -> Result<Exit, BackendError> {
        const IS_MOV: u64 = 1 << 63;
        let number = u8::try_from(code & 0xF).unwrap_or(0);
        let operand = if self.capabilities.decode_assists && info & IS_MOV != 0 {
            Some(Named::General(Gpr::from_number(u8::try_from(info & 0xF).unwrap_or(0))))
        } else {
            self.decode()
        };
        Ok(match operand {
            Some(Named::General(to)) if code < exit::WRITE_CR0 => Exit::ReadCr { number, to },
            Some(Named::General(from)) => Exit::WriteCr { number, from },
            Some(Named::ClearTaskSwitched) => {
                let [low, high, ..] = (self.vmcb.get(field::CR0) & !Cr0::TS.bits()).to_le_bytes();
                Exit::Lmsw { value: Some(u16::from_le_bytes([low, high])) }
            }
            Some(Named::MachineStatus) => Exit::Lmsw { value: None },
            _ => Exit::Unexpected { reason: code, info },
        })
    }

    /// Decodes the instruction at RIP, and notes where it ends.
    fn decode(&mut self) -> Option<Named> {
        let state = paging_state(self, 52).ok()?;
        let code = state::segment(&self.vmcb, SegmentName::Cs);
        let rip = self.vmcb.get(field::RIP);
        let decoded = bulkhead_emulate::decode(&mut self.memory, &state, &code, rip)?;
        self.next_rip = Some(rip.wrapping_add(decoded.length.into()));
        Some(decoded.operand)
    }

    /// A page-directory-pointer entry.
    fn pdpte(&self, index: u64) -> u64 {
        let table = Gpa::new(self.vmcb.get(field::CR3) & 0xFFFF_FFE0);
        self.memory.read_u64(table.wrapping_add(8 * index)).unwrap_or(0)
    }

    /// Goes on at `rip`.
    fn go_on(&mut self, rip: u64) {
        let rip = if state::in_64_bit_code(&self.vmcb) { rip } else { rip & 0xFFFF_FFFF };
        self.vmcb.set(field::RIP, rip);
        let bits = self.vmcb.get(field::INTERRUPT_STATE);
        self.vmcb.set(field::INTERRUPT_STATE, bits & !state::SHADOW);
        self.step_due = self.vmcb.get(field::RFLAGS) & Rflags::TF.bits() != 0;
    }
}

impl<M: GuestMemory, P: Processor> Vcpu for SvmVcpu<M, P> {
    fn activate(&mut self) -> Result<(), BackendError> {
        if self.switched.load(self.processor.msrs()) {
            self.processor.save_host(&self.host);
            let number = self.processor.number();
            if self.number != number {
                // What this processor remembers is of an earlier stay. APM vol. 2 15.15.1 "VMCB Caching", 15.16 "TLB Control".
                self.vmcb.forget_clean();
            }
            if self.number != number || self.tag_shared {
                self.flush();
            }
            self.number = number;
        }
        Ok(())
    }

    fn deactivate(&mut self) -> Result<(), BackendError> {
        self.switched.save(self.processor.msrs());
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, BackendError> {
        loop {
            // Again at most twice: over the IRET that ends an NMI's handling, and on behind it; or behind the delivery of an
            // interrupt.
            match self.enter()? {
                None => {}
                Some(Exit::NmiWindow) if !self.windows.nmi => {}
                Some(exit) => return Ok(exit),
            }
        }
    }

    #[inline]
    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        Ok(match gpr {
            Gpr::Rax => self.vmcb.get(field::RAX),
            _ => self.frame.get(gpr).unwrap_or_else(|| self.vmcb.get(field::RSP)),
        })
    }

    #[inline]
    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), BackendError> {
        match (gpr, self.frame.get_mut(gpr)) {
            (Gpr::Rax, _) => self.vmcb.set(field::RAX, value),
            (_, Some(place)) => *place = value,
            (_, None) => self.vmcb.set(field::RSP, value),
        }
        Ok(())
    }

    #[inline]
    fn read(&self, register: Register) -> Result<u64, BackendError> {
        Ok(match register {
            Register::Pdpte0 => self.pdpte(0),
            Register::Pdpte1 => self.pdpte(1),
            Register::Pdpte2 => self.pdpte(2),
            Register::Pdpte3 => self.pdpte(3),
            _ => state::read(&self.vmcb, register).unwrap_or(0),
        })
    }

    fn write(&mut self, register: Register, value: u64) -> Result<(), BackendError> {
        state::write(&mut self.vmcb, register, value);
        if matches!(register, Register::Cr0 | Register::Cr3 | Register::Cr4) {
            self.flush();
        }
        Ok(())
    }

    /// A malformed entry is a page fault when it is used, not #GP when CR0 or CR4 is written. APM vol. 2 15.25.10 "Legacy
    /// PAE Mode".
    fn caches_pdptes(&self) -> bool {
        false
    }

    #[inline]
    fn segment(&self, name: SegmentName) -> Result<Segment, BackendError> {
        Ok(state::segment(&self.vmcb, name))
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) -> Result<(), BackendError> {
        state::set_segment(&mut self.vmcb, name, value);
        Ok(())
    }

    fn privilege(&self) -> Result<u8, BackendError> {
        Ok(u8::try_from(self.vmcb.get(field::CPL) & 3).unwrap_or(0))
    }

    fn skip_instruction(&mut self) -> Result<(), BackendError> {
        if self.next_rip.is_none() {
            let _ = self.decode();
        }
        // Code that is out of reach or was changed: what the plain instruction measures.
        let rip = self.vmcb.get(field::RIP);
        let plain = match self.vmcb.get(field::EXIT_CODE) {
            0x78 => 1,
            0x04..=0x18 | 0x81 | 0x8D => 3,
            _ => 2,
        };
        let next = self.next_rip.unwrap_or(rip.wrapping_add(plain));
        self.go_on(next);
        Ok(())
    }

    fn skip_bytes(&mut self, length: u8) -> Result<(), BackendError> {
        let rip = self.vmcb.get(field::RIP);
        self.go_on(rip.wrapping_add(length.into()));
        Ok(())
    }

    fn inject(&mut self, event: Event) -> Result<(), BackendError> {
        let protected = self.vmcb.get(field::CR0) & Cr0::PE.bits() != 0;
        if event == Event::Nmi {
            self.set_in_nmi(true);
        }
        self.vmcb.set(field::EVENT_INJECTION, inject::encode(event, protected));
        Ok(())
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take()
    }

    /// The processor knows one shadow: it counts as that of STI. A single step that is due comes before all that could be
    /// injected: it counts as one too.
    fn interruptibility(&self) -> Result<Interruptibility, BackendError> {
        Ok(Interruptibility { sti: self.in_shadow() || self.step_due, mov_ss: false, nmi: self.in_nmi })
    }

    fn set_interruptibility(&mut self, value: Interruptibility) -> Result<(), BackendError> {
        let shadow = if value.sti || value.mov_ss { state::SHADOW } else { 0 };
        self.vmcb.set(field::INTERRUPT_STATE, shadow);
        self.step_due = false;
        self.set_in_nmi(value.nmi);
        Ok(())
    }

    /// An NMI waits for the IRET that is intercepted as long as one is being handled, or for the end of a shadow, which
    /// the host's timer finds.
    fn request_windows(&mut self, windows: Windows) -> Result<(), BackendError> {
        self.windows = windows;
        self.intercept(setup::WINDOW, windows.interrupt);
        self.vmcb.set(field::INTERRUPT_CONTROL, setup::INTERRUPTS_MASKED);
        Ok(())
    }

    fn flush_nested(&mut self) {
        self.flush();
    }

    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), BackendError> {
        self.vmcb.set(field::TSC_OFFSET, offset);
        Ok(())
    }

    fn set_timer(&mut self, ticks: u64) -> Result<(), BackendError> {
        self.deadline = self.processor.tsc().saturating_add(ticks);
        Ok(())
    }

    fn allow_msr(&mut self, index: u32, write: bool) {
        if !switched::allowable(index, &self.switched) {
            return;
        }
        let Some((page, byte, bit)) = switched::map_place(index) else { return };
        if let Some(map) = self.msr_map.get_mut(page) {
            map.clear_bit(byte, bit);
            if write {
                map.clear_bit(byte, bit + 1);
            }
        }
    }

    fn explain_entry_failure(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        explain::write(&self.vmcb, self.failed, out)
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for (index, (name, of)) in field::ALL.iter().enumerate() {
            write!(out, "{name}={:x}{}", self.vmcb.get(*of), if index % 6 == 5 { '\n' } else { ' ' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
