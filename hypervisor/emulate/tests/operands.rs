//! Where operands lie: pages, segments, modes, faults, and how code is fetched.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use bulkhead_arch::{Cr0, Gpr, Segment, SegmentName, Vector};
use bulkhead_emulate::{Hint, Outcome, Stop};
use bulkhead_types::{Gpa, Gva};
use common::{CODE, DATA32, DEVICE, Event, PAGES, World};

/// mov eax, [rbx]
const LOAD: [u8; 2] = [0x8B, 0x03];
/// mov [rbx], eax
const STORE: [u8; 2] = [0x89, 0x03];
/// add [rbx], rax
const ADD: [u8; 3] = [0x48, 0x01, 0x03];

fn exception(vector: Vector, error: u32, cr2: Option<u64>) -> Result<Outcome, Stop<()>> {
    Err(Stop::Exception { vector, error, cr2: cr2.map(Gva::new) })
}

#[test]
fn a_load_crosses_from_ram_into_a_device() {
    let mut world = World::bits64();
    world.put(0x1_0FFD, &[1, 2, 3]);
    world.set(Gpr::Rbx, PAGES + 0xFFD).done(&[0x48, 0x8B, 0x03]);
    let device = u64::from_le_bytes(world.device.bytes[..8].try_into().unwrap());
    assert_eq!(world.get(Gpr::Rax), (device << 24) | 0x03_0201);
    assert_eq!(world.device.events, [Event::Read(DEVICE, 4), Event::Read(DEVICE + 4, 1)]);
}

#[test]
fn a_store_crosses_from_ram_into_a_device() {
    let mut world = World::bits64();
    world.set(Gpr::Rbx, PAGES + 0xFFF).set(Gpr::Rax, 0x4433_2211).done(&STORE);
    assert_eq!(world.ram.0[0x1_0FFF], 0x11);
    assert_eq!(world.device.events, [Event::Write(DEVICE, 2, 0x3322), Event::Write(DEVICE + 2, 1, 0x44)]);
}

#[test]
fn a_read_modify_write_that_crosses_into_a_missing_page_touches_nothing() {
    let mut world = World::bits64();
    let before = world.device.bytes.clone();
    world.set(Gpr::Rbx, PAGES + 0x1FFC).set(Gpr::Rax, 1);
    assert_eq!(world.run(&ADD), exception(Vector::PF, 2, Some(PAGES + 0x2000)));
    assert_eq!((world.device.events.len(), world.device.bytes == before), (0, true));
}

#[test]
fn a_read_modify_write_needs_write_permission_before_it_reads() {
    let mut world = World::bits64();
    world.entry(0x4008, 0x8000_0001);
    world.set(Gpr::Rbx, PAGES + 0x1000);
    assert_eq!(world.run(&ADD), exception(Vector::PF, 3, Some(PAGES + 0x1000)));
    assert!(world.device.events.is_empty());
    world.done(&LOAD);
    // A hint from a read says nothing about writing.
    let hint = Hint { gva: Gva::new(PAGES + 0x1000), gpa: Gpa::new(DEVICE), write: false };
    world.put(CODE, &ADD);
    assert_eq!(world.again(Some(hint)), exception(Vector::PF, 3, Some(PAGES + 0x1000)));
}

#[test]
fn a_hint_replaces_the_walk_of_its_page_only() {
    let mut world = World::bits64();
    // The tables of the operand are gone; the code's are not.
    world.entry(0x2000 + 5 * 8, 0);
    world.put(CODE, &STORE);
    world.set(Gpr::Rbx, PAGES + 0x1008).set(Gpr::Rax, 7);
    let hint = Hint { gva: Gva::new(PAGES + 0x1000), gpa: Gpa::new(DEVICE), write: true };
    assert_eq!(world.again(Some(hint)), Ok(Outcome::Done { length: 2 }));
    assert_eq!(world.device.events, [Event::Write(DEVICE + 8, 4, 7)]);
    world.set(Gpr::Rbx, PAGES + 0x1FFE);
    assert_eq!(world.again(Some(hint)), exception(Vector::PF, 2, Some(PAGES + 0x2000)));
}

