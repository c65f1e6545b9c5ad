//! Every protocol with images made to measure, right ones and lying ones.

extern crate std;

mod flat;
mod hostile;
mod images;
mod linux;
mod multiboot;
mod multiboot2;
mod pvh;

use self::std::{format, vec, vec::Vec};
use super::{InitialState, LoadError, LoadModule, Request, load};
use bulkhead_arch::{Segment, SegmentName};
use bulkhead_devices::layout;
use bulkhead_types::manifest::LoadAs;
use bulkhead_types::{Gpa, GuestMemory, MemoryError};

/// What untouched RAM holds, so that what must be zero has to be written.
const UNTOUCHED: u8 = 0xCC;

/// The RAM of a guest below 4 GiB. A loader that names anything else fails its test.
struct Ram {
    bytes: Vec<u8>,
    memory: u64,
}

impl Ram {
    fn new(memory: u64) -> Self {
        Self { bytes: vec![UNTOUCHED; usize::try_from(memory).unwrap()], memory }
    }

    fn range(&self, gpa: Gpa, bytes: u64) -> core::ops::Range<usize> {
        let (start, end) = (gpa.as_u64(), gpa.as_u64().checked_add(bytes).unwrap());
        let inside = |ram: &layout::RamRange| ram.start.as_u64() <= start && end <= ram.start.as_u64() + ram.bytes;
        assert!(layout::ram_ranges(self.memory).iter().any(inside), "no RAM: {start:#x}-{end:#x}");
        usize::try_from(start).unwrap()..usize::try_from(end).unwrap()
    }

    fn range_to_write(&self, gpa: Gpa, bytes: u64) -> core::ops::Range<usize> {
        let range = self.range(gpa, bytes);
        assert!(range.end <= 0xE_0000 || range.start >= 0x10_0000, "firmware area: {range:#x?}");
        range
    }

    fn at(&self, gpa: u64, bytes: u64) -> &[u8] {
        &self.bytes[self.range(Gpa::new(gpa), bytes)]
    }

    fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.at(gpa, 4).try_into().unwrap())
    }

    fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.at(gpa, 8).try_into().unwrap())
    }

    fn string(&self, gpa: u64) -> &str {
        let rest = self.at(gpa, 4096);
        let end = rest.iter().position(|&byte| byte == 0).unwrap();
        core::str::from_utf8(&rest[..end]).unwrap()
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        into.copy_from_slice(&self.bytes[self.range(gpa, into.len() as u64)]);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let range = self.range_to_write(gpa, from.len() as u64);
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    fn zero(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MemoryError> {
        let range = self.range_to_write(gpa, bytes);
        self.bytes[range].fill(0);
        Ok(())
    }
}

fn request<'a>(kernel: &'a [u8], cmdline: &'a str, modules: &'a [LoadModule<'a>], memory: u64) -> Request<'a> {
    Request { kernel, load: LoadAs::Detect, cmdline, modules, memory, rsdp: layout::RSDP }
}

fn boot(
    kernel: &[u8],
    cmdline: &str,
    modules: &[LoadModule<'_>],
    memory: u64,
) -> Result<(InitialState, Ram), LoadError> {
    let mut ram = Ram::new(memory);
    let state = load(&request(kernel, cmdline, modules, memory), &mut ram)?;
    Ok((state, ram))
}

/// Boots without command line and modules in 8 MiB; the error.
fn refusal(kernel: &[u8]) -> LoadError {
    boot(kernel, "", &[], 8 << 20).map(|(state, _)| state).unwrap_err()
}

/// The name of the wrong field.
fn wrong_field(kernel: &[u8]) -> &'static str {
    match refusal(kernel) {
        LoadError::Field { field, .. } => field,
        other => panic!("{other:?}"),
    }
}

fn segment(state: &InitialState, name: SegmentName) -> Segment {
    state.segments[SegmentName::ALL.iter().position(|&other| other == name).unwrap()]
}

/// Checks all that the 32-bit protocols have in common.
fn assert_protected(state: &InitialState, ram: &Ram) {
    assert_eq!((state.cr0, state.cr3, state.cr4, state.efer, state.rflags), (0x11, 0, 0, 0, 2));
    assert_flat(state, ram, 0xC09B, 0x00CF_9B00_0000_FFFF);
}

/// Checks that the segments are flat, and as the descriptor table in memory has them.
fn assert_flat(state: &InitialState, ram: &Ram, code: u32, code_descriptor: u64) {
    let flat = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
    assert_eq!(segment(state, SegmentName::Cs), flat(0x10, code));
    for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Ss, SegmentName::Fs, SegmentName::Gs] {
        assert_eq!(segment(state, name), flat(0x18, 0xC093));
    }
    assert_eq!(segment(state, SegmentName::Tr), Segment { attributes: 0x8B, limit: 0x67, ..Segment::default() });
    assert!(segment(state, SegmentName::Ldtr).is_unusable());
    assert_eq!((state.gdt.limit, state.idt.base, state.idt.limit), (31, 0, 0));
    assert_eq!(ram.u64(state.gdt.base + 0x10), code_descriptor);
    assert_eq!(ram.u64(state.gdt.base + 0x18), 0x00CF_9300_0000_FFFF);
}

/// The memory map of a guest with 8 MiB: start, length, type.
const MAP_8_MIB: [(u64, u64, u32); 6] = [
    (0, 0xA_0000, 1),
    (0xC_0000, 0x2_0000, 1),
    (0xE_0000, 0x2_0000, 2),
    (0x10_0000, 0x70_0000, 1),
    (0xFEC0_0000, 0x1000, 2),
    (0xFEE0_0000, 0x1000, 2),
];

#[test]
fn a_file_of_no_kind_is_described() {
    let error = refusal(&[0x1F, 0x8B, 8]);
    assert_eq!(error, LoadError::Unknown { start: [0x1F, 0x8B, 8, 0], bytes: 3 });
    assert!(format!("{error}").contains("the 3 bytes start with 1f 8b 08 00"), "{error}");
    assert_eq!(refusal(&[]), LoadError::Unknown { start: [0; 4], bytes: 0 });
}

#[test]
fn of_several_protocols_the_more_telling_is_taken() {
    let mut segment = images::multiboot_header(0, &[]);
    segment.resize(64, 0);
    segment.extend(images::multiboot2_header(&[]));
    let mut elf = images::Elf::new(true, 0x10_0000);
    elf.note = Some(images::pvh_note(0x10_0000));
    elf.segments = vec![images::Segment::at(0x10_0000, &segment)];
    let all = elf.build();
    assert_eq!(super::detect(&all), Ok(super::Protocol::Multiboot2));
    elf.segments = vec![images::Segment::at(0x10_0000, &segment[..64])];
    assert_eq!(super::detect(&elf.build()), Ok(super::Protocol::Multiboot));
    elf.segments = vec![images::Segment::at(0x10_0000, &[0; 64])];
    assert_eq!(super::detect(&elf.build()), Ok(super::Protocol::Pvh));
    elf.note = None;
    assert_eq!(super::detect(&elf.build()), Err(LoadError::BareElf));
}

#[test]
fn bios_data_area() {
    let (_, ram) = boot(&images::bzimage(0x1000, true), "", &[], 8 << 20).unwrap();
    assert_eq!((ram.at(0x400, 2), ram.at(0x413, 2)), (&[0xF8, 3][..], &[0x80, 2][..]));
}
