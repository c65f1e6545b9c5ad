//! Multiboot 1.

use super::super::{LoadError, LoadModule, Part, Protocol};
use super::images::{Elf, Segment, multiboot_header, put};
use super::std::{vec, vec::Vec};
use super::{MAP_8_MIB, assert_protected, boot, refusal, wrong_field};

const RAX: usize = 0;
const RBX: usize = 3;

/// An ELF file with a multiboot header of these flags at its load address, 1 MiB.
fn elf(wide: bool, flags: u32) -> Elf {
    let mut content = multiboot_header(flags, &[]);
    content.resize(0x100, 0x90);
    let mut elf = Elf::new(wide, 0x10_0040);
    elf.segments = vec![Segment::at(0x10_0000, &content)];
    elf
}

/// A file that is not ELF, with a header of these address fields at offset 0x20, 0x100 bytes long.
fn by_addresses(fields: [u32; 5]) -> Vec<u8> {
    let mut image = vec![0x90; 0x20];
    image.extend(multiboot_header(1 << 16, &fields));
    image.resize(0x100, 0x91);
    image
}

const ADDRESSES: [u32; 5] = [0x10_0010, 0x10_0000, 0x10_0080, 0x10_1000, 0x10_0040];

#[test]
fn entry_of_an_elf_file_of_either_class() {
    for wide in [false, true] {
        let (state, ram) = boot(&elf(wide, 3).build(), "", &[], 8 << 20).unwrap();
        assert_eq!((state.protocol, state.rip), (Protocol::Multiboot, 0x10_0040));
        assert_eq!(state.gpr[RAX], 0x2BAD_B002);
        assert_protected(&state, &ram);
        assert_eq!(ram.u32(0x10_0000), 0x1BAD_B002);
    }
}

#[test]
fn a_virtual_entry_is_translated() {
    let mut high = elf(true, 0);
    high.entry = 0xFFFF_FFFF_8010_0040;
    high.segments[0].virtual_address = 0xFFFF_FFFF_8010_0000;
    assert_eq!(boot(&high.build(), "", &[], 8 << 20).unwrap().0.rip, 0x10_0040);
    high.entry = 0x10_0050;
    assert_eq!(boot(&high.build(), "", &[], 8 << 20).unwrap().0.rip, 0x10_0050, "it is physical already");
    high.entry = 0xFFFF_FFFF_8010_0100;
    assert_eq!(wrong_field(&high.build()), "e_entry");
}

#[test]
fn address_fields() {
    let (state, ram) = boot(&by_addresses(ADDRESSES), "", &[], 8 << 20).unwrap();
    assert_eq!(state.rip, 0x10_0040);
    // The header is at offset 0x20 and belongs 0x10 behind the start.
    assert_eq!(ram.at(0x10_0000, 0x10), [0x90; 0x10]);
    assert_eq!(ram.u32(0x10_0010), 0x1BAD_B002);
    assert_eq!(ram.at(0x10_007F, 2), [0x91, 0]);
    assert_eq!(ram.at(0x10_0080, 0xF80), [0; 0xF80]);
    assert_eq!(ram.at(0x10_1000, 1), [super::UNTOUCHED]);
    let whole = [0x10_0010, 0x10_0000, 0, 0, 0x10_0040];
    let (_, ram) = boot(&by_addresses(whole), "", &[], 8 << 20).unwrap();
    assert_eq!(ram.at(0x10_00EF, 2), [0x91, super::UNTOUCHED]);
}

#[test]
fn lying_address_fields() {
    let lie = |number: usize, value| {
        let mut fields = ADDRESSES;
        fields[number] = value;
        by_addresses(fields)
    };
    assert_eq!(wrong_field(&lie(0, 0x10_0021)), "load_addr", "before the start of the file");
    assert_eq!(wrong_field(&lie(1, 0x10_0011)), "load_addr");
    assert_eq!(wrong_field(&lie(1, u32::MAX)), "load_addr");
    assert_eq!(wrong_field(&lie(2, 0xF_FFFF)), "load_end_addr");
    assert!(matches!(refusal(&lie(2, 0x10_00F1)), LoadError::Short { .. }));
    assert_eq!(wrong_field(&lie(3, 0x10_007F)), "bss_end_addr");
    assert!(matches!(refusal(&lie(3, 0x80_0001)), LoadError::OutsideRam { .. }));
    for entry in [0xF_FFFF, 0x10_1000, u32::MAX] {
        assert_eq!(wrong_field(&lie(4, entry)), "entry_addr");
    }
    let firmware = [0xE_0010, 0xE_0000, 0xE_0080, 0, 0xE_0000];
    assert!(matches!(refusal(&by_addresses(firmware)), LoadError::OutsideRam { part: Part::Kernel, .. }));
}

