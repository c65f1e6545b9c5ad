//! Parts of wider values: the only place here where a number loses bits, on purpose.
#![expect(clippy::cast_possible_truncation, reason = "taking the low part is what these are for")]

/// The low byte.
pub const fn low_u8(value: u64) -> u8 {
    value as u8
}

/// The low 16 bits.
pub const fn low_u16(value: u64) -> u16 {
    value as u16
}

/// The low 32 bits.
pub const fn low_u32(value: u64) -> u32 {
    value as u32
}

/// Byte `index` (0 to 7) of `value`.
pub const fn byte(value: u64, index: u8) -> u8 {
    (value >> ((index & 7) as u32 * 8)) as u8
}
