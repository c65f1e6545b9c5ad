//! The fields of a VMCB: where they are and how wide.
//!
//! APM vol. 2 appendix B "VMCB Layout", table B-1 "VMCB Layout, Control Area", table B-2 "VMCB Layout, State Save Area".

use bulkhead_arch::SegmentName;

/// A field: its offset and width in bytes. Made only by functions that check both when the program is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    /// Its bit of [`CLEAN`]; 0: it is read at each entry.
    pub(crate) group: u64,
}

const fn field(offset: usize, bytes: usize) -> Field {
    assert!(offset.is_multiple_of(bytes) && offset + bytes <= 4096);
    Field { offset, bytes, group: group(offset) }
}

/// What a processor may keep from the entry before. APM vol. 2 15.15.3 "VMCB Clean Field", 15.15.4 "VMCB Clean Field
/// Details", table 15-9; branch records (bit 10) and the AVIC (bit 11) are never written.
const fn group(offset: usize) -> u64 {
    let bit = match offset {
        // Intercepts, TSC offset.
        0x000..0x040 | 0x050 => 0,
        // Permission maps.
        0x040..0x050 => 1,
        // ASID.
        0x058 => 2,
        // Virtual interrupts.
        0x060 => 3,
        // Nested paging, PAT.
        0x090 | 0x0B0 | 0x668 => 4,
        // CR0, CR3, CR4, EFER.
        0x4D0 | 0x548..0x560 => 5,
        // DR6, DR7.
        0x560..0x570 => 6,
        // GDT, IDT.
        0x460..0x470 | 0x480..0x490 => 7,
        // ES, CS, SS, DS, CPL.
        0x400..0x440 | 0x4CB => 8,
        // CR2.
        0x640 => 9,
        _ => return 0,
    };
    1 << bit
}

/// All bits of [`CLEAN`] that are used.
pub(crate) const GROUPS: u64 = 0xFFF;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $offset:literal, $bytes:literal;)*) => {
        $($(#[$doc])* pub const $name: Field = field($offset, $bytes);)*
        /// All of them, with their names.
        pub const ALL: &[(&str, Field)] = &[$((stringify!($name), $name)),*];
    };
}

fields! {
    /// Intercepted reads and writes of control registers.
    INTERCEPT_CR = 0x000, 4;
    /// Intercepted exceptions.
    INTERCEPT_EXCEPTIONS = 0x008, 4;
    /// Intercepted events and instructions.
    INTERCEPT_MISC = 0x00C, 4;
    /// Intercepted instructions, those of SVM among them.
    INTERCEPT_MORE = 0x010, 4;
    /// Intercepted instructions that came last.
    INTERCEPT_LAST = 0x014, 4;
    /// I/O permission map.
    IOPM_BASE = 0x040, 8;
    /// MSR permission map.
    MSRPM_BASE = 0x048, 8;
    /// What the guest's counter is ahead.
    TSC_OFFSET = 0x050, 8;
    /// Address-space identifier.
    ASID = 0x058, 4;
    /// What translations the next entry forgets.
    TLB_CONTROL = 0x05C, 1;
    /// Virtual interrupts.
    INTERRUPT_CONTROL = 0x060, 8;
    /// Interrupt shadow.
    INTERRUPT_STATE = 0x068, 8;
    /// Why the exit came. All codes are in the low half; of -1 (invalid) QEMU's TCG writes nothing else.
    EXIT_CODE = 0x070, 4;
    /// First word about it.
    EXIT_INFO_1 = 0x078, 8;
    /// Second word about it.
    EXIT_INFO_2 = 0x080, 8;
    /// The event whose delivery the exit interrupted.
    EXIT_EVENT = 0x088, 8;
    /// Nested paging.
    NESTED_CONTROL = 0x090, 8;
    /// The event to deliver.
    EVENT_INJECTION = 0x0A8, 8;
    /// Root of the nested tables.
    NESTED_CR3 = 0x0B0, 8;
    /// What the processor may keep from the entry before; 0: nothing.
    CLEAN = 0x0C0, 4;
    /// Address of the next instruction, where the processor says so.
    NEXT_RIP = 0x0C8, 8;
    /// Current privilege level.
    CPL = 0x4CB, 1;
    /// EFER.
    EFER = 0x4D0, 8;
    /// CR4.
    CR4 = 0x548, 8;
    /// CR3.
    CR3 = 0x550, 8;
    /// CR0.
    CR0 = 0x558, 8;
    /// DR7.
    DR7 = 0x560, 8;
    /// DR6.
    DR6 = 0x568, 8;
    /// RFLAGS.
    RFLAGS = 0x570, 8;
    /// RIP.
    RIP = 0x578, 8;
    /// RSP.
    RSP = 0x5D8, 8;
    /// RAX.
    RAX = 0x5F8, 8;
    /// SYSENTER_CS.
    SYSENTER_CS = 0x628, 8;
    /// SYSENTER_ESP.
    SYSENTER_ESP = 0x630, 8;
    /// SYSENTER_EIP.
    SYSENTER_EIP = 0x638, 8;
    /// CR2.
    CR2 = 0x640, 8;
    /// The guest's PAT.
    PAT = 0x668, 8;
    /// Limit of the GDT.
    GDT_LIMIT = 0x464, 4;
    /// Base of the GDT.
    GDT_BASE = 0x468, 8;
    /// Limit of the IDT.
    IDT_LIMIT = 0x484, 4;
    /// Base of the IDT.
    IDT_BASE = 0x488, 8;
}

/// The four fields of a segment register.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SegmentFields {
    pub selector: Field,
    pub attributes: Field,
    pub limit: Field,
    pub base: Field,
}

/// Where a segment register is.
#[must_use]
pub const fn segment(name: SegmentName) -> SegmentFields {
    const fn at(start: usize) -> SegmentFields {
        SegmentFields {
            selector: field(start, 2),
            attributes: field(start + 2, 2),
            limit: field(start + 4, 4),
            base: field(start + 8, 8),
        }
    }
    match name {
        SegmentName::Es => const { at(0x400) },
        SegmentName::Cs => const { at(0x410) },
        SegmentName::Ss => const { at(0x420) },
        SegmentName::Ds => const { at(0x430) },
        SegmentName::Fs => const { at(0x440) },
        SegmentName::Gs => const { at(0x450) },
        SegmentName::Ldtr => const { at(0x470) },
        SegmentName::Tr => const { at(0x490) },
    }
}
