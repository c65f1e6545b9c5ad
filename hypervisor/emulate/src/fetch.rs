//! Instruction fetch and decoding.
//!
//! The bytes are copied once, up to the end of the page; the next page is touched only by an instruction that reaches
//! into it. What bytes mean depends on themselves, their address and the width of the code segment, and on nothing else:
//! a decoded instruction is remembered under these three. Since the bytes are fetched and compared each time, it can be
//! unused, but never stale.

use crate::access::{Machine, Step, Trap, code_width};
use crate::cpu::{Bus, Cpu, Stop};
use bulkhead_arch::{Segment, SegmentName};
use bulkhead_paging::guest::{self, Access, PagingState};
use bulkhead_types::{Gpa, GuestMemory, Gva, PAGE_SIZE};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// Longest instruction in bytes.
const LONGEST: usize = 15;
/// Instructions that are remembered: a guest's drivers reach their devices from a handful of places.
const SLOTS: usize = 8;

/// Makes the decoder build its tables.
pub fn warm_up() {
    let _ = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
}

/// The last instructions that were decoded for a guest. Holds bytes of its code: belongs into its compartment.
#[derive(Clone, Copy, Default, Debug)]
pub struct DecodeCache([Fetched; SLOTS]);

impl DecodeCache {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where an instruction at `rip` is remembered, if it is. Neighbours are a few bytes apart.
    pub(crate) fn slot(&mut self, rip: u64) -> Option<&mut Fetched> {
        self.0.get_mut(usize::try_from(rip >> 2).unwrap_or(0) % SLOTS)
    }
}

/// A decoded instruction.
#[derive(Clone, Copy, Default, Debug)]
pub struct Fetched {
    pub instruction: Instruction,
    pub length: u8,
    /// The 15 bytes, and the width of the code segment above them: 0 for none.
    key: [u64; 2],
    rip: u64,
}

impl Fetched {
    /// The bytes fetched.
    pub fn bytes(&self) -> [u8; LONGEST] {
        let [first, second] = self.key.map(u64::to_le_bytes);
        let mut bytes = [0; LONGEST];
        for (into, from) in bytes.iter_mut().zip(first.into_iter().chain(second)) {
            *into = from;
        }
        bytes
    }

    /// Decodes the first `available` bytes; false if they end within the instruction.
    fn decode(&mut self, bits: u32, available: usize) -> bool {
        let bytes = self.bytes();
        let bytes = bytes.get(..available).unwrap_or(&bytes);
        // The widths are the three that there are.
        let Ok(mut decoder) = Decoder::try_with_ip(bits, bytes, self.rip, DecoderOptions::NONE) else { return true };
        decoder.decode_out(&mut self.instruction);
        self.length = u8::try_from(self.instruction.len()).unwrap_or(0);
        decoder.last_error() != DecoderError::NoMoreBytes
    }
}

impl<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized> Machine<'_, C, M, B> {
    /// Fetches the instruction at `rip`, and decodes it into `slot` if it is not there.
    pub fn fetch(&mut self, rip: u64, slot: &mut Fetched) -> Step<(), C> {
        Code { memory: self.memory, state: &self.state, bits: self.bits, base: self.code_base }.fetch(rip, slot)
    }
}

/// The code segment, in guest memory.
pub struct Code<'a, M: ?Sized> {
    memory: &'a mut M,
    state: &'a PagingState,
    bits: u32,
    base: u64,
}

impl<'a, M: GuestMemory + ?Sized> Code<'a, M> {
    /// Code in the segment `code`.
    pub const fn new(memory: &'a mut M, state: &'a PagingState, code: &Segment) -> Self {
        Self { memory, state, bits: code_width(state, code), base: code.base }
    }

    /// Fetches the instruction at `rip`, and decodes it into `slot` if it is not there.
    #[inline(always)]
    pub fn fetch<E>(&mut self, rip: u64, slot: &mut Fetched) -> Result<(), Trap<E>> {
        let start = if self.bits == 64 { rip } else { self.base.wrapping_add(rip) };
        let room = PAGE_SIZE.wrapping_sub(Gva::new(start).page_offset());
        if room <= LONGEST as u64 {
            return self.fetch_at_end(rip, start, usize::try_from(room).unwrap_or(LONGEST), slot);
        }
        let gpa = self.code(start)?;
        let lost = |_| Trap::Stop(Stop::Unreachable { gpa });
        let first = self.memory.read_u64(gpa).map_err(lost)?;
        let second = self.memory.read_u64(gpa.wrapping_add(8)).map_err(lost)?;
        let key = [first, second & (u64::MAX >> 8) | u64::from(self.bits) << 56];
        if slot.key != key || slot.rip != rip {
            (slot.key, slot.rip) = (key, rip);
            slot.decode(self.bits, LONGEST);
        }
        Ok(())
    }

    /// The same where the page ends `room` bytes from the start, at most 15. Not remembered.
    #[cold]
    fn fetch_at_end<E>(&mut self, rip: u64, start: u64, room: usize, slot: &mut Fetched) -> Result<(), Trap<E>> {
        let mut bytes = [0; 16];
        let (head, tail) = bytes.split_at_mut_checked(room).unwrap_or_default();
        self.fetch_part(start, head)?;
        slot.rip = rip;
        slot.key = words(head);
        let more = LONGEST.saturating_sub(room);
        if !slot.decode(self.bits, room) && more != 0 {
            self.fetch_part(start.wrapping_add(room as u64), tail.get_mut(..more).unwrap_or_default())?;
            slot.key = words(&bytes);
            slot.decode(self.bits, LONGEST);
        }
        Ok(())
    }

    fn fetch_part<E>(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Trap<E>> {
        let gpa = self.code(linear)?;
        self.memory.read(gpa, into).map_err(|_| Trap::Stop(Stop::Unreachable { gpa }))
    }

    fn code<E>(&mut self, linear: u64) -> Result<Gpa, Trap<E>> {
        let gva = Gva::new(if self.bits == 64 { linear } else { linear & 0xFFFF_FFFF });
        guest::walk(self.memory, self.state, gva, Access::Execute)
            .map_err(|error| Trap::walk(error, SegmentName::Cs, gva))
    }
}

/// Up to 16 bytes as two words.
fn words(bytes: &[u8]) -> [u64; 2] {
    let mut words = [0; 2];
    for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
        *word = part.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    words
}
