//! The vCPU on the scripted processor.

use super::{Resources, SvmVcpu};
use crate::capabilities::Capabilities;
use crate::exit;
use crate::fake::{FakeProcessor, region};
use crate::fields::{self as field, Field};
use bulkhead_arch::{Gpr, Rflags, Vector};
use bulkhead_core::{BackendError, Event, Exit, Interruptibility, Register, Vcpu, Windows};
use bulkhead_types::{Gpa, GuestMemory, Hpa, MemoryError};
use std::vec::Vec;

struct Ram(Vec<u8>);

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let from = self.0.get(start..start + into.len()).ok_or(MemoryError { gpa, bytes: into.len() })?;
        into.copy_from_slice(from);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        self.0[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }
    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryError> {
        Ok(())
    }
}

fn vcpu(watch: &[Field], exits: &[&[(Field, u64)]]) -> SvmVcpu<Ram, FakeProcessor> {
    tagged(1, watch, exits)
}

fn tagged(asid: u16, watch: &[Field], exits: &[&[(Field, u64)]]) -> SvmVcpu<Ram, FakeProcessor> {
    let mut fake = FakeProcessor { watch: watch.to_vec(), ..FakeProcessor::default() };
    fake.script.extend(exits.iter().map(|fields| fields.to_vec()));
    let resources = Resources {
        vmcb: region(1),
        host: region(2),
        msr_map: [region(3), region(4)],
        io_map: [region(5), region(6), region(7)],
        nested_root: Hpa::new(0x8000),
        asid,
        memory: Ram(std::vec![0; 0x4000]),
    };
    let capabilities = Capabilities { asids: 16, ..Capabilities::default() };
    let mut vcpu = SvmVcpu::with_processor(fake, capabilities, resources).unwrap();
    let flat = bulkhead_arch::Segment { selector: 8, attributes: 0xC09B, limit: u32::MAX, base: 0 };
    vcpu.set_segment(bulkhead_arch::SegmentName::Cs, flat).unwrap();
    vcpu.write(Register::Cr0, 0x11).unwrap();
    vcpu.write(Register::Rip, 0x1000).unwrap();
    vcpu
}

#[test]
fn an_instruction_is_measured_where_the_processor_does_not() {
    let mut vcpu = vcpu(&[], &[&[(field::EXIT_CODE, 0x72)]]);
    vcpu.memory.write(Gpa::new(0x1000), &[0x66, 0x0F, 0xA2]).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::Cpuid));
    vcpu.skip_instruction().unwrap();
    assert_eq!(vcpu.read(Register::Rip), Ok(0x1003));
}

#[test]
fn an_instruction_at_the_end_of_memory_is_measured() {
    let mut vcpu = vcpu(&[], &[&[(field::EXIT_CODE, 0x78)]]);
    vcpu.memory.write(Gpa::new(0x3FFF), &[0xF4]).unwrap();
    vcpu.write(Register::Rip, 0x3FFF).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::Halt));
    vcpu.skip_instruction().unwrap();
    assert_eq!(vcpu.read(Register::Rip), Ok(0x4000));
}

#[test]
fn mov_to_a_control_register_names_its_source() {
    let mut vcpu = vcpu(&[], &[&[(field::EXIT_CODE, 0x14)]]);
    vcpu.memory.write(Gpa::new(0x1000), &[0x0F, 0x22, 0xE1]).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::WriteCr { number: 4, from: Gpr::Rcx }));
}

#[test]
fn an_event_is_injected_once_and_recorded_when_interrupted() {
    let interrupted = [(field::EXIT_CODE, 0x400), (field::EXIT_EVENT, 0x8000_0030)];
    let mut vcpu = vcpu(&[field::EVENT_INJECTION], &[&interrupted, &[(field::EXIT_EVENT, 0)]]);
    vcpu.inject(Event::Interrupt(0x30)).unwrap();
    vcpu.run().unwrap();
    assert_eq!(vcpu.take_interrupted(), Some(Event::Interrupt(0x30)));
    vcpu.run().unwrap();
    assert_eq!(vcpu.processor().seen, [[0x8000_0030], [0]]);
}

#[test]
fn an_exit_follows_an_interrupt_that_would_be_delivered_again() {
    for (repeats, times) in [(false, 0), (true, 1)] {
        let mut vcpu = vcpu(&[], &[]);
        vcpu.capabilities.repeats_interrupts = repeats;
        for event in [Event::Interrupt(0x30), Event::Nmi, Event::GP] {
            vcpu.inject(event).unwrap();
            vcpu.run().unwrap();
        }
        assert_eq!(vcpu.processor().interrupted, times);
    }
}

