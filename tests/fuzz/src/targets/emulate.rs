//! The instruction emulator, in a machine of 32 KiB with a device of two pages.

use crate::Feed;
use crate::ram::Ram;
use bulkhead_arch::{Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentName};
use bulkhead_emulate::{Bus, CHUNK, Cpu, DecodeCache, Decoded, Hint, Named, Outcome, Stop, StringIo};
use bulkhead_paging::guest::PagingState;
use bulkhead_types::{Gpa, GuestMemory as _, Gva, Width};
use std::sync::Once;

const RAM: usize = 0x8000;
const DEVICE: u64 = 0x8000_0000;
/// Where the code is; tables lie below.
const CODE: u64 = 0x5000;
/// Linear address of pages: RAM at 0x6000, device, not present, read-only RAM, device's second page, user RAM, the tables.
const PAGES: u64 = 0x1_4000_0000;
const ACCESSED_AND_DIRTY: u8 = 0x60;

impl Ram {
    fn entry(&mut self, at: usize, entry: u64) {
        self.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }

    /// Whether nothing but accessed and dirty bits of entries differ (tables can be anywhere), and those only up.
    fn is_as(&self, before: &Self) -> bool {
        let parts = self.0.chunks(512).zip(before.0.chunks(512)).filter(|(is, was)| is != was);
        let same = |(at, (is, was)): (usize, (&u8, &u8))| {
            is == was || at % 4 == 0 && is & !was & !ACCESSED_AND_DIRTY == 0 && was & !is == 0
        };
        parts.into_iter().all(|(is, was)| is.iter().zip(was).enumerate().all(same))
    }
}

/// What the device saw; what it answers follows from how much that is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Device {
    accesses: u32,
    writes: u32,
    ports: u32,
    sum: u64,
}

impl Device {
    fn note(&mut self, what: u64) {
        self.accesses += 1;
        self.sum = (self.sum ^ what).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}

impl Bus for Device {
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        assert!(gpa.as_u64() >= RAM as u64, "RAM at {gpa} was taken for a device");
        self.note(gpa.as_u64() ^ width.bits() as u64);
        self.sum
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        assert!(gpa.as_u64() >= RAM as u64 && value & !width.mask() == 0, "{value:#x} of {width:?} to {gpa}");
        self.writes += 1;
        self.note(gpa.as_u64() ^ value);
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        assert!(width < Width::Qword);
        self.ports += 1;
        self.note(port.into());
        self.sum as u32
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        assert!(u64::from(value) & !width.mask() == 0);
        self.ports += 1;
        self.note(u64::from(port) ^ u64::from(value));
    }
}

#[derive(Clone)]
struct Registers {
    gprs: [u64; 16],
    rip: u64,
    segments: [Segment; 8],
    paging: PagingState,
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
        const STATUS: u64 = 0x8D5;
        assert_eq!((value ^ self.paging.rflags.bits()) & !STATUS, 0, "other flags than the arithmetic ones");
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

#[derive(Clone)]
struct World {
    cpu: Registers,
    ram: Ram,
    device: Device,
}

const DATA32: Segment = Segment { selector: 0x10, attributes: 0xC093, limit: 0xFFFF_FFFF, base: 0 };

/// Addresses that mean something, and others.
fn address(feed: &mut Feed<'_>) -> u64 {
    let near = |base: u64, feed: &mut Feed<'_>| base.wrapping_add(u64::from(feed.u8())).wrapping_sub(0x20);
    match feed.u8() & 15 {
        0..4 => DEVICE + (u64::from(feed.u16()) & 0x1FFF),
        4..6 => u64::from(feed.u16()) & 0x7FFF,
        6..9 => PAGES + u64::from(feed.u8() & 7) * 0x1000 + u64::from(feed.u8()),
        9 | 10 => near(PAGES + 0x1000 * u64::from(feed.u8() & 7), feed),
        11 => near(0, feed),
        12 => near(1 << 32, feed),
        13 => near(1 << 47, feed),
        14 => u64::from(feed.u8()),
        _ => feed.u64(),
    }
}

impl World {
    fn new(feed: &mut Feed<'_>) -> Self {
        static WARM: Once = Once::new();
        WARM.call_once(bulkhead_emulate::warm_up);
        let mode = feed.u8();
        let mut ram = Ram(vec![0; RAM]);
        let real = Segment { selector: 0, attributes: 0x93, limit: 0xFFFF, base: 0 };
        let code32 = Segment { selector: 8, attributes: 0xC09B, ..DATA32 };
        let (cr0, code, data) = match mode & 3 {
            0 => (Cr0::empty(), real, real),
            1 => (Cr0::PE, code32, DATA32),
            _ => (Cr0::PE | Cr0::PG | Cr0::WP, Segment { attributes: 0xA09B, ..code32 }, DATA32),
        };
        let mut segments = [data; 8];
        segments[SegmentName::Cs as usize] = code;
        let long = mode & 2 != 0;
        let paging = PagingState {
            cr0,
            cr3: 0x1000,
            cr4: if long { Cr4::PAE } else { Cr4::empty() },
            efer: if long { Efer::LME | Efer::LMA | Efer::NXE } else { Efer::empty() },
            pdptes: [0; 4],
            rflags: Rflags::from_bits_retain(u64::from(feed.u16()) & 0xCD5 | u64::from(mode & 4) << 16 | 2),
            cpl: if mode & 8 != 0 { 3 } else { 0 },
            physical_bits: 40,
        };
        let user = if mode & 8 != 0 { 4 } else { 0 };
        ram.entry(0x1000, 0x2003 | user);
        for index in 0..4 {
            ram.entry(0x2000 + index * 8, (index as u64) << 30 | 0x83 | user);
        }
        ram.entry(0x2000 + 5 * 8, 0x3007);
        ram.entry(0x3000, 0x4007);
        let pages = [0x6007, 0x8000_0007, 0, 0x6005, 0x8000_1007, 0x7007, 0x7003, 0x8000_0007 | 1 << 63];
        for (index, entry) in pages.into_iter().enumerate() {
            ram.entry(0x4000 + index * 8, entry);
        }
        let mut gprs = [0; 16];
        for gpr in &mut gprs {
            *gpr = address(feed);
        }
        if mode & 16 != 0 {
            segments[SegmentName::Fs as usize].base = address(feed);
            let segment = &mut segments[usize::from(feed.u8() & 7)];
            segment.attributes ^= u32::from(feed.u8()) << if mode & 32 != 0 { 0 } else { 9 };
            segment.limit = feed.u32();
            segment.base = if long { segment.base } else { u64::from(feed.u16()) };
        }
        if mode & 64 != 0 {
            ram.entry(0x1000 + (usize::from(feed.u16()) & 0x3FF8), feed.u64());
        }
        // Near the end of a page, now and then.
        let rip = if mode & 128 != 0 { CODE + 0xFFF - u64::from(feed.u8() & 15) } else { CODE };
        let cpu = Registers { gprs, rip, segments, paging };
        Self { cpu, ram, device: Device::default() }
    }

