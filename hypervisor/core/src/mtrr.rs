//! Memory-type ranges: stored and read back, without effect.
//!
//! Guest memory is write-back, whatever a guest sets here: the nested tables say so. A guest finds what a PC's firmware
//! leaves: all write-back but the hole below 4 GiB. SDM vol. 3A 12.11 "Memory Type Range Registers (MTRRs)".

use bulkhead_arch::msr;

const VARIABLE: usize = 8;
const FIXED: usize = 11;
/// Capabilities: 8 variable ranges, fixed ranges, write-combining.
const CAPABILITIES: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;
/// Default type register: bits that can be set (type, fixed enable, enable).
const DEFAULT_TYPE_BITS: u64 = 0xCFF;
const VALID: u64 = 1 << 11;

/// The registers.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs {
    variable: [u64; VARIABLE * 2],
    fixed: [u64; FIXED],
    default_type: u64,
}

const fn is_type(byte: u64) -> bool {
    matches!(byte, 0 | 1 | 4 | 5 | 6)
}

/// Index of a fixed-range register: one of 64 KiB, two of 16 KiB, eight of 4 KiB.
fn fixed_index(index: u32) -> Option<usize> {
    let position = match index {
        msr::MTRR_FIX64K => 0,
        0x258 | 0x259 => index - 0x258 + 1,
        0x268..=0x26F => index - 0x268 + 3,
        _ => return None,
    };
    usize::try_from(position).ok()
}

impl Mtrrs {
    /// As firmware leaves them, for physical addresses of `address_bits` bits.
    #[must_use]
    pub const fn new(address_bits: u32) -> Self {
        const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
        let mut variable = [0; VARIABLE * 2];
        // 3 GiB to 4 GiB, uncached.
        variable[0] = 0xC000_0000;
        variable[1] = ((1 << address_bits) - 1) & !0x3FFF_FFFF | VALID;
        let mut fixed = [WRITE_BACK; FIXED];
        fixed[2] = 0;
        Self { variable, fixed, default_type: 0xC06 }
    }

    /// Reads one of the registers; `None` if `index` is none of them.
    #[must_use]
    pub fn read(&self, index: u32) -> Option<u64> {
        match index {
            msr::MTRRCAP => Some(CAPABILITIES),
            msr::MTRR_DEF_TYPE => Some(self.default_type),
            msr::MTRR_PHYSBASE0..0x210 => {
                self.variable.get(usize::try_from(index - msr::MTRR_PHYSBASE0).ok()?).copied()
            }
            _ => self.fixed.get(fixed_index(index)?).copied(),
        }
    }

    /// Writes one of the registers; `None` if `index` is none of them, cannot be written, or not with `value`.
    pub fn write(&mut self, index: u32, value: u64, address_bits: u32) -> Option<()> {
        let address = (1_u64 << address_bits) - 1;
        match index {
            msr::MTRR_DEF_TYPE if value & !DEFAULT_TYPE_BITS == 0 && is_type(value & 0xFF) => self.default_type = value,
            msr::MTRR_PHYSBASE0..0x210 => {
                let position = usize::try_from(index - msr::MTRR_PHYSBASE0).ok()?;
                let legal = if position.is_multiple_of(2) {
                    value & !address == 0 && value & 0xF00 == 0 && is_type(value & 0xFF)
                } else {
                    value & !address == 0 && value & 0x7FF == 0
                };
                *self.variable.get_mut(position).filter(|_| legal)? = value;
            }
            _ => {
                let legal = value.to_le_bytes().into_iter().all(|byte| is_type(u64::from(byte)));
                *self.fixed.get_mut(fixed_index(index)?).filter(|_| legal)? = value;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::Mtrrs;

    #[test]
    fn registers_remember_legal_values_only() {
        let mut mtrrs = Mtrrs::new(39);
        assert_eq!(mtrrs.read(0xFE), Some(0x508));
        assert_eq!(mtrrs.read(0x201), Some(0x7F_C000_0800));
        assert_eq!(mtrrs.write(0xFE, 0, 39), None);
        assert_eq!(mtrrs.write(0x202, 6, 39), Some(()));
        assert_eq!(mtrrs.write(0x202, 2, 39), None, "no such type");
        assert_eq!(mtrrs.write(0x203, 1 << 39, 39), None, "past the address width");
        assert_eq!(mtrrs.write(0x2FF, 0xC07, 39), None);
        assert_eq!(mtrrs.write(0x26F, 0x0500_0000_0000_0004, 39), Some(()));
        assert_eq!(mtrrs.read(0x26F), Some(0x0500_0000_0000_0004));
        for index in [0x210, 0x251, 0x257, 0x25A, 0x267, 0x270] {
            assert_eq!((mtrrs.read(index), mtrrs.write(index, 0, 39)), (None, None), "{index:#x}");
        }
    }
}
