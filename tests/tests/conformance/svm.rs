//! SVM on a scripted processor, with and without decode assists and next RIP.

use crate::faults::{Faults, Faulty};
use bulkhead_arch::{Gpr, Rflags};
use bulkhead_conformance::bench::{Arrival, Bench, Came, Entries, Entry, Failure, Fault, Happens, Instruction};
use bulkhead_conformance::real::code;
use bulkhead_conformance::svm::Recorder;
use bulkhead_conformance::{Broken, guest};
use bulkhead_core::{Event, Exit, Register, Vcpu};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use bulkhead_svm::fake::region;
use bulkhead_svm::fields as field;
use bulkhead_svm::vmcb::{Processor, Vmcb};
use bulkhead_svm::{Capabilities, Resources, SvmVcpu};
use bulkhead_types::{Gpa, GuestMemory, Hpa, MemoryError, Width};
use std::cell::RefCell;
use std::rc::Rc;

const VALID: u64 = 1 << 31;
const WITH_ERROR: u64 = 1 << 11;
const SHADOW: u64 = 1;
const SINGLE_STEP: u64 = 1 << 14;
const VMMCALL: [u8; 3] = [0x0F, 0x01, 0xD9];
const HALT: u64 = 0x78;
const DEBUG: u64 = 0x41;
/// Ticks after which a guest is stopped in any case.
const LONG: u64 = 1 << 20;
const INTERCEPT_IRET: u64 = 1 << 20;
const INTERCEPT_WINDOW: u64 = 1 << 4;