    fn put_code(&mut self, bytes: [u8; 15]) {
        let base = if self.cpu.paging.is_long() { 0 } else { self.cpu.segments[SegmentName::Cs as usize].base };
        let at = Gpa::new(base.wrapping_add(self.cpu.rip));
        let _ = self.ram.write(at, &bytes);
    }

    fn mmio(&mut self, hint: Option<Hint>, cache: &mut DecodeCache) -> Result<Outcome, Stop<()>> {
        bulkhead_emulate::mmio(&mut self.cpu, &mut self.ram, &mut self.device, hint, cache)
    }

    /// Nothing that the guest can see has changed but accessed and dirty bits.
    fn assert_untouched(&self, before: &Self, why: &dyn std::fmt::Debug) {
        assert_eq!(self.cpu.gprs, before.cpu.gprs, "registers after {why:?}");
        assert_eq!(self.cpu.paging.rflags, before.cpu.paging.rflags, "flags after {why:?}");
        assert_eq!(self.device, before.device, "the device after {why:?}");
        assert!(self.ram.is_as(&before.ram), "memory after {why:?}");
    }
}

/// Whether the bytes are a string instruction: those fault between elements.
fn is_string(bytes: &[u8]) -> bool {
    let prefix =
        |byte: &&u8| matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x40..=0x4F | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3);
    let opcode = bytes.iter().find(|byte| !prefix(byte));
    opcode.is_some_and(|byte| matches!(byte, 0xA4..=0xA7 | 0xAA..=0xAF))
}

fn check(world: &World, before: &World, result: Result<Outcome, Stop<()>>, bytes: [u8; 15]) {
    // An element of MOVS has two operands, and one that crosses a page comes in up to seven pieces each.
    let most = if is_string(&bytes) { CHUNK * 16 } else { 32 };
    assert!(world.device.accesses <= most && world.device.ports == 0, "{:?}", world.device);
    match result {
        Ok(Outcome::Done { length }) => {
            assert!((1..=15).contains(&length));
            let changed = world.cpu.gprs.iter().zip(&before.cpu.gprs).filter(|(is, was)| is != was).count();
            assert!(changed <= 3, "{changed} registers");
        }
        Ok(Outcome::Again) => {}
        Err(stop) => {
            if let Stop::Unsupported { length, .. } = stop {
                assert!(length <= 15);
            }
            if !is_string(&bytes) {
                world.assert_untouched(before, &stop);
            }
        }
    }
}

