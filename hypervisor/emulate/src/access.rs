//! Memory operands: from segment and offset to RAM or device.
//!
//! An operand becomes a [`Place`] first, with every translation and check made for what will be done to it; reading and
//! writing a place can not fail any more. SDM vol. 3A 3.4.5 "Segment Descriptors", 5.3 "Limit Checking", 5.4 "Type
//! Checking", 3.3.7.1 "Canonical Addressing".

use crate::cpu::{Bus, Cpu, Hint, Outcome, Stop};
use crate::fetch::Fetched;
use bulkhead_arch::{Cr0, Gpr, Rflags, Segment, SegmentName, Vector};
use bulkhead_paging::guest::{self, Access, PagingState, WalkError};
use bulkhead_types::{Gpa, GuestMemory, Gva, PAGE_SIZE, Width};

/// Why an instruction stops short, inside this crate.
pub enum Trap<E> {
    /// As it is.
    Stop(Stop<E>),
    /// Nothing that this crate carries out.
    Unsupported,
    /// Another processor changed what was just read.
    Raced,
}

impl<E> Trap<E> {
    /// The processor refused a register.
    pub const fn cpu(error: E) -> Self {
        Self::Stop(Stop::Cpu(error))
    }

    /// What the caller hears of it.
    pub fn end(self, fetched: Option<&Fetched>) -> Result<Outcome, Stop<E>> {
        match self {
            Self::Stop(stop) => Err(stop),
            Self::Raced => Ok(Outcome::Again),
            Self::Unsupported => {
                let (bytes, length) = fetched.map_or(([0; 15], 0), |fetched| (fetched.bytes(), fetched.length));
                Err(Stop::Unsupported { bytes, length })
            }
        }
    }

    /// The walk for an access at `gva` in `segment` ended with `error`.
    pub const fn walk(error: WalkError, segment: SegmentName, gva: Gva) -> Self {
        match error {
            WalkError::PageFault { error } => Self::Stop(Stop::Exception { vector: Vector::PF, error, cr2: Some(gva) }),
            WalkError::NonCanonical => Self::segment(segment),
            WalkError::Unreachable { gpa } => Self::Stop(Stop::Unreachable { gpa }),
            WalkError::Raced => Self::Raced,
        }
    }

    /// #SS(0) for the stack segment, #GP(0) for others.
    const fn segment(name: SegmentName) -> Self {
        let vector = if matches!(name, SegmentName::Ss) { Vector::SS } else { Vector::GP };
        Self::Stop(Stop::Exception { vector, error: 0, cr2: None })
    }
}

/// Width of the code segment `code`: 16, 32 or 64.
pub const fn code_width(state: &PagingState, code: &Segment) -> u32 {
    if state.is_long() && code.attributes & Segment::LONG != 0 {
        64
    } else if code.attributes & Segment::BIG != 0 {
        32
    } else {
        16
    }
}

/// The result of a step.
pub type Step<T, C> = Result<T, Trap<<C as Cpu>::Error>>;

/// A translated memory operand: where its first part is, and its second if it crosses a page.
#[derive(Clone, Copy)]
pub struct Place {
    first: Gpa,
    /// Start of the second part, and how many bytes the first part has.
    second: Option<(Gpa, usize)>,
    pub width: Width,
}

/// One instruction's view of the guest.
pub struct Machine<'a, C, M: ?Sized, B: ?Sized> {
    pub cpu: &'a mut C,
    pub memory: &'a mut M,
    pub bus: &'a mut B,
    pub state: PagingState,
    /// Width of the code segment: 16, 32 or 64.
    pub bits: u32,
    pub code_base: u64,
    /// Last page translated for reading and for writing: an operand's elements lie side by side.
    pages: [Option<Hint>; 2],
}

