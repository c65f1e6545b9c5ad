use super::{Resources, VmxVcpu};
use crate::fake::{FakeProcessor, Scripted, capabilities, region};
use crate::fields::{self as field, Fields};
use crate::switched;
use crate::vmcs::Entered;
use bulkhead_arch::{Gpr, SegmentName, Vector, msr};
use bulkhead_core::{BackendError, Event, Exit, Register, Requests, Vcpu, Windows};
use bulkhead_types::Hpa;
use std::string::String;
use std::vec;
use std::vec::Vec;

const REASON: u32 = field::EXIT_REASON.encoding();
const QUALIFICATION: u32 = field::EXIT_QUALIFICATION.encoding();
const VECTORING: u32 = field::IDT_VECTORING.encoding();
const INTERRUPTION: u32 = field::EXIT_INTERRUPTION.encoding();
const INTERRUPTIBILITY: u32 = field::INTERRUPTIBILITY.encoding();

fn resources(vpid: u16) -> Resources {
    Resources {
        vmcs: region(1),
        msr_bitmap: region(2),
        virtual_apic: region(6),
        io_bitmaps: [region(3), region(4)],
        nested_root: Hpa::new(0x5000),
        vpid,
    }
}

fn vcpu() -> VmxVcpu<FakeProcessor> {
    VmxVcpu::with_processor(FakeProcessor::default(), capabilities(), resources(1)).unwrap()
}

fn after_exit(fields: &[(u32, u64)]) -> (VmxVcpu<FakeProcessor>, Exit) {
    let mut vcpu = vcpu();
    vcpu.processor().script_exit(fields);
    let exit = vcpu.run().unwrap();
    (vcpu, exit)
}

#[test]
fn a_new_vcpu_stands_as_after_reset() {
    let vcpu = vcpu();
    assert_eq!(vcpu.read(Register::Cr0), Ok(0x6000_0010));
    assert_eq!(vcpu.read(Register::Cr4), Ok(0));
    assert_eq!(vcpu.read(Register::Rip), Ok(0xFFF0));
    assert_eq!(vcpu.read(Register::Rflags), Ok(2));
    assert_eq!(vcpu.read(Register::Dr6), Ok(0xFFFF_0FF0));
    let cs = vcpu.segment(SegmentName::Cs).unwrap();
    assert_eq!((cs.selector, cs.base, cs.limit, cs.attributes), (0xF000, 0xFFFF_0000, 0xFFFF, 0x9B));
}

#[test]
fn a_new_vcpu_starts_without_old_translations_and_passes_every_check() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.processor().log, ["vmclear", "vmptrld", "invept", "invvpid"]);
    vcpu.processor()
        .script
        .push_back(Scripted { entered: Entered::FailValid, fields: vec![(field::INSTRUCTION_ERROR.encoding(), 7)] });
    assert_eq!(vcpu.run(), Err(BackendError::Entry { code: 7 }));
    let mut text = String::new();
    vcpu.explain_entry_failure(&mut text).unwrap();
    assert_eq!(
        text,
        "entry refused: entry with an invalid control field (7)\n  every check that is known here holds\n"
    );
}

#[test]
fn vpid_0_is_the_hosts() {
    let refused = VmxVcpu::with_processor(FakeProcessor::default(), capabilities(), resources(0));
    assert_eq!(refused.unwrap_err(), BackendError::Field { field: 0, code: 0 });
}

#[test]
fn a_processor_that_can_not_tell_an_exit_makes_no_vcpu() {
    let mut processor = FakeProcessor::default();
    processor.broken.push(QUALIFICATION);
    let refused = VmxVcpu::with_processor(processor, capabilities(), resources(1));
    assert_eq!(refused.unwrap_err(), BackendError::Field { field: QUALIFICATION, code: 12 });
}

#[test]
fn every_port_and_msr_exits_until_it_is_allowed() {
    let mut vcpu = vcpu();
    for bitmap in &vcpu._io_bitmaps {
        assert!((0..4096).all(|offset| bitmap.load(offset, 1) == 0xFF));
    }
    assert!((0..4096).all(|offset| vcpu.msr_bitmap.load(offset, 1) == 0xFF));
    vcpu.allow_msr(msr::LSTAR, true);
    vcpu.allow_msr(msr::FS_BASE, false);
    vcpu.allow_msr(msr::APIC_BASE, true);
    vcpu.allow_msr(u32::MAX, true);
    let cleared: Vec<_> = (0..4096).filter(|&offset| vcpu.msr_bitmap.load(offset, 1) != 0xFF).collect();
    assert_eq!(cleared, [0x410, 0x420, 0xC10]);
    assert_eq!(vcpu.msr_bitmap.load(0x410, 1), 0xFB);
}

