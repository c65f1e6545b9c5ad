//! Explicit operands: registers, immediates, and the effective address of memory.
//!
//! SDM vol. 1 3.7.5 "Specifying an Offset"; vol. 2A 2.1.5 "Addressing-Mode Encoding of ModR/M and SIB Bytes".

use crate::access::{Machine, Place, Step, Trap};
use crate::cpu::{Bus, Cpu};
use bulkhead_arch::{Gpr, SegmentName};
use bulkhead_types::{GuestMemory, Width};
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

/// A general register, or a part of one.
#[derive(Clone, Copy)]
pub struct Part {
    pub gpr: Gpr,
    pub width: Width,
    /// Bits 15 to 8: AH, CH, DH, BH.
    pub high: bool,
}

impl Part {
    /// The low `width` of `gpr`.
    pub const fn low(gpr: Gpr, width: Width) -> Self {
        Self { gpr, width, high: false }
    }

    /// The register of this name, if it is a general one.
    pub fn named(register: Register) -> Option<Self> {
        const PARTS: [Option<Part>; Register::EIP as usize] = Part::all();
        PARTS.get(register as usize).copied().flatten()
    }

    /// All parts by the decoder's numbers of registers: AL to BL, AH to BH, SPL to R15L, and three full rows.
    #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
    const fn all() -> [Option<Self>; Register::EIP as usize] {
        let rows = [
            (Register::AL as usize, 0, 4, Width::Byte, false),
            (Register::AH as usize, 0, 4, Width::Byte, true),
            (Register::SPL as usize, 4, 12, Width::Byte, false),
            (Register::AX as usize, 0, 16, Width::Word, false),
            (Register::EAX as usize, 0, 16, Width::Dword, false),
            (Register::RAX as usize, 0, 16, Width::Qword, false),
        ];
        let mut parts = [None; Register::EIP as usize];
        let mut row = 0;
        while row < rows.len() {
            let (first, number, count, width, high) = rows[row];
            let mut index = 0;
            while index < count {
                parts[first + index] = Some(Self { gpr: Gpr::ALL[number + index], width, high });
                index += 1;
            }
            row += 1;
        }
        parts
    }
}

/// An operand, ready to be read and written.
#[derive(Clone, Copy)]
pub enum Operand {
    Register(Part),
    Memory(Place),
    Immediate(u64),
}

impl Operand {
    /// Its width; that of an immediate is its instruction's.
    pub const fn width(self) -> Width {
        match self {
            Self::Register(part) => part.width,
            Self::Memory(place) => place.width,
            Self::Immediate(_) => Width::Qword,
        }
    }
}

impl<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized> Machine<'_, C, M, B> {
    /// Operand `index` of the instruction, to be read (or with `write`, also written).
    pub fn operand(&mut self, instruction: &Instruction, index: u32, write: bool) -> Step<Operand, C> {
        match instruction.op_kind(index) {
            OpKind::Register => {
                Part::named(instruction.op_register(index)).map(Operand::Register).ok_or(Trap::Unsupported)
            }
            OpKind::Memory => {
                let width = memory_width(instruction).ok_or(Trap::Unsupported)?;
                let segment = segment(instruction.memory_segment()).ok_or(Trap::Unsupported)?;
                let offset = self.effective_address(instruction, 0)?;
                self.place(segment, offset, width, write).map(Operand::Memory)
            }
            _ => instruction.try_immediate(index).map(Operand::Immediate).map_err(|_| Trap::Unsupported),
        }
    }

    /// Offset of the memory operand in its segment, `bytes` further on, modulo the address size.
    pub fn effective_address(&self, instruction: &Instruction, bytes: u64) -> Step<u64, C> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let mut offset = instruction.memory_displacement64().wrapping_add(bytes);
        let mut width = match instruction.memory_displ_size() {
            2 => Width::Word,
            8 => Width::Qword,
            _ => Width::Dword,
        };
        if index != Register::None {
            let part = Part::named(index).ok_or(Trap::Unsupported)?;
            width = part.width;
            let scale = u64::from(instruction.memory_index_scale());
            offset = offset.wrapping_add(self.gpr(part.gpr)?.wrapping_mul(scale));
        }
        match base {
            Register::None => {}
            // The displacement is the whole address already.
            Register::RIP => width = Width::Qword,
            Register::EIP => width = Width::Dword,
            _ => {
                let part = Part::named(base).ok_or(Trap::Unsupported)?;
                width = part.width;
                offset = offset.wrapping_add(self.gpr(part.gpr)?);
            }
        }
        Ok(offset & width.mask())
    }

    /// The value of an operand.
    pub fn get(&mut self, operand: Operand) -> Step<u64, C> {
        match operand {
            Operand::Memory(place) => Ok(self.read(place)),
            Operand::Immediate(value) => Ok(value),
            Operand::Register(part) => {
                let value = self.gpr(part.gpr)?;
                Ok((if part.high { value >> 8 } else { value }) & part.width.mask())
            }
        }
    }

    /// Sets an operand that was read as `old`. Where the instruction is locked, memory that another processor has changed
    /// since is left alone: the instruction has to run again.
    pub fn update(&mut self, instruction: &Instruction, operand: Operand, old: u64, new: u64) -> Step<(), C> {
        // XCHG with memory locks by itself (SDM vol. 2D "XCHG").
        let locked = instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg;
        match operand {
            Operand::Memory(place) if locked => {
                if self.write_if_same(place, old, new) {
                    Ok(())
                } else {
                    Err(Trap::Raced)
                }
            }
            _ => self.set(operand, new),
        }
    }

    /// Sets an operand: 32-bit registers clear their upper half, narrower ones keep the rest.
    pub fn set(&mut self, operand: Operand, value: u64) -> Step<(), C> {
        match operand {
            Operand::Memory(place) => self.write(place, value),
            Operand::Immediate(_) => return Err(Trap::Unsupported),
            Operand::Register(part) => {
                let mask = part.width.mask();
                let value = match part.width {
                    Width::Qword | Width::Dword => value & mask,
                    _ if part.high => (self.gpr(part.gpr)? & !0xFF00) | ((value & 0xFF) << 8),
                    _ => (self.gpr(part.gpr)? & !mask) | (value & mask),
                };
                self.cpu.set_gpr(part.gpr, value).map_err(Trap::cpu)?;
            }
        }
        Ok(())
    }
}

/// Width of the memory operand, if it is an integer of a general register's size.
pub fn memory_width(instruction: &Instruction) -> Option<Width> {
    match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Some(Width::Byte),
        MemorySize::UInt16 | MemorySize::Int16 => Some(Width::Word),
        MemorySize::UInt32 | MemorySize::Int32 => Some(Width::Dword),
        MemorySize::UInt64 | MemorySize::Int64 => Some(Width::Qword),
        _ => None,
    }
}

/// The segment register of this name.
pub const fn segment(register: Register) -> Option<SegmentName> {
    match register {
        Register::ES => Some(SegmentName::Es),
        Register::CS => Some(SegmentName::Cs),
        Register::SS => Some(SegmentName::Ss),
        Register::DS => Some(SegmentName::Ds),
        Register::FS => Some(SegmentName::Fs),
        Register::GS => Some(SegmentName::Gs),
        _ => None,
    }
}
