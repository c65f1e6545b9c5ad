//! The Linux boot protocol.

use super::super::{LoadError, LoadModule, Part, Protocol};
use super::images::{bzimage, put};
use super::std::{format, vec::Vec};
use super::{MAP_8_MIB, Ram, assert_flat, assert_protected, boot, refusal, wrong_field};

const RSI: usize = 6;

/// Walks the page tables at `root`.
fn translate(ram: &Ram, root: u64, address: u64) -> u64 {
    let entry = |table: u64, shift: u32| ram.u64((table & !0xFFF) + (address >> shift & 511) * 8);
    let root = entry(root, 39);
    let directory_pointer = entry(root, 30);
    let directory = entry(directory_pointer, 21);
    assert_eq!((root & 0xFFF, directory_pointer & 0xFFF, directory & 0xFFF), (3, 3, 0x83));
    (directory & !0x1F_FFFF) + (address & 0x1F_FFFF)
}

#[test]
fn entry_64_bit() {
    let (state, ram) = boot(&bzimage(0x1000, true), "", &[], 8 << 20).unwrap();
    assert_eq!(state.protocol, Protocol::Linux64);
    assert_eq!(state.rip, 0x10_0200);
    assert_eq!((state.cr0, state.cr4, state.efer, state.rflags), (0x8000_0011, 0x20, 0x500, 2));
    assert_flat(&state, &ram, 0xA09B, 0x00AF_9B00_0000_FFFF);
    for address in [0, 0x10_0200, 0x3FFF_FFFF, 0x4000_0000, 0xC012_3456, 0xFFFF_FFFF] {
        assert_eq!(translate(&ram, state.cr3, address), address);
    }
    assert_eq!(ram.u64(state.cr3 + 8), 0);
    assert_eq!(ram.at(0x10_0000, 0x1000), [0x90; 0x1000]);
}

#[test]
fn entry_32_bit_for_a_kernel_that_has_no_other() {
    let (state, ram) = boot(&bzimage(16, false), "", &[], 8 << 20).unwrap();
    assert_eq!((state.protocol, state.rip), (Protocol::Linux32, 0x10_0000));
    assert_protected(&state, &ram);
    assert_eq!(ram.u32(state.gpr[RSI] + 0x202), u32::from_le_bytes(*b"HdrS"));
    // Before protocol 2.12 there were no xloadflags.
    let mut old = bzimage(0x1000, true);
    put(&mut old, 0x206, &[0x0B, 0x02]);
    assert_eq!(boot(&old, "", &[], 8 << 20).unwrap().0.protocol, Protocol::Linux32);
}

#[test]
fn zero_page() {
    let initrd = [LoadModule { bytes: &[7; 5000], cmdline: "" }];
    let (state, ram) = boot(&bzimage(0x1000, true), "console=ttyS0 quiet", &initrd, 8 << 20).unwrap();
    let page = state.gpr[RSI];
    assert_eq!(ram.at(page + 0x1FE, 2), [0x55, 0xAA]);
    assert_eq!(ram.at(page + 0x202, 6), *b"HdrS\x0F\x02");
    assert_eq!((ram.at(page + 0x1EF, 1)[0], ram.at(page + 0x210, 1)[0]), (0, 0xFF));
    assert_eq!(ram.at(page + 0x211, 1)[0], 0x01, "LOADED_HIGH alone");
    assert_eq!(ram.u32(page + 0x214), 0x10_0000);
    assert_eq!(ram.u64(page + 0x70), 0xE_0000);
    assert_eq!(ram.string(u64::from(ram.u32(page + 0x228))), "console=ttyS0 quiet");
    assert_eq!((ram.u32(page + 0x218), ram.u32(page + 0x21C)), (0x7F_E000, 5000));
    assert_eq!(ram.at(0x7F_E000, 5000), [7; 5000]);
    assert_eq!(ram.at(page + 0x26C, 0x64), [0; 0x64], "behind the header");
    assert_eq!(ram.at(page, 0x70), [0; 0x70]);
}

#[test]
fn e820() {
    let (state, ram) = boot(&bzimage(0x1000, true), "", &[], 8 << 20).unwrap();
    let page = state.gpr[RSI];
    let count = u64::from(ram.at(page + 0x1E8, 1)[0]);
    let entry = |at| (ram.u64(at), ram.u64(at + 8), ram.u32(at + 16));
    let entries: Vec<_> = (0..count).map(|number| entry(page + 0x2D0 + number * 20)).collect();
    assert_eq!(entries, MAP_8_MIB);
}