#[test]
fn the_first_entry_launches_and_the_next_resumes() {
    let mut vcpu = vcpu();
    vcpu.processor().log.clear();
    vcpu.processor().script_exit(&[(REASON, 10)]);
    vcpu.processor().script_exit(&[(REASON, 12)]);
    assert_eq!(vcpu.run(), Ok(Exit::Cpuid));
    assert_eq!(vcpu.run(), Ok(Exit::Halt));
    assert_eq!(vcpu.processor().log, ["vmlaunch", "vmresume"]);
}

#[test]
fn an_exit_leads_back_to_the_frame_wherever_the_vcpu_lies() {
    let mut vcpu = vcpu();
    vcpu.run().unwrap();
    let expected = vcpu.frame.host_rsp();
    assert_eq!(vcpu.processor().get(field::HOST_RSP), Ok(expected));
    let writes = vcpu.processor().writes;
    vcpu.run().unwrap();
    assert_eq!(vcpu.processor().writes, writes);
    let mut moved = std::boxed::Box::new(vcpu);
    moved.run().unwrap();
    let expected = moved.frame.host_rsp();
    assert_eq!(moved.processor().get(field::HOST_RSP), Ok(expected));
}

#[test]
fn general_registers_and_rsp() {
    let mut vcpu = vcpu();
    for gpr in Gpr::ALL {
        vcpu.set_gpr(gpr, 0x1000 + gpr.number() as u64).unwrap();
    }
    for gpr in Gpr::ALL {
        assert_eq!(vcpu.gpr(gpr), Ok(0x1000 + gpr.number() as u64));
    }
    assert_eq!(vcpu.processor().get(field::GUEST_RSP), Ok(0x1004));
}

#[test]
fn a_failed_entry_is_final_and_explained() {
    let mut vcpu = vcpu();
    vcpu.write(Register::Rflags, 1 << 15).unwrap();
    vcpu.processor().script_exit(&[(REASON, 0x8000_0021)]);
    assert_eq!(vcpu.run(), Err(BackendError::Entry { code: 0x8000_0021 }));
    assert_eq!(vcpu.run(), Err(BackendError::Entry { code: 0x8000_0021 }));
    let mut text = String::new();
    vcpu.explain_entry_failure(&mut text).unwrap();
    assert!(text.starts_with("entry failed: invalid guest state (reason 0x80000021, qualification 0)\n"), "{text}");
    assert!(text.ends_with("\n  GUEST_RFLAGS = 0x8002: reserved bits must be 0\n"), "{text}");
}

#[test]
fn the_interrupted_event_is_told_once() {
    let fields = [(REASON, 48), (VECTORING, 0x8000_0B0E), (field::IDT_ERROR_CODE.encoding(), 2)];
    let (mut vcpu, _) = after_exit(&fields);
    assert_eq!(vcpu.take_interrupted(), Some(Event::fault(Vector::PF, 2)));
    assert_eq!(vcpu.take_interrupted(), None);
    let length = (field::EXIT_INSTRUCTION_LENGTH.encoding(), 2);
    let (mut vcpu, _) = after_exit(&[(REASON, 48), (VECTORING, 0x8000_0480), length]);
    assert_eq!(vcpu.take_interrupted(), Some(Event::SoftwareInterrupt { vector: 0x80, length: 2 }));
    vcpu.processor().script_exit(&[(REASON, 10)]);
    vcpu.processor().force(VECTORING, 0x8000_0480);
    vcpu.run().unwrap();
    assert_eq!(vcpu.take_interrupted(), None);
}

#[test]
fn an_interrupted_nmi_can_be_injected_again() {
    let (mut vcpu, _) = after_exit(&[(REASON, 48), (VECTORING, 0x8000_0202), (INTERRUPTIBILITY, 8)]);
    assert_eq!(vcpu.take_interrupted(), Some(Event::Nmi));
    assert!(!vcpu.interruptibility().unwrap().nmi);
}

