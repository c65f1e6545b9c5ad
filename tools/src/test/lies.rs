//! Packs and boot images that lie: what is changed in a pack behind the host's own checks.

use super::images::Format;
use super::table::Expected;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::workspace::Workspace;
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

/// A field of a boot image and the values that it lies with, each in an image of its own. A line of `tests/lies.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldLie {
    /// The image.
    pub of: Format,
    /// Its field.
    pub field: String,
    /// Where that is in the file, and its size; larger ones are filled with the value's sign.
    at: usize,
    bytes: usize,
    /// Values with which the kernel starts as if they were right.
    #[serde(default)]
    starts: Vec<i64>,
    /// Values with which it is not started.
    #[serde(default)]
    refused: Vec<i64>,
    /// A piece of the sentence that says why.
    says: Option<String>,
    /// Values with which it starts in the wrong place, and comes to a triple fault.
    #[serde(default)]
    faults: Vec<i64>,
}

impl FieldLie {
    /// What must come of it, in words.
    pub fn verdict(&self) -> String {
        let kinds = [("starts", &self.starts), ("refused", &self.refused), ("triple-fault", &self.faults)];
        let kinds = kinds.iter().filter(|(_, values)| !values.is_empty());
        let number = |value: &i64| if *value < 0 { value.to_string() } else { format!("{value:#x}") };
        let list = |values: &[i64]| values.iter().map(number).collect::<Vec<_>>().join(" ");
        kinds.map(|(kind, values)| format!("{kind} with {}", list(values))).collect::<Vec<_>>().join(", ")
    }

    /// The guests: the name of each, the value, and what must come of it.
    pub fn told(&self) -> Vec<(String, i64, Expected)> {
        let kinds = [
            ("starts", &self.starts, "test-exit 0"),
            ("refused", &self.refused, "killed can not start: "),
            ("faults", &self.faults, "triple-fault"),
        ];
        let expected = |ends: &str| Expected { ends: Some(ends.to_owned()), ..Expected::default() };
        let guests = kinds.iter().flat_map(|(kind, values, ends)| {
            values.iter().zip(1..).map(move |(value, n)| (format!("{kind}-{n}"), *value, expected(ends)))
        });
        guests.collect()
    }

    /// Writes the honest image; the lines of a manifest that name it.
    pub fn manifest(&self, workspace: &Workspace) -> Outcome<String> {
        let path = workspace.build("lies")?.join(self.of.name());
        // Others may read it at this moment.
        let own = path.with_extension(format!("{:?}", std::thread::current().id()).replace(['(', ')'], ""));
        files::write(&own, &self.of.image())?;
        std::fs::rename(&own, &path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        let initrd = if self.of == Format::Linux { format!("initrd = {path:?}\n") } else { String::new() };
        Ok(format!("kernel = {path:?}\n{initrd}cmdline = \"lies\"\nmemory = \"4M\"\n"))
    }

    /// Tells each guest its value in `pack`; `None` if there is no such place.
    pub fn tell(&self, pack: &mut [u8]) -> Option<()> {
        let (_, manifest) = Manifest::from_pack(pack).ok()?;
        for (guest, (_, value, _)) in manifest.guests.iter().skip(1).zip(self.told()) {
            let (start, end) = (guest.kernel.offset, guest.kernel.offset + guest.kernel.bytes);
            let file = pack.get_mut(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?;
            let sign = if value < 0 { 0xFF } else { 0 };
            let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(sign)).take(self.bytes);
            let field = file.get_mut(self.at..self.at + self.bytes)?;
            field.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            self.of.mend(file, u32::try_from(self.at).ok()?);
        }
        Some(())
    }

    /// What is wrong with the line itself.
    #[cfg(test)]
    pub fn wrong(&self) -> Option<String> {
        let (image, values) = (self.of.image(), self.told());
        let has_place = image.len() >= self.at + self.bytes;
        let says = self.says.is_some() != self.refused.is_empty();
        // What the image has already is no lie, but the honest line's.
        let honest =
            |value: i64| image[self.at..self.at + self.bytes.min(8)] == value.to_le_bytes()[..self.bytes.min(8)];
        let lies = self.bytes == 0 || values.iter().all(|(_, value, _)| !honest(*value));
        let right = has_place && says && lies && !values.is_empty();
        (!right).then(|| format!("{self:x?}"))
    }

    /// What is wrong with the reasons for which guests were refused, by the hypervisor's lines.
    pub fn unsaid(&self, lines: &[String]) -> Option<String> {
        let refused: Vec<&String> =
            lines.iter().filter(|line| line.contains(" ended killed can not start: ")).collect();
        let says = self.says.as_deref()?;
        let other = refused.iter().find(|line| !line.contains(says))?;
        Some(format!("{says:?} is not in: {other}"))
    }
}

const MULTIBOOT: [u8; 4] = 0x1BAD_B002_u32.to_le_bytes();

/// Puts `lie` into `pack`, whose second guest is the attacker; `None` if it has no such place.
pub fn tell(lie: &Lie, pack: &mut [u8]) -> Option<()> {
    let (header, mut manifest) = Manifest::from_pack(pack).ok()?;
    let kernel = usize::try_from(manifest.guests.get(1)?.kernel.offset).ok()?;
    match *lie {
        Lie::Header(at, word) => put(pack, at, word),
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
