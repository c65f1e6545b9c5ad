use super::{decode, reason};
use crate::fake::FakeProcessor;
use crate::fields as field;
use bulkhead_arch::{Gpr, SegmentName, Vector};
use bulkhead_core::{Exit, IoAccess, NestedFault};
use bulkhead_types::{Gpa, Gva, Width};
use proptest::prelude::{any, proptest};

const QUALIFICATION: u32 = field::EXIT_QUALIFICATION.encoding();
const INTERRUPTION: u32 = field::EXIT_INTERRUPTION.encoding();
const INFO: u32 = field::EXIT_INSTRUCTION_INFO.encoding();

fn exit(reason: u32, fields: &[(u32, u64)]) -> Exit {
    let mut fake = FakeProcessor::default();
    for &(encoding, value) in fields {
        fake.force(encoding, value);
    }
    decode(&fake, reason, true).unwrap()
}

/// SDM vol. 3D appendix C, table C-1.
#[test]
fn every_basic_exit_reason_is_mapped() {
    let undefined = [
        11, 15, 19, 20, 21, 22, 23, 24, 25, 26, 27, 36, 39, 50, 51, 53, 58, 59, 60, 63, 64, 65, 67, 68, 69, 70, 76, 77,
        78, 79,
    ];
    let unexpected =
        [3, 4, 5, 6, 14, 16, 17, 29, 33, 34, 37, 40, 41, 43, 44, 46, 47, 56, 57, 61, 62, 66, 72, 73, 74, 75];
    for reason in 0..80 {
        let expected = match reason {
            // With a qualification of zeros: no valid exception, MOV to CR0 from RAX, OUT of a byte to port 0.
            0 => Exit::Unexpected { reason: 0, info: 0 },
            28 => Exit::WriteCr { number: 0, from: Gpr::Rax },
            1 => Exit::Host,
            2 => Exit::TripleFault,
            7 => Exit::InterruptWindow,
            8 => Exit::NmiWindow,
            9 => Exit::TaskSwitch,
            10 => Exit::Cpuid,
            12 => Exit::Halt,
            13 | 54 => Exit::CacheFlush,
            18 => Exit::Hypercall,
            45 => Exit::EndOfInterrupt { vector: 0 },
            31 => Exit::ReadMsr,
            32 => Exit::WriteMsr,
            52 => Exit::Timer,
            55 => Exit::Xsetbv,
            30 | 48 | 49 => {
                assert!(matches!(exit(reason, &[]), Exit::Io(_) | Exit::Nested(_)));
                continue;
            }
            _ if undefined.contains(&reason) => Exit::Undefined,
            _ => {
                assert!(unexpected.contains(&reason) || [35, 38, 42, 71].contains(&reason), "{reason}");
                Exit::Unexpected { reason: reason.into(), info: 0 }
            }
        };
        assert_eq!(exit(reason, &[]), expected, "reason {reason}");
    }
}

#[test]
fn an_exit_from_an_enclave_or_with_a_flag_decodes_by_its_low_half() {
    assert_eq!(exit(1 << 27 | 10, &[]), Exit::Cpuid);
}

fn port(qualification: u64, info: u64) -> IoAccess {
    match exit(30, &[(QUALIFICATION, qualification), (INFO, info)]) {
        Exit::Io(access) => access,
        other => panic!("{other:?}"),
    }
}

#[test]
fn in_and_out_of_each_width() {
    let plain = IoAccess {
        port: 0x3F8,
        width: Width::Byte,
        write: true,
        string: false,
        repeat: false,
        segment: None,
        address_bytes: None,
    };
    assert_eq!(port(0x03F8_0000, u64::MAX), plain);
    assert_eq!(port(0x03F8_0009, 0), IoAccess { width: Width::Word, write: false, ..plain });
    assert_eq!(port(0xFFFF_000B, 0), IoAccess { port: 0xFFFF, width: Width::Dword, write: false, ..plain });
}

#[test]
fn string_io_says_its_operand_where_the_processor_does() {
    // REP OUTSW from FS with 32-bit addresses; REP INSB with 64-bit ones.
    let outs = port(0x0080_0031, 4 << 15 | 1 << 7);
    assert!(outs.string && outs.repeat && outs.write && outs.width == Width::Word);
    assert_eq!((outs.segment, outs.address_bytes), (Some(SegmentName::Fs), Some(4)));
    let ins = port(0x0080_0038, 2 << 7 | 3 << 15);
    assert_eq!((ins.segment, ins.address_bytes), (None, Some(8)));
    let mut fake = FakeProcessor::default();
    fake.force(QUALIFICATION, 0x0080_0038);
    fake.broken.push(INFO);
    let Ok(Exit::Io(unknown)) = decode(&fake, 30, false) else { panic!("not decoded") };
    assert_eq!((unknown.segment, unknown.address_bytes), (None, None));
}

