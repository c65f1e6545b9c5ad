//! A small machine for tests: 2 MiB of RAM, a device of 8 KiB at 2 GiB, nothing elsewhere.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's own machine")]

use bulkhead_arch::{Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentName};
use bulkhead_emulate::{Bus, Cpu, DecodeCache, Hint, Outcome, Stop, StringIo, mmio, string_io};
use bulkhead_paging::guest::PagingState;
use bulkhead_types::{Gpa, GuestMemory, MemoryError, Width};

/// Where the device is.
pub const DEVICE: u64 = 0x8000_0000;
/// Where code is put.
pub const CODE: u64 = 0x8000;
/// Linear address of pages: RAM at 0x10000, device, not present, read-only RAM, device's second page, user RAM.
pub const PAGES: u64 = 0x1_4000_0000;

pub struct Ram(pub Vec<u8>);

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let from = start.checked_add(into.len()).and_then(|end| self.0.get(start..end));
        into.copy_from_slice(from.ok_or(MemoryError { gpa, bytes: into.len() })?);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let into = start.checked_add(from.len()).and_then(|end| self.0.get_mut(start..end));
        into.ok_or(MemoryError { gpa, bytes: from.len() })?.copy_from_slice(from);
        Ok(())
    }

    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryError> {
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Read(u64, usize),
    Write(u64, usize, u64),
    In(u16, usize),
    Out(u16, usize, u32),
}

pub struct Device {
    pub bytes: Vec<u8>,
    pub events: Vec<Event>,
    /// What the next port input yields; counts up.
    pub input: u32,
}

impl Bus for Device {
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.events.push(Event::Read(gpa.as_u64(), width.bytes()));
        let mut value = [0xFF; 8];
        for (index, byte) in value.iter_mut().enumerate() {
            let at = gpa.as_u64().wrapping_add(index as u64).wrapping_sub(DEVICE);
            if let Some(stored) = usize::try_from(at).ok().and_then(|at| self.bytes.get(at)) {
                *byte = *stored;
            }
        }
        // With rubbish above the width.
        u64::from_le_bytes(value) | !width.mask()
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        assert_eq!(value & !width.mask(), 0);
        self.events.push(Event::Write(gpa.as_u64(), width.bytes(), value));
        for (index, byte) in value.to_le_bytes().iter().take(width.bytes()).enumerate() {
            let at = gpa.as_u64().wrapping_add(index as u64).wrapping_sub(DEVICE);
            if let Some(stored) = usize::try_from(at).ok().and_then(|at| self.bytes.get_mut(at)) {
                *stored = *byte;
            }
        }
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.events.push(Event::In(port, width.bytes()));
        self.input = self.input.wrapping_add(0x0101_0101);
        self.input
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.events.push(Event::Out(port, width.bytes(), value));
    }
}

#[derive(Clone)]
pub struct Registers {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub segments: [Segment; 8],
    pub paging: PagingState,
}

impl Cpu for Registers {
    type Error = ();

    fn gpr(&self, gpr: Gpr) -> Result<u64, ()> {
        Ok(self.gprs[gpr.number()])
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), ()> {
        self.gprs[gpr.number()] = value;
        Ok(())
    }

    fn rip(&self) -> Result<u64, ()> {
        Ok(self.rip)
    }

    fn set_rflags(&mut self, value: u64) -> Result<(), ()> {
        self.paging.rflags = Rflags::from_bits_retain(value);
        Ok(())
    }

    fn segment(&self, name: SegmentName) -> Result<Segment, ()> {
        Ok(self.segments[name as usize])
    }

    fn paging(&self) -> Result<PagingState, ()> {
        Ok(self.paging)
    }
}

pub struct World {
    pub cpu: Registers,
    pub ram: Ram,
    pub device: Device,
    pub cache: DecodeCache,
}