/// One instruction of any bytes, twice: with decodings from before, and without.
pub fn mmio(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut world = World::new(&mut feed);
    let hint = feed.u8();
    let bytes = feed.array::<15>();
    world.put_code(bytes);
    let hint = (hint & 3 == 0 && world.cpu.paging.is_long()).then(|| {
        let at = u64::from(hint >> 2) << 3;
        Hint { gva: Gva::new(PAGES + 0x1000 + at), gpa: Gpa::new(DEVICE + at), write: hint & 4 != 0 }
    });
    let before = world.clone();
    let mut cache = DecodeCache::new();
    let result = world.mmio(hint, &mut cache);
    check(&world, &before, result, bytes);
    if feed.is_empty() {
        return;
    }
    // Other code at the same place, by the same cache and by a fresh one.
    let mut other = bytes;
    for (to, from) in other.iter_mut().rev().zip(feed.bytes(15)) {
        *to ^= from;
    }
    let mut warm = before;
    warm.put_code(other);
    let mut fresh = warm.clone();
    let start = warm.clone();
    let (a, b) = (warm.mmio(hint, &mut cache), fresh.mmio(hint, &mut DecodeCache::new()));
    assert_eq!(a, b, "what was decoded before shows");
    assert_eq!((warm.cpu.gprs, &warm.device), (fresh.cpu.gprs, &fresh.device));
    assert!(warm.ram.0 == fresh.ram.0 && warm.cpu.paging.rflags == fresh.cpu.paging.rflags);
    check(&warm, &start, a, other);
}

/// INS and OUTS of any shape.
pub fn string_io(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut world = World::new(&mut feed);
    let bits = feed.u8();
    let set = |bit: u8| bits >> bit & 1 != 0;
    let access = StringIo {
        port: feed.u16(),
        width: feed.port_width(),
        write: set(0),
        repeat: set(1),
        segment: set(2).then(|| SegmentName::ALL[usize::from(feed.below(6))]),
        address_bytes: set(3).then(|| [2, 4, 8, feed.u8()][usize::from(bits >> 6)]),
    };
    if !set(4) {
        // The instruction that the exit tells of, with prefixes.
        let opcode = 0x6C | u8::from(access.write) << 1 | u8::from(access.width != Width::Byte);
        let code = if access.repeat { [0xF3, opcode, 0] } else { [opcode, 0, 0] };
        let prefix = [0x90, 0x66, 0x67, 0x3E][usize::from(feed.u8() & 3)];
        let mut bytes = [prefix; 15];
        let start = usize::from(prefix != 0x90);
        bytes[start..start + 3].copy_from_slice(&code);
        world.put_code(bytes);
    } else {
        world.put_code(feed.array());
    }
    let before = world.clone();
    let result = bulkhead_emulate::string_io(&mut world.cpu, &mut world.ram, &mut world.device, access);
    let elements = world.device.ports;
    assert!(elements <= if access.repeat { CHUNK } else { 1 }, "{elements} elements");
    let changed = |gpr: Gpr| world.cpu.gprs[gpr.number()] != before.cpu.gprs[gpr.number()];
    let others = Gpr::ALL.into_iter().filter(|gpr| !matches!(gpr, Gpr::Rcx | Gpr::Rsi | Gpr::Rdi));
    assert!(others.into_iter().all(|gpr| !changed(gpr)), "another register");
    assert!(!changed(if access.write { Gpr::Rdi } else { Gpr::Rsi }), "the other pointer");
    let (was, is) = (before.cpu.gprs[Gpr::Rcx.number()], world.cpu.gprs[Gpr::Rcx.number()]);
    if access.repeat {
        // The counter is 16, 32 or 64 bits wide; CHUNK is less than each.
        assert_eq!(was.wrapping_sub(is) & 0xFFFF, u64::from(elements), "the counter after {result:?}");
    } else {
        assert_eq!(was, is);
    }
    if elements == 0 && world.device.accesses == 0 {
        assert!(world.ram.is_as(&before.ram), "memory without an element");
    }
    assert_eq!(world.cpu.paging.rflags, before.cpu.paging.rflags);
}

/// The length of an intercepted instruction, and what it names.
pub fn decode(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut bytes: [u8; 15] = feed.array();
    if feed.flag() {
        bytes[0] = 0x0F;
    }
    let world = World::new(&mut feed);
    let found = measure(&world, bytes);
    let Some(Decoded { length, operand }) = found else { return };
    assert!((1..=15).contains(&length), "{length} bytes");
    let long = world.cpu.paging.is_long();
    if let Named::General(gpr) = operand {
        assert!(long || gpr.number() < 8, "{gpr:?} outside 64-bit code");
    }
    let mut other = bytes;
    other[usize::from(length)..].iter_mut().for_each(|byte| *byte ^= 0xFF);
    assert_eq!(measure(&world, other), found, "what follows does not matter");
    // An operand that the processor left to be read.
    let mut world = world;
    world.put_code(bytes);
    let before = world.clone();
    let _ = bulkhead_emulate::source(&mut world.cpu, &mut world.ram, &mut world.device);
    assert_eq!((world.cpu.gprs, world.device.writes, world.device.ports), (before.cpu.gprs, 0, 0));
    assert!(world.device.accesses <= 16 && world.ram.is_as(&before.ram), "reading writes");
}

fn measure(world: &World, bytes: [u8; 15]) -> Option<Decoded> {
    let mut world = world.clone();
    world.put_code(bytes);
    let before = world.ram.clone();
    let code = world.cpu.segments[SegmentName::Cs as usize];
    let found = bulkhead_emulate::decode(&mut world.ram, &world.cpu.paging, &code, world.cpu.rip);
    assert!(world.ram.is_as(&before), "decoding writes");
    found
}
