//! What intercepted instructions name.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use bulkhead_arch::{Gpr, SegmentName, Vector};
use bulkhead_emulate::{Decoded, Named, Stop, decode, source};
use bulkhead_types::Gva;
use common::{CODE, PAGES, World};

/// Where the first of the pages is.
const PAGES_RAM: u64 = 0x1_0000;

fn decoded(mut world: World, code: &[u8]) -> Option<Decoded> {
    let mut padded = [0xCC; 16];
    padded[..code.len()].copy_from_slice(code);
    world.put(CODE, &padded);
    let segment = world.cpu.segments[SegmentName::Cs as usize];
    decode(&mut world.ram, &world.cpu.paging, &segment, CODE)
}

fn long(code: &[u8]) -> Decoded {
    let found = decoded(World::bits64(), code).unwrap();
    assert_eq!(usize::from(found.length), code.len(), "{code:02x?}");
    found
}

#[test]
fn lengths_with_prefixes() {
    let plain: [&[u8]; 9] = [
        &[0x0F, 0xA2],
        &[0xF3, 0x48, 0x0F, 0xA2],
        &[0xF4],
        &[0x0F, 0x30],
        &[0x0F, 0x32],
        &[0x0F, 0x09],
        &[0x0F, 0x01, 0xD1],
        &[0x0F, 0x01, 0xD9],
        &[0x2E, 0x66, 0x0F, 0x08],
    ];
    for code in plain {
        assert_eq!(long(code).operand, Named::Nothing, "{code:02x?}");
    }
    assert_eq!(decoded(World::bits32(), &[0x48, 0xF4]).unwrap().length, 1, "DEC, outside 64-bit code");
    assert_eq!(decoded(World::bits64(), &[0x66; 16]), None, "longer than any");
    assert_eq!(decoded(World::bits64(), &[0x06]), None, "PUSH ES, not in 64-bit code");
}

#[test]
fn control_registers_and_the_machine_status_word() {
    assert_eq!(long(&[0x0F, 0x22, 0xE0]).operand, Named::General(Gpr::Rax));
    assert_eq!(long(&[0x41, 0x0F, 0x22, 0xE7]).operand, Named::General(Gpr::R15));
    assert_eq!(long(&[0x44, 0x0F, 0x20, 0xC3]).operand, Named::General(Gpr::Rbx));
    assert_eq!(long(&[0x0F, 0x06]).operand, Named::ClearTaskSwitched);
    assert_eq!(long(&[0x0F, 0x01, 0xF2]).operand, Named::MachineStatus);
    assert_eq!(long(&[0x0F, 0x01, 0x33]).operand, Named::MachineStatus);
    let real = decoded(World::real(), &[0x0F, 0x22, 0xC1]).unwrap();
    assert_eq!(real, Decoded { length: 3, operand: Named::General(Gpr::Rcx) });
}

#[test]
fn an_operand_is_read_where_it_is() {
    let read = |code: &[u8], rbx: u64| {
        let mut world = World::bits64();
        world.put(CODE, code);
        world.put(PAGES_RAM, &[0x3B, 0x80, 0xFF]);
        world.set(Gpr::Rbx, rbx).set(Gpr::Rdx, 0x1234_5678);
        source(&mut world.cpu, &mut world.ram, &mut world.device)
    };
    assert_eq!(read(&[0x0F, 0x01, 0xF2], 0), Ok(Some(0x1234_5678)), "LMSW of EDX");
    assert_eq!(read(&[0x0F, 0x01, 0x33], PAGES), Ok(Some(0x803B)), "LMSW of a word at RBX");
    let absent = PAGES + 0x2000;
    let fault = Stop::Exception { vector: Vector::PF, error: 0, cr2: Some(Gva::new(absent)) };
    assert_eq!(read(&[0x0F, 0x01, 0x33], absent), Err(fault));
    assert_eq!(read(&[0x0F, 0xA2], 0), Ok(None), "something else by now: CPUID");
}

#[test]
fn code_at_the_end_of_a_page_is_enough() {
    let mut world = World::bits64();
    world.put(0x1_0FFE, &[0x0F, 0xA2]);
    let segment = world.cpu.segments[SegmentName::Cs as usize];
    // The next page is not present.
    world.entry(0x4000 + 8, 0);
    let found = decode(&mut world.ram, &world.cpu.paging, &segment, common::PAGES + 0xFFE);
    assert_eq!(found, Some(Decoded { length: 2, operand: Named::Nothing }));
    assert_eq!(decode(&mut world.ram, &world.cpu.paging, &segment, common::PAGES + 0x1000), None);
}