#[test]
fn the_exit_behind_an_interrupt_is_told_only_with_another_processors() {
    for (kicked, first) in [(false, Exit::Halt), (true, Exit::Host)] {
        let host = [(field::EXIT_CODE, exit::INTERRUPT)];
        let mut vcpu = vcpu(&[], &[&host, &[(field::EXIT_CODE, 0x78)]]);
        vcpu.capabilities.repeats_interrupts = true;
        vcpu.processor().kicked = kicked;
        vcpu.inject(Event::Interrupt(0x30)).unwrap();
        assert_eq!(vcpu.run(), Ok(first));
    }
}

#[test]
fn translations_are_forgotten_once() {
    let mut vcpu = vcpu(&[field::TLB_CONTROL], &[]);
    for _ in 0..2 {
        vcpu.run().unwrap();
    }
    vcpu.flush_nested();
    vcpu.run().unwrap();
    assert_eq!(vcpu.processor().seen, [[1], [0], [1]]);
}

const IRET: &[(Field, u64)] = &[(field::EXIT_CODE, exit::IRET)];

/// In an NMI's handler that comes to its IRET, with another NMI waiting.
fn at_iret(then: &[(Field, u64)]) -> SvmVcpu<Ram, FakeProcessor> {
    let mut vcpu = vcpu(&[field::RFLAGS, field::INTERCEPT_EXCEPTIONS, field::DR6], &[IRET, then]);
    vcpu.write(Register::Rflags, 0x46).unwrap();
    vcpu.write(Register::Dr6, 0xFFFF_0FF2).unwrap();
    vcpu.inject(Event::Nmi).unwrap();
    vcpu.request_windows(Windows { interrupt: false, nmi: true }).unwrap();
    vcpu
}

#[test]
fn nmis_are_let_in_after_iret() {
    let flags = 0x246;
    let done = [(field::EXIT_CODE, exit::DEBUG), (field::DR6, 0xFFFF_4FF0), (field::RFLAGS, flags)];
    let mut vcpu = at_iret(&done);
    assert_eq!(vcpu.run(), Ok(Exit::NmiWindow));
    assert_eq!(vcpu.interruptibility(), Ok(Interruptibility::default()));
    assert_eq!(vcpu.read(Register::Rflags), Ok(flags), "what IRET has loaded");
    assert_eq!(vcpu.read(Register::Dr6), Ok(0xFFFF_0FF2), "nothing is seen of the step");
    assert_eq!(vcpu.processor().seen, [[0x46, 0x6_0002, 0xFFFF_0FF2], [0x146, 0xFFFF_FFFB, 0xFFFF_0FF0]]);
}

#[test]
fn an_iret_that_faults_does_not_show_the_step() {
    let fault =
        [(field::EXIT_CODE, exit::PAGE_FAULT), (field::EXIT_INFO_1, 4), (field::EXIT_INFO_2, 0x7000), (field::DR6, 0)];
    let mut vcpu = at_iret(&fault);
    let exit = Exit::Exception { vector: Vector::PF, error: Some(4), debug_status: 0 };
    assert_eq!(vcpu.run(), Ok(exit));
    assert!(vcpu.interruptibility().unwrap().nmi, "it is still in the handler");
    assert_eq!(vcpu.read(Register::Rflags), Ok(0x46));
    assert_eq!(vcpu.read(Register::Cr2), Ok(0x7000));
    assert_eq!(vcpu.read(Register::Dr6), Ok(0xFFFF_0FF2));
    vcpu.run().unwrap();
    assert_eq!(vcpu.processor().seen.last().unwrap()[..2], [0x46, 0x6_0002], "and no step is on");
}

#[test]
fn a_step_of_the_guests_own_over_iret_is_told() {
    let done = [(field::EXIT_CODE, exit::DEBUG), (field::DR6, 0xFFFF_4FF0), (field::RFLAGS, 2)];
    let mut vcpu = at_iret(&done);
    vcpu.write(Register::Rflags, 0x146).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::Exception { vector: Vector::DB, error: None, debug_status: 0x4000 }));
    assert!(!vcpu.interruptibility().unwrap().nmi);
}

#[test]
fn the_end_of_a_shadow_lets_an_nmi_in() {
    let ended = [(field::EXIT_CODE, exit::INTERRUPT), (field::INTERRUPT_STATE, 0)];
    let mut vcpu = vcpu(&[], &[&ended]);
    vcpu.set_interruptibility(Interruptibility { mov_ss: true, ..Interruptibility::default() }).unwrap();
    vcpu.request_windows(Windows { interrupt: false, nmi: true }).unwrap();
    vcpu.set_timer(1_000_000).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::NmiWindow));
    assert_eq!(vcpu.processor().deadlines, [2000], "long before the turn ends");
}

