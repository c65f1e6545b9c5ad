//! Instruction fetch and decoding.
//!
//! The bytes are copied once, up to the end of the page; the next page is touched only by an instruction that reaches
//! into it.

use crate::access::{Machine, Trap};
use crate::cpu::{Bus, Cpu, Stop};
use bulkhead_arch::SegmentName;
use bulkhead_paging::guest::Access;
use bulkhead_types::{GuestMemory, Gva, PAGE_SIZE};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// Longest instruction in bytes.
const LONGEST: usize = 15;

/// Makes the decoder build its tables.
pub fn warm_up() {
    let _ = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
}

/// A decoded instruction.
pub struct Fetched {
    pub instruction: Instruction,
    pub bytes: [u8; LONGEST],
    pub length: u8,
}

impl Fetched {
    /// Decodes the first `available` bytes; false if they end within the instruction.
    fn decode(&mut self, bits: u32, rip: u64, available: usize) -> bool {
        let bytes = self.bytes.get(..available).unwrap_or(&self.bytes);
        let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
        decoder.decode_out(&mut self.instruction);
        self.length = u8::try_from(self.instruction.len()).unwrap_or(0);
        decoder.last_error() != DecoderError::NoMoreBytes
    }
}

impl<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized> Machine<'_, C, M, B> {
    /// Fetches and decodes the instruction at the instruction pointer.
    pub fn fetch(&mut self) -> Result<Fetched, Trap<C::Error>> {
        let rip = self.cpu.rip().map_err(Trap::cpu)?;
        let start = if self.bits == 64 { rip } else { self.code_base.wrapping_add(rip) & 0xFFFF_FFFF };
        let room = PAGE_SIZE.wrapping_sub(Gva::new(start).page_offset());
        let available = usize::try_from(room).map_or(LONGEST, |room| room.min(LONGEST));
        let mut fetched = Fetched { instruction: Instruction::default(), bytes: [0; LONGEST], length: 0 };
        self.fetch_part(start, fetched.bytes.get_mut(..available))?;
        if !fetched.decode(self.bits, rip, available) && available < LONGEST {
            self.fetch_part(start.wrapping_add(room), fetched.bytes.get_mut(available..))?;
            fetched.decode(self.bits, rip, LONGEST);
        }
        Ok(fetched)
    }

    fn fetch_part(&mut self, linear: u64, into: Option<&mut [u8]>) -> Result<(), Trap<C::Error>> {
        let gva = Gva::new(if self.bits == 64 { linear } else { linear & 0xFFFF_FFFF });
        let gpa = self.walk(SegmentName::Cs, gva, Access::Execute)?;
        self.memory.read(gpa, into.unwrap_or_default()).map_err(|_| Trap::Stop(Stop::Unreachable { gpa }))
    }
}