#[test]
fn user_code_meets_supervisor_pages() {
    let mut world = World::bits64();
    for entry in [0x1000, 0x2000] {
        let table = u64::from_le_bytes(world.ram.0[entry..entry + 8].try_into().unwrap());
        world.entry(entry as u64, table | 4);
    }
    world.cpu.paging.cpl = 3;
    world.set(Gpr::Rbx, PAGES + 0x1000);
    assert_eq!(world.run(&LOAD), exception(Vector::PF, 5, Some(PAGES + 0x1000)));
    world.set(Gpr::Rbx, PAGES + 0x5000).done(&STORE);
}

#[test]
fn addresses_that_are_not_canonical() {
    let mut world = World::bits64();
    world.set(Gpr::Rbx, 0x8000_0000_0000);
    assert_eq!(world.run(&LOAD), exception(Vector::GP, 0, None));
    // mov eax, [rbp]: through the stack segment.
    world.set(Gpr::Rbp, 0x8000_0000_0000);
    assert_eq!(world.run(&[0x8B, 0x45, 0x00]), exception(Vector::SS, 0, None));
    // The last bytes before the hole, and across its edge.
    world.set(Gpr::Rbx, 0x7FFF_FFFF_FFFE);
    assert!(world.run(&LOAD).is_err());
}

#[test]
fn fs_has_a_base_in_64_bit_mode_and_ds_has_none() {
    let mut world = World::bits64();
    world.cpu.segments[SegmentName::Fs as usize].base = DEVICE;
    world.cpu.segments[SegmentName::Ds as usize] = Segment { base: 0x1000, limit: 0, attributes: 1 << 16, selector: 0 };
    world.set(Gpr::Rbx, 0x10).done(&[0x64, 0x8B, 0x03]);
    world.set(Gpr::Rbx, DEVICE).done(&LOAD);
    assert_eq!(world.device.events, [Event::Read(DEVICE + 0x10, 4), Event::Read(DEVICE, 4)]);
}

#[test]
fn address_sizes_and_forms_of_64_bit_mode() {
    let mut world = World::bits64();
    world.set(Gpr::Rbx, 0xFFFF_FFFF_7000_0000).set(Gpr::R9, 0x1000_0000 >> 3);
    // mov eax, [ebx + r9d * 8 + 8]
    world.done(&[0x67, 0x42, 0x8B, 0x44, 0xCB, 0x08]);
    // mov eax, [rip + disp32]: from the end of the instruction.
    let displacement = 0x8000_0000_u32.wrapping_sub(0x8000 + 7).to_le_bytes();
    world.cpu.rip = CODE;
    let mut code = vec![0x67, 0x8B, 0x05];
    code.extend(displacement);
    world.done(&code);
    // mov dword [disp32 sign-extended], imm32
    world.entry(0x1FF8, 0x2003);
    world.entry(0x2FF0, 0x8000_0083);
    world.done(&[0xC7, 0x04, 0x25, 0x04, 0, 0, 0x80, 1, 0, 0, 0]);
    assert_eq!(
        world.device.events,
        [Event::Read(DEVICE + 8, 4), Event::Read(DEVICE, 4), Event::Write(DEVICE + 4, 4, 1)]
    );
}