#[test]
fn the_hosts_timer_ends_a_turn() {
    let mut vcpu = vcpu(&[], &[&[(field::EXIT_CODE, exit::INTERRUPT)], &[]]);
    vcpu.set_timer(1000).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::Host), "another interrupt");
    vcpu.processor().tsc = 1000;
    vcpu.set_timer(0).unwrap();
    assert_eq!(vcpu.run(), Ok(Exit::Timer));
    assert_eq!(vcpu.processor().deadlines, [1000, 1000]);
    assert_eq!(vcpu.processor().taken, 2);
}

#[test]
fn a_single_step_is_due_after_an_instruction_that_was_gone_past() {
    let mut vcpu = vcpu(&[field::EVENT_INJECTION], &[]);
    vcpu.write(Register::Rflags, Rflags::TF.bits()).unwrap();
    vcpu.skip_bytes(2).unwrap();
    assert!(vcpu.interruptibility().unwrap().sti, "it comes before an interrupt");
    vcpu.run().unwrap();
    assert_eq!(vcpu.interruptibility(), Ok(Interruptibility::default()));
    assert_eq!(vcpu.processor().seen, [[0x8000_0300 | u64::from(Vector::DB.0)]]);
    assert_eq!(vcpu.read(Register::Dr6), Ok(0xFFFF_4FF0));
    vcpu.skip_bytes(2).unwrap();
    vcpu.set_interruptibility(Interruptibility::default()).unwrap();
    assert_eq!(vcpu.interruptibility(), Ok(Interruptibility::default()));
    vcpu.run().unwrap();
    assert_eq!(vcpu.processor().seen.last(), Some(&std::vec![0]), "it was forgotten");
}

#[test]
fn a_refused_entry_is_final() {
    let mut vcpu = vcpu(&[], &[&[(field::EXIT_CODE, u64::MAX)]]);
    // Of the code the low half counts, whatever the processor does with the high one.
    let refused = Err(BackendError::Entry { code: 0xFFFF_FFFF });
    assert_eq!(vcpu.run(), refused);
    assert_eq!(vcpu.run(), refused);
}

#[test]
fn what_was_not_written_is_clean_after_the_first_entry() {
    let mut vcpu = vcpu(&[field::CLEAN], &[]);
    vcpu.capabilities.clean_bits = true;
    vcpu.run().unwrap();
    vcpu.run().unwrap();
    vcpu.write(Register::Cr3, 0x1000).unwrap();
    vcpu.request_windows(Windows { interrupt: true, nmi: false }).unwrap();
    vcpu.write(Register::Rip, 0x1001).unwrap();
    vcpu.run().unwrap();
    vcpu.capabilities.clean_bits = false;
    vcpu.run().unwrap();
    assert_eq!(vcpu.processor().seen, [[0], [0xFFF], [0xFFF & !0b10_1001], [0]]);
}

#[test]
fn a_vcpu_that_arrives_on_another_processor_finds_nothing_of_an_earlier_stay() {
    let mut vcpu = vcpu(&[field::TLB_CONTROL, field::CLEAN], &[]);
    vcpu.capabilities.clean_bits = true;
    let mut turn = |number| {
        vcpu.processor().number = number;
        vcpu.activate().unwrap();
        vcpu.run().unwrap();
        vcpu.deactivate().unwrap();
    };
    [0, 0, 1, 1].into_iter().for_each(&mut turn);
    let seen = &vcpu.processor().seen;
    assert_eq!([&seen[0], &seen[2]], [&[1, 0], &[1, 0]], "all is flushed, nothing is clean");
    assert!([&seen[1], &seen[3]].iter().all(|seen| seen[0] == 0 && seen[1] != 0), "{seen:x?}");
}

#[test]
fn those_that_share_a_tag_forget_translations_at_each_turn() {
    for (asid, tag, flushed) in [(14, 14, 0), (15, 15, 1), (40, 15, 1)] {
        let mut vcpu = tagged(asid, &[field::ASID, field::TLB_CONTROL], &[]);
        for _ in 0..2 {
            vcpu.activate().unwrap();
            vcpu.run().unwrap();
            vcpu.deactivate().unwrap();
        }
        assert_eq!(vcpu.processor().seen[1], [tag, flushed]);
    }
}
