//! Arithmetic and its flags. SDM vol. 1 3.4.3.1 "Status Flags".
//!
//! Operands have no bits above their width; results have none either. Where the manual leaves a flag undefined (AF after
//! a logical operation), it is cleared.

use bulkhead_arch::Rflags;
use bulkhead_types::Width;

/// CF, PF, AF, ZF, SF, OF.
pub const STATUS: Rflags =
    Rflags::CF.union(Rflags::PF).union(Rflags::AF).union(Rflags::ZF).union(Rflags::SF).union(Rflags::OF);

/// A result with its flags.
pub type Result = (u64, Rflags);

/// Operations with two operands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
}

impl Op {
    /// `a` op `b`, with the carry that came in.
    pub fn apply(self, width: Width, a: u64, b: u64, carry: bool) -> Result {
        match self {
            Self::Add => add(width, a, b, false),
            Self::Adc => add(width, a, b, carry),
            Self::Sub => sub(width, a, b, false),
            Self::Sbb => sub(width, a, b, carry),
            Self::And => logic(width, a & b),
            Self::Or => logic(width, a | b),
            Self::Xor => logic(width, a ^ b),
        }
    }
}

/// `a` + `b` + carry.
pub fn add(width: Width, a: u64, b: u64, carry: bool) -> Result {
    let result = a.wrapping_add(b).wrapping_add(u64::from(carry)) & width.mask();
    // The carry out of each bit position.
    let carries = (a & b) | ((a | b) & !result);
    (result, flags(width, result, a ^ b ^ result, carries, (a ^ result) & (b ^ result)))
}

/// `a` - `b` - borrow.
pub fn sub(width: Width, a: u64, b: u64, borrow: bool) -> Result {
    let result = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & width.mask();
    // The borrow out of each bit position.
    let borrows = (!a & b) | ((!a | b) & result);
    (result, flags(width, result, a ^ b ^ result, borrows, (a ^ b) & (a ^ result)))
}

/// A bitwise result: CF and OF are clear.
pub fn logic(width: Width, result: u64) -> Result {
    (result, flags(width, result, 0, 0, 0))
}

/// Flags of `result`. AF is bit 4 of `nibble`; CF and OF are the operand's top bits of `carries` and `overflow`.
fn flags(width: Width, result: u64, nibble: u64, carries: u64, overflow: u64) -> Rflags {
    let top = 1 << (width.bits() - 1);
    let mut flags = Rflags::empty();
    flags.set(Rflags::CF, carries & top != 0);
    flags.set(Rflags::PF, (result & 0xFF).count_ones().is_multiple_of(2));
    flags.set(Rflags::AF, nibble & 0x10 != 0);
    flags.set(Rflags::ZF, result == 0);
    flags.set(Rflags::SF, result & top != 0);
    flags.set(Rflags::OF, overflow & top != 0);
    flags
}