#[test]
fn addresses_of_16_bits_wrap() {
    let mut world = World::real();
    let data = &mut world.cpu.segments[SegmentName::Ds as usize];
    *data = Segment { base: DEVICE, ..*data };
    world.set(Gpr::Rbx, 0xFFFF_FFF0).set(Gpr::Rsi, 0x1_0018);
    // mov ax, [bx + si]
    world.done(&[0x8B, 0x00]);
    assert_eq!(world.device.events, [Event::Read(DEVICE + 8, 2)]);
    // The last byte of the segment holds no word.
    world.set(Gpr::Rbx, 0xFFFF).set(Gpr::Rsi, 0);
    assert_eq!(world.run(&[0x8B, 0x00]), exception(Vector::GP, 0, None));
    // mov eax, [ebx] with a 67 prefix: 32-bit offsets meet the same limit.
    world.set(Gpr::Rbx, 0x1_0000);
    assert_eq!(world.run(&[0x67, 0x8B, 0x03]), exception(Vector::GP, 0, None));
}

#[test]
fn segment_limits_and_types() {
    let cases: [(Segment, u64, &[u8], bool); 9] = [
        (Segment { limit: 0x8000_0003, ..DATA32 }, DEVICE, &LOAD, true),
        (Segment { limit: 0x8000_0002, ..DATA32 }, DEVICE, &LOAD, false),
        // Expand-down: above the limit is valid.
        (Segment { limit: 0x7FFF_FFFF, attributes: 0xC097, ..DATA32 }, DEVICE, &LOAD, true),
        (Segment { limit: 0x8000_0000, attributes: 0xC097, ..DATA32 }, DEVICE, &LOAD, false),
        // Read-only data, readable code, execute-only code, unusable.
        (Segment { attributes: 0xC091, ..DATA32 }, DEVICE, &STORE, false),
        (Segment { attributes: 0xC09B, ..DATA32 }, DEVICE, &LOAD, true),
        (Segment { attributes: 0xC09B, ..DATA32 }, DEVICE, &STORE, false),
        (Segment { attributes: 0xC099, ..DATA32 }, DEVICE, &LOAD, false),
        (Segment { attributes: 0x1_C093, ..DATA32 }, DEVICE, &LOAD, false),
    ];
    for (segment, address, code, good) in cases {
        let mut world = World::bits32();
        world.cpu.segments[SegmentName::Ds as usize] = segment;
        world.set(Gpr::Rbx, address);
        let expected = if good { Ok(Outcome::Done { length: 2 }) } else { exception(Vector::GP, 0, None) };
        assert_eq!(world.run(code), expected, "{segment:?} {code:x?}");
    }
}

#[test]
fn linear_addresses_of_32_bits_wrap() {
    let mut world = World::bits32();
    world.cpu.segments[SegmentName::Ds as usize].base = 0xC000_0000;
    world.set(Gpr::Rbx, 0xC000_0000).done(&LOAD);
    assert_eq!(world.device.events, [Event::Read(DEVICE, 4)]);
}

#[test]
fn code_crosses_a_page() {
    let mut world = World::bits64();
    // The second page of the code, not beside the first one in memory: page 0 is 0x10000, page 1 now 0x12000.
    world.entry(0x4008, 0x1_2003);
    world.cpu.rip = PAGES + 0xFFF;
    world.put(0x1_0FFF, &[0x8B]);
    world.put(0x1_2000, &[0x03]);
    world.set(Gpr::Rbx, DEVICE);
    assert_eq!(world.again(None), Ok(Outcome::Done { length: 2 }));
    // An instruction that ends with the page does not touch the next one.
    world.entry(0x4008, 0);
    world.cpu.rip = PAGES + 0xFFE;
    world.put(0x1_0FFE, &LOAD);
    assert_eq!(world.again(None), Ok(Outcome::Done { length: 2 }));
    world.put(0x1_0FFE, &[0x66, 0x8B]);
    assert_eq!(world.again(None), exception(Vector::PF, 0x10, Some(PAGES + 0x1000)));
}