#[test]
fn header_search() {
    let at = |offset: usize| {
        let mut image = vec![0; offset];
        let load = 0x10_0000 + u32::try_from(offset).unwrap();
        image.extend(multiboot_header(1 << 16, &[load, 0x10_0000, 0, 0, 0x10_0000]));
        image
    };
    assert!(boot(&at(8192 - 12), "", &[], 8 << 20).is_ok());
    assert!(matches!(refusal(&at(8192 - 8)), LoadError::Unknown { .. }));
    assert!(matches!(refusal(&at(2)), LoadError::Unknown { .. }));
    let mut image = at(0);
    image[8] ^= 1;
    assert!(matches!(refusal(&image), LoadError::Unknown { .. }), "checksum");
    let image = at(0);
    assert!(matches!(refusal(&image[..31]), LoadError::Short { .. }), "cut off");
    assert_eq!(refusal(&multiboot_header(0, &[])), LoadError::NoAddresses);
}

#[test]
fn required_features() {
    for bit in 0..16 {
        let image = elf(false, 1 << bit).build();
        if bit <= 2 {
            assert!(boot(&image, "", &[], 8 << 20).is_ok());
        } else {
            assert_eq!(wrong_field(&image), "flags of the multiboot header", "bit {bit}");
        }
    }
    assert!(boot(&elf(false, 0xFFFE_0000).build(), "", &[], 8 << 20).is_ok(), "the others may be ignored");
}

#[test]
fn boot_information() {
    let modules = [
        LoadModule { bytes: &[5; 4097], cmdline: "one" },
        LoadModule { bytes: &[], cmdline: "none" },
        LoadModule { bytes: &[6; 1], cmdline: "" },
    ];
    let (state, ram) = boot(&elf(false, 3).build(), "kernel a=b", &modules, 8 << 20).unwrap();
    let info = state.gpr[RBX];
    let field = |at| u64::from(ram.u32(info + at));
    assert_eq!(field(0), 0b10_0100_1101);
    assert_eq!((field(4), field(8)), (640, 7 * 1024));
    assert_eq!(ram.string(field(16)), "kernel a=b");
    assert_eq!(ram.string(field(64)), "Bulkhead");
    assert_eq!(ram.at(info + 68, 116 - 68), [0; 116 - 68]);
    let module = |number: u64| {
        let at = field(24) + number * 16;
        (ram.u32(at), ram.u32(at + 4), ram.string(u64::from(ram.u32(at + 8))))
    };
    assert_eq!(field(20), 3);
    assert_eq!(module(0), (0x10_1000, 0x10_2001, "one"));
    assert_eq!(module(1), (0x10_3000, 0x10_3000, "none"));
    assert_eq!(module(2), (0x10_3000, 0x10_3001, ""));
    assert_eq!(ram.at(0x10_1000, 4097), [5; 4097]);
    let entry = |at| (ram.u32(at), ram.u64(at + 4), ram.u64(at + 12), ram.u32(at + 20));
    let entries: Vec<_> = (0..field(44) / 24).map(|number| entry(field(48) + number * 24)).collect();
    assert_eq!(entries, MAP_8_MIB.map(|(start, bytes, kind)| (20, start, bytes, kind)));
}

#[test]
fn a_kernel_in_low_memory_is_gone_round() {
    let mut low = elf(false, 0);
    low.entry = 0x4000;
    let content = low.segments.remove(0).content;
    low.segments.push(Segment { memory_bytes: 0x9_0000, ..Segment::at(0x4000, &content) });
    let (state, _) = boot(&low.build(), "", &[], 8 << 20).unwrap();
    assert!(state.gpr[RBX] >= 0x9_4000 && state.gdt.base >= 0x9_4000);
    low.segments[0].memory_bytes = 0x9_C000;
    assert!(matches!(refusal(&low.build()), LoadError::NoRoom { part: Part::BootInfo, .. }));
}

#[test]
fn modules_that_do_not_fit() {
    let module = LoadModule { bytes: &vec![0; 4 << 20], cmdline: "" };
    let error = boot(&elf(false, 0).build(), "", &[module, module], 8 << 20).err();
    assert_eq!(error, Some(LoadError::NoRoom { part: Part::Module(1), bytes: 4 << 20, below: 0xC000_0000 }));
    let small = [LoadModule { bytes: &[1], cmdline: "" }; 17];
    assert!(boot(&elf(false, 0).build(), "", &small[..16], 8 << 20).is_ok());
    let error = boot(&elf(false, 0).build(), "", &small, 8 << 20).err();
    assert_eq!(error, Some(LoadError::TooMany { what: "modules", most: 16 }));
    let mut image = elf(false, 0).build();
    put(&mut image, 44, &[0]);
    assert_eq!(wrong_field(&image), "e_phnum");
}
