//! Images made to measure.

use super::std::{vec, vec::Vec};

/// Sets bytes of an image.
pub(super) fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A bzImage of protocol 2.15 that wants 64 KiB at 1 MiB, with a payload of `payload` bytes of 0x90.
pub(super) fn bzimage(payload: u32, wide: bool) -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    image[0x1F1] = 4;
    put(&mut image, 0x1F4, &payload.div_ceil(16).to_le_bytes());
    put(&mut image, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &[0x0F, 0x02]);
    image[0x211] = 0xC1;
    put(&mut image, 0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(&mut image, 0x236, &[u8::from(wide), 0]);
    put(&mut image, 0x238, &255_u32.to_le_bytes());
    put(&mut image, 0x258, &0x10_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &0x1_0000_u32.to_le_bytes());
    image.resize(image.len() + usize::try_from(payload).unwrap(), 0x90);
    image
}

/// A multiboot header with right checksum, followed by `fields`.
pub(super) fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1BAD_B002_u32;
    let mut header = words(&[magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)]);
    header.extend(words(fields));
    header
}

/// A multiboot2 header with right checksum, the tags `tags` (type, flags, content) and an end tag.
pub(super) fn multiboot2_header(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, flags, content) in tags.iter().copied().chain([(0, 0, &[][..])]) {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend((8 + 4 * u32::try_from(content.len()).unwrap()).to_le_bytes());
        body.extend(words(content));
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let (magic, length) = (0xE852_50D6_u32, 16 + u32::try_from(body.len()).unwrap());
    let mut header = words(&[magic, 0, length, 0_u32.wrapping_sub(magic).wrapping_sub(length)]);
    header.extend(body);
    header
}

/// A note segment: one of another kind, then the PVH entry.
pub(super) fn pvh_note(entry: u32) -> Vec<u8> {
    let mut notes = words(&[5, 3, 1]);
    notes.extend(b"Other\0\0\0abc\0");
    notes.extend(words(&[4, 4, 18]));
    notes.extend(b"Xen\0");
    notes.extend(entry.to_le_bytes());
    notes
}

/// A loadable segment.
pub(super) struct Segment {
    pub(super) virtual_address: u64,
    pub(super) physical_address: u64,
    pub(super) content: Vec<u8>,
    pub(super) memory_bytes: u64,
}

impl Segment {
    /// A segment at `address`, without more memory than content.
    pub(super) fn at(address: u64, content: &[u8]) -> Self {
        Self {
            virtual_address: address,
            physical_address: address,
            content: content.to_vec(),
            memory_bytes: content.len() as u64,
        }
    }
}

/// An ELF executable; its program header table is at 0x40, its first content behind.
pub(super) struct Elf {
    pub(super) wide: bool,
    pub(super) entry: u64,
    pub(super) segments: Vec<Segment>,
    pub(super) note: Option<Vec<u8>>,
}

impl Elf {
    pub(super) fn new(wide: bool, entry: u64) -> Self {
        Self { wide, entry, segments: Vec::new(), note: None }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let count = self.segments.len() + usize::from(self.note.is_some());
        let header_bytes: usize = if self.wide { 56 } else { 32 };
        let mut image = vec![0; (0x40 + count * header_bytes).next_multiple_of(16)];
        put(&mut image, 0, b"\x7fELF");
        put(&mut image, 4, &[if self.wide { 2 } else { 1 }, 1, 1]);
        put(&mut image, 16, &[2, 0, if self.wide { 62 } else { 3 }, 0, 1]);
        self.put_word(&mut image, 24, self.entry);
        self.put_word(&mut image, if self.wide { 32 } else { 28 }, 0x40);
        let (size, number) = if self.wide { (54, 56) } else { (42, 44) };
        put(&mut image, size, &u16::try_from(header_bytes).unwrap().to_le_bytes());
        put(&mut image, number, &u16::try_from(count).unwrap().to_le_bytes());
        let note = self.note.iter().map(|note| (4_u32, 0, 0, note, note.len() as u64));
        let load = self.segments.iter();
        let load = load.map(|s| (1, s.virtual_address, s.physical_address, &s.content, s.memory_bytes));
        for (number, (kind, virtual_address, physical_address, content, memory_bytes)) in note.chain(load).enumerate() {
            let at = 0x40 + number * header_bytes;
            let offset = image.len() as u64;
            put(&mut image, at, &kind.to_le_bytes());
            let fields = [offset, virtual_address, physical_address, content.len() as u64, memory_bytes];
            let places = if self.wide { [8, 16, 24, 32, 40] } else { [4, 8, 12, 16, 20] };
            for (field, place) in fields.into_iter().zip(places) {
                self.put_word(&mut image, at + place, field);
            }
            image.extend(content);
            image.resize(image.len().next_multiple_of(16), 0);
        }
        image
    }

    fn put_word(&self, image: &mut [u8], at: usize, value: u64) {
        let bytes = value.to_le_bytes();
        put(image, at, if self.wide { &bytes } else { &bytes[..4] });
    }
}
