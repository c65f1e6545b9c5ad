//! Guests made over the line: packs that lie about their images or their zone, and guests in the place of others.
//!
//! One processor, so that what ran there last is known.

use super::commands::{Terminal, free};
use super::control::{PATIENCE, act, connect, expect, machine, wait_for};
use super::many::COUNTER;
use super::tally::Row;
use crate::ctl::{Link, guests, one, stats, upload};
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest::{Guest, ImageRef, Machine};
use crate::pack;
use crate::workspace::Workspace;
use bulkhead_control::mac::Hash;
use bulkhead_control::{Action, Operation, State};
use bulkhead_types::Barriers;
use bulkhead_types::manifest::{LoadAs, Manifest, PackHeader, Zone};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/control.toml";
/// A zone of the machine.
const LAB: &str = "lab";

/// The row, on QEMU.
pub fn row<'a>(workspace: &'a Workspace, builder: &'a Builder) -> Row<'a> {
    Row::new("guests made over the line: lies, and places of others, on qemu", || verdict(workspace, builder))
}

fn verdict(workspace: &Workspace, builder: &Builder) -> Outcome<()> {
    let folder = RunFolder::new(workspace)?;
    let (line, kernel) = (folder.file("line"), folder.file("counter.bin"));
    files::write(&kernel, &COUNTER)?;
    let mut machine = Machine { audit: false, ..machine(workspace, MACHINE)? };
    machine.zones.push(Zone { name: LAB.to_owned(), barriers: Barriers::ALL });
    let place = Place { control: Some(line.clone()), spare: 64, ..Place::of(Kind::Qemu) };
    let running = builder.start_at(&place, &machine)?;
    let terminal = Terminal::new(&running)?;
    let link = &mut connect(&line);
    wait_for(link, "hello", State::Stopped)?;
    act(link, "spin", Action::Kill)?;
    wait_for(link, "spin", State::Stopped)?;
    let made = |name: &str, zone: &str| made(workspace, &machine, &kernel, name, zone);
    let wrong = [lies(link, &made), places(link, &terminal, &made)].into_iter().filter_map(Result::err);
    let wrong: Vec<String> = wrong.map(|failure| failure.to_string()).collect();
    expect(wrong.is_empty(), &wrong.join("\n"))
}

/// The pack of one guest that counts.
fn made(workspace: &Workspace, machine: &Machine, kernel: &Path, name: &str, zone: &str) -> Outcome<Vec<u8>> {
    let first = machine.guests.first().ok_or_else(|| Failure::failed("no guest"))?;
    let guest = Guest {
        name: name.to_owned(),
        zone: 0,
        kernel: ImageRef::File(kernel.to_owned()),
        load: LoadAs::Flat { at: 0x8000 },
        memory: 4 << 20,
        ..first.clone()
    };
    let zones = vec![Zone { name: zone.to_owned(), barriers: Barriers::ALL }];
    pack::pack(workspace, &Machine { zones, guests: vec![guest], control: None, ..machine.clone() })
}

/// Images that are not those of the origin, and a guest that has the name of a zone: nothing comes of them.
fn lies(link: &mut Link, made: &dyn Fn(&str, &str) -> Outcome<Vec<u8>>) -> Outcome<()> {
    let before = free(link)?;
    let honest = made("a", "a")?;
    let none = || Failure::failed("the pack has no such place");
    let (header, manifest) = Manifest::from_pack(&honest).map_err(|e| Failure::failed(e.to_string()))?;
    let [guest] = manifest.guests.as_slice() else { return Err(none()) };
    let at = usize::try_from(guest.kernel.offset).map_err(|_| none())?;
    let mut other_image = honest.clone();
    *other_image.get_mut(at).ok_or_else(none)? ^= 1;
    let mut other_origin = manifest.clone();
    other_origin.guests.iter_mut().for_each(|guest| guest.origin = [1; 32]);
    let encoded = postcard::to_allocvec(&other_origin).map_err(|e| Failure::failed(e.to_string()))?;
    let start = PackHeader::BYTES;
    let mut pack = honest.clone();
    pack.get_mut(start..start + encoded.len()).ok_or_else(none)?.copy_from_slice(&encoded);
    expect(Manifest::from_pack(&pack) == Ok((header, other_origin)), "the pack with another origin is none")?;
    for (what, pack, says) in [
        ("another image than its origin's", other_image, "not a pack of one guest"),
        ("another origin than its image's", pack, "not a pack of one guest"),
        ("the name of a zone of the machine", made(LAB, LAB)?, "has this name"),
    ] {
        let told = upload(link, &pack, "a").map(|_| ()).map_err(|failure| failure.message);
        let right = told.as_ref().is_err_and(|message| message.contains(says));
        expect(right, &format!("a guest with {what}: {told:?}"))?;
    }
    let after = free(link)?;
    expect(after == before, &format!("lies about guests: {before} bytes were free, now {after}"))?;
    upload(link, &honest, "a")?;
    let mut hash = Hash::default();
    hash.update(&COUNTER);
    let origin = Some(hash.finish());
    let right = guests(link)?.iter().any(|guest| guest.name == "a" && guest.zone == "a" && guest.origin == origin);
    expect(right, "an honest guest is not in the list as it is")?;
    act(link, "a", Action::Destroy)
}

/// Between two guests of zones of their own there are barriers, if the second one has the number of the first, too.
fn places(link: &mut Link, terminal: &Terminal, made: &dyn Fn(&str, &str) -> Outcome<Vec<u8>>) -> Outcome<()> {
    let before = crossings(link, terminal)?;
    let mut ids = Vec::new();
    for name in ["b", "c"] {
        upload(link, &made(name, name)?, name)?;
        ids.extend(guests(link)?.iter().filter(|guest| guest.name == name).map(|guest| guest.id));
        act(link, name, Action::Start)?;
        let end = Instant::now() + PATIENCE;
        while stats(link)?.guests.iter().all(|one| one.name != name || one.used == 0) {
            expect(Instant::now() < end, "a guest made over the line does not run")?;
            thread::sleep(Duration::from_millis(10));
        }
        act(link, name, Action::Kill)?;
        wait_for(link, name, State::Stopped)?;
        act(link, name, Action::Destroy)?;
    }
    let crossed = crossings(link, terminal)? - before;
    let right = matches!(ids.as_slice(), [a, b] if a == b) && crossed == 2;
    expect(right, &format!("two guests with the numbers {ids:?} had turns after {crossed} changes of zone"))
}

/// How often a processor went to another zone: the log of an audit says it, and the next guest is of another zone again.
fn crossings(link: &mut Link, terminal: &Terminal) -> Outcome<u64> {
    let before = terminal.come().len();
    one(link, &Operation::Audit, "audit")?;
    terminal.wait("event audit ok", before)?;
    let come = terminal.come();
    let (line, _) = come.get(before..).and_then(|new| new.split_once(" changes of zone")).unwrap_or_default();
    let count = line.rsplit(' ').next().and_then(|count| count.parse().ok());
    count.ok_or_else(|| Failure::failed(format!("no changes of zone are told: {line}")))
}
