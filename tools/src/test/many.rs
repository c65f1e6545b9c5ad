//! As many guests as there can be, made over the control line: ended, destroyed and made anew, and no frame is lost.

use super::account::adds_up;
use super::control::{PATIENCE, act, connect, drain, events, expect, free_bytes, machine, wait_all};
use super::tally::Row;
use crate::ctl::{Link, guests, one, stats, upload};
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::{Builder, memory};
use crate::manifest::{Guest, ImageRef, Machine};
use crate::pack;
use crate::workspace::Workspace;
use bulkhead_control::{Action, EventKind, Operation, Response, Source, State, Usage};
use bulkhead_types::manifest::{LoadAs, MAX_GUESTS};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/many.toml";
/// Times that all guests are ended, destroyed and made anew.
const ROUNDS: usize = 20;
/// The machine's memory in MiB.
const MEMORY: u64 = 1024;

/// Counts down from 2^18, writes a dot to COM1, and begins again; entered in real mode.
pub const COUNTER: [u8; 18] = [
    0x66, 0xB9, 0x00, 0x00, 0x04, 0x00, // mov ecx, 40000h
    0x66, 0x49, // dec ecx
    0x75, 0xFC, // jnz back
    0xBA, 0xF8, 0x03, // mov dx, 3F8h
    0xB0, b'.', // mov al, '.'
    0xEE, // out dx, al
    0xEB, 0xEE, // jmp to the first
];

/// The row, on QEMU with two processors.
pub fn row<'a>(workspace: &'a Workspace, builder: &'a Builder) -> Row<'a> {
    Row::new(format!("{MAX_GUESTS} guests made and destroyed {ROUNDS} times on qemu"), || verdict(workspace, builder))
}

fn verdict(workspace: &Workspace, builder: &Builder) -> Outcome<String> {
    let machine = machine(workspace, MACHINE)?;
    let folder = RunFolder::new(workspace)?;
    let line = folder.file("line");
    let pack = pack::pack(workspace, &machine)?;
    let spare = MEMORY - memory(&machine, pack.len());
    let place = Place { control: Some(line.clone()), cpus: 2, spare, ..Place::of(Kind::Qemu) };
    let running = builder.start_pack(&place, &machine, pack)?;
    drain(&running)?;
    let kernel = folder.file("counter.bin");
    files::write(&kernel, &COUNTER)?;
    command(&line, &packs(workspace, &machine, &kernel)?)
}

/// The packs of all guests but the first, by name.
fn packs(workspace: &Workspace, machine: &Machine, kernel: &Path) -> Outcome<Vec<(String, Vec<u8>)>> {
    let first = machine.guests.first().ok_or_else(|| Failure::failed("no guest"))?;
    let pack = |number: usize| {
        let name = format!("g{number}");
        let guest = Guest {
            name: name.clone(),
            zone: 0,
            kernel: ImageRef::File(kernel.to_owned()),
            load: LoadAs::Flat { at: 0x8000 },
            ..first.clone()
        };
        let zone = machine.zones.get(number % 2).cloned();
        let alone =
            Machine { zones: zone.into_iter().collect(), guests: vec![guest], control: None, ..machine.clone() };
        Ok((name, pack::pack(workspace, &alone)?))
    };
    (2..=MAX_GUESTS).map(pack).collect()
}

fn command(line: &Path, packs: &[(String, Vec<u8>)]) -> Outcome<String> {
    let link = &mut connect(line);
    wait_all(link, 1, State::Running)?;
    let begun = Instant::now();
    let mut free = Vec::new();
    let mut making = Duration::ZERO;
    for round in 0..=ROUNDS {
        for guest in guests(link)? {
            act(link, &guest.name, Action::Kill)?;
        }
        wait_all(link, if round == 0 { 1 } else { MAX_GUESTS }, State::Stopped)?;
        for guest in guests(link)? {
            act(link, &guest.name, Action::Destroy)?;
        }
        expect(guests(link)?.is_empty(), "a destroyed guest is in the list")?;
        free.push(free_bytes(link)?);
        let start = Instant::now();
        for (name, pack) in packs {
            let made = upload(link, pack, name)?;
            expect(matches!(made.response()?, Response::Created(_)), "no guest was created")?;
        }
        for (name, _) in packs {
            act(link, name, Action::Start)?;
        }
        act(link, "g1", Action::Start)?;
        making += start.elapsed();
        progress(link)?;
    }
    let first = free.first().copied().unwrap_or_default();
    expect(free.iter().all(|bytes| *bytes == first), &format!("memory was lost: {free:?} bytes were free"))?;
    let all = guests(link)?;
    let created = all.iter().filter(|guest| guest.creator == Source::Line && guest.origin.is_some()).count();
    expect(created == MAX_GUESTS - 1, "the list does not say where guests are from")?;
    let pack = packs.first().ok_or_else(|| Failure::failed("there is no pack"))?;
    expect(upload(link, &pack.1, "g2").is_err(), "a guest was made of a name that is there")?;
    let (told, _) = events(link, 0)?;
    let destroyed = told.iter().filter(|event| event.kind == EventKind::Destroyed(Source::Line)).count();
    expect(destroyed != 0, "no event tells that guests were destroyed")?;
    let audit = one(link, &Operation::Audit, "audit")?;
    let Response::Audit { tables, violations: 0, .. } = audit.response()? else {
        return Err(Failure::failed("the audit is not clean"));
    };
    let count = (ROUNDS + 1) * packs.len();
    Ok(format!(
        "{MAX_GUESTS} guests at once, {ROUNDS} times: {} MiB free each time, {:.1} ms to create and start one, \
         {tables} tables audited, {:.0} s in all",
        first >> 20,
        making.as_secs_f64() * 1000.0 / count as f64,
        begun.elapsed().as_secs_f64()
    ))
}

/// What each guest used: together with what those did that are destroyed, it is all time.
fn added_up(link: &mut Link) -> Outcome<Vec<Usage>> {
    let all = stats(link)?;
    adds_up(&all)?;
    Ok(all.guests)
}

/// Waits until each guest has used more time than before.
fn progress(link: &mut Link) -> Outcome<()> {
    wait_all(link, MAX_GUESTS, State::Running)?;
    let before = added_up(link)?;
    let end = Instant::now() + PATIENCE;
    loop {
        thread::sleep(Duration::from_millis(100));
        let now = added_up(link)?;
        expect(now.len() == MAX_GUESTS, "a guest is not in the list")?;
        // The first one spins, and writes nothing any more.
        let stuck = before
            .iter()
            .zip(&now)
            .filter(|(before, now)| now.used <= before.used || now.name != "g1" && now.written <= before.written);
        match stuck.map(|(_, now)| now.name.to_string()).next() {
            None => return Ok(()),
            Some(name) if Instant::now() >= end => return Err(Failure::failed(format!("{name} makes no progress"))),
            Some(_) => {}
        }
    }
}