impl<'a, C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized> Machine<'a, C, M, B> {
    /// Reads what every instruction needs.
    #[inline(always)]
    pub fn new(cpu: &'a mut C, memory: &'a mut M, bus: &'a mut B, hint: Option<Hint>) -> Result<Self, Stop<C::Error>> {
        let state = cpu.paging().map_err(Stop::Cpu)?;
        let code = cpu.segment(SegmentName::Cs).map_err(Stop::Cpu)?;
        let bits = code_width(&state, &code);
        let pages = [hint, hint.filter(|hint| hint.write)];
        Ok(Self { cpu, memory, bus, state, bits, code_base: code.base, pages })
    }

    pub fn gpr(&self, gpr: Gpr) -> Step<u64, C> {
        self.cpu.gpr(gpr).map_err(Trap::cpu)
    }

    pub fn flags(&self) -> Rflags {
        self.state.rflags
    }

    /// Sets the flags of `mask` to those of `value`.
    pub fn set_flags(&mut self, mask: Rflags, value: Rflags) -> Step<(), C> {
        self.state.rflags = self.state.rflags.difference(mask).union(value.intersection(mask));
        self.cpu.set_rflags(self.state.rflags.bits()).map_err(Trap::cpu)
    }

    /// Translates an address for `access`; faults are those of an operand in `segment`.
    pub fn walk(&mut self, segment: SegmentName, gva: Gva, access: Access) -> Step<Gpa, C> {
        guest::walk(self.memory, &self.state, gva, access).map_err(|error| Trap::walk(error, segment, gva))
    }

    /// The place of the operand of `width` at `offset` in `segment`, which will be read (or with `write`, also written).
    pub fn place(&mut self, segment: SegmentName, offset: u64, width: Width, write: bool) -> Step<Place, C> {
        let gva = self.linear(segment, offset, width, write)?;
        let bytes = width.bytes();
        let room = usize::try_from(PAGE_SIZE.wrapping_sub(gva.page_offset())).unwrap_or(bytes);
        let first = self.translate(segment, gva, write)?;
        if bytes <= room {
            return Ok(Place { first, second: None, width });
        }
        let next = gva.align_down(PAGE_SIZE).wrapping_add(PAGE_SIZE);
        let next = if self.bits == 64 { next } else { Gva::new(next.as_u64() & 0xFFFF_FFFF) };
        let second = self.translate(segment, next, write)?;
        Ok(Place { first, second: Some((second, room)), width })
    }

    fn translate(&mut self, segment: SegmentName, gva: Gva, write: bool) -> Step<Gpa, C> {
        let page = gva.align_down(PAGE_SIZE);
        let slot = usize::from(write);
        if let Some(Some(hint)) = self.pages.get(slot)
            && hint.gva.align_down(PAGE_SIZE) == page
        {
            return Ok(hint.gpa.align_down(PAGE_SIZE).wrapping_add(gva.page_offset()));
        }
        let gpa = self.walk(segment, gva, if write { Access::Write } else { Access::Read })?;
        if let Some(hint) = self.pages.get_mut(slot) {
            *hint = Some(Hint { gva, gpa, write });
        }
        Ok(gpa)
    }

    /// Segmentation: base, limit and type.
    fn linear(&self, name: SegmentName, offset: u64, width: Width, write: bool) -> Step<Gva, C> {
        if self.bits == 64 {
            let based = matches!(name, SegmentName::Fs | SegmentName::Gs);
            let base = if based { self.cpu.segment(name).map_err(Trap::cpu)?.base } else { 0 };
            return Ok(Gva::new(base.wrapping_add(offset)));
        }
        let segment = self.cpu.segment(name).map_err(Trap::cpu)?;
        let protected = self.state.cr0.contains(Cr0::PE) && !self.state.rflags.contains(Rflags::VM);
        if (protected && !allows(&segment, write)) || !holds(&segment, offset, width) {
            return Err(Trap::segment(name));
        }
        Ok(Gva::new(segment.base.wrapping_add(offset) & 0xFFFF_FFFF))
    }

