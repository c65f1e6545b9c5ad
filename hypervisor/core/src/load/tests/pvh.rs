//! PVH.

use super::super::{LoadError, LoadModule, Part, Protocol};
use super::images::{Elf, Segment, put, pvh_note};
use super::std::{vec, vec::Vec};
use super::{MAP_8_MIB, assert_protected, boot, refusal, wrong_field};

const RBX: usize = 3;

/// As a vmlinux: linked high, loaded low, with memory beyond its content.
fn vmlinux(wide: bool) -> Elf {
    let high = if wide { 0xFFFF_FFFF_8000_0000 } else { 0xC000_0000 };
    let mut elf = Elf::new(wide, high + 0x20_0000);
    elf.segments = vec![Segment {
        virtual_address: high + 0x20_0000,
        physical_address: 0x20_0000,
        content: vec![0x90; 100],
        memory_bytes: 0x3000,
    }];
    elf.note = Some(pvh_note(0x20_0010));
    elf
}

#[test]
fn entry_by_the_note_of_either_class() {
    for wide in [false, true] {
        let (state, ram) = boot(&vmlinux(wide).build(), "", &[], 8 << 20).unwrap();
        assert_eq!((state.protocol, state.rip), (Protocol::Pvh, 0x20_0010));
        assert_protected(&state, &ram);
        assert_eq!(ram.at(0x20_0000, 100), [0x90; 100]);
        assert_eq!(ram.at(0x20_0064, 0x3000 - 100), [0; 0x3000 - 100]);
    }
}

#[test]
fn a_note_of_eight_bytes() {
    let mut elf = vmlinux(true);
    let mut note = pvh_note(0x20_0010);
    let size = note.len() - 16;
    put(&mut note, size, &[8]);
    note.extend([0; 4]);
    elf.note = Some(note.clone());
    assert_eq!(boot(&elf.build(), "", &[], 8 << 20).unwrap().0.rip, 0x20_0010);
    *note.last_mut().unwrap() = 1;
    elf.note = Some(note);
    assert_eq!(wrong_field(&elf.build()), "XEN_ELFNOTE_PHYS32_ENTRY");
}

#[test]
fn start_info() {
    let modules = [LoadModule { bytes: &[5; 4097], cmdline: "one" }, LoadModule { bytes: &[6; 1], cmdline: "" }];
    let (state, ram) = boot(&vmlinux(true).build(), "a b", &modules, 8 << 20).unwrap();
    let info = state.gpr[RBX];
    assert_eq!((ram.u32(info), ram.u32(info + 4), ram.u32(info + 8)), (0x336E_C578, 1, 0));
    assert_eq!(ram.u32(info + 12), 2);
    let list = ram.u64(info + 16);
    assert_eq!((ram.u64(list), ram.u64(list + 8)), (0x20_3000, 4097));
    assert_eq!(ram.string(ram.u64(list + 16)), "one");
    assert_eq!((ram.u64(list + 32), ram.u64(list + 40)), (0x20_5000, 1));
    assert_eq!(ram.string(ram.u64(list + 48)), "");
    assert_eq!(ram.at(0x20_3000, 4097), [5; 4097]);
    assert_eq!(ram.string(ram.u64(info + 24)), "a b");
    assert_eq!(ram.u64(info + 32), 0xE_0000);
    let (map, count) = (ram.u64(info + 40), u64::from(ram.u32(info + 48)));
    let entry = |at| (ram.u64(at), ram.u64(at + 8), ram.u32(at + 16));
    let entries: Vec<_> = (0..count).map(|number| entry(map + number * 24)).collect();
    assert_eq!(entries, MAP_8_MIB);
}

#[test]
fn no_modules_no_list() {
    let (state, ram) = boot(&vmlinux(true).build(), "", &[], 8 << 20).unwrap();
    assert_eq!((ram.u32(state.gpr[RBX] + 12), ram.u64(state.gpr[RBX] + 16)), (0, 0));
}

#[test]
fn an_entry_outside_the_kernel() {
    for entry in [0, 0x1F_FFFF, 0x20_3000, u32::MAX] {
        let mut elf = vmlinux(true);
        elf.note = Some(pvh_note(entry));
        assert_eq!(wrong_field(&elf.build()), "XEN_ELFNOTE_PHYS32_ENTRY");
    }
}

#[test]
fn notes_that_are_none() {
    let mut elf = vmlinux(true);
    for (at, lie) in [(0, 0xFFFF_FFFF_u32), (4, 0xFFFF_FFF0), (24, 0xFFFF_FFFF), (28, 5), (32, 17)] {
        let mut note = pvh_note(0x20_0010);
        put(&mut note, at, &lie.to_le_bytes());
        elf.note = Some(note);
        assert_eq!(refusal(&elf.build()), LoadError::BareElf, "{at}");
    }
    // A megabyte of empty notes is not searched to its end.
    let mut note = vec![0; 1 << 20];
    note.extend(pvh_note(0x20_0010));
    elf.note = Some(note);
    assert_eq!(refusal(&elf.build()), LoadError::BareElf);
}

#[test]
fn lying_elf_headers() {
    let lie = |at, bytes: &[u8]| {
        let mut image = vmlinux(true).build();
        put(&mut image, at, bytes);
        image
    };
    assert_eq!(wrong_field(&lie(4, &[3])), "EI_CLASS");
    assert_eq!(wrong_field(&lie(5, &[2])), "EI_DATA");
    assert_eq!(wrong_field(&lie(16, &[1])), "e_type");
    assert_eq!(wrong_field(&lie(18, &[183])), "e_machine");
    assert_eq!(wrong_field(&lie(54, &[55, 0])), "e_phentsize");
    assert_eq!(wrong_field(&lie(56, &[0, 0])), "e_phnum");
    assert_eq!(wrong_field(&lie(56, &[65, 0])), "e_phnum");
    for offset in [0x10_0000, u64::MAX] {
        assert!(matches!(refusal(&lie(32, &offset.to_le_bytes())), LoadError::Short { .. }));
    }
}

#[test]
fn lying_program_headers() {
    // The second program header is that of the segment.
    let lie = |at: usize, value: u64| {
        let mut image = vmlinux(true).build();
        put(&mut image, 0x40 + 56 + at, &value.to_le_bytes());
        refusal(&image)
    };
    for offset in [0x10_0000, u64::MAX - 50, u64::MAX] {
        assert!(matches!(lie(8, offset), LoadError::Short { what: "a segment of the ELF file", .. }), "p_offset");
    }
    for address in [0x7F_FFFF, 0x9_F000, 0xA_0000, 0xE_0000, u64::MAX] {
        assert!(matches!(lie(24, address), LoadError::OutsideRam { part: Part::Kernel, .. }), "p_paddr {address:#x}");
    }
    assert!(matches!(lie(32, 0x3001), LoadError::Field { field: "p_memsz", .. }));
    assert!(matches!(lie(32, 0x3000), LoadError::Short { .. }), "p_filesz");
    assert!(matches!(lie(40, 99), LoadError::Field { field: "p_memsz", .. }));
    for bytes in [0x60_0001, u64::MAX] {
        assert!(matches!(lie(40, bytes), LoadError::OutsideRam { .. }), "p_memsz");
    }
}

#[test]
fn segments_that_overlap() {
    let mut elf = vmlinux(true);
    elf.segments.push(Segment::at(0x20_2FFF, &[1, 2]));
    assert!(matches!(refusal(&elf.build()), LoadError::Overlap { start: 0x20_2FFF, bytes: 2, .. }));
}
