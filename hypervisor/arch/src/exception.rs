//! Exception vectors. SDM vol. 3A 6.3.1 "External Interrupts", table 6-1.

/// A vector of the interrupt descriptor table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct Vector(pub u8);

impl Vector {
    /// Divide error.
    pub const DE: Self = Self(0);
    /// Debug.
    pub const DB: Self = Self(1);
    /// Non-maskable interrupt.
    pub const NMI: Self = Self(2);
    /// Breakpoint (INT3).
    pub const BP: Self = Self(3);
    /// Overflow (INTO).
    pub const OF: Self = Self(4);
    /// Bound range exceeded.
    pub const BR: Self = Self(5);
    /// Invalid opcode.
    pub const UD: Self = Self(6);
    /// Device not available.
    pub const NM: Self = Self(7);
    /// Double fault.
    pub const DF: Self = Self(8);
    /// Invalid task-state segment.
    pub const TS: Self = Self(10);
    /// Segment not present.
    pub const NP: Self = Self(11);
    /// Stack fault.
    pub const SS: Self = Self(12);
    /// General protection.
    pub const GP: Self = Self(13);
    /// Page fault.
    pub const PF: Self = Self(14);
    /// x87 floating-point error.
    pub const MF: Self = Self(16);
    /// Alignment check.
    pub const AC: Self = Self(17);
    /// Machine check.
    pub const MC: Self = Self(18);
    /// SIMD floating-point error.
    pub const XM: Self = Self(19);

    /// Whether this exception pushes an error code.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }

    /// Whether it is contributory to a double fault. SDM vol. 3A 6.15, table 6-4 "Interrupt and Exception Classes".
    #[must_use]
    pub const fn is_contributory(self) -> bool {
        matches!(self.0, 0 | 10..=13)
    }

    /// The short name of the manuals, without the hash.
    #[must_use]
    pub const fn name(self) -> &'static str {
        const NAMES: [&str; 20] = [
            "DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "CSO", "TS", "NP", "SS", "GP", "PF", "15", "MF",
            "AC", "MC", "XM",
        ];
        let index = self.0 as usize;
        #[expect(clippy::indexing_slicing, reason = "compared just before")]
        if index < NAMES.len() { NAMES[index] } else { "?" }
    }
}