#[test]
fn a_fault_of_iret_blocks_nmis_again() {
    let nested = [(REASON, 48), (QUALIFICATION, 1 << 12)];
    assert!(after_exit(&nested).0.interruptibility().unwrap().nmi);
    let exception = [(REASON, 0), (INTERRUPTION, 0x8000_1B11)];
    assert!(after_exit(&exception).0.interruptibility().unwrap().nmi);
    // Not if the fault came while another event was delivered.
    let delivering = [(REASON, 48), (QUALIFICATION, 1 << 12), (VECTORING, 0x8000_0030)];
    assert!(!after_exit(&delivering).0.interruptibility().unwrap().nmi);
    let without = [(REASON, 48), (QUALIFICATION, 1)];
    assert!(!after_exit(&without).0.interruptibility().unwrap().nmi);
}

#[test]
fn the_hosts_nmi_goes_to_the_host() {
    let (mut vcpu, exit) = after_exit(&[(REASON, 0), (INTERRUPTION, 0x8000_0202)]);
    assert_eq!(exit, Exit::Host);
    assert_eq!(vcpu.processor().log.last(), Some(&"nmi"));
}

#[test]
fn int1_is_a_trap() {
    let rip = field::GUEST_RIP.encoding();
    let length = (field::EXIT_INSTRUCTION_LENGTH.encoding(), 1);
    let (vcpu, exit) = after_exit(&[(REASON, 0), (INTERRUPTION, 0x8000_0501), (rip, 0x100), length]);
    assert_eq!(exit, Exit::Exception { vector: Vector::DB, error: None, debug_status: 0 });
    assert_eq!(vcpu.read(Register::Rip), Ok(0x101));
}

#[test]
fn a_step_in_a_shadow_stays_pending() {
    let rflags = (field::GUEST_RFLAGS.encoding(), 0x102);
    let (mut vcpu, _) = after_exit(&[(REASON, 0), (INTERRUPTION, 0x8000_0301), rflags, (INTERRUPTIBILITY, 2)]);
    assert_eq!(vcpu.processor().get(field::PENDING_DEBUG), Ok(1 << 14));
    let (mut vcpu, _) = after_exit(&[(REASON, 0), (INTERRUPTION, 0x8000_0301), rflags]);
    assert_eq!(vcpu.processor().get(field::PENDING_DEBUG), Ok(0));
}

#[test]
fn injection_writes_what_the_event_needs() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::GP).unwrap();
    assert_eq!(vcpu.processor().get(field::ENTRY_INTERRUPTION), Ok(0x8000_030D), "real mode");
    vcpu.write(Register::Cr0, 0x11).unwrap();
    vcpu.inject(Event::fault(Vector::PF, 6)).unwrap();
    assert_eq!(vcpu.processor().get(field::ENTRY_INTERRUPTION), Ok(0x8000_0B0E));
    assert_eq!(vcpu.processor().get(field::ENTRY_ERROR_CODE), Ok(6));
    vcpu.inject(Event::SoftwareInterrupt { vector: 0x80, length: 2 }).unwrap();
    assert_eq!(vcpu.processor().get(field::ENTRY_INTERRUPTION), Ok(0x8000_0480));
    assert_eq!(vcpu.processor().get(field::ENTRY_INSTRUCTION_LENGTH), Ok(2));
}

#[test]
fn windows_are_written_only_when_they_change() {
    let mut vcpu = vcpu();
    let before = vcpu.processor().get(field::PRIMARY_CONTROLS).unwrap();
    let writes = vcpu.processor().writes;
    vcpu.request_windows(Windows::default()).unwrap();
    assert_eq!(vcpu.processor().writes, writes);
    vcpu.request_windows(Windows { interrupt: true, nmi: true }).unwrap();
    vcpu.request_windows(Windows { interrupt: true, nmi: true }).unwrap();
    assert_eq!(vcpu.processor().writes, writes + 1);
    assert_eq!(vcpu.processor().get(field::PRIMARY_CONTROLS), Ok(before | 1 << 2 | 1 << 22));
    vcpu.request_windows(Windows { interrupt: false, nmi: false }).unwrap();
    assert_eq!(vcpu.processor().get(field::PRIMARY_CONTROLS), Ok(before));
}

