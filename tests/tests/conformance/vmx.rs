//! VT-x on a processor made of a map of fields.

use crate::faults::{Faults, Faulty};
use bulkhead_arch::{Gpr, Rflags};
use bulkhead_conformance::bench::{Arrival, Bench, Came, Entries, Entry, Failure, Fault, Happens, Instruction};
use bulkhead_conformance::guest;
use bulkhead_conformance::vmx::Recorder;
use bulkhead_conformance::{Broken, vmx};
use bulkhead_core::{Event, Register, Vcpu};
use bulkhead_types::{Hpa, Width};
use bulkhead_vmx::fake::{FakeProcessor, capabilities, region};
use bulkhead_vmx::fields as field;
use bulkhead_vmx::{Resources, VmxVcpu};

const BY_STI: u64 = 1;
const ANY_SHADOW: u64 = 3;
const BY_NMI: u64 = 8;
const VALID: u64 = 1 << 31;
const WITH_ERROR: u64 = 1 << 11;
const PENDING_STEP: u64 = 1 << 14;
const INTERRUPT_WINDOW: u64 = 1 << 2;
const NMI_WINDOW: u64 = 1 << 22;

/// The bench.
#[derive(Default)]
pub struct Vmx {
    /// Which access of the backend fails.
    pub faults: Faults,
    entries: Entries,
    arrived: Option<Arrival>,
    /// The time-stamp counter.
    count: u64,
    /// Where the event that came last interrupted the guest.
    return_to: u64,
    /// Whether the page is mapped.
    spare: bool,
    /// Whether its translation is remembered.
    remembered: bool,
}

/// Interruption information and error code of an event. SDM vol. 3C table 25-18.
fn information(event: Event) -> (u64, u64) {
    match event {
        Event::Interrupt(vector) => (VALID | u64::from(vector), 0),
        Event::Nmi => (VALID | 2 << 8 | 2, 0),
        Event::Exception { vector, error } => {
            let info = VALID | 3 << 8 | u64::from(vector.0);
            match error.filter(|_| vector.has_error_code()) {
                Some(error) => (info | WITH_ERROR, error.into()),
                None => (info, 0),
            }
        }
        other => panic!("{other:?} is not delivered here"),
    }
}

fn instruction(instruction: Instruction) -> (u64, u64) {
    let control = |number: u64, kind: u64, gpr: Gpr| (28, number | kind << 4 | (gpr.number() as u64) << 8);
    match instruction {
        Instruction::Cpuid => (10, 0),
        Instruction::Halt => (12, 0),
        Instruction::Hypercall => (18, 0),
        Instruction::ReadMsr => (31, 0),
        Instruction::WriteMsr => (32, 0),
        Instruction::Xsetbv => (55, 0),
        Instruction::WriteBackCaches => (54, 0),
        Instruction::Monitor => (39, 0),
        Instruction::WriteCr4(gpr) => control(4, 0, gpr),
        Instruction::WriteCr8(gpr) => control(8, 0, gpr),
        Instruction::ReadCr8(gpr) => control(8, 1, gpr),
        Instruction::Port { port, width, write } => {
            let size = match width {
                Width::Byte => 0,
                Width::Word => 1,
                _ => 3,
            };
            (30, size | u64::from(!write) << 3 | u64::from(port) << 16)
        }
    }
}

/// SDM vol. 3C table 28-7.
fn violation(fault: Fault) -> u64 {
    let access = match fault {
        // A walk reads.
        Fault { walk: true, .. } => 1,
        Fault { execute: true, .. } => 4,
        Fault { write: true, .. } => 2,
        _ => 1,
    };
    access | u64::from(fault.present) << 3 | 1 << 7 | u64::from(!fault.walk) << 8
}

/// What an exit says.
struct Said {
    reason: u64,
    qualification: u64,
    length: u64,
    vectoring: (u64, u64),
    address: u64,
    exception: u64,
    blocked: u64,
    rip: u64,
}

