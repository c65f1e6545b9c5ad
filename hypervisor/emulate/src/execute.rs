//! One instruction, from decoded form to effect.
//!
//! Each form resolves all of its operands first, then reads, computes and writes: what can fault comes before what can
//! be seen by a device. A write that faulted has therefore read nothing.

use crate::access::{Machine, Step, Trap};
use crate::alu::{self, Op, STATUS};
use crate::cpu::{Bus, Cpu};
use crate::operand::{Operand, Part, memory_width, segment};
use bulkhead_arch::{Gpr, Rflags, Segment, SegmentName};
use bulkhead_types::{GuestMemory, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// What a bit instruction does to the bit it has tested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

impl<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized> Machine<'_, C, M, B> {
    /// Carries out the instruction; false if it is to be run again for the rest of its elements.
    pub fn execute(&mut self, instruction: &Instruction) -> Step<bool, C> {
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movnti => self.mov(instruction, |value, _| value),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.mov(instruction, sign_extend),
            Mnemonic::Movbe => self.mov(instruction, |value, width| value.swap_bytes() >> (64 - width.bits())),
            Mnemonic::Add => self.binary(instruction, Op::Add, true),
            Mnemonic::Adc => self.binary(instruction, Op::Adc, true),
            Mnemonic::Sub => self.binary(instruction, Op::Sub, true),
            Mnemonic::Sbb => self.binary(instruction, Op::Sbb, true),
            Mnemonic::And => self.binary(instruction, Op::And, true),
            Mnemonic::Or => self.binary(instruction, Op::Or, true),
            Mnemonic::Xor => self.binary(instruction, Op::Xor, true),
            Mnemonic::Cmp => self.binary(instruction, Op::Sub, false),
            Mnemonic::Test => self.binary(instruction, Op::And, false),
            Mnemonic::Not | Mnemonic::Neg | Mnemonic::Inc | Mnemonic::Dec => self.unary(instruction),
            Mnemonic::Xchg | Mnemonic::Xadd => self.exchange(instruction),
            Mnemonic::Cmpxchg => self.compare_exchange(instruction),
            Mnemonic::Push => self.push(instruction),
            Mnemonic::Bt => self.bit(instruction, Bit::Test),
            Mnemonic::Bts => self.bit(instruction, Bit::Set),
            Mnemonic::Btr => self.bit(instruction, Bit::Reset),
            Mnemonic::Btc => self.bit(instruction, Bit::Complement),
            _ => return self.string(instruction),
        }
        .map(|()| true)
    }

    /// Source to destination through `convert`, which gets the source's width.
    fn mov(&mut self, instruction: &Instruction, convert: fn(u64, Width) -> u64) -> Step<(), C> {
        let to = self.operand(instruction, 0, true)?;
        let from = self.operand(instruction, 1, false)?;
        let value = self.get(from)?;
        self.set(to, convert(value, from.width()))
    }

    /// Two operands; the result goes to the first one if `store`.
    fn binary(&mut self, instruction: &Instruction, op: Op, store: bool) -> Step<(), C> {
        let to = self.operand(instruction, 0, store)?;
        let from = self.operand(instruction, 1, false)?;
        let width = to.width();
        let a = self.get(to)?;
        let b = self.get(from)? & width.mask();
        let (result, flags) = op.apply(width, a, b, self.flags().contains(Rflags::CF));
        if store {
            self.update(instruction, to, a, result)?;
        }
        self.set_flags(STATUS, flags)
    }

    /// NOT, NEG, INC, DEC.
    fn unary(&mut self, instruction: &Instruction) -> Step<(), C> {
        let to = self.operand(instruction, 0, true)?;
        let width = to.width();
        let value = self.get(to)?;
        let keep_carry = STATUS.difference(Rflags::CF);
        let (mask, (result, flags)) = match instruction.mnemonic() {
            Mnemonic::Neg => (STATUS, alu::sub(width, 0, value, false)),
            Mnemonic::Inc => (keep_carry, alu::add(width, value, 1, false)),
            Mnemonic::Dec => (keep_carry, alu::sub(width, value, 1, false)),
            _ => (Rflags::empty(), (!value & width.mask(), Rflags::empty())),
        };
        self.update(instruction, to, value, result)?;
        self.set_flags(mask, flags)
    }

    /// XCHG, and XADD, which also adds.
    fn exchange(&mut self, instruction: &Instruction) -> Step<(), C> {
        let to = self.operand(instruction, 0, true)?;
        let from = self.operand(instruction, 1, true)?;
        let (a, b) = (self.get(to)?, self.get(from)?);
        let sum = alu::add(to.width(), a, b, false);
        let (new, flags) = if instruction.mnemonic() == Mnemonic::Xadd { (sum.0, Some(sum.1)) } else { (b, None) };
        // Memory may refuse; of two registers the first one is set last, since they may be the same.
        if let Operand::Memory(_) = to {
            self.update(instruction, to, a, new)?;
            self.set(from, a)?;
        } else {
            self.set(from, a)?;
            self.set(to, new)?;
        }
        flags.map_or(Ok(()), |flags| self.set_flags(STATUS, flags))
    }

    /// CMPXCHG. The destination is written either way, as the processor does.
    fn compare_exchange(&mut self, instruction: &Instruction) -> Step<(), C> {
        let to = self.operand(instruction, 0, true)?;
        let from = self.operand(instruction, 1, false)?;
        let accumulator = Operand::Register(Part::low(Gpr::Rax, to.width()));
        let (old, expected, new) = (self.get(to)?, self.get(accumulator)?, self.get(from)?);
        let (_, flags) = alu::sub(to.width(), expected, old, false);
        self.update(instruction, to, old, if old == expected { new } else { old })?;
        if old != expected {
            self.set(accumulator, old)?;
        }
        self.set_flags(STATUS, flags)
    }

    /// PUSH of memory.
    fn push(&mut self, instruction: &Instruction) -> Step<(), C> {
        let from = self.operand(instruction, 0, false)?;
        let Operand::Memory(from) = from else { return Err(Trap::Unsupported) };
        let width = from.width;
        let address = if self.bits == 64 {
            Width::Qword
        } else if self.cpu.segment(SegmentName::Ss).map_err(Trap::cpu)?.attributes & Segment::BIG != 0 {
            Width::Dword
        } else {
            Width::Word
        };
        let pointer = Operand::Register(Part::low(Gpr::Rsp, address));
        let top = self.get(pointer)?.wrapping_sub(width.bytes() as u64) & address.mask();
        let to = self.place(SegmentName::Ss, top, width, true)?;
        let value = self.read(from);
        self.write(to, value);
        self.set(pointer, top)
    }

    /// BT, BTS, BTR, BTC. A bit number from a register reaches beyond the operand: SDM vol. 2A 3.1.1.9 "Operation
    /// Section", `Bit(BitBase, BitOffset)`.
    fn bit(&mut self, instruction: &Instruction, bit: Bit) -> Step<(), C> {
        let from = self.operand(instruction, 1, false)?;
        let number = self.get(from)?;
        let to = if let (OpKind::Memory, Operand::Register(part)) = (instruction.op_kind(0), from) {
            let width = memory_width(instruction).ok_or(Trap::Unsupported)?;
            let segment = segment(instruction.memory_segment()).ok_or(Trap::Unsupported)?;
            // Whole operands away, towards lower addresses for negative numbers.
            let bits = sign_extend(number, part.width) & !u64::from(width.bits() - 1);
            let bytes = bits.cast_signed().wrapping_shr(3).cast_unsigned();
            let offset = self.effective_address(instruction, bytes)?;
            Operand::Memory(self.place(segment, offset, width, bit != Bit::Test)?)
        } else {
            self.operand(instruction, 0, bit != Bit::Test)?
        };
        let mask = 1 << (number & u64::from(to.width().bits() - 1));
        let value = self.get(to)?;
        match bit {
            Bit::Test => {}
            Bit::Set => self.update(instruction, to, value, value | mask)?,
            Bit::Reset => self.update(instruction, to, value, value & !mask)?,
            Bit::Complement => self.update(instruction, to, value, value ^ mask)?,
        }
        self.set_flags(Rflags::CF, if value & mask == 0 { Rflags::empty() } else { Rflags::CF })
    }
}

/// Copies the top bit of `width` upwards.
fn sign_extend(value: u64, width: Width) -> u64 {
    let unused = 64 - width.bits();
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}
