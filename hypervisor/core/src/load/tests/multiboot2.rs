//! Multiboot 2.

use super::super::{LoadError, LoadModule, Part, Protocol, load};
use super::images::{Elf, Segment, multiboot2_header, put};
use super::std::{collections::BTreeMap, vec, vec::Vec};
use super::{MAP_8_MIB, Ram, assert_protected, boot, refusal, request, wrong_field};

const RAX: usize = 0;
const RBX: usize = 3;

type Tag<'a> = (u16, u16, &'a [u32]);

/// An ELF file with a header of these tags at its load address, 1 MiB.
fn elf(tags: &[Tag<'_>]) -> Vec<u8> {
    let mut content = multiboot2_header(tags);
    content.resize(0x100, 0x90);
    let mut elf = Elf::new(true, 0x10_0080);
    elf.segments = vec![Segment::at(0x10_0000, &content)];
    elf.build()
}

/// A file that is not ELF: header and 0x91s, 0x100 bytes.
fn plain(tags: &[Tag<'_>]) -> Vec<u8> {
    let mut image = multiboot2_header(tags);
    image.resize(0x100, 0x91);
    image
}

/// The tags of the boot information at `info`, checked for their form: address of each by type.
fn tags(ram: &Ram, info: u64) -> BTreeMap<u32, Vec<u64>> {
    assert_eq!(info % 8, 0);
    let end = info + u64::from(ram.u32(info));
    assert_eq!(ram.u32(info + 4), 0);
    let (mut at, mut tags) = (info + 8, BTreeMap::<u32, Vec<u64>>::new());
    while at < end {
        tags.entry(ram.u32(at)).or_default().push(at);
        at += u64::from(ram.u32(at + 4)).next_multiple_of(8);
    }
    assert_eq!((at, ram.u32(end - 8), ram.u32(end - 4)), (end, 0, 8), "the end tag is the last");
    tags
}

#[test]
fn entry_of_an_elf_file() {
    let (state, ram) = boot(&elf(&[]), "", &[], 8 << 20).unwrap();
    assert_eq!((state.protocol, state.rip), (Protocol::Multiboot2, 0x10_0080));
    assert_eq!(state.gpr[RAX], 0x36D7_6289);
    assert_protected(&state, &ram);
}

#[test]
fn entry_tag() {
    assert_eq!(boot(&elf(&[(3, 0, &[0x10_0090])]), "", &[], 8 << 20).unwrap().0.rip, 0x10_0090);
    assert_eq!(wrong_field(&elf(&[(3, 0, &[0x10_0100])])), "entry_addr");
    assert!(matches!(refusal(&elf(&[(3, 0, &[])])), LoadError::Short { .. }));
}

#[test]
fn address_tag() {
    let entry: Tag<'_> = (3, 0, &[0x10_0080]);
    let (state, ram) = boot(&plain(&[(2, 0, &[0x10_0000, 0x10_0000, 0, 0x10_0200]), entry]), "", &[], 8 << 20).unwrap();
    assert_eq!(state.rip, 0x10_0080);
    assert_eq!((ram.u32(0x10_0000), ram.at(0x10_00FF, 2)), (0xE852_50D6, &[0x91, 0][..]));
    // All bits set: from the start of the file.
    let mut image = vec![0x90; 0x20];
    image.extend(plain(&[(2, 0, &[0x10_0020, u32::MAX, 0, 0]), entry]));
    let (_, ram) = boot(&image, "", &[], 8 << 20).unwrap();
    assert_eq!((ram.at(0x10_0000, 1), ram.u32(0x10_0020)), (&[0x90][..], 0xE852_50D6));
    assert_eq!(wrong_field(&plain(&[(2, 0, &[0x10_0000, 0x10_0001, 0, 0]), entry])), "load_addr");
    assert_eq!(wrong_field(&plain(&[(2, 0, &[0x10_0000, 0x10_0000, 0, 0])])), "entry_addr");
    assert_eq!(refusal(&plain(&[entry])), LoadError::NoAddresses);
}

#[test]
fn tags_of_the_header() {
    for kind in [4, 6, 7, 8, 9, 10] {
        assert!(boot(&elf(&[(kind, 0, &[0, 0, 0, 0])]), "", &[], 8 << 20).is_ok(), "{kind}");
    }
    for kind in [5, 11, 0xFFFF] {
        assert_eq!(wrong_field(&elf(&[(kind, 0, &[0, 0, 0])])), "type of a multiboot2 tag");
        assert!(boot(&elf(&[(kind, 1, &[0, 0, 0])]), "", &[], 8 << 20).is_ok(), "{kind} is optional");
    }
    assert!(boot(&elf(&[(1, 0, &[4, 6, 21])]), "", &[], 8 << 20).is_ok());
    let field = "a type in the information request of the multiboot2 header";
    assert_eq!(wrong_field(&elf(&[(1, 0, &[4, 22])])), field);
    assert!(boot(&elf(&[(1, 1, &[4, 22])]), "", &[], 8 << 20).is_ok());
}

#[test]
fn lying_headers() {
    let lie = |at: usize, value: u32| {
        let mut image = multiboot2_header(&[]);
        put(&mut image, at, &value.to_le_bytes());
        let sum = (0..3).fold(0_u32, |sum, word| {
            sum.wrapping_add(u32::from_le_bytes(image[word * 4..word * 4 + 4].try_into().unwrap()))
        });
        put(&mut image, 12, &0_u32.wrapping_sub(sum).to_le_bytes());
        image
    };
    assert_eq!(wrong_field(&lie(4, 4)), "architecture of the multiboot2 header");
    for length in [0, 15, 32769, u32::MAX] {
        assert_eq!(wrong_field(&lie(8, length)), "header_length of the multiboot2 header");
    }
    assert!(matches!(refusal(&lie(8, 32)), LoadError::Short { .. }));
    for size in [0, 7] {
        assert_eq!(wrong_field(&lie(20, size)), "size of a multiboot2 tag");
    }
    let mut unending = elf(&[(4, 0, &[0, 0])]);
    let at = unending.windows(4).position(|bytes| bytes == 0xE852_50D6_u32.to_le_bytes()).unwrap();
    put(&mut unending, at + 20, &u32::MAX.to_le_bytes());
    assert!(matches!(refusal(&unending), LoadError::Short { .. }));
    unending[at + 12] ^= 1;
    assert_eq!(refusal(&unending), LoadError::BareElf, "checksum");
}

#[test]
fn boot_information() {
    let modules = [LoadModule { bytes: &[5; 4097], cmdline: "one" }, LoadModule { bytes: &[], cmdline: "" }];
    let kernel = elf(&[]);
    let mut ram = Ram::new(8 << 20);
    put(&mut ram.bytes, 0xE_0000, b"RSD PTR 0123456789abcdef0123456789ab");
    let state = load(&request(&kernel, "kernel a=b", &modules, 8 << 20), &mut ram).unwrap();
    let tags = tags(&ram, state.gpr[RBX]);
    assert_eq!(ram.string(tags[&1][0] + 8), "kernel a=b");
    assert_eq!(ram.string(tags[&2][0] + 8), "Bulkhead");
    let module = |number: usize| {
        let at = tags[&3][number];
        (ram.u32(at + 8), ram.u32(at + 12), ram.string(at + 16))
    };
    assert_eq!((tags[&3].len(), module(0), module(1)), (2, (0x10_1000, 0x10_2001, "one"), (0x10_3000, 0x10_3000, "")));
    assert_eq!((ram.u32(tags[&4][0] + 8), ram.u32(tags[&4][0] + 12)), (640, 7 * 1024));
    let map = tags[&6][0];
    assert_eq!((ram.u32(map + 8), ram.u32(map + 12)), (24, 0));
    let entry = |at| (ram.u64(at), ram.u64(at + 8), ram.u32(at + 16));
    let count = u64::from(ram.u32(map + 4) - 16) / 24;
    let entries: Vec<_> = (0..count).map(|number| entry(map + 16 + number * 24)).collect();
    assert_eq!(entries, MAP_8_MIB);
    assert_eq!(ram.u32(tags[&15][0] + 4), 44);
    assert_eq!(ram.at(tags[&15][0] + 8, 36), b"RSD PTR 0123456789abcdef0123456789ab");
}

#[test]
fn without_a_root_pointer_there_is_no_tag_of_it() {
    let (state, ram) = boot(&elf(&[]), "", &[], 8 << 20).unwrap();
    assert!(!tags(&ram, state.gpr[RBX]).contains_key(&15));
}

#[test]
fn strings_of_every_length_fit() {
    for bytes in 0..16 {
        let line = &"0123456789abcdef"[..bytes];
        let modules = [LoadModule { bytes: &[], cmdline: line }; 16];
        let (state, ram) = boot(&elf(&[]), line, &modules, 8 << 20).unwrap();
        assert_eq!(tags(&ram, state.gpr[RBX])[&3].len(), 16);
    }
    let long = "x".repeat(0x9_0000);
    let error = boot(&elf(&[]), &long, &[], 8 << 20).err();
    assert!(matches!(error, Some(LoadError::NoRoom { part: Part::BootInfo, .. })), "{error:?}");
}
