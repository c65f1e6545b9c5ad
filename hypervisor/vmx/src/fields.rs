//! The fields of a VMCS, typed by width and access.
//!
//! A field's type says how wide its value is and whether it can be written: a read-only field has no `set`.
//! SDM vol. 3D appendix B "Field Encoding in VMCS".

use crate::vmcs::VmcsAccess;
use bulkhead_arch::SegmentName;
use bulkhead_core::BackendError;
use core::fmt;
use core::marker::PhantomData;

/// Width class of a field.
pub trait Size {
    /// The Rust type of a value.
    type Value: Copy + Default;
    /// The value in the low bits of what VMREAD gives.
    fn from_raw(raw: u64) -> Self::Value;
    /// What VMWRITE takes.
    fn into_raw(value: Self::Value) -> u64;
}

macro_rules! size {
    ($name:ident, $value:ty, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Size for $name {
            type Value = $value;

            #[inline]
            #[allow(clippy::cast_possible_truncation, reason = "VMREAD clears the bits above the field's width")]
            fn from_raw(raw: u64) -> $value {
                raw as $value
            }

            #[inline]
            fn into_raw(value: $value) -> u64 {
                u64::from(value)
            }
        }
    };
}

size!(Bits16, u16, "16 bits.");
size!(Bits32, u32, "32 bits.");
size!(Bits64, u64, "64 bits, also on 32-bit processors.");
size!(Natural, u64, "As wide as the processor's registers: 64 bits.");

/// Access class: can be read only.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;
/// Access class: can be read and written.
#[derive(Clone, Copy, Debug)]
pub struct ReadWrite;

/// A field of the VMCS.
pub struct Field<S, A> {
    encoding: u32,
    class: PhantomData<(S, A)>,
}

impl<S, A> Clone for Field<S, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, A> Copy for Field<S, A> {}

impl<S, A> Field<S, A> {
    const fn at(encoding: u32) -> Self {
        Self { encoding, class: PhantomData }
    }

    /// Its number, as VMREAD and VMWRITE take it.
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
}

impl<S, A> fmt::Debug for Field<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.encoding))
    }
}

/// Typed access to the fields.
pub trait Fields: VmcsAccess {
    /// The value of `field`.
    ///
    /// # Errors
    /// If the processor refuses.
    #[inline]
    fn get<S: Size, A>(&self, field: Field<S, A>) -> Result<S::Value, BackendError> {
        Ok(S::from_raw(self.read(field.encoding)?))
    }

    /// The value of `field`, which is known to exist; see [`VmcsAccess::read_known`].
    #[inline]
    fn known<S: Size, A>(&self, field: Field<S, A>) -> S::Value {
        S::from_raw(self.read_known(field.encoding))
    }

    /// Sets `field`.
    ///
    /// # Errors
    /// If the processor refuses.
    #[inline]
    fn set<S: Size>(&mut self, field: Field<S, ReadWrite>, value: S::Value) -> Result<(), BackendError> {
        self.write(field.encoding, S::into_raw(value))
    }
}

impl<T: VmcsAccess + ?Sized> Fields for T {}

macro_rules! fields {
    ($($size:ident $access:ident { $($name:ident = $encoding:literal;)* })*) => {
        $($(
            #[doc = concat!("Field ", stringify!($encoding), ".")]
            pub const $name: Field<$size, $access> = Field::at($encoding);
        )*)*

        /// The name of the field with this number.
        #[must_use]
        pub const fn name(encoding: u32) -> &'static str {
            match encoding {
                $($($encoding => stringify!($name),)*)*
                _ => "unknown field",
            }
        }

        /// The numbers of all fields of this module.
        pub const ALL: &[u32] = &[$($($encoding,)*)*];
    };
}