impl Vmx {
    fn exit(&mut self, vcpu: &mut VmxVcpu<Faulty<Recorder<FakeProcessor>>>, happens: Happens) -> Said {
        let processor = &vcpu.processor().processor;
        let get = |encoding| processor.get_raw(encoding);
        let blocked = get(field::INTERRUPTIBILITY.encoding());
        let injected = get(field::ENTRY_INTERRUPTION.encoding());
        let rip = get(field::GUEST_RIP.encoding());
        let asked = |bit| get(field::PRIMARY_CONTROLS.encoding()) & bit != 0;
        let nmi = injected & (VALID | 7 << 8) == VALID | 2 << 8;
        let mut said = Said {
            reason: 0,
            qualification: 0,
            length: 0,
            vectoring: (0, 0),
            address: 0,
            exception: 0,
            blocked: if nmi { blocked | BY_NMI } else { blocked },
            rip,
        };
        (said.reason, said.qualification) = match happens {
            Happens::Instruction(which, bytes) | Happens::InShadow(which, bytes) => {
                said.length = bytes.into();
                if matches!(happens, Happens::InShadow(..)) {
                    said.rip += 1;
                    said.blocked |= BY_STI;
                }
                instruction(which)
            }
            Happens::Nested { fault, delivering } => {
                said.vectoring = delivering.map_or((0, 0), information);
                said.address = fault.gpa;
                (48, violation(fault))
            }
            Happens::Debug(causes) => {
                said.exception = VALID | 3 << 8 | 1;
                (0, causes)
            }
            Happens::InterruptWindow if asked(INTERRUPT_WINDOW) => {
                said.rip += u64::from(blocked & ANY_SHADOW != 0);
                said.blocked &= !ANY_SHADOW;
                (7, 0)
            }
            Happens::Return if asked(NMI_WINDOW) => {
                said.rip = self.return_to;
                said.blocked &= !BY_NMI;
                (8, 0)
            }
            Happens::TripleFault => (2, 0),
            Happens::TaskSwitch => (9, 0),
            Happens::Timer if get(field::PENDING_DEBUG.encoding()) & PENDING_STEP != 0 => {
                said.exception = VALID | 3 << 8 | 1;
                (0, PENDING_STEP)
            }
            Happens::Timer | Happens::InterruptWindow | Happens::Return => {
                said.blocked &= !ANY_SHADOW;
                (52, 0)
            }
            Happens::Host => (1, 0),
            Happens::Refused { .. } => (0x8000_0021, 0),
            Happens::Touch => self.touch(&mut said, &processor.log),
            Happens::Count => (12, 0),
        };
        said
    }

    /// What the guest's reading of the page comes to.
    fn touch(&mut self, said: &mut Said, log: &[&str]) -> (u64, u64) {
        let is_entry = |name: &&&str| matches!(**name, "vmlaunch" | "vmresume");
        if log.iter().rev().take_while(|name| !is_entry(name)).any(|name| *name == "invept") {
            self.remembered = false;
        }
        if self.spare || self.remembered {
            self.remembered = true;
            return (12, 0);
        }
        let (write, execute, walk, present) = (false, false, false, false);
        said.address = guest::SPARE;
        (48, violation(Fault { gpa: guest::SPARE, write, execute, walk, present }))
    }
}

impl Bench for Vmx {
    type Vcpu = VmxVcpu<Faulty<Recorder<FakeProcessor>>>;

    fn vcpu(&mut self) -> Result<Self::Vcpu, Failure> {
        *self = Self { count: self.count, faults: self.faults.clone(), ..Self::default() };
        let resources = Resources {
            vmcs: region(1),
            msr_bitmap: region(2),
            virtual_apic: region(6),
            io_bitmaps: [region(3), region(4)],
            nested_root: Hpa::new(0x5000),
            vpid: 1,
        };
        let capabilities = capabilities();
        let processor = vmx::Recorder::new(FakeProcessor::default(), capabilities.timer_shift, self.entries.clone());
        Ok(VmxVcpu::with_processor(Faulty::new(processor, self.faults.clone()), capabilities, resources)?)
    }

    fn run(&mut self, vcpu: &mut Broken<Self::Vcpu>, happens: Happens) -> Result<Came, Failure> {
        self.entries.borrow_mut().clear();
        let whole = &mut vcpu.inner;
        if let Happens::Nested { delivering: Some(event), .. } = happens {
            whole.inject(event)?;
        }
        if happens == Happens::Count {
            let offset = whole.processor().processor.get_raw(field::TSC_OFFSET.encoding());
            let count = self.count.wrapping_add(offset);
            whole.set_gpr(Gpr::Rax, count & 0xFFFF_FFFF)?;
            whole.set_gpr(Gpr::Rdx, count >> 32)?;
        }
        if matches!(happens, Happens::InShadow(..)) {
            let flags = whole.read(Register::Rflags)?;
            whole.write(Register::Rflags, flags | Rflags::IF.bits())?;
        }
        let said = self.exit(whole, happens);
        whole.processor().processor.script_exit(&[
            (field::EXIT_REASON.encoding(), said.reason),
            (field::EXIT_QUALIFICATION.encoding(), said.qualification),
            (field::EXIT_INSTRUCTION_LENGTH.encoding(), said.length),
            (field::EXIT_INTERRUPTION.encoding(), said.exception),
            (field::IDT_VECTORING.encoding(), said.vectoring.0),
            (field::IDT_ERROR_CODE.encoding(), said.vectoring.1),
            (field::GUEST_PHYSICAL_ADDRESS.encoding(), said.address),
            (field::INTERRUPTIBILITY.encoding(), said.blocked),
            (field::PENDING_DEBUG.encoding(), 0),
            (field::GUEST_RIP.encoding(), said.rip),
        ]);
        let flags = Rflags::from_bits_retain(whole.read(Register::Rflags)?) & Arrival::FLAGS;
        let result = vcpu.run();
        if let Some(entry) = self.told().filter(|_| result.is_ok()) {
            self.count += entry.timer;
            let event = entry.event.filter(|_| said.vectoring.0 == 0);
            self.arrived = event.map(|(_, vector, error)| Arrival { vector, error, rip: entry.rip, flags });
            if self.arrived.is_some() {
                self.return_to = entry.rip;
            }
        }
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
