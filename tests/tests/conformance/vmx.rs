//! VT-x on a processor made of a map of fields.

use crate::bench::{Bench, Entry, Fault, Happens, Instruction};
use crate::broken::{Broken, Way};
use bulkhead_core::Event;
use bulkhead_types::{Hpa, Width};
use bulkhead_vmx::fake::{FakeProcessor, capabilities, region};
use bulkhead_vmx::fields as field;
use bulkhead_vmx::{Resources, VmxVcpu};

/// The processor's timer counts every 32 ticks ([`capabilities`]).
const TIMER_SHIFT: u32 = 5;
const WATCH: [u32; 8] = [
    field::GUEST_RIP.encoding(),
    field::ENTRY_INTERRUPTION.encoding(),
    field::ENTRY_ERROR_CODE.encoding(),
    field::PENDING_DEBUG.encoding(),
    field::INTERRUPTIBILITY.encoding(),
    field::PRIMARY_CONTROLS.encoding(),
    field::TSC_OFFSET.encoding(),
    field::TIMER_VALUE.encoding(),
];
const BY_STI: u64 = 1;
const BY_NMI: u64 = 8;
const VALID: u64 = 1 << 31;
const WITH_ERROR: u64 = 1 << 11;

/// The bench.
#[derive(Default)]
pub struct Vmx;

/// Interruption information and error code of an event. SDM vol. 3C table 25-18.
fn information(event: Event) -> (u64, u64) {
    match event {
        Event::Interrupt(vector) => (VALID | u64::from(vector), 0),
        Event::Nmi => (VALID | 2 << 8 | 2, 0),
        Event::Exception { vector, error: None } => (VALID | 3 << 8 | u64::from(vector.0), 0),
        Event::Exception { vector, error: Some(error) } => {
            (VALID | WITH_ERROR | 3 << 8 | u64::from(vector.0), error.into())
        }
        other => panic!("{other:?} is not delivered here"),
    }
}

fn instruction(instruction: Instruction) -> (u64, u64) {
    let control =
        |number: u64, kind: u64, gpr: bulkhead_arch::Gpr| (28, number | kind << 4 | (gpr.number() as u64) << 8);
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
    let access = if fault.execute {
        4
    } else if fault.write {
        2
    } else {
        1
    };
    access | u64::from(fault.present) << 3 | 1 << 7 | u64::from(!fault.walk) << 8
}

impl Bench for Vmx {
    const NAME: &'static str = "VT-x";
    type Vcpu = VmxVcpu<FakeProcessor>;

    fn vcpu(&mut self, way: Option<Way>) -> Broken<Self::Vcpu> {
        let mut fake = FakeProcessor::default();
        fake.watch = WATCH.to_vec();
        let resources = Resources {
            vmcs: region(1),
            msr_bitmap: region(2),
            io_bitmaps: [region(3), region(4)],
            nested_root: Hpa::new(0x5000),
            vpid: 1,
        };
        Broken::new(VmxVcpu::with_processor(fake, capabilities(), resources).unwrap(), way)
    }

    fn script(&mut self, vcpu: &mut Self::Vcpu, happens: Happens) {
        let processor = vcpu.processor();
        let injected = processor.get_raw(field::ENTRY_INTERRUPTION.encoding());
        let mut blocked = processor.get_raw(field::INTERRUPTIBILITY.encoding());
        if injected & (VALID | 7 << 8) == VALID | 2 << 8 {
            blocked |= BY_NMI;
        }
        let (mut length, mut vectoring, mut address, mut exception) = (0, (0, 0), 0, 0);
        let (reason, qualification) = match happens {
            Happens::Instruction(which, bytes) => {
                length = bytes.into();
                instruction(which)
            }
            Happens::Nested { fault, delivering } => {
                vectoring = delivering.map_or((0, 0), information);
                address = fault.gpa;
                (48, violation(fault))
            }
            Happens::Debug(causes) => {
                exception = VALID | 3 << 8 | 1;
                (0, causes)
            }
            Happens::InterruptWindow => (7, 0),
            Happens::TripleFault => (2, 0),
            Happens::TaskSwitch => (9, 0),
            Happens::Timer => (52, 0),
            Happens::Host { shadow } => {
                blocked = blocked & !BY_STI | u64::from(shadow);
                (1, 0)
            }
            Happens::Refused => (0x8000_0021, 0),
        };
        processor.script_exit(&[
            (field::EXIT_REASON.encoding(), reason),
            (field::EXIT_QUALIFICATION.encoding(), qualification),
            (field::EXIT_INSTRUCTION_LENGTH.encoding(), length),
            (field::EXIT_INTERRUPTION.encoding(), exception),
            (field::IDT_VECTORING.encoding(), vectoring.0),
            (field::IDT_ERROR_CODE.encoding(), vectoring.1),
            (field::GUEST_PHYSICAL_ADDRESS.encoding(), address),
            (field::INTERRUPTIBILITY.encoding(), blocked),
            (field::PENDING_DEBUG.encoding(), 0),
        ]);
    }

    fn entries(&mut self, vcpu: &mut Self::Vcpu) -> Vec<Entry> {
        let processor = vcpu.processor();
        let is_entry = |name: &&str| matches!(*name, "vmlaunch" | "vmresume");
        let flushed = processor.log.split_inclusive(is_entry).map(|since| since.contains(&"invept"));
        let entry = |(seen, flushed): (&Vec<u64>, bool)| {
            let &[rip, info, error, pending, blocked, primary, tsc_offset, timer] = seen.as_slice() else {
                panic!("watched fields")
            };
            let event = (info & VALID != 0).then(|| {
                let error = (info & WITH_ERROR != 0).then(|| u32::try_from(error).unwrap());
                (u32::try_from(info >> 8 & 7).unwrap(), u8::try_from(info & 0xFF).unwrap(), error)
            });
            Entry {
                rip,
                event,
                step: pending & 1 << 14 != 0,
                shadow: blocked & 3 != 0,
                flushed,
                interrupt_window: primary & 1 << 2 != 0,
                tsc_offset,
                timer: timer << TIMER_SHIFT,
            }
        };
        processor.seen.iter().zip(flushed).map(entry).collect()
    }
}
