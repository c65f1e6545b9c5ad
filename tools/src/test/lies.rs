//! Packs that lie: what is changed in a pack behind the host's own checks.

use bulkhead_types::manifest::{Guest, LoadAs, Manifest, PackHeader};
use serde::Deserialize;

/// A lie of the table: what it is in, and what is put there.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Lie {
    /// A word of the pack's header, at this offset.
    Header(usize, u32),
    /// A word of the attacker's multiboot header, at this offset.
    Multiboot(usize, u32),
    /// A word of the attacker's kernel file, at this offset.
    File(usize, u32),
    /// A field of the attacker's part of the manifest.
    Field(Field),
}

/// A field of the manifest, and the lie in it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    MemoryHuge,
    MemoryOdd,
    KernelBeyond,
    KernelHuge,
    KernelUnaligned,
    /// The witness's kernel as its own.
    KernelOfWitness,
    /// The manifest itself as its kernel.
    KernelIsManifest,
    Zone,
    Processors,
    NameEmpty,
    NameOfWitness,
    FlatOutside,
}

const MULTIBOOT: [u8; 4] = 0x1BAD_B002_u32.to_le_bytes();

/// Puts `lie` into `pack`, whose second guest is the attacker; `None` if it has no such place.
pub fn tell(lie: &Lie, pack: &mut [u8]) -> Option<()> {
    let (header, mut manifest) = Manifest::from_pack(pack).ok()?;
    let kernel = usize::try_from(manifest.guests.get(1)?.kernel.offset).ok()?;
    match *lie {
        Lie::Header(at, word) => put(pack, at, word),
        Lie::File(at, word) => put(pack, kernel + at, word),
        Lie::Multiboot(at, word) => {
            let found = pack.get(kernel..)?.windows(4).position(|bytes| bytes == MULTIBOOT)?;
            put(pack, kernel + found + at, word)
        }
        Lie::Field(field) => {
            let [witness, attacker] = manifest.guests.get_disjoint_mut([0, 1]).ok()?;
            change(field, witness, attacker, header.pack_bytes);
            let encoded = postcard::to_allocvec(&manifest).ok()?;
            let bytes = u32::try_from(encoded.len()).ok()?;
            let start = PackHeader { manifest_bytes: bytes, ..header }.encode();
            pack.get_mut(..start.len())?.copy_from_slice(&start);
            pack.get_mut(start.len()..start.len() + encoded.len())?.copy_from_slice(&encoded);
            Some(())
        }
    }
}

fn put(pack: &mut [u8], at: usize, word: u32) -> Option<()> {
    pack.get_mut(at..at + 4)?.copy_from_slice(&word.to_le_bytes());
    Some(())
}

fn change(field: Field, witness: &Guest, attacker: &mut Guest, end: u64) {
    match field {
        Field::MemoryHuge => attacker.memory = !0xFFF,
        Field::MemoryOdd => attacker.memory += 1,
        Field::KernelBeyond => attacker.kernel.offset = end,
        Field::KernelHuge => attacker.kernel.bytes = u64::MAX,
        Field::KernelUnaligned => attacker.kernel.offset += 8,
        Field::KernelOfWitness => attacker.kernel = witness.kernel,
        Field::KernelIsManifest => attacker.kernel.offset = 0,
        Field::Zone => attacker.zone = 99,
        Field::Processors => attacker.vcpus = 0,
        Field::NameEmpty => attacker.name.clear(),
        Field::NameOfWitness => attacker.name.clone_from(&witness.name),
        Field::FlatOutside => attacker.load = LoadAs::Flat { at: u64::MAX },
    }
}
