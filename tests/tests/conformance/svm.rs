//! SVM on a processor that reads and writes the VMCB by a script.

use crate::bench::{Bench, Entry, Fault, Happens, Instruction, code};
use crate::broken::{Broken, Way};
use bulkhead_core::{Event, Register, Vcpu};
use bulkhead_svm::fake::{FakeProcessor, region};
use bulkhead_svm::fields::{self as field, Field};
use bulkhead_svm::{Capabilities, Resources, SvmVcpu};
use bulkhead_types::{Gpa, GuestMemory, Hpa, MemoryError, Width};
use std::cell::RefCell;
use std::rc::Rc;

const WATCH: [Field; 8] = [
    field::RIP,
    field::EVENT_INJECTION,
    field::RFLAGS,
    field::INTERRUPT_STATE,
    field::TLB_CONTROL,
    field::INTERRUPT_CONTROL,
    field::INTERCEPT_MISC,
    field::TSC_OFFSET,
];
const VALID: u64 = 1 << 31;
const WITH_ERROR: u64 = 1 << 11;
/// Ticks that pass until the timer comes: more than any rule sets.
const LONG: u64 = 1 << 40;

/// The guest's memory, seen by the bench too.
#[derive(Clone, Default)]
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

/// What the two benches have in common.
#[derive(Default)]
pub struct Svm {
    ram: Ram,
    /// The counter at each entry, before it.
    counts: Vec<u64>,
}

/// With decode assists and next RIP.
#[derive(Default)]
pub struct Whole(Svm);

/// Without.
#[derive(Default)]
pub struct Bare(Svm);

type Fake = SvmVcpu<Ram, FakeProcessor>;

/// EVENTINJ of an event. APM vol. 2 15.20 "Event Injection".
fn information(event: Event) -> u64 {
    match event {
        Event::Interrupt(vector) => VALID | u64::from(vector),
        Event::Nmi => VALID | 2 << 8 | 2,
        Event::Exception { vector, error: None } => VALID | 3 << 8 | u64::from(vector.0),
        Event::Exception { vector, error: Some(error) } => {
            VALID | WITH_ERROR | 3 << 8 | u64::from(vector.0) | u64::from(error) << 32
        }
        other => panic!("{other:?} is not delivered here"),
    }
}

/// Exit code and EXITINFO1. APM vol. 2 appendix C; 15.10.2, 15.10.
fn instruction(instruction: Instruction, assists: bool) -> (u64, u64) {
    let control = |code: u64, gpr: bulkhead_arch::Gpr| (code, if assists { 1 << 63 | gpr.number() as u64 } else { 0 });
    match instruction {
        Instruction::Cpuid => (0x72, 0),
        Instruction::Halt => (0x78, 0),
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

/// EXITINFO1. APM vol. 2 15.25.6 "Nested versus Guest Page Faults, Fault Ordering".
fn error_code(fault: Fault) -> u64 {
    let stage = if fault.walk { 1 << 33 } else { 1 << 32 };
    u64::from(fault.present) | u64::from(fault.write) << 1 | 1 << 2 | u64::from(fault.execute) << 4 | stage
}

impl Svm {
    fn vcpu(&mut self, way: Option<Way>, capabilities: Capabilities) -> Broken<Fake> {
        self.ram.0.replace(vec![0; 0x4000]);
        let fake = FakeProcessor { watch: WATCH.to_vec(), ..FakeProcessor::default() };
        let resources = Resources {
            vmcb: region(1),
            host: region(2),
            msr_map: [region(3), region(4)],
            io_map: [region(5), region(6), region(7)],
            nested_root: Hpa::new(0x8000),
            asid: 1,
            memory: self.ram.clone(),
        };
        Broken::new(SvmVcpu::with_processor(fake, capabilities, resources).unwrap(), way)
    }

    fn script(&mut self, vcpu: &mut Fake, happens: Happens, assists: bool) {
        let rip = vcpu.read(Register::Rip).unwrap();
        let status = vcpu.read(Register::Dr6).unwrap();
        self.counts.push(vcpu.processor().tsc);
        let mut fields = vec![(field::EXIT_INFO_2, 0), (field::EXIT_EVENT, 0), (field::NEXT_RIP, 0)];
        let (code, info) = match happens {
            Happens::Instruction(which, length) => {
                let next = rip + u64::from(length);
                if assists {
                    fields.push((field::NEXT_RIP, next));
                } else {
                    self.ram.write(Gpa::new(rip), &code(which, length)).unwrap();
                }
                // Of port instructions every processor says it.
                fields.push((field::EXIT_INFO_2, next));
                instruction(which, assists)
            }
            Happens::Nested { fault, delivering } => {
                fields.push((field::EXIT_INFO_2, fault.gpa));
                fields.push((field::EXIT_EVENT, delivering.map_or(0, information)));
                (0x400, error_code(fault))
            }
            Happens::Debug(causes) => {
                fields.push((field::DR6, status & !0xF | causes));
                (0x41, 0)
            }
            Happens::InterruptWindow => (0x64, 0),
            Happens::TripleFault => (0x7F, 0),
            Happens::TaskSwitch => (0x7D, 0),
            Happens::Timer => {
                vcpu.processor().tsc += LONG;
                (0x60, 0)
            }
            Happens::Host { shadow } => {
                fields.push((field::INTERRUPT_STATE, shadow.into()));
                (0x60, 0)
            }
            Happens::Refused => (u64::MAX, 0),
        };
        fields.extend([(field::EXIT_CODE, code), (field::EXIT_INFO_1, info)]);
        vcpu.processor().script.push_back(fields);
    }

    fn entries(&self, vcpu: &mut Fake) -> Vec<Entry> {
        let processor = vcpu.processor();
        let entry = |((seen, &count), &deadline): ((&Vec<u64>, &u64), &u64)| {
            let &[rip, info, rflags, state, flush, interrupts, intercepts, tsc_offset] = seen.as_slice() else {
                panic!("watched fields")
            };
            let event = (info & VALID != 0).then(|| {
                let error = (info & WITH_ERROR != 0).then(|| u32::try_from(info >> 32).unwrap());
                (u32::try_from(info >> 8 & 7).unwrap(), u8::try_from(info & 0xFF).unwrap(), error)
            });
            Entry {
                rip,
                event,
                step: rflags & 1 << 8 != 0 && event == Some((3, 1, None)),
                shadow: state & 1 != 0,
                flushed: flush != 0,
                interrupt_window: interrupts & 1 << 8 != 0 && intercepts & 1 << 4 != 0,
                tsc_offset,
                timer: deadline.saturating_sub(count),
            }
        };
        processor.seen.iter().zip(&self.counts).zip(&processor.deadlines).map(entry).collect()
    }
}

macro_rules! bench {
    ($bench:ident, $name:literal, $assists:literal) => {
        impl Bench for $bench {
            const NAME: &'static str = $name;
            type Vcpu = Fake;

            fn vcpu(&mut self, way: Option<Way>) -> Broken<Fake> {
                let capabilities = Capabilities {
                    asids: 16,
                    flush_by_asid: $assists,
                    next_rip: $assists,
                    decode_assists: $assists,
                    ..Capabilities::default()
                };
                self.0.vcpu(way, capabilities)
            }

            fn script(&mut self, vcpu: &mut Fake, happens: Happens) {
                self.0.script(vcpu, happens, $assists);
            }

            fn entries(&mut self, vcpu: &mut Fake) -> Vec<Entry> {
                self.0.entries(vcpu)
            }
        }
    };
}

bench!(Whole, "SVM", true);
bench!(Bare, "SVM without decode assists and next RIP", false);
