//! What the processor says of an exit.

use crate::Feed;
use bulkhead_core::{BackendError, Exit};
use bulkhead_types::Width;
use bulkhead_vmx::vmcs::VmcsAccess;
use std::cell::Cell;

/// A VMCS whose fields are asked for once each, at most; one of the reads may fail.
struct Fields {
    qualification: u64,
    info: u32,
    other: u64,
    reads: Cell<u32>,
    fails: u32,
}

impl VmcsAccess for Fields {
    fn read(&self, encoding: u32) -> Result<u64, BackendError> {
        assert!(bulkhead_vmx::fields::ALL.contains(&encoding), "field {encoding:#x}");
        self.reads.set(self.reads.get() + 1);
        if self.reads.get() == self.fails {
            return Err(BackendError::Field { field: encoding, code: 12 });
        }
        // Bits 14:13 of an encoding are the width: 16, 64, 32 bits, natural.
        let mask = [0xFFFF, u64::MAX, 0xFFFF_FFFF, u64::MAX][(encoding >> 13 & 3) as usize];
        let value = match encoding {
            0x6400 => self.qualification,
            0x4404 | 0x440E => self.info.into(),
            _ => self.other,
        };
        Ok(value & mask)
    }

    fn write(&mut self, encoding: u32, _: u64) -> Result<(), BackendError> {
        panic!("decoding writes {encoding:#x}");
    }
}

fn check(exit: &Exit) {
    match exit {
        Exit::Io(access) => {
            assert!(access.width < Width::Qword, "no port has 64 bits");
            assert!(access.address_bytes.is_none_or(|bytes| matches!(bytes, 2 | 4 | 8)));
            assert!(access.segment.is_none() || access.write, "INS has no segment of its own");
        }
        Exit::WriteCr { number, .. } => assert!(matches!(number, 0 | 4 | 8)),
        Exit::ReadCr { number, .. } => assert!(matches!(number, 4 | 8)),
        _ => {}
    }
}

/// VT-x: reason, qualification, information.
pub fn vmx(data: &[u8]) {
    let mut feed = Feed::new(data);
    while !feed.is_empty() {
        let reason = if feed.flag() { u32::from(feed.u8() & 0x7F) } else { feed.u32() };
        let string_info = feed.flag();
        let fails = u32::from(feed.u8() & 15);
        let mut fields = Fields {
            qualification: feed.magnitude(),
            info: feed.u32(),
            other: feed.u64(),
            reads: Cell::new(0),
            fails: 0,
        };
        let exit = bulkhead_vmx::exit::decode(&fields, reason, string_info).expect("no field failed");
        check(&exit);
        let needed = fields.reads.replace(0);
        assert!(needed <= 4, "{needed} reads");
        assert_eq!(bulkhead_vmx::exit::decode(&fields, reason, string_info), Ok(exit), "the same again");
        fields.reads.set(0);
        fields.fails = fails;
        let result = bulkhead_vmx::exit::decode(&fields, reason, string_info);
        // The fields that every processor has are read unchecked: a failure there reads as zero.
        if let Ok(exit) = result {
            check(&exit);
        }
    }
}

/// SVM: exit code and two words.
pub fn svm(data: &[u8]) {
    let mut feed = Feed::new(data);
    while !feed.is_empty() {
        let code = match feed.u8() & 3 {
            0 => feed.u64(),
            1 => 0x400 + u64::from(feed.u8() & 3),
            _ => feed.u8().into(),
        };
        check(&bulkhead_svm::exit::decode(code, [feed.u64(), feed.u64()]));
    }
}
