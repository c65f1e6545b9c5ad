//! Boot images that lie.

use crate::Feed;
use bulkhead_core::load::{self, InitialState, LoadModule, Protocol, Request, detect};
use bulkhead_devices::layout;
use bulkhead_types::manifest::LoadAs;
use bulkhead_types::{Gpa, GuestMemory, MemoryError};

/// The most pieces that a loader needs: its parts, and the fields of its structures.
const MOST_WRITES: usize = 4096;

/// RAM that has no content but knows where something was put; a loader that names anything else fails.
struct Ram {
    memory: u64,
    written: Vec<(u64, u64)>,
}

impl Ram {
    fn check(&self, gpa: Gpa, bytes: u64) -> u64 {
        let start = gpa.as_u64();
        let end = start.checked_add(bytes).expect("a range of memory ends");
        let inside = |ram: &layout::RamRange| ram.start.as_u64() <= start && end <= ram.start.as_u64() + ram.bytes;
        assert!(layout::ram_ranges(self.memory).iter().any(inside), "no RAM: {start:#x} to {end:#x}");
        end
    }

    fn note(&mut self, gpa: Gpa, bytes: u64) {
        let end = self.check(gpa, bytes);
        let start = gpa.as_u64();
        let firmware = layout::FIRMWARE.as_u64()..layout::FIRMWARE_END.as_u64();
        assert!(end <= firmware.start || start >= firmware.end, "the firmware's area: {start:#x} to {end:#x}");
        assert!(self.written.len() < MOST_WRITES, "writing without end");
        self.written.push((start, end));
    }

    fn has(&self, start: u64, bytes: u64) -> bool {
        self.written.iter().any(|&(from, to)| from <= start && start + bytes <= to)
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        self.check(gpa, into.len() as u64);
        into.fill(0);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        self.note(gpa, from.len() as u64);
        Ok(())
    }

    fn zero(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.note(gpa, bytes);
        Ok(())
    }
}

fn check_state(state: &InitialState, ram: &Ram, kernel: &[u8]) {
    let base = if state.cr0 & 1 == 0 { state.segments[1].base } else { 0 };
    let entry = base + state.rip;
    assert!(!kernel.is_empty() && ram.has(entry, 1), "entry {entry:#x} where nothing was put");
    let long = state.efer & 1 << 10 != 0;
    assert_eq!(long, state.protocol == Protocol::Linux64);
    assert!(!long || ram.has(state.cr3, 8), "page tables at {:#x}", state.cr3);
    if state.gdt.base != 0 {
        ram.check(Gpa::new(state.gdt.base), u64::from(state.gdt.limit) + 1);
    }
    assert!(state.rip < 1 << 32 && state.rflags == 2);
    let stack = state.gpr[4];
    assert!(stack <= 1 << 32, "stack {stack:#x}");
}

/// The feed's first bytes are the machine; what is left is the kernel.
fn boot(data: &[u8], mend: fn(&mut [u8])) {
    let mut feed = Feed::new(data);
    let memory =
        [2 << 20, 8 << 20, 64 << 20, 3 << 30, 5 << 30, 0x10_1000, 0x40_0000_0000, 16 << 20][usize::from(feed.u8() & 7)];
    let shape = feed.u8();
    let text = "a long command line for whoever takes it. ".repeat(usize::from(shape >> 4));
    let cmdline = &text[..text.len().min(usize::from(feed.u8()))];
    let bytes = vec![0x5A; usize::from(feed.u8()) * 64];
    let modules = vec![LoadModule { bytes: &bytes, cmdline }; usize::from(shape & 3)];
    let mut kernel = feed.rest().to_vec();
    mend(&mut kernel);
    let load = LoadAs::Detect;
    let request = Request { kernel: &kernel, load, cmdline, modules: &modules, memory, rsdp: layout::RSDP };
    let mut ram = Ram { memory, written: Vec::new() };
    let detected = detect(&kernel);
    match load::load(&request, &mut ram) {
        Ok(state) => {
            assert_eq!(detected, Ok(state.protocol), "what was detected is what is loaded");
            check_state(&state, &ram, &kernel);
        }
        Err(error) => {
            assert!(detected.is_ok() || detected == Err(error), "{detected:?} and then {error:?}");
            let _ = error.to_string();
        }
    }
}

/// Writes `bytes` at `at`, as far as the file goes.
fn put(kernel: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = kernel.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// bzImage: the magic numbers are mended.
pub fn linux(data: &[u8]) {
    boot(data, |kernel| {
        put(kernel, 0x1FE, &[0x55, 0xAA]);
        put(kernel, 0x202, b"HdrS");
    });
}

/// ELF with a PVH note: the magic number is mended.
pub fn elf(data: &[u8]) {
    boot(data, |kernel| put(kernel, 0, b"\x7FELF"));
}

/// Multiboot: the checksum of the first header is mended.
pub fn multiboot(data: &[u8]) {
    boot(data, |kernel| {
        let magic = 0x1BAD_B002_u32;
        let Some(at) = kernel.chunks(4).position(|word| word == magic.to_le_bytes()) else { return };
        let Some(flags) = kernel.get(at * 4 + 4..at * 4 + 8) else { return };
        let flags = u32::from_le_bytes(flags.try_into().unwrap());
        put(kernel, at * 4 + 8, &0_u32.wrapping_sub(magic).wrapping_sub(flags).to_le_bytes());
    });
}

/// Multiboot 2: the checksum of the first header is mended.
pub fn multiboot2(data: &[u8]) {
    boot(data, |kernel| {
        let magic = 0xE852_50D6_u32;
        let Some(at) = kernel.chunks(8).position(|two| two.starts_with(&magic.to_le_bytes())) else { return };
        let Some(fields) = kernel.get(at * 8 + 4..at * 8 + 12) else { return };
        let sum =
            fields.chunks(4).fold(magic, |sum, word| sum.wrapping_add(u32::from_le_bytes(word.try_into().unwrap())));
        put(kernel, at * 8 + 12, &0_u32.wrapping_sub(sum).to_le_bytes());
    });
}

/// Plain bytes at any address.
pub fn flat(data: &[u8]) {
    let mut feed = Feed::new(data);
    let at = feed.magnitude();
    let memory = (feed.magnitude() & 0xFF_FFFF_F000).max(2 << 20);
    let kernel = feed.rest();
    let request = Request { kernel, load: LoadAs::Flat { at }, cmdline: "", modules: &[], memory, rsdp: layout::RSDP };
    let mut ram = Ram { memory, written: Vec::new() };
    if let Ok(state) = load::load(&request, &mut ram) {
        assert_eq!(state.protocol == Protocol::FlatReal, at < 1 << 20);
        check_state(&state, &ram, kernel);
        let base = if state.cr0 & 1 == 0 { state.segments[1].base } else { 0 };
        assert_eq!(base + state.rip, at, "entered where it was put");
    }
}