/// Flat data, 32 bits.
pub const DATA32: Segment = Segment { selector: 0x10, attributes: 0xC093, limit: 0xFFFF_FFFF, base: 0 };
const CODE32: Segment = Segment { selector: 8, attributes: 0xC09B, limit: 0xFFFF_FFFF, base: 0 };

impl World {
    fn new(cr0: Cr0, code: Segment, data: Segment) -> Self {
        let mut segments = [data; 8];
        segments[SegmentName::Cs as usize] = code;
        let paging = PagingState {
            cr0,
            cr3: 0x1000,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            pdptes: [0; 4],
            rflags: Rflags::FIXED,
            cpl: 0,
            physical_bits: 40,
        };
        let device =
            Device { bytes: (0..0x2000_u32).map(|at| at.to_le_bytes()[0] ^ 0xA5).collect(), events: vec![], input: 0 };
        Self {
            cpu: Registers { gprs: [0; 16], rip: CODE, segments, paging },
            ram: Ram(vec![0; 0x20_0000]),
            device,
            cache: DecodeCache::new(),
        }
    }

    /// Real mode, segment bases 0.
    pub fn real() -> Self {
        let segment = Segment { selector: 0, attributes: 0x93, limit: 0xFFFF, base: 0 };
        Self::new(Cr0::empty(), segment, segment)
    }

    /// Flat 32-bit protected mode without paging.
    pub fn bits32() -> Self {
        Self::new(Cr0::PE, CODE32, DATA32)
    }

    /// 64-bit mode, the first 4 GiB mapped to themselves, and [`PAGES`].
    pub fn bits64() -> Self {
        let code = Segment { attributes: 0xA09B, ..CODE32 };
        let mut world = Self::new(Cr0::PE | Cr0::PG | Cr0::WP, code, DATA32);
        world.cpu.paging.cr4 = Cr4::PAE;
        world.cpu.paging.efer = Efer::LME | Efer::LMA | Efer::NXE;
        world.entry(0x1000, 0x2003);
        for index in 0..4 {
            world.entry(0x2000 + index * 8, (index << 30) | 0x83);
        }
        world.entry(0x2000 + 5 * 8, 0x3007);
        world.entry(0x3000, 0x4007);
        for (index, entry) in [0x1_0003, 0x8000_0003, 0, 0x1_1001, 0x8000_1003, 0x1_2007].into_iter().enumerate() {
            world.entry(0x4000 + index as u64 * 8, entry);
        }
        world
    }

    pub fn entry(&mut self, at: u64, entry: u64) {
        self.ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa::new(at), bytes).unwrap();
    }

    pub fn set(&mut self, gpr: Gpr, value: u64) -> &mut Self {
        self.cpu.gprs[gpr.number()] = value;
        self
    }

    pub fn get(&self, gpr: Gpr) -> u64 {
        self.cpu.gprs[gpr.number()]
    }

    /// Runs these bytes as one instruction.
    pub fn run(&mut self, code: &[u8]) -> Result<Outcome, Stop<()>> {
        let base = if self.cpu.paging.is_long() { 0 } else { self.cpu.segments[SegmentName::Cs as usize].base };
        let mut padded = [0xCC; 16];
        padded[..code.len()].copy_from_slice(code);
        self.put(base + self.cpu.rip, &padded);
        self.again(None)
    }

    pub fn again(&mut self, hint: Option<Hint>) -> Result<Outcome, Stop<()>> {
        mmio(&mut self.cpu, &mut self.ram, &mut self.device, hint, &mut self.cache)
    }

    pub fn string_io(&mut self, access: StringIo) -> Result<Outcome, Stop<()>> {
        string_io(&mut self.cpu, &mut self.ram, &mut self.device, access)
    }

    /// Runs these bytes, which must be complete.
    #[track_caller]
    pub fn done(&mut self, code: &[u8]) {
        let length = u8::try_from(code.len()).unwrap();
        assert_eq!(self.run(code), Ok(Outcome::Done { length }), "{code:02x?}");
    }
}
