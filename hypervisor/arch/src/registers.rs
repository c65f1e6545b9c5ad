//! General registers and segments.

/// A general register by its number in an instruction's encoding. SDM vol. 2A 2.2.1.2 "More on REX Prefix Fields".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// The register with the low four bits of `number`.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        #[expect(clippy::indexing_slicing, reason = "four bits index sixteen entries")]
        Self::ALL[(number & 15) as usize]
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> usize {
        self as usize
    }
}

/// A segment register, numbered as in instruction encodings (ES to GS), or a system table register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentName {
    /// All of them.
    pub const ALL: [Self; 8] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes: bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
    /// SDM vol. 3C 25.4.1 "Guest Register State", table 25-2 "Format of Access Rights".
    pub attributes: u32,
    /// Limit in bytes, expanded by the granularity bit.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Segment {
    /// Attribute bit: the segment can not be used.
    pub const UNUSABLE: u32 = 1 << 16;
    /// Attribute bit: 64-bit code.
    pub const LONG: u32 = 1 << 13;
    /// Attribute bit: 32-bit default operand size, or 32-bit stack.
    pub const BIG: u32 = 1 << 14;
    /// Attribute bit: limit counts 4-KiB units.
    pub const GRANULAR: u32 = 1 << 15;

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }

    /// Whether the unusable bit is set.
    #[must_use]
    pub const fn is_unusable(&self) -> bool {
        self.attributes & Self::UNUSABLE != 0
    }
}
