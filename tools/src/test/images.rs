//! Kernels of a few bytes, one for each loader format, for lies to be told in: unchanged, each starts and exits with 0.
//!
//! The code is the same in 32-bit and in 64-bit mode. Offsets of fields are those of `tests/lies.toml`.

use serde::Deserialize;

/// A loader format, and which of its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A Linux bzImage with both entries, and a RAM disk beside it.
    Linux,
    /// ELF64 with a PVH note: at 0x40 the headers of the notes and of the one segment, at 0x100 a foreign note and
    /// Xen's, at 0x200 the segment.
    Elf64,
    /// The same as ELF32.
    Elf32,
    /// A multiboot2 header with an information request, addresses and entry.
    Multiboot2,
    /// ELF32, with a multiboot2 header at 0x100 that has no addresses.
    Multiboot2Elf,
}

/// `xor eax, eax`; `out 0xF4, al`; then `hlt` for ever.
const CODE: [u8; 7] = [0x31, 0xC0, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD];
/// Where the images are loaded, and their size there.
const ADDRESS: u32 = 0x10_0000;
const MEMORY: u32 = 0x2000;
/// Where a file's loaded part begins, and its size.
const START: u32 = 0x200;
const BYTES: u32 = 0x200;
/// Where in it a wrong entry comes to an exception.
const TRAP: u32 = 0x100;
/// Where an ELF file has its notes, or its multiboot2 header.
const NOTES: u32 = 0x100;
const MULTIBOOT2: u32 = 0xE852_50D6;

impl Format {
    /// What it is called in the names of attacks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Elf64 => "elf64",
            Self::Elf32 => "elf32",
            Self::Multiboot2 => "multiboot2",
            Self::Multiboot2Elf => "multiboot2-elf",
        }
    }

    /// The honest image.
    pub fn image(self) -> Vec<u8> {
        match self {
            Self::Linux => linux(),
            Self::Elf64 => elf(true, None),
            Self::Elf32 => elf(false, None),
            Self::Multiboot2 => {
                let addresses = [2, 24, ADDRESS, ADDRESS, ADDRESS + START + BYTES, ADDRESS + MEMORY];
                let mut file =
                    multiboot2(&[1, 16, 6, 4], &[addresses.as_slice(), &[3, 12, ADDRESS + START, 0]].concat());
                file.resize((START + BYTES) as usize, 0);
                put_code(&mut file);
                file
            }
            Self::Multiboot2Elf => elf(false, Some(multiboot2(&[], &[]))),
        }
    }

    /// Puts right what another lie would give away, before the lie itself is read: the sum of a multiboot2 header.
    pub fn mend(self, file: &mut [u8], lie_at: u32) {
        let header = match self {
            Self::Multiboot2 => 0,
            Self::Multiboot2Elf => NOTES,
            _ => return,
        };
        let word = |at: u32| {
            let bytes = file.get(at as usize..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let sum = word(header).wrapping_add(word(header + 4)).wrapping_add(word(header + 8));
        if ![header, header + 12].contains(&lie_at) {
            put(file, header + 12, &sum.wrapping_neg().to_le_bytes());
        }
    }
}

fn put(file: &mut (impl AsMut<[u8]> + ?Sized), at: u32, bytes: &[u8]) {
    let to = file.as_mut().iter_mut().skip(at as usize);
    to.zip(bytes).for_each(|(to, from)| *to = *from);
}

fn put_code(file: &mut Vec<u8>) {
    put(file, START, &CODE);
    put(file, START + TRAP, &[0x0F, 0x0B]); // ud2
}

fn size(bytes: &[impl Sized]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Protocol 2.15, four setup sectors; the protected-mode part has 1 KiB, its 64-bit entry at 0x200.
fn linux() -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 0x400];
    put(&mut file, 0x1F1, &[4]);
    put(&mut file, 0x1F4, &words(&[0x400 / 16]));
    put(&mut file, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(&mut file, 0x202, b"HdrS\x0F\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22C, &words(&[0x7FFF_FFFF]));
    put(&mut file, 0x236, &[1]);
    put(&mut file, 0x238, &words(&[255]));
    put(&mut file, 0x258, &words(&[ADDRESS, 0, 0x1_0000]));
    put(&mut file, 5 * 512, &CODE);
    put(&mut file, 5 * 512 + 0x200, &CODE);
    file
}

/// A multiboot2 header of these tags, which have flags 0.
fn multiboot2(first: &[u32], others: &[u32]) -> Vec<u8> {
    let tags = [first, others, &[0, 8]].concat();
    let length = 16 + 4 * size(&tags);
    let sum = MULTIBOOT2.wrapping_add(length).wrapping_neg();
    words(&[&[MULTIBOOT2, 0, length, sum], tags.as_slice()].concat())
}

/// One segment, whose virtual address is not its physical one, behind notes with the entry or a multiboot2 header.
fn elf(wide: bool, multiboot2: Option<Vec<u8>>) -> Vec<u8> {
    let mut file = vec![0; (START + BYTES) as usize];
    let virtual_address = 0x8000_0000 | ADDRESS;
    let word = |value: u32| if wide { u64::from(value).to_le_bytes().to_vec() } else { value.to_le_bytes().to_vec() };
    put(&mut file, 0, b"\x7fELF");
    put(&mut file, 4, &[if wide { 2 } else { 1 }, 1, 1]);
    put(&mut file, 16, &[2, 0, if wide { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    put(&mut file, 24, &[word(virtual_address), word(0x40)].concat());
    let (sizes_at, header_bytes) = if wide { (54, 56) } else { (42, 32) };
    put(&mut file, sizes_at, &[header_bytes, 0, 2]);
    let mut notes = words(&[4, 4, 1, u32::from_le_bytes(*b"Any\0"), 7, 4, 4, 18]);
    notes.extend(b"Xen\0");
    notes.extend(ADDRESS.to_le_bytes());
    let headers = [
        (4_u32, 4_u32, [NOTES, 0, 0, size(&notes), 0], 4),
        (1, 7, [START, virtual_address, ADDRESS, BYTES, MEMORY], 4096),
    ];
    let mut table = Vec::new();
    for (kind, flags, fields, align) in headers {
        let fields: Vec<u8> = fields.into_iter().flat_map(word).collect();
        let head = if wide { words(&[kind, flags]) } else { words(&[kind]) };
        let tail = if wide { Vec::new() } else { words(&[flags]) };
        table.extend([head, fields, tail, word(align)].concat());
    }
    put(&mut file, 0x40, &table);
    put(&mut file, NOTES, &multiboot2.unwrap_or(notes));
    put_code(&mut file);
    file
}

#[cfg(test)]
mod tests {
    use super::Format;
    use bulkhead_core::load::{Protocol, detect};

    #[test]
    fn each_honest_image_is_what_it_says() {
        let formats = [
            (Format::Linux, Protocol::Linux64),
            (Format::Elf64, Protocol::Pvh),
            (Format::Elf32, Protocol::Pvh),
            (Format::Multiboot2, Protocol::Multiboot2),
            (Format::Multiboot2Elf, Protocol::Multiboot2),
        ];
        for (format, protocol) in formats {
            assert_eq!(detect(&format.image()), Ok(protocol), "{format:?}");
            let mut mended = format.image();
            format.mend(&mut mended, 0x20);
            assert_eq!(mended, format.image(), "{format:?}");
        }
    }
}