#[test]
fn initial_ram_disks_are_joined_at_multiples_of_four() {
    let module = |bytes| LoadModule { bytes, cmdline: "" };
    let modules = [module(&[1; 5]), module(&[]), module(&[2; 3])];
    let (state, ram) = boot(&bzimage(0x1000, true), "", &modules, 8 << 20).unwrap();
    let page = state.gpr[RSI];
    assert_eq!((ram.u32(page + 0x218), ram.u32(page + 0x21C)), (0x7F_F000, 12));
    assert_eq!(ram.at(0x7F_F000, 12), [1, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2, 0]);
    let (state, ram) = boot(&bzimage(0x1000, true), "", &modules[1..2], 8 << 20).unwrap();
    assert_eq!(ram.u64(state.gpr[RSI] + 0x218), 0, "none");
}

#[test]
fn initrd_addr_max() {
    let initrd = [LoadModule { bytes: &[7; 5000], cmdline: "" }];
    let mut image = bzimage(0x1000, true);
    put(&mut image, 0x22C, &0x3F_FFFE_u32.to_le_bytes());
    let (state, ram) = boot(&image, "", &initrd, 8 << 20).unwrap();
    assert_eq!(ram.u32(state.gpr[RSI] + 0x218), 0x3F_E000);
    // Not into the memory that the kernel starts in.
    put(&mut image, 0x22C, &0x10_FFFF_u32.to_le_bytes());
    let (state, ram) = boot(&image, "", &initrd, 8 << 20).unwrap();
    assert_eq!(ram.u32(state.gpr[RSI] + 0x218), 0xD_E000);
    put(&mut image, 0x22C, &0_u32.to_le_bytes());
    let error = boot(&image, "", &initrd, 8 << 20).err();
    assert_eq!(error, Some(LoadError::NoRoom { part: Part::Initrd, bytes: 5000, below: 1 }));
}

#[test]
fn a_kernel_that_needs_more_memory_says_how_much() {
    let mut image = bzimage(0x1000, true);
    put(&mut image, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &0x2F0_0001_u32.to_le_bytes());
    let error = refusal(&image);
    assert!(matches!(error, LoadError::OutsideRam { start: 0x100_0000, bytes: 0x2F0_0001, .. }));
    let text = format!("{error}");
    assert!(text.ends_with("give the guest at least 64 MiB of memory"), "{text}");
    assert!(boot(&image, "", &[], 66_064_384).is_ok());
    assert!(boot(&image, "", &[], 66_064_384 - 4096).is_err());
}

#[test]
fn cmdline_size() {
    let longest = core::str::from_utf8(&[b'x'; 255]).unwrap();
    assert!(boot(&bzimage(0x1000, true), longest, &[], 8 << 20).is_ok());
    let longer = core::str::from_utf8(&[b'x'; 256]).unwrap();
    let error = boot(&bzimage(0x1000, true), longer, &[], 8 << 20).err();
    assert_eq!(error, Some(LoadError::Cmdline { bytes: 256, most: 255 }));
}

#[test]
fn lying_setup_headers() {
    let lie = |at, bytes: &[u8]| {
        let mut image = bzimage(0x1000, true);
        put(&mut image, at, bytes);
        image
    };
    assert!(matches!(refusal(&lie(0x202, b"HdrT")), LoadError::Unknown { .. }));
    assert!(matches!(refusal(&lie(0x1FE, &[0x56])), LoadError::Unknown { .. }));
    assert_eq!(wrong_field(&lie(0x206, &[0x09, 0x02])), "the Linux boot protocol's version");
    for jump in [0, 0x61, 0x8F, 0xFF] {
        assert_eq!(wrong_field(&lie(0x201, &[jump])), "the end of the setup header (jump)");
    }
    assert_eq!(wrong_field(&lie(0x211, &[0])), "loadflags");
    assert!(matches!(refusal(&lie(0x1F4, &0x101_u32.to_le_bytes())), LoadError::Short { .. }), "syssize");
    assert!(matches!(refusal(&lie(0x1F4, &u32::MAX.to_le_bytes())), LoadError::Short { .. }), "syssize");
    assert!(matches!(refusal(&lie(0x1F1, &[255])), LoadError::Short { .. }), "setup_sects");
    for address in [0x9_FFFF, 0xE_0000, 0x800_0000, 1 << 32, u64::MAX] {
        let error = refusal(&lie(0x258, &u64::to_le_bytes(address)));
        assert!(matches!(error, LoadError::OutsideRam { part: Part::Kernel, .. }), "{address:#x}: {error}");
    }
    assert!(matches!(refusal(&lie(0x260, &u32::MAX.to_le_bytes())), LoadError::OutsideRam { .. }), "init_size");
}

#[test]
fn a_payload_without_a_64_bit_entry_in_it_is_cut_off() {
    assert!(matches!(refusal(&bzimage(0x200, true)), LoadError::Short { needed: 0xC01, have: 0xC00, .. }));
    assert!(matches!(refusal(&bzimage(0, false)), LoadError::Short { .. }));
}