/// The guest's memory, seen by the bench too.
#[derive(Clone, Debug)]
pub struct Ram(Rc<RefCell<Vec<u8>>>);

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let memory = self.0.borrow();
        let from = memory.get(start..start + into.len()).ok_or(MemoryError { gpa, bytes: into.len() })?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        self.0.borrow_mut()[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// A processor that does what it is told.
#[derive(Debug)]
pub struct Scripted {
    /// What the next entry comes to.
    next: Happens,
    assists: bool,
    ram: Ram,
    tsc: u64,
    deadline: u64,
    /// Where the event that came last interrupted the guest.
    return_to: u64,
    spare: bool,
    /// Whether the translation of the page is remembered.
    remembered: bool,
}

/// EVENTINJ of an event. APM vol. 2 15.20 "Event Injection".
fn information(event: Event) -> u64 {
    match event {
        Event::Interrupt(vector) => VALID | u64::from(vector),
        Event::Nmi => VALID | 2 << 8 | 2,
        Event::Exception { vector, error } => {
            let info = VALID | 3 << 8 | u64::from(vector.0);
            let error = error.filter(|_| vector.has_error_code());
            error.map_or(info, |error| info | WITH_ERROR | u64::from(error) << 32)
        }
        other => panic!("{other:?} is not delivered here"),
    }
}

/// Exit code and EXITINFO1. APM vol. 2 appendix C; 15.10.2, 15.10.
fn instruction(instruction: Instruction, assists: bool) -> (u64, u64) {
    let control = |code: u64, gpr: Gpr| (code, if assists { 1 << 63 | gpr.number() as u64 } else { 0 });
    match instruction {
        Instruction::Cpuid => (0x72, 0),
        Instruction::Halt => (HALT, 0),
        Instruction::Hypercall => (0x81, 0),
        Instruction::ReadMsr => (0x7C, 0),
        Instruction::WriteMsr => (0x7C, 1),
        Instruction::Xsetbv => (0x8D, 0),
        Instruction::WriteBackCaches => (0x89, 0),
        Instruction::Monitor => (0x8A, 0),
        Instruction::WriteCr4(gpr) => control(0x14, gpr),
        Instruction::WriteCr8(gpr) => control(0x18, gpr),
        Instruction::ReadCr8(gpr) => control(0x08, gpr),
        Instruction::Port { port, width, write } => {
            let size = match width {
                Width::Byte => 1 << 4,
                Width::Word => 1 << 5,
                _ => 1 << 6,
            };
            (0x7B, size | u64::from(!write) | u64::from(port) << 16)
        }
    }
}

/// EXITINFO1. APM vol. 2 15.25.6 "Nested versus Guest Page Faults, Fault Ordering": a walk writes.
fn error_code(fault: Fault) -> u64 {
    let stage = if fault.walk { 1 << 33 | 1 << 1 } else { 1 << 32 | u64::from(fault.execute) << 4 };
    u64::from(fault.present) | u64::from(fault.write) << 1 | 1 << 2 | stage
}

impl Scripted {
    /// The guest comes to an instruction `past` bytes on; exit code and EXITINFO1.
    fn instruction(&self, vmcb: &mut Vmcb, which: Instruction, length: u8, past: u64) -> (u64, u64) {
        let rip = vmcb.get(field::RIP) + past;
        vmcb.set(field::RIP, rip);
        let next = rip + u64::from(length);
        if self.assists {
            vmcb.set(field::NEXT_RIP, next);
        } else {
            let bytes = code::instruction(which, length, VMMCALL);
            self.ram.clone().write(Gpa::new(rip), &bytes).unwrap();
        }
        // Of port instructions every processor says it.
        vmcb.set(field::EXIT_INFO_2, next);
        instruction(which, self.assists)
    }

    /// The guest goes on until the timer.
    fn runs(&mut self, vmcb: &mut Vmcb) -> (u64, u64) {
        vmcb.set(field::INTERRUPT_STATE, 0);
        self.tsc = self.tsc.max(self.deadline);
        (0x60, 0)
    }

    /// The guest comes to a page; exit code and EXITINFO1.
    fn touch(&mut self, vmcb: &mut Vmcb) -> (u64, u64) {
        if self.spare || self.remembered {
            self.remembered = true;
            return (HALT, 0);
        }
        vmcb.set(field::EXIT_INFO_2, guest::SPARE);
        let (write, execute, walk, present) = (false, false, false, false);
        (0x400, error_code(Fault { gpa: guest::SPARE, write, execute, walk, present }))
    }

    /// The guest executes IRET; exit code and EXITINFO1.
    fn returns(&mut self, vmcb: &mut Vmcb) -> (u64, u64) {
        if vmcb.get(field::INTERCEPT_MISC) & INTERCEPT_IRET != 0 {
            return (0x74, 0);
        }
        vmcb.set(field::RIP, self.return_to);
        if vmcb.get(field::RFLAGS) & Rflags::TF.bits() == 0 {
            return self.runs(vmcb);
        }
        // The flags come from the stack; the step is done all the same.
        vmcb.set(field::RFLAGS, (Rflags::FIXED | Rflags::IF).bits());
        vmcb.set(field::DR6, vmcb.get(field::DR6) | SINGLE_STEP);
        (DEBUG, 0)
    }
}

impl Msrs for Scripted {
    fn switched_msr(&self, _: u32) -> u64 {
        0
    }

    fn set_switched_msr(&mut self, _: u32, _: u64) {}
}

impl Processor for Scripted {
    fn number(&self) -> usize {
        0
    }

    fn save_host(&mut self, _: &Region) {}

    fn enter(&mut self, frame: &mut Frame, vmcb: &mut Vmcb, _: &Region) {
        self.remembered &= vmcb.get(field::TLB_CONTROL) == 0;
        let injected = vmcb.get(field::EVENT_INJECTION) & VALID != 0;
        if injected {
            self.return_to = vmcb.get(field::RIP);
        }
        let window = vmcb.get(field::INTERRUPT_CONTROL) & 1 << 8 != 0
            && vmcb.get(field::INTERCEPT_MISC) & INTERCEPT_WINDOW != 0
            && vmcb.get(field::RFLAGS) & Rflags::IF.bits() != 0;
        for zero in [field::EXIT_INFO_2, field::EXIT_EVENT, field::NEXT_RIP] {
            vmcb.set(zero, 0);
        }
        let (code, info) = match self.next {
            Happens::Instruction(which, length) => self.instruction(vmcb, which, length, 0),
            Happens::InShadow(which, length) => {
                vmcb.set(field::RFLAGS, vmcb.get(field::RFLAGS) | Rflags::IF.bits());
                vmcb.set(field::INTERRUPT_STATE, SHADOW);
                self.instruction(vmcb, which, length, 1)
            }
            Happens::Nested { fault, delivering } => {
                vmcb.set(field::EXIT_INFO_2, fault.gpa);
                vmcb.set(field::EXIT_EVENT, delivering.map_or(0, information));
                (0x400, error_code(fault))
            }
            Happens::Debug(causes) => {
                vmcb.set(field::DR6, vmcb.get(field::DR6) & !0xF | causes);
                (DEBUG, 0)
            }
            Happens::InterruptWindow if window => {
                vmcb.set(field::RIP, vmcb.get(field::RIP) + vmcb.get(field::INTERRUPT_STATE));
                vmcb.set(field::INTERRUPT_STATE, 0);
                (0x64, 0)
            }
            Happens::TripleFault => (0x7F, 0),
            Happens::TaskSwitch => (0x7D, 0),
            Happens::Timer | Happens::InterruptWindow => self.runs(vmcb),
            Happens::Host => (0x60, 0),
            Happens::Refused { .. } => (u64::MAX, 0),
            Happens::Touch => self.touch(vmcb),
            Happens::Count => {
                let count = self.tsc.wrapping_add(vmcb.get(field::TSC_OFFSET));
                vmcb.set(field::RAX, count & 0xFFFF_FFFF);
                *frame.get_mut(Gpr::Rdx).unwrap() = count >> 32;
                (HALT, 0)
            }
            Happens::Return => self.returns(vmcb),
        };
        vmcb.set(field::EXIT_CODE, code);
        vmcb.set(field::EXIT_INFO_1, info);
    }

    fn take_interrupts(&mut self) -> bool {
        false
    }

    fn interrupt_self(&mut self) {}

    fn tsc(&self) -> u64 {
        self.tsc
    }

    fn interrupt_by(&mut self, deadline: u64) {
        self.deadline = deadline;
    }

    fn msrs(&mut self) -> &mut dyn Msrs {
        self
    }
}

/// The bench.
pub struct Svm {
    /// Which entry is refused.
    pub faults: Faults,
    assists: bool,
    spare: bool,
    count: u64,
    entries: Entries,
    arrived: Option<Arrival>,
}

impl Svm {
    /// With or without decode assists and next RIP.
    pub fn new(assists: bool) -> Self {
        let faults = Faults::default();
        Self { faults, assists, spare: false, count: 0, entries: Entries::default(), arrived: None }
    }
}

impl Bench for Svm {
    type Vcpu = SvmVcpu<Ram, Faulty<Recorder<Scripted>>>;

    fn vcpu(&mut self) -> Result<Self::Vcpu, Failure> {
        *self = Self { count: self.count, faults: self.faults.clone(), ..Self::new(self.assists) };
        let mut memory = Ram(Rc::new(RefCell::new(vec![0; usize::try_from(guest::MAPPED).unwrap()])));
        guest::write(&mut memory).unwrap();
        let scripted = Scripted {
            next: Happens::Timer,
            assists: self.assists,
            ram: memory.clone(),
            tsc: self.count,
            deadline: 0,
            return_to: 0,
            spare: false,
            remembered: false,
        };
        let capabilities = Capabilities {
            asids: 16,
            flush_by_asid: self.assists,
            next_rip: self.assists,
            decode_assists: self.assists,
            ..Capabilities::default()
        };
        let resources = Resources {
            vmcb: region(1),
            host: region(2),
            msr_map: [region(3), region(4)],
            io_map: [region(5), region(6), region(7)],
            nested_root: Hpa::new(0x8000),
            asid: 1,
            memory,
        };
        let recorder = Recorder::new(scripted, self.entries.clone());
        Ok(SvmVcpu::with_processor(Faulty::new(recorder, self.faults.clone()), capabilities, resources)?)
    }

    fn run(&mut self, vcpu: &mut Broken<Self::Vcpu>, happens: Happens) -> Result<Came, Failure> {
        self.entries.borrow_mut().clear();
        let delivering = if let Happens::Nested { delivering, .. } = happens { delivering } else { None };
        if let Some(event) = delivering {
            vcpu.inner.inject(event)?;
        }
        if happens != Happens::Timer {
            // A guest that does not stop is stopped.
            vcpu.inner.set_timer(LONG)?;
        }
        let flags = Rflags::from_bits_retain(vcpu.inner.read(Register::Rflags)?) & Arrival::FLAGS;
        let scripted = &mut vcpu.inner.processor().processor;
        (scripted.next, scripted.spare) = (happens, self.spare);
        let mut result = vcpu.run();
        if happens == Happens::Return && result == Ok(Exit::Host) {
            // It wants to see more of it.
            result = vcpu.run();
        }
        self.count = vcpu.inner.processor().processor.tsc;
        let entry = self.told().filter(|_| result.is_ok() && delivering.is_none());
        let arrival =
            |entry: Entry| entry.event.map(|(_, vector, error)| Arrival { vector, error, rip: entry.rip, flags });
        self.arrived = entry.and_then(arrival);
        Ok(result)
    }

    fn told(&self) -> Option<Entry> {
        self.entries.borrow().first().copied()
    }

    fn arrived(&self) -> Option<Arrival> {
        self.arrived
    }

    fn give_spare(&mut self, given: bool) -> Result<(), Failure> {
        self.spare = given;
        Ok(())
    }

    fn count(&self) -> u64 {
        self.count
    }
}