#[test]
fn the_timer_counts_every_32_ticks_here_and_is_never_early() {
    let mut vcpu = vcpu();
    for (ticks, units) in [(0, 1), (1, 1), (31, 1), (32, 2), (320, 11), (1 << 31, 1 << 26), (u64::MAX, 1 << 26)] {
        vcpu.set_timer(ticks).unwrap();
        assert_eq!(vcpu.processor().get(field::TIMER_VALUE), Ok(units), "{ticks}");
    }
}

#[test]
fn switched_registers_follow_the_active_vcpu() {
    let mut vcpu = vcpu();
    vcpu.write(Register::Cr2, 0x1234).unwrap();
    vcpu.processor().msrs = [99; switched::COUNT];
    vcpu.activate().unwrap();
    assert_eq!(vcpu.processor().msrs, [0; switched::COUNT], "nothing of another guest is left");
    assert_eq!((vcpu.processor().cr2, vcpu.processor().dr6), (0x1234, 0xFFFF_0FF0));
    vcpu.processor().msrs = [1, 2, 3, 4, 5, 6];
    vcpu.write(Register::Dr6, 0xFFFF_0FF1).unwrap();
    vcpu.deactivate().unwrap();
    vcpu.processor().msrs = [99; switched::COUNT];
    vcpu.processor().dr6 = 0;
    assert_eq!(vcpu.read(Register::Dr6), Ok(0xFFFF_0FF1));
    vcpu.activate().unwrap();
    assert_eq!(vcpu.processor().msrs, [1, 2, 3, 4, 5, 6]);
    assert_eq!(vcpu.read(Register::Dr6), Ok(0xFFFF_0FF1));
}

#[test]
fn activating_twice_keeps_the_processors_values() {
    let mut vcpu = vcpu();
    vcpu.activate().unwrap();
    vcpu.processor().msrs = [7; switched::COUNT];
    vcpu.activate().unwrap();
    assert_eq!(vcpu.processor().msrs, [7; switched::COUNT]);
    assert_eq!(vcpu.processor().log.last(), Some(&"vmptrld"));
}

#[test]
fn an_emulated_control_register_write_flushes_translations() {
    let mut vcpu = vcpu();
    for register in [Register::Cr0, Register::Cr3, Register::Cr4] {
        vcpu.processor().log.clear();
        vcpu.write(register, 0x11).unwrap();
        assert_eq!(vcpu.processor().log, ["invvpid"]);
    }
}

#[test]
fn a_guest_whose_old_translations_stay_does_not_run_again() {
    let mut vcpu = vcpu();
    vcpu.processor().invept_fails = true;
    vcpu.flush_nested();
    assert!(vcpu.run().is_err());
}

#[test]
fn a_dump_has_the_registers_and_every_field_that_can_be_read() {
    let (mut vcpu, _) = after_exit(&[(REASON, 10)]);
    vcpu.processor().broken.push(INTERRUPTION);
    let mut text = String::new();
    vcpu.dump(&mut text).unwrap();
    bulkhead_core::dump::write(&vcpu, &mut text).unwrap();
    for part in ["Rax=0000000000000000", "GUEST_RIP=fff0", "Cs f000 base=ffff0000", "Cr0=60000010", "EXIT_REASON=a"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains("EXIT_INTERRUPTION"), "{text}");
}

#[test]
fn a_vcpu_that_arrives_on_another_processor_brings_nothing_along_and_finds_nothing() {
    let mut vcpu = vcpu();
    vcpu.activate().unwrap();
    vcpu.run().unwrap();
    vcpu.run().unwrap();
    vcpu.deactivate().unwrap();
    vcpu.processor().log.clear();
    vcpu.activate().unwrap();
    assert_eq!(vcpu.processor().log, ["vmptrld"], "it stayed");
    vcpu.deactivate().unwrap();
    vcpu.processor().log.clear();
    vcpu.processor().number = 1;
    vcpu.processor().force(field::HOST_TR_SELECTOR.encoding(), 0);
    vcpu.activate().unwrap();
    assert_eq!(vcpu.processor().log, ["vmptrld", "invept", "invvpid"]);
    assert_eq!(vcpu.processor().get_raw(field::HOST_TR_SELECTOR.encoding()), 0x18, "exits lead to where it is");
    vcpu.run().unwrap();
    vcpu.run().unwrap();
    assert!(vcpu.processor().log.ends_with(&["vmlaunch", "vmresume"]), "it was cleared when it left");
}