fields! {
    Bits16 ReadWrite {
        VPID = 0x0000; GUEST_ES_SELECTOR = 0x0800; GUEST_CS_SELECTOR = 0x0802; GUEST_SS_SELECTOR = 0x0804;
        GUEST_DS_SELECTOR = 0x0806; GUEST_FS_SELECTOR = 0x0808; GUEST_GS_SELECTOR = 0x080A;
        GUEST_LDTR_SELECTOR = 0x080C; GUEST_TR_SELECTOR = 0x080E; INTERRUPT_STATUS = 0x0810; HOST_ES_SELECTOR = 0x0C00;
        HOST_CS_SELECTOR = 0x0C02; HOST_SS_SELECTOR = 0x0C04; HOST_DS_SELECTOR = 0x0C06; HOST_FS_SELECTOR = 0x0C08;
        HOST_GS_SELECTOR = 0x0C0A; HOST_TR_SELECTOR = 0x0C0C;
    }
    Bits64 ReadWrite {
        IO_BITMAP_A = 0x2000; IO_BITMAP_B = 0x2002; MSR_BITMAP = 0x2004; EXIT_MSR_STORE_ADDRESS = 0x2006;
        EXIT_MSR_LOAD_ADDRESS = 0x2008; ENTRY_MSR_LOAD_ADDRESS = 0x200A; TSC_OFFSET = 0x2010; VIRTUAL_APIC = 0x2012;
        EPT_POINTER = 0x201A; EOI_EXIT0 = 0x201C; EOI_EXIT1 = 0x201E; EOI_EXIT2 = 0x2020; EOI_EXIT3 = 0x2022;
    }
    Bits64 ReadOnly {
        GUEST_PHYSICAL_ADDRESS = 0x2400;
    }
    Bits64 ReadWrite {
        LINK_POINTER = 0x2800; GUEST_DEBUGCTL = 0x2802; GUEST_PAT = 0x2804; GUEST_EFER = 0x2806;
        GUEST_PDPTE0 = 0x280A; GUEST_PDPTE1 = 0x280C; GUEST_PDPTE2 = 0x280E; GUEST_PDPTE3 = 0x2810; HOST_PAT = 0x2C00;
        HOST_EFER = 0x2C02;
    }
    Bits32 ReadWrite {
        PIN_CONTROLS = 0x4000; PRIMARY_CONTROLS = 0x4002; EXCEPTION_BITMAP = 0x4004; PAGE_FAULT_MASK = 0x4006;
        PAGE_FAULT_MATCH = 0x4008; CR3_TARGET_COUNT = 0x400A; EXIT_CONTROLS = 0x400C; EXIT_MSR_STORE_COUNT = 0x400E;
        EXIT_MSR_LOAD_COUNT = 0x4010; ENTRY_CONTROLS = 0x4012; ENTRY_MSR_LOAD_COUNT = 0x4014;
        ENTRY_INTERRUPTION = 0x4016; ENTRY_ERROR_CODE = 0x4018; ENTRY_INSTRUCTION_LENGTH = 0x401A;
        TPR_THRESHOLD = 0x401C; SECONDARY_CONTROLS = 0x401E;
    }
    Bits32 ReadOnly {
        INSTRUCTION_ERROR = 0x4400; EXIT_REASON = 0x4402; EXIT_INTERRUPTION = 0x4404; EXIT_ERROR_CODE = 0x4406;
        IDT_VECTORING = 0x4408; IDT_ERROR_CODE = 0x440A; EXIT_INSTRUCTION_LENGTH = 0x440C;
        EXIT_INSTRUCTION_INFO = 0x440E;
    }
    Bits32 ReadWrite {
        GUEST_ES_LIMIT = 0x4800; GUEST_CS_LIMIT = 0x4802; GUEST_SS_LIMIT = 0x4804; GUEST_DS_LIMIT = 0x4806;
        GUEST_FS_LIMIT = 0x4808; GUEST_GS_LIMIT = 0x480A; GUEST_LDTR_LIMIT = 0x480C; GUEST_TR_LIMIT = 0x480E;
        GUEST_GDTR_LIMIT = 0x4810; GUEST_IDTR_LIMIT = 0x4812; GUEST_ES_ATTRIBUTES = 0x4814;
        GUEST_CS_ATTRIBUTES = 0x4816; GUEST_SS_ATTRIBUTES = 0x4818; GUEST_DS_ATTRIBUTES = 0x481A;
        GUEST_FS_ATTRIBUTES = 0x481C; GUEST_GS_ATTRIBUTES = 0x481E; GUEST_LDTR_ATTRIBUTES = 0x4820;
        GUEST_TR_ATTRIBUTES = 0x4822; INTERRUPTIBILITY = 0x4824; ACTIVITY_STATE = 0x4826; GUEST_SYSENTER_CS = 0x482A;
        TIMER_VALUE = 0x482E; HOST_SYSENTER_CS = 0x4C00;
    }
    Natural ReadWrite {
        CR0_MASK = 0x6000; CR4_MASK = 0x6002; CR0_SHADOW = 0x6004; CR4_SHADOW = 0x6006;
    }
    Natural ReadOnly {
        EXIT_QUALIFICATION = 0x6400; GUEST_LINEAR_ADDRESS = 0x640A;
    }
    Natural ReadWrite {
        GUEST_CR0 = 0x6800; GUEST_CR3 = 0x6802; GUEST_CR4 = 0x6804; GUEST_ES_BASE = 0x6806; GUEST_CS_BASE = 0x6808;
        GUEST_SS_BASE = 0x680A; GUEST_DS_BASE = 0x680C; GUEST_FS_BASE = 0x680E; GUEST_GS_BASE = 0x6810;
        GUEST_LDTR_BASE = 0x6812; GUEST_TR_BASE = 0x6814; GUEST_GDTR_BASE = 0x6816; GUEST_IDTR_BASE = 0x6818;
        GUEST_DR7 = 0x681A; GUEST_RSP = 0x681C; GUEST_RIP = 0x681E; GUEST_RFLAGS = 0x6820; PENDING_DEBUG = 0x6822;
        GUEST_SYSENTER_ESP = 0x6824; GUEST_SYSENTER_EIP = 0x6826; HOST_CR0 = 0x6C00; HOST_CR3 = 0x6C02;
        HOST_CR4 = 0x6C04; HOST_FS_BASE = 0x6C06; HOST_GS_BASE = 0x6C08; HOST_TR_BASE = 0x6C0A;
        HOST_GDTR_BASE = 0x6C0C; HOST_IDTR_BASE = 0x6C0E; HOST_SYSENTER_ESP = 0x6C10; HOST_SYSENTER_EIP = 0x6C12;
        HOST_RSP = 0x6C14; HOST_RIP = 0x6C16;
    }
}