    /// Reads a place, once.
    pub fn read(&mut self, place: Place) -> u64 {
        let mut bytes = [0; 8];
        let into = bytes.get_mut(..place.width.bytes()).unwrap_or_default();
        let Some((second, split)) = place.second else {
            if self.memory.read(place.first, into).is_err() {
                return self.bus.mmio_read(place.first, place.width) & place.width.mask();
            }
            return u64::from_le_bytes(bytes);
        };
        let (head, tail) = into.split_at_mut_checked(split).unwrap_or_default();
        self.read_part(place.first, head);
        self.read_part(second, tail);
        u64::from_le_bytes(bytes)
    }

    /// Writes a place, once.
    pub fn write(&mut self, place: Place, value: u64) {
        let bytes = value.to_le_bytes();
        let from = bytes.get(..place.width.bytes()).unwrap_or_default();
        let Some((second, split)) = place.second else {
            if self.memory.write(place.first, from).is_err() {
                self.bus.mmio_write(place.first, place.width, value & place.width.mask());
            }
            return;
        };
        let (head, tail) = from.split_at_checked(split).unwrap_or_default();
        self.write_part(place.first, head);
        self.write_part(second, tail);
    }

    /// Writes a place that was read as `old`, in one operation with a check that RAM still is; whether it was. The parts of
    /// an operand that crosses a page are written one by one, without a check.
    pub fn write_if_same(&mut self, place: Place, old: u64, new: u64) -> bool {
        if place.second.is_none()
            && let Ok(same) = self.memory.compare_exchange(place.first, place.width, old, new)
        {
            return same;
        }
        self.write(place, new);
        true
    }

    /// Reads one page's part of a split operand.
    fn read_part(&mut self, at: Gpa, into: &mut [u8]) {
        if self.memory.read(at, into).is_ok() {
            return;
        }
        let (mut at, mut rest) = (at, into);
        while !rest.is_empty() {
            let width = piece(at, rest.len());
            let value = self.bus.mmio_read(at, width).to_le_bytes();
            let (now, later) = rest.split_at_mut_checked(width.bytes()).unwrap_or_default();
            now.copy_from_slice(value.get(..now.len()).unwrap_or_default());
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
    }

    /// Writes one page's part of a split operand.
    fn write_part(&mut self, at: Gpa, from: &[u8]) {
        if self.memory.write(at, from).is_ok() {
            return;
        }
        let (mut at, mut rest) = (at, from);
        while !rest.is_empty() {
            let width = piece(at, rest.len());
            let (now, later) = rest.split_at_checked(width.bytes()).unwrap_or_default();
            let value = now.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte));
            self.bus.mmio_write(at, width, value);
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
    }
}

/// The widest aligned access at `at` within `bytes` (at least 1).
const fn piece(at: Gpa, bytes: usize) -> Width {
    if bytes >= 4 && at.is_aligned(4) {
        Width::Dword
    } else if bytes >= 2 && at.is_aligned(2) {
        Width::Word
    } else {
        Width::Byte
    }
}

/// Attribute bits of a segment's type.
const CODE: u32 = 1 << 3;
const EXPAND_DOWN: u32 = 1 << 2;
const WRITABLE_OR_READABLE: u32 = 1 << 1;

/// Whether a segment's type allows the access.
const fn allows(segment: &Segment, write: bool) -> bool {
    let second = segment.attributes & WRITABLE_OR_READABLE != 0;
    !segment.is_unusable() && if segment.attributes & CODE != 0 { second && !write } else { second || !write }
}

/// Whether the operand lies within the segment's limit.
fn holds(segment: &Segment, offset: u64, width: Width) -> bool {
    let last = offset.wrapping_add(width.bytes() as u64 - 1);
    let limit = u64::from(segment.limit);
    if segment.attributes & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if segment.attributes & Segment::BIG != 0 { 0xFFFF_FFFF } else { 0xFFFF };
        return offset > limit && last <= top;
    }
    last <= limit
}