/// The local APIC goes to the processor and comes back, each time with the controls and the registers that belong to it.
#[test]
fn a_local_apic_is_lent_and_taken_back() {
    const LENT: u32 = 1 << 4 | 1 << 8 | 1 << 9;
    let mut vcpu = vcpu();
    let words = |vcpu: &mut VmxVcpu<FakeProcessor>| {
        let fake = vcpu.processor();
        let read = |field| fake.get(field).unwrap();
        // The TPR shadow and the exits of CR8; the three that virtualize.
        (read(field::PRIMARY_CONTROLS) & (1 << 21 | 3 << 19), read(field::SECONDARY_CONTROLS) & LENT)
    };
    assert_eq!(words(&mut vcpu), (3 << 19, 0));
    vcpu.request_windows(Windows { interrupt: false, nmi: true }).unwrap();
    assert!(vcpu.delivers_interrupts() && !vcpu.has_interrupt());
    vcpu.lend(&|register| if register == 0x13 { 1 << 5 } else { 0 }).unwrap();
    vcpu.request(&Requests { vectors: [0, 1 << 16, 0, 0], level: [0; 4], accepts: true }).unwrap();
    assert_eq!(words(&mut vcpu), (1 << 21, LENT));
    assert_eq!(vcpu.processor().get(field::INTERRUPT_STATUS), Ok(0x6550));
    assert!(!vcpu.has_interrupt(), "below the one in service");
    vcpu.request(&Requests { vectors: [0, 1 << 48, 0, 0], level: [0; 4], accepts: true }).unwrap();
    assert!(vcpu.has_interrupt());
    // It passes the checks of an entry, and the window asked for before is still there.
    assert_ne!(vcpu.processor().get(field::PRIMARY_CONTROLS).unwrap() & 1 << 22, 0);
    let mut text = String::new();
    vcpu.processor().script.push_back(Scripted { entered: Entered::FailValid, fields: vec![] });
    assert!(vcpu.run().is_err());
    vcpu.explain_entry_failure(&mut text).unwrap();
    assert!(!text.contains("APIC") && !text.contains("CONTROLS"), "{text}");
    vcpu.take_back().unwrap();
    assert_eq!(words(&mut vcpu), (3 << 19, 0));
    assert!(!vcpu.has_interrupt(), "nothing of it counts any more");
    let writes = vcpu.processor().writes;
    vcpu.take_back().unwrap();
    assert_eq!(vcpu.processor().writes, writes, "once is enough");
}

#[test]
fn a_processor_without_one_of_the_controls_keeps_nothing() {
    let mut less = [capabilities(); 3];
    less[0].forgo_delivery();
    less[1].primary.may &= !(1 << 21);
    less[2].primary.must |= 1 << 19;
    for capabilities in less {
        let mut vcpu = VmxVcpu::with_processor(FakeProcessor::default(), capabilities, resources(1)).unwrap();
        assert!(!vcpu.delivers_interrupts());
        let writes = vcpu.processor().writes;
        vcpu.lend(&|_| 0).unwrap();
        vcpu.request(&Requests { vectors: [1 << 32; 4], level: [0; 4], accepts: true }).unwrap();
        vcpu.take_back().unwrap();
        assert!(!vcpu.has_interrupt() && vcpu.processor().writes == writes);
        assert!(!vcpu.processor().is_set(field::VIRTUAL_APIC.encoding()));
    }
}

/// SDM vol. 3C 30.4.3.3 "APIC-Write VM Exits".
#[test]
fn a_write_for_software_is_told_with_its_value() {
    let mut vcpu = vcpu();
    vcpu.lend(&|_| 0).unwrap();
    vcpu.lent.as_mut().unwrap().page.store(0x3F0, 4, 5);
    vcpu.processor().script_exit(&[(REASON, 56), (QUALIFICATION, 0x3F0)]);
    assert_eq!(vcpu.run(), Ok(Exit::RegisterWritten { register: 0x3F, value: 5 }));
    vcpu.processor().script_exit(&[(REASON, 45), (QUALIFICATION, 0x71)]);
    assert_eq!(vcpu.run(), Ok(Exit::EndOfInterrupt { vector: 0x71 }));
}
