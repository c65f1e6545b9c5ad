//! Images that were spoiled at random: nothing panics, and nothing outside RAM or in the firmware area is touched
//! (the memory of these tests sees to that).

use super::super::{LoadModule, detect};
use super::images::{Elf, Segment, bzimage, multiboot_header, multiboot2_header, pvh_note};
use super::std::{format, vec, vec::Vec};
use super::{boot, request};
use proptest::collection;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

const MEMORY: u64 = 4 << 20;

fn elf(wide: bool, content: &[u8], note: bool) -> Vec<u8> {
    let mut elf = Elf::new(wide, 0x10_0040);
    let mut content = content.to_vec();
    content.resize(0x100, 0x90);
    elf.segments = vec![Segment::at(0x10_0000, &content), Segment::at(0x2000, &[1; 16])];
    elf.segments[1].memory_bytes = 0x1000;
    elf.note = note.then(|| pvh_note(0x10_0040));
    elf.build()
}

/// One good image of each kind.
fn images() -> Vec<Vec<u8>> {
    let mut kludge = multiboot_header(1 << 16, &[0x10_0000, 0x10_0000, 0x10_0040, 0x10_1000, 0x10_0020]);
    kludge.resize(0x80, 0x90);
    let tags = multiboot2_header(&[(1, 0, &[4, 6]), (2, 0, &[0x10_0000, 0x10_0000, 0, 0]), (3, 0, &[0x10_0010])]);
    vec![
        bzimage(0x300, true),
        bzimage(0x40, false),
        elf(true, &[], true),
        elf(false, &[], true),
        elf(true, &multiboot_header(3, &[]), false),
        elf(false, &multiboot_header(3, &[]), false),
        elf(true, &multiboot2_header(&[(1, 0, &[4, 6]), (5, 1, &[0, 0, 0])]), false),
        kludge,
        tags,
    ]
}

/// Values that break sums: small, huge, and around the limits of this machine.
fn value() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 0x1000, 0x9_FFFF, 0xE_0000, 0x10_0000, MEMORY - 1, MEMORY, 1 << 32, u64::MAX, u64::MAX - 0x1000];
    prop_oneof![any::<u64>(), 0..MEMORY, proptest::sample::select(edges.to_vec()), Just(0x8000_0000_8000_0000)]
}

/// Where to write, and how many of the low bytes of what.
fn spoiling() -> impl Strategy<Value = Vec<(usize, usize, u64)>> {
    let place = prop_oneof![0..0x180_usize, 0x1F1..0x270_usize];
    collection::vec((place, proptest::sample::select(vec![1, 2, 4, 8]), value()), 0..6)
}

fn check(image: &[u8]) {
    let modules = [LoadModule { bytes: &[1; 100], cmdline: "m" }];
    let loaded = boot(image, "command line", &modules, MEMORY);
    if let Ok((state, ram)) = &loaded {
        assert_eq!(detect(image), Ok(state.protocol));
        assert!(state.rip < MEMORY, "{state:x?}");
        ram.at(state.rip, 1);
    }
    if let Err(error) = loaded {
        assert!(!format!("{error}").is_empty());
    }
}

#[test]
fn good_images_load_and_no_cut_of_them_panics() {
    for image in images() {
        assert!(boot(&image, "command line", &[], MEMORY).is_ok(), "{:x?}", &image[..16]);
        for end in 0..image.len() {
            let _ = detect(&image[..end]);
            if end % 7 == 0 {
                check(&image[..end]);
            }
        }
    }
}

#[test]
fn memory_of_any_size_is_stayed_in() {
    for image in images() {
        for pages in (0..0x140).step_by(0x10).chain([0xA1, 0xE1, 0x101, 0x111]) {
            let mut ram = super::Ram::new(pages * 4096);
            if pages * 4096 > 0xE_0100 {
                let _ = super::load(&request(&image, "", &[], pages * 4096), &mut ram);
            }
        }
    }
}

proptest! {
    #[test]
    fn spoiled_images(kind in 0..9_usize, spoiling in spoiling(), cut in any::<Option<u16>>()) {
        let mut image = images().swap_remove(kind);
        for (at, bytes, value) in spoiling {
            let at = at % image.len();
            for (to, from) in image[at..].iter_mut().zip(value.to_le_bytes()).take(bytes) {
                *to = from;
            }
        }
        if let Some(cut) = cut.filter(|cut| cut % 4 == 0) {
            image.truncate(usize::from(cut));
        }
        check(&image);
    }

    #[test]
    fn noise(bytes in collection::vec(any::<u8>(), 0..2000), magic in 0..4_usize) {
        let starts: [&[u8]; 4] = [b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01", &[0x02, 0xB0, 0xAD, 0x1B]];
        let mut image = starts[magic].to_vec();
        image.extend(bytes);
        check(&image);
    }
}
