//! A dump of a real machine: audited as it is, and again with each of eight things planted in it.

use super::control::expect;
use super::tally::Row;
use crate::emulator::{Kind as Emulator, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest;
use crate::run::Until;
use crate::session::{Session, View, Wire};
use crate::workspace::Workspace;
use bulkhead_audit::{Dump, Expected, ExpectedGuest, Format, Image, Kind, Report, Secret, audit, layout, witness};
use std::time::Duration;

const NAME: &str = "dump and audit on qemu";
const MACHINE: &str = "tests/manifests/two-witnesses.toml";
/// Both guests hold their words when the first has checked them so often.
const MOMENT: &str = "witness round 5";
const TIMEOUT: Duration = Duration::from_secs(300);
/// Seeds of the two guests, as in the manifest.
const SEEDS: [(&str, u64); 2] = [("left", 11), ("right", 12)];

/// Window on a guest's RAM (ARCHITECTURE.md, "Host address space").
const WINDOW: u64 = 0xFFFF_8080_0000_0000;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const EXECUTE_DISABLE: u64 = 1 << 63;

/// Runs two guests, dumps the machine while both are alive, and audits the dump.
pub fn row<'a>(workspace: &'a Workspace, builder: &'a Builder) -> Row<'a> {
    Row::new(NAME, || verdict(workspace, builder))
}

/// Shows nothing.
struct Silent;

impl View for Silent {
    fn console(&mut self, _guest: u8, _bytes: &[u8], _wire: &mut Wire) {}
    fn log(&mut self, _line: &str) {}
}

fn verdict(workspace: &Workspace, builder: &Builder) -> Outcome<()> {
    let machine = manifest::read(&workspace.path(MACHINE))?;
    let folder = RunFolder::new(workspace)?;
    let path = folder.file("dump");
    let (session, _) = Session::new(builder.start(Emulator::Qemu, &machine)?);
    let ran = session.dump_to(Some(path.clone())).follow(&mut Until::new(Silent, Some(MOMENT)), Some(TIMEOUT));
    ran.dump.unwrap_or_else(|| Err(Failure::failed("no dump was asked for")))?;
    let guest = |g: manifest::Guest| ExpectedGuest { name: g.name, memory: g.memory };
    let expected = Expected { guests: machine.guests.into_iter().map(guest).collect(), channels: Vec::new() };
    let elf = files::read(builder.image())?;
    let image = Image::new(&elf).map_err(|e| Failure::failed(e.to_string()))?;
    let secrets: Vec<Secret> = SEEDS.iter().flat_map(|(name, seed)| witness(name, *seed)).collect();
    let bench = Bench { file: files::read(&path)?, image, expected, secrets };
    let clean = bench.audit(None)?;
    let mut wrong: Vec<String> = clean.violations.iter().map(|v| format!("in the dump as it is: {v}")).collect();
    // With the guests' words exchanged, all that each holds is found outside of where it may be.
    let exchanged: Vec<Secret> =
        SEEDS.iter().zip(SEEDS.iter().rev()).flat_map(|((name, _), (_, seed))| witness(name, *seed)).collect();
    if !kinds(&Bench { secrets: exchanged, ..bench.clone() }.audit(None)?).contains(&Kind::SecretElsewhere) {
        wrong.push("the guests' words are not in the dump at all".to_owned());
    }
    for (what, kind, plant) in PLANTS {
        let Some(patch) = bench.plant(&clean, plant) else {
            wrong.push(format!("{what}: the dump has no place to plant it"));
            continue;
        };
        let found = kinds(&bench.audit(Some(patch))?);
        if !found.contains(&kind) {
            wrong.push(format!("{what} was planted, but found was {found:?}"));
        }
    }
    expect(wrong.is_empty(), &wrong.join("\n"))
}

fn kinds(report: &Report) -> Vec<Kind> {
    report.violations.iter().map(|v| v.kind).collect()
}

#[derive(Clone, Copy)]
enum Plant {
    ForeignNested,
    ForeignHost,
    WritableExecutable,
    DirectMap,
    SecretInFree,
    SecretInShared,
    StaleOwner,
    TableInGuest,
}

/// What is planted, and what the audit must call it.
const PLANTS: [(&str, Kind, Plant); 8] = [
    ("a foreign frame in the NPT", Kind::Foreign(Format::Npt), Plant::ForeignNested),
    ("a foreign frame in a host table", Kind::Foreign(Format::Host), Plant::ForeignHost),
    ("a page that is writable and executable", Kind::WritableExecutable, Plant::WritableExecutable),
    ("a direct map", Kind::DirectMap, Plant::DirectMap),
    ("a secret in a freed frame", Kind::SecretInFree, Plant::SecretInFree),
    ("a secret in the shared part", Kind::SecretInShared, Plant::SecretInShared),
    ("a stale frame owner", Kind::StaleOwner, Plant::StaleOwner),
    ("a nested table that its guest writes", Kind::TableInGuest(Format::Npt), Plant::TableInGuest),
];

/// A word of physical memory to change.
type Patch = (u64, u64);

/// A dump and what is known of it.
#[derive(Clone)]
struct Bench {
    file: Vec<u8>,
    image: Image,
    expected: Expected,
    secrets: Vec<Secret>,
}

impl Bench {
    fn dump(&self) -> Option<Dump> {
        Dump::new(self.file.clone()).ok()
    }

    fn audit(&self, patch: Option<Patch>) -> Outcome<Report> {
        let mut file = self.file.clone();
        if let Some((address, value)) = patch {
            let at =
                self.dump().and_then(|dump| dump.offset(address)?.checked_add(usize::try_from(address % 4096).ok()?));
            let place = at.and_then(|at| file.get_mut(at..at + 8));
            place.ok_or_else(|| Failure::failed("a patch outside RAM"))?.copy_from_slice(&value.to_le_bytes());
        }
        let dump = Dump::new(file).map_err(|e| Failure::failed(e.to_string()))?;
        audit(&dump, &self.image, &self.expected, &self.secrets).map_err(Failure::failed)
    }

    /// The word to change, and to what; nothing if the dump is not as expected.
    fn plant(&self, clean: &Report, plant: Plant) -> Option<Patch> {
        let dump = &self.dump()?;
        let find = |name: &str| clean.compartments.iter().find(|c| c.name == name);
        let (left, right) = (find("left")?, find("right")?);
        let nested = |c: &bulkhead_audit::Compartment| c.nested.first().map(|(root, _)| *root);
        let secret = u64::from_le_bytes(*self.secrets.first()?.bytes.first_chunk()?);
        // 4 MiB into the RAM: the guests' own.
        let inside = WINDOW + 0x40_0000;
        match plant {
            Plant::ForeignNested => {
                let (slot, _) = slot(dump, nested(left)?, 0x40_0000)?;
                Some((slot, dump.word(self::slot(dump, nested(right)?, 0x40_0000)?.0)?))
            }
            Plant::ForeignHost => {
                Some((slot(dump, left.root, inside)?.0, dump.word(slot(dump, right.root, inside)?.0)?))
            }
            Plant::WritableExecutable => {
                let (slot, _) = slot(dump, left.root, inside)?;
                Some((slot, dump.word(slot)? & !EXECUTE_DISABLE))
            }
            // The second gigabyte of the window gets the machine's first, by one page.
            Plant::DirectMap => {
                let table = dump.word(left.root + ((WINDOW >> 39) & 511) * 8)? & ADDRESS;
                Some((table + 8, EXECUTE_DISABLE | 0x83))
            }
            // The loader's tables, which nobody needs any more, lie in free memory.
            Plant::SecretInFree => Some((clean.dormant.first()? + 0x800, secret)),
            Plant::SecretInShared => {
                let last = self.image.parts.last()?;
                let variables = (last.address + u64::try_from(last.bytes.len()).ok()?).next_multiple_of(4096);
                Some((dump.word(slot(dump, left.root, variables)?.0)? & ADDRESS, secret))
            }
            Plant::StaleOwner => {
                let frame = dump.word(slot(dump, left.root, inside)?.0)? & ADDRESS;
                let entry = layout::FRAME_TABLE + (frame >> 12) * 4;
                let page = dump.word(slot(dump, left.root, entry)?.0)? & ADDRESS;
                let word = page + (entry & 0xFF8);
                // Two entries in a word: the first one's guest becomes the other.
                Some((word, dump.word(word)? ^ 3))
            }
            Plant::TableInGuest => {
                let root = nested(left)?;
                let (slot, level) = slot(dump, root, 0x1000)?;
                (level == 1).then_some((slot, root | dump.word(slot)? & !ADDRESS))
            }
        }
    }
}

/// Address of the entry that maps `at`, and its level.
fn slot(dump: &Dump, root: u64, at: u64) -> Option<(u64, u32)> {
    let mut table = root;
    for level in (1..=4).rev() {
        let slot = table + ((at >> (12 + 9 * (level - 1))) & 511) * 8;
        let entry = dump.word(slot)?;
        if level == 1 || entry & 0x81 == 0x81 {
            return Some((slot, level));
        }
        if entry & 1 == 0 {
            return None;
        }
        table = entry & ADDRESS;
    }
    None
}
