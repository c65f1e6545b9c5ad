//! Repeated instructions: MOVS, STOS, LODS, CMPS, SCAS, and the loop that INS and OUTS share with them.
//!
//! SDM vol. 1 7.3.9 "String Operations", vol. 2B 4.3 "Instructions (M-U)", "REP/REPE/REPZ/REPNE/REPNZ".

use crate::access::{Machine, Step, Trap};
use crate::alu::{self, STATUS};
use crate::cpu::{Bus, Cpu};
use crate::operand::{Operand, Part, segment};
use bulkhead_arch::{Gpr, Rflags, SegmentName};
use bulkhead_types::{GuestMemory, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Most elements that one call carries out; then interrupts must be let in.
pub const CHUNK: u32 = 64;

/// The shape of a string instruction.
#[derive(Clone, Copy)]
pub struct Form {
    /// Width of an element.
    pub width: Width,
    /// Address size: the part of RSI, RDI and RCX that counts.
    pub address: Width,
    /// Segment of the source at RSI. The destination's at RDI is always ES.
    pub segment: SegmentName,
    /// Uses RSI.
    pub source: bool,
    /// Uses RDI.
    pub destination: bool,
    /// With a REP prefix: RCX counts.
    pub repeat: bool,
}

/// Offsets of one element.
#[derive(Clone, Copy)]
pub struct Element {
    pub source: u64,
    pub destination: u64,
}

impl<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized> Machine<'_, C, M, B> {
    /// Runs up to [`CHUNK`] elements through `step`, which says whether to go on; true if the instruction is complete.
    /// RSI, RDI and RCX account for the elements that were done, also where one faults.
    pub fn repeat(&mut self, form: Form, mut step: impl FnMut(&mut Self, Element) -> Step<bool, C>) -> Step<bool, C> {
        let part = |gpr| Operand::Register(Part::low(gpr, form.address));
        let mut element = Element { source: self.get(part(Gpr::Rsi))?, destination: self.get(part(Gpr::Rdi))? };
        let mut count = if form.repeat { self.get(part(Gpr::Rcx))? } else { 1 };
        let bytes = form.width.bytes() as u64;
        let stride = if self.flags().contains(Rflags::DF) { bytes.wrapping_neg() } else { bytes };
        let mask = form.address.mask();
        let mut outcome = Ok(count == 0);
        let mut done = 0;
        while count != 0 && done < CHUNK {
            outcome = step(self, element);
            let Ok(more) = outcome else { break };
            element.source = element.source.wrapping_add(stride) & mask;
            element.destination = element.destination.wrapping_add(stride) & mask;
            count = count.wrapping_sub(1);
            done = done.wrapping_add(1);
            outcome = Ok(!more || count == 0);
            if !more {
                break;
            }
        }
        if done != 0 {
            if form.source {
                self.set(part(Gpr::Rsi), element.source)?;
            }
            if form.destination {
                self.set(part(Gpr::Rdi), element.destination)?;
            }
            if form.repeat {
                self.set(part(Gpr::Rcx), count)?;
            }
        }
        outcome
    }

    /// A string instruction of memory.
    pub fn string(&mut self, instruction: &Instruction) -> Step<bool, C> {
        let mnemonic = instruction.mnemonic();
        let width = width(mnemonic).ok_or(Trap::Unsupported)?;
        let (source, destination) = match mnemonic {
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => (true, false),
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => (false, true),
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => (false, true),
            _ => (true, true),
        };
        let form = form(instruction, width, source, destination).ok_or(Trap::Unsupported)?;
        let accumulator = Operand::Register(Part::low(Gpr::Rax, width));
        match mnemonic {
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                self.compare(instruction, form, |machine, element| {
                    let a = machine.source(form, element)?;
                    let b = machine.place(SegmentName::Es, element.destination, width, false)?;
                    Ok((machine.get(a)?, machine.read(b)))
                })
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                self.compare(instruction, form, |machine, element| {
                    let b = machine.place(SegmentName::Es, element.destination, width, false)?;
                    Ok((machine.get(accumulator)?, machine.read(b)))
                })
            }
            _ => self.repeat(form, |machine, element| {
                let from = if source { machine.source(form, element)? } else { accumulator };
                let to = if destination {
                    Operand::Memory(machine.place(SegmentName::Es, element.destination, width, true)?)
                } else {
                    accumulator
                };
                let value = machine.get(from)?;
                machine.set(to, value)?;
                Ok(true)
            }),
        }
    }

    fn source(&mut self, form: Form, element: Element) -> Step<Operand, C> {
        self.place(form.segment, element.source, form.width, false).map(Operand::Memory)
    }

    /// CMPS and SCAS: goes on while the pairs that `load` yields are equal (REPE) or differ (REPNE).
    fn compare(
        &mut self,
        instruction: &Instruction,
        form: Form,
        load: impl Fn(&mut Self, Element) -> Step<(u64, u64), C>,
    ) -> Step<bool, C> {
        let while_equal = instruction.has_repe_prefix();
        let mut flags = None;
        let outcome = self.repeat(form, |machine, element| {
            let (a, b) = load(machine, element)?;
            flags = Some(alu::sub(form.width, a, b, false).1);
            Ok((a == b) == while_equal)
        })?;
        if let Some(flags) = flags {
            self.set_flags(STATUS, flags)?;
        }
        Ok(outcome)
    }
}

/// Width of an element, if this is a string instruction of memory.
const fn width(mnemonic: Mnemonic) -> Option<Width> {
    match mnemonic {
        Mnemonic::Movsb | Mnemonic::Stosb | Mnemonic::Lodsb | Mnemonic::Cmpsb | Mnemonic::Scasb => Some(Width::Byte),
        Mnemonic::Movsw | Mnemonic::Stosw | Mnemonic::Lodsw | Mnemonic::Cmpsw | Mnemonic::Scasw => Some(Width::Word),
        Mnemonic::Movsd | Mnemonic::Stosd | Mnemonic::Lodsd | Mnemonic::Cmpsd | Mnemonic::Scasd => Some(Width::Dword),
        Mnemonic::Movsq | Mnemonic::Stosq | Mnemonic::Lodsq | Mnemonic::Cmpsq | Mnemonic::Scasq => Some(Width::Qword),
        _ => None,
    }
}

/// The shape of a decoded string instruction; `None` if its operands are of another kind (MOVSD and CMPSD of SSE).
pub fn form(instruction: &Instruction, width: Width, source: bool, destination: bool) -> Option<Form> {
    let mut address = None;
    for index in 0..instruction.op_count() {
        address = address.or(match instruction.op_kind(index) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::Word),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::Dword),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::Qword),
            _ => None,
        });
    }
    Some(Form {
        width,
        address: address?,
        segment: if source { segment(instruction.memory_segment())? } else { SegmentName::Es },
        source,
        destination,
        repeat: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
    })
}
