//! From an exit code and its two words to an [`Exit`].
//!
//! APM vol. 2 appendix C "SVM Intercept Exit Codes"; 15.10.2 "IN and OUT Behavior", 15.25.6 "Nested versus Guest Page
//! Faults, Fault Ordering". What needs the instruction (control registers) is the vCPU's to complete.

use bulkhead_arch::Vector;
use bulkhead_core::{Exit, IoAccess, NestedFault};
use bulkhead_types::{Gpa, Width};

pub(crate) const READ_CR4: u64 = 0x04;
pub(crate) const READ_CR8: u64 = 0x08;
pub(crate) const WRITE_CR0: u64 = 0x10;
pub(crate) const WRITE_CR8: u64 = 0x18;
pub(crate) const DEBUG: u64 = 0x41;
pub(crate) const PAGE_FAULT: u64 = 0x4E;
pub(crate) const INTERRUPT: u64 = 0x60;
pub(crate) const IRET: u64 = 0x74;
pub(crate) const IO: u64 = 0x7B;
/// The processor refused the VMCB.
pub(crate) const INVALID: u64 = 0xFFFF_FFFF;

/// Decodes an exit that is more than its code says in [`crate::SvmVcpu`].
#[must_use]
pub fn decode(code: u64, info: [u64; 2]) -> Exit {
    match code {
        DEBUG => Exit::Exception { vector: Vector::DB, error: None, debug_status: info[0] },
        0x52 => Exit::MachineCheck,
        0x40..=0x51 | 0x53..=0x5F => exception(code, info[0]),
        // Interrupts, NMIs and INIT are pending for the host, which takes them by itself.
        INTERRUPT | 0x61 | 0x63 => Exit::Host,
        0x64 => Exit::InterruptWindow,
        0x72 => Exit::Cpuid,
        0x76 | 0x89 => Exit::CacheFlush,
        0x78 => Exit::Halt,
        IO => Exit::Io(port_access(info[0])),
        0x7C if info[0] & 1 != 0 => Exit::WriteMsr,
        0x7C => Exit::ReadMsr,
        0x7D => Exit::TaskSwitch,
        0x7F => Exit::TripleFault,
        0x81 => Exit::Hypercall,
        // RDPMC, INVLPGA, VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, MONITOR, MWAIT, RDPRU, INVLPGB, MCOMMIT, TLBSYNC.
        0x6F | 0x7A | 0x80 | 0x82..=0x86 | 0x8A..=0x8C | 0x8E | 0xA0 | 0xA1 | 0xA3 | 0xA4 => Exit::Undefined,
        0x8D => Exit::Xsetbv,
        0x400 => Exit::Nested(nested(info)),
        _ => Exit::Unexpected { reason: code, info: info[0] },
    }
}

/// An exception; EXITINFO1 is its error code, if it has one. APM vol. 2 15.12 "Exception Intercepts".
fn exception(code: u64, info: u64) -> Exit {
    let [number, ..] = (code & 0x1F).to_le_bytes();
    let vector = Vector(number);
    let [a, b, c, d, ..] = info.to_le_bytes();
    let error = vector.has_error_code().then_some(u32::from_le_bytes([a, b, c, d]));
    Exit::Exception { vector, error, debug_status: 0 }
}

/// What EXITINFO1 says of a port access.
fn port_access(info: u64) -> IoAccess {
    let width = match info >> 4 & 7 {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    };
    let string = info & 1 << 2 != 0;
    let address_bytes = match info >> 7 & 7 {
        1 if string => Some(2),
        2 if string => Some(4),
        4 if string => Some(8),
        _ => None,
    };
    IoAccess {
        port: u16::try_from(info >> 16 & 0xFFFF).unwrap_or(0),
        width,
        write: info & 1 == 0,
        string,
        repeat: info & 1 << 3 != 0,
        segment: None,
        address_bytes,
    }
}

/// A nested page fault: error code and guest-physical address.
fn nested([error, gpa]: [u64; 2]) -> NestedFault {
    NestedFault {
        gpa: Gpa::new(gpa),
        gva: None,
        write: error & 1 << 1 != 0,
        execute: error & 1 << 4 != 0,
        table_walk: error & 1 << 33 != 0,
        present: error & 1 << 0 != 0,
        malformed: error & 1 << 3 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::decode;
    use bulkhead_core::Exit;
    use bulkhead_types::{Gpa, Width};

    #[test]
    fn ports() {
        let Exit::Io(out) = decode(0x7B, [0x3F8 << 16 | 0x10, 0]) else { panic!() };
        assert!(out.write && !out.string && out.port == 0x3F8 && out.width == Width::Byte);
        let Exit::Io(ins) = decode(0x7B, [0x1F0 << 16 | 0x22D | 1 << 9, 0]) else { panic!() };
        assert!(!ins.write && ins.string && ins.repeat && ins.width == Width::Word);
        assert_eq!(ins.address_bytes, Some(8));
    }

    #[test]
    fn nested_faults() {
        let Exit::Nested(fault) = decode(0x400, [1 << 32 | 0b10, 0xFEE0_0000]) else { panic!() };
        assert!(fault.write && !fault.execute && !fault.table_walk && !fault.present && !fault.malformed);
        assert_eq!(fault.gpa, Gpa::new(0xFEE0_0000));
        let Exit::Nested(walk) = decode(0x400, [1 << 33 | 0b1_1101, 0]) else { panic!() };
        assert!(walk.table_walk && walk.present && walk.malformed && walk.execute);
    }

    #[test]
    fn every_code_is_something() {
        for code in 0..0x500 {
            let _ = decode(code, [u64::MAX; 2]);
        }
        assert_eq!(decode(0x80, [0; 2]), Exit::Undefined);
        assert_eq!(decode(0x81, [0; 2]), Exit::Hypercall);
        assert_eq!(decode(0x52, [3, 0]), Exit::MachineCheck);
    }
}