#[test]
fn code_that_changes_is_decoded_again() {
    let mut world = World::bits64();
    world.set(Gpr::Rbx, DEVICE).set(Gpr::Rax, 5);
    for _ in 0..2 {
        world.done(&LOAD);
        world.done(&STORE);
        // The same bytes at the same place in 32-bit code: dec eax; add [ebx], eax.
        world.done(&ADD);
        world.cpu.segments[SegmentName::Cs as usize].attributes = 0xC09B;
        assert_eq!(world.again(None), Ok(Outcome::Done { length: 1 }));
        world.cpu.segments[SegmentName::Cs as usize].attributes = 0xA09B;
    }
    // Relative to the instruction pointer: the same bytes at another place name another one. Both share a slot.
    let code = [0x8B, 0x05, 0, 0, 0, 0];
    for _ in 0..2 {
        for rip in [PAGES + 0x100, PAGES + 0x180] {
            world.put(0x1_0000 + (rip & 0xFFF), &code);
            world.put(0x1_0006 + (rip & 0xFFF), &rip.to_le_bytes());
            world.cpu.rip = rip;
            assert_eq!(world.again(None), Ok(Outcome::Done { length: 6 }));
            assert_eq!(world.get(Gpr::Rax), rip & 0xFFFF_FFFF);
        }
    }
}

#[test]
fn code_in_a_device_is_unreachable() {
    let mut world = World::bits64();
    world.cpu.rip = DEVICE;
    assert_eq!(world.again(None), Err(Stop::Unreachable { gpa: Gpa::new(DEVICE) }));
    assert!(world.device.events.is_empty());
}

#[test]
fn code_segment_base_counts_outside_64_bit_mode() {
    let mut world = World::real();
    world.cpu.segments[SegmentName::Cs as usize].base = 0x1_2340;
    world.cpu.segments[SegmentName::Ds as usize].base = DEVICE;
    // mov byte [0x20], 5
    world.done(&[0xC6, 0x06, 0x20, 0x00, 0x05]);
    assert_eq!(world.device.events, [Event::Write(DEVICE + 0x20, 1, 5)]);
}

#[test]
fn push_of_a_device_register() {
    let mut world = World::bits64();
    world.device.bytes[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    world.set(Gpr::Rbx, DEVICE).set(Gpr::Rsp, 0x9000).done(&[0xFF, 0x33]);
    assert_eq!(world.get(Gpr::Rsp), 0x8FF8);
    assert_eq!(world.ram.0[0x8FF8..0x9000], [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut world = World::bits32();
    world.set(Gpr::Rbx, DEVICE).set(Gpr::Rsp, 0xFFFF_FFFF_0000_9000).done(&[0x66, 0xFF, 0x33]);
    assert_eq!(world.get(Gpr::Rsp), 0x8FFE);
    world.cpu.segments[SegmentName::Ss as usize].limit = 0x100;
    assert_eq!(world.run(&[0xFF, 0x33]), exception(Vector::SS, 0, None));
}

#[test]
fn what_is_not_carried_out_says_its_bytes() {
    let mut world = World::bits64();
    world.set(Gpr::Rbx, DEVICE);
    // movups xmm0, [rbx]; shl dword [rbx], 1; lock mov; the SSE forms whose names are those of string instructions.
    for code in [&[0x0F, 0x10, 0x03][..], &[0xD1, 0x23], &[0xF0, 0x89, 0x03], &[0xF2, 0x0F, 0x10, 0x03]] {
        match world.run(code) {
            Err(Stop::Unsupported { bytes, length }) => {
                assert_eq!((&bytes[..code.len()], usize::from(length)), (code, code.len()));
            }
            other => assert_eq!(other, Ok(Outcome::Again), "{code:x?}"),
        }
    }
    assert!(world.device.events.is_empty());
}

#[test]
fn without_paging_cr3_is_not_looked_at() {
    let mut world = World::bits32();
    world.cpu.paging.cr3 = u64::MAX;
    world.set(Gpr::Rbx, DEVICE).done(&LOAD);
    world.cpu.paging.cr0 |= Cr0::PG;
    assert!(matches!(world.again(None), Err(Stop::Unreachable { .. })));
}