#[test]
fn control_register_accesses() {
    let access = |qualification| exit(28, &[(QUALIFICATION, qualification)]);
    assert_eq!(access(0x704), Exit::WriteCr { number: 4, from: Gpr::Rdi });
    assert_eq!(access(0xF08), Exit::WriteCr { number: 8, from: Gpr::R15 });
    assert_eq!(access(0x318), Exit::ReadCr { number: 8, to: Gpr::Rbx });
    assert_eq!(access(0x1234_0030), Exit::Lmsw { value: Some(0x1234) });
    for unexpected in [0x03, 0x13, 0x20] {
        assert_eq!(access(unexpected), Exit::Unexpected { reason: 28, info: unexpected });
    }
}

#[test]
fn ept_violations() {
    let gpa = (field::GUEST_PHYSICAL_ADDRESS.encoding(), 0xFEC0_0010);
    let gva = (field::GUEST_LINEAR_ADDRESS.encoding(), 0xFFFF_8000_0000_0010);
    let fault = |qualification| match exit(48, &[(QUALIFICATION, qualification), gpa, gva]) {
        Exit::Nested(fault) => fault,
        other => panic!("{other:?}"),
    };
    let read = NestedFault {
        gpa: Gpa::new(0xFEC0_0010),
        gva: Some(Gva::new(0xFFFF_8000_0000_0010)),
        write: false,
        execute: false,
        table_walk: false,
        present: false,
        malformed: false,
    };
    assert_eq!(fault(0x181), read);
    assert_eq!(fault(0x182), NestedFault { write: true, ..read });
    assert_eq!(fault(0x18C), NestedFault { execute: true, present: true, ..read });
    assert_eq!(fault(0x083), NestedFault { write: true, table_walk: true, ..read });
    assert_eq!(fault(0x1BA), NestedFault { write: true, present: true, ..read });
    assert_eq!(fault(0x001), NestedFault { gva: None, table_walk: true, ..read });
    let Exit::Nested(bad) = exit(49, &[gpa]) else { panic!("no fault") };
    assert!(bad.malformed && bad.gpa == Gpa::new(0xFEC0_0010));
}

#[test]
fn exceptions_that_exit() {
    let debug = exit(0, &[(INTERRUPTION, 0x8000_0301), (QUALIFICATION, 0xFFFF_FFFF)]);
    assert_eq!(debug, Exit::Exception { vector: Vector::DB, error: None, debug_status: 0x600F });
    let int1 = exit(0, &[(INTERRUPTION, 0x8000_0501), (QUALIFICATION, 0x4000)]);
    assert_eq!(int1, Exit::Exception { vector: Vector::DB, error: None, debug_status: 0 });
    let alignment = exit(0, &[(INTERRUPTION, 0x8000_0B11), (QUALIFICATION, 0x4000)]);
    assert_eq!(alignment, Exit::Exception { vector: Vector::AC, error: Some(0), debug_status: 0 });
    assert_eq!(exit(0, &[(INTERRUPTION, 0x8000_0202)]), Exit::Host);
    assert_eq!(exit(0, &[(INTERRUPTION, 0x8000_0312)]), Exit::MachineCheck);
    assert_eq!(exit(0, &[(INTERRUPTION, 0x8000_0310)]), Exit::Unexpected { reason: 0, info: 0x8000_0310 });
}

proptest! {
    #[test]
    fn nothing_panics(reason in any::<u32>(), low in 0..80_u32, qualification in any::<u64>(), info in any::<u32>()) {
        for reason in [reason, low] {
            let _ = exit(reason, &[(QUALIFICATION, qualification), (INTERRUPTION, info.into()), (INFO, info.into())]);
        }
    }

    /// A port access that the processor can report is never a quadword.
    #[test]
    fn ports_have_at_most_four_bytes(qualification in any::<u64>()) {
        assert!(port(qualification, 0).width <= Width::Dword);
    }
}

#[test]
fn named_reasons() {
    assert_eq!(reason::EXCEPTION_OR_NMI, 0);
    assert_eq!(exit(reason::EPT_VIOLATION, &[]), exit(48, &[]));
}