/// The four fields of one guest segment register.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<Bits16, ReadWrite>,
    /// Base address.
    pub base: Field<Natural, ReadWrite>,
    /// Limit in bytes.
    pub limit: Field<Bits32, ReadWrite>,
    /// Access rights.
    pub attributes: Field<Bits32, ReadWrite>,
}

/// The fields of the guest's segment register `segment`.
#[must_use]
pub const fn segment(segment: SegmentName) -> SegmentFields {
    // Each group holds the eight registers in the order of `SegmentName`, two numbers apart.
    let step = segment as u32 * 2;
    SegmentFields {
        selector: Field::at(GUEST_ES_SELECTOR.encoding + step),
        base: Field::at(GUEST_ES_BASE.encoding + step),
        limit: Field::at(GUEST_ES_LIMIT.encoding + step),
        attributes: Field::at(GUEST_ES_ATTRIBUTES.encoding + step),
    }
}

#[cfg(test)]
mod tests {
    use super::{ALL, name, segment};
    use bulkhead_arch::SegmentName;
    use std::format;

    /// Bits 14:13 of an encoding are the width class, 11:10 the type, bit 0 the access to a high half. Table 25-21.
    #[test]
    fn encodings_are_well_formed_and_ascend_within_their_class() {
        for pair in ALL.windows(2) {
            assert!(pair[0] < pair[1], "{} before {}", name(pair[0]), name(pair[1]));
        }
        assert!(ALL.iter().all(|encoding| encoding & !0x6FFE == 0));
    }

    #[test]
    fn read_only_fields_are_those_of_type_1() {
        for encoding in ALL {
            let read_only = encoding >> 10 & 3 == 1;
            let known = name(*encoding).starts_with("EXIT_") && *encoding != 0x400C && encoding >> 10 & 3 != 0
                || ["IDT_VECTORING", "IDT_ERROR_CODE", "INSTRUCTION_ERROR"].contains(&name(*encoding))
                || ["GUEST_PHYSICAL_ADDRESS", "GUEST_LINEAR_ADDRESS"].contains(&name(*encoding));
            assert_eq!(read_only, known, "{}", name(*encoding));
        }
    }

    #[test]
    fn segment_fields_are_those_of_the_segment() {
        for (segment_name, text) in SegmentName::ALL.iter().zip(["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"]) {
            let fields = segment(*segment_name);
            assert_eq!(name(fields.selector.encoding()), format!("GUEST_{text}_SELECTOR"));
            assert_eq!(name(fields.base.encoding()), format!("GUEST_{text}_BASE"));
            assert_eq!(name(fields.limit.encoding()), format!("GUEST_{text}_LIMIT"));
            assert_eq!(name(fields.attributes.encoding()), format!("GUEST_{text}_ATTRIBUTES"));
        }
    }
}
