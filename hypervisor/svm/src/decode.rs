//! The few instructions that are intercepted, decoded from their bytes where the processor does not do it.
//!
//! The processor has recognized the instruction; what is asked is how long it is and which registers it names. APM vol. 3
//! 1.2 "Instruction Prefixes", appendix A "Opcode and Operand Encodings".

use bulkhead_arch::Gpr;

/// Longest instruction in bytes.
pub const LONGEST: usize = 15;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Bytes.
    pub length: u8,
    /// What it names.
    pub operand: Operand,
}

/// What an instruction names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// Nothing.
    None,
    /// MOV to or from a control register: the general register.
    General(Gpr),
    /// CLTS.
    ClearTaskSwitched,
    /// LMSW of a register.
    MachineStatus(Gpr),
}

/// Decodes the instruction at the start of `bytes`; `None` if it is none of these. `long`: in 64-bit code.
#[must_use]
pub fn decode(bytes: &[u8], long: bool) -> Option<Decoded> {
    let mut rex = 0;
    let mut at = 0_u8;
    let mut rest = bytes.iter().copied().take(LONGEST);
    let mut next = || {
        at += 1;
        rest.next().map(|byte| (byte, at))
    };
    let first = loop {
        match next()?.0 {
            0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3 => rex = 0,
            byte @ 0x40..=0x4F if long => rex = byte,
            byte => break byte,
        }
    };
    let base = |byte: u8| Gpr::from_number((byte & 7) | (rex & 1) << 3);
    let (length, operand) = match first {
        // HLT.
        0xF4 => (at, Operand::None),
        0x0F => match next()? {
            (0x06, length) => (length, Operand::ClearTaskSwitched),
            // INVD, WBINVD, WRMSR, RDMSR, CPUID.
            (0x08 | 0x09 | 0x30 | 0x32 | 0xA2, length) => (length, Operand::None),
            (0x20 | 0x22, _) => {
                let (mode, length) = next()?;
                (length, Operand::General(base(mode)))
            }
            (0x01, _) => match next()? {
                // XSETBV, VMMCALL.
                (0xD1 | 0xD9, length) => (length, Operand::None),
                (mode @ 0xF0..=0xF7, length) => (length, Operand::MachineStatus(base(mode))),
                _ => return None,
            },
            _ => return None,
        },
        _ => return None,
    };
    Some(Decoded { length, operand })
}

#[cfg(test)]
mod tests {
    use super::{Decoded, Operand, decode};
    use bulkhead_arch::Gpr;

    #[test]
    fn lengths_with_prefixes() {
        let plain = |length| Some(Decoded { length, operand: Operand::None });
        assert_eq!(decode(&[0x0F, 0xA2], true), plain(2));
        assert_eq!(decode(&[0xF3, 0x48, 0x0F, 0xA2], true), plain(4));
        assert_eq!(decode(&[0xF4], false), plain(1));
        assert_eq!(decode(&[0x0F, 0x01, 0xD9], true), plain(3));
        assert_eq!(decode(&[0x48, 0xF4], false), None, "DEC, outside 64-bit code");
        assert_eq!(decode(&[0x0F], true), None);
        assert_eq!(decode(&[0x66; 15], true), None);
        assert_eq!(decode(&[], true), None);
    }

    #[test]
    fn control_registers() {
        let to = |bytes: &[u8]| decode(bytes, true).unwrap();
        assert_eq!(to(&[0x0F, 0x22, 0xE0]), Decoded { length: 3, operand: Operand::General(Gpr::Rax) });
        assert_eq!(to(&[0x41, 0x0F, 0x22, 0xE7]), Decoded { length: 4, operand: Operand::General(Gpr::R15) });
        assert_eq!(to(&[0x44, 0x0F, 0x20, 0xC3]), Decoded { length: 4, operand: Operand::General(Gpr::Rbx) });
        assert_eq!(to(&[0x0F, 0x06]).operand, Operand::ClearTaskSwitched);
        assert_eq!(to(&[0x0F, 0x01, 0xF2]).operand, Operand::MachineStatus(Gpr::Rdx));
    }
}
