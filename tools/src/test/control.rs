//! The control line of a real machine: guests are paused, ended, destroyed and made anew over it, and it is lied to.

use super::tally::{Row, on_each};
use crate::ctl::{Link, Patience, guests, one, pages, stats};
use crate::emulator::{Kind, Place, RunFolder, Running};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::manifest::{self, Machine};
use crate::workspace::Workspace;
use bulkhead_control::{Action, Event, EventKind, Operation, Response, State};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/control.toml";
/// The key of all machines of rows.
pub const KEY: [u8; 32] = *b"a key that only these rows have.";
/// Longest that a row waits for its machine, and for a state of its guests.
pub const PATIENCE: Duration = Duration::from_secs(60);
const BECOMES: Duration = Duration::from_secs(120);
/// Times that all guests are ended, destroyed and made anew.
const ROUNDS: usize = 5;

/// A row for each of these machines.
pub fn rows<'a>(workspace: &'a Workspace, builder: &'a Builder, machines: &[Kind]) -> Vec<Row<'a>> {
    on_each("control line", machines, move |kind| verdict(workspace, builder, kind))
}

fn verdict(workspace: &Workspace, builder: &Builder, kind: Kind) -> Outcome<()> {
    let machine = machine(workspace, MACHINE)?;
    let folder = RunFolder::new(workspace)?;
    let path = folder.file("line");
    let place = Place { control: Some(path.clone()), ..Place::of(kind) };
    let running = builder.start_at(&place, &machine)?;
    drain(&running)?;
    let verdict = command(&path);
    drop(running);
    verdict
}

/// The machine of this manifest of the workspace, with a control line.
pub fn machine(workspace: &Workspace, manifest: &str) -> Outcome<Machine> {
    Ok(Machine { control: Some(KEY), ..manifest::read(&workspace.path(manifest))? })
}

/// A client of the machine at `line`.
pub fn connect(line: &Path) -> Link {
    connect_within(line, PATIENCE)
}

/// A client that gives up after so long without the machine.
pub fn connect_within(line: &Path, patience: Duration) -> Link {
    Link::new(line, KEY, Patience { answer: Duration::from_secs(2), all: patience })
}

/// Takes what the machine writes to its console: it would stop it.
pub fn drain(running: &Running) -> Outcome<()> {
    let mut serial = running.serial.try_clone().map_err(|e| Failure::failed(e.to_string()))?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while matches!(serial.read(&mut buffer), Ok(1..)) {}
    });
    Ok(())
}

fn command(path: &Path) -> Outcome<()> {
    let mut link = connect(path);
    wait_for(&mut link, "hello", State::Stopped)?;
    wait_for(&mut link, "spin", State::Running)?;
    drop(link);
    lie(path)?;
    let mut link = connect(path);
    wait_for(&mut link, "spin", State::Running)?;
    let (told, _) = events(&mut link, 0)?;
    let refused = |event: &Event| matches!(event.kind, EventKind::Refused(refused) if refused.garbled > 0);
    expect(told.iter().any(refused), "garbage is not told")?;
    let unproved = |event: &Event| matches!(event.kind, EventKind::Refused(refused) if refused.unproved > 0);
    expect(told.iter().any(unproved), "a wrong key is not told")?;
    pause(&mut link)?;
    let mut free = Vec::new();
    for _ in 0..ROUNDS {
        act(&mut link, "spin", Action::Kill)?;
        wait_for(&mut link, "spin", State::Stopped)?;
        act(&mut link, "spin", Action::Destroy)?;
        act(&mut link, "hello", Action::Destroy)?;
        expect(guests(&mut link)?.is_empty(), "a destroyed guest is in the list")?;
        free.push(free_bytes(&mut link)?);
        act(&mut link, "spin", Action::Start)?;
        act(&mut link, "hello", Action::Start)?;
        wait_for(&mut link, "hello", State::Stopped)?;
        wait_for(&mut link, "spin", State::Running)?;
    }
    free.dedup();
    expect(free.len() == 1, &format!("memory was lost: {free:?} bytes were free"))?;
    let audit = one(&mut link, &Operation::Audit, "audit")?;
    expect(matches!(audit.response()?, Response::Audit { violations: 0, tables: 1.., .. }), "the audit is not clean")
}

pub fn expect(right: bool, otherwise: &str) -> Outcome<()> {
    if right { Ok(()) } else { Err(Failure::failed(otherwise)) }
}

pub fn act(link: &mut Link, guest: &str, action: Action) -> Outcome<()> {
    one(link, &Operation::Act { guest, action }, guest).map(|_| ())
}

/// Waits until a guest is in this state.
pub fn wait_for(link: &mut Link, guest: &str, state: State) -> Outcome<()> {
    let end = Instant::now() + BECOMES;
    while Instant::now() < end {
        if guests(link)?.iter().any(|one| one.name == guest && one.state == state) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(Failure::failed(format!("{guest} did not become {state}")))
}

/// Garbage, and a client without the key: neither may change anything.
fn lie(path: &Path) -> Outcome<()> {
    let fail = |e: std::io::Error| Failure::failed(format!("the control line: {e}"));
    let mut raw = UnixStream::connect(path).map_err(fail)?;
    // Its turn has come.
    raw.read_exact(&mut [0]).map_err(fail)?;
    raw.write_all(b"\0what is no frame\0\x09cut\0").map_err(fail)?;
    drop(raw);
    let patience = Patience { answer: Duration::from_secs(1), all: Duration::from_secs(20) };
    let mut stranger = Link::new(path, [1; 32], patience);
    let kill = Operation::Act { guest: "spin", action: Action::Kill };
    let told = stranger.call(&kill).map(|_| ()).map_err(|failure| failure.message);
    expect(told == Err("the hypervisor does not take this key".to_owned()), &format!("a wrong key: {told:?}"))
}

/// Waits until so many guests are all there are, and in this state.
pub fn wait_all(link: &mut Link, count: usize, state: State) -> Outcome<()> {
    let end = Instant::now() + BECOMES;
    while Instant::now() < end {
        let all = guests(link)?;
        if all.len() == count && all.iter().all(|one| one.state == state) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(Failure::failed(format!("{count} guests did not become {state}")))
}

/// All events that there are from number `next` on, and the number of the one that comes next.
pub fn events(link: &mut Link, mut next: u64) -> Outcome<(Vec<Event>, u64)> {
    let mut all = Vec::new();
    loop {
        let reply = one(link, &Operation::Events(next), "events")?;
        let Response::Events(events) = reply.response()? else { return Err(Failure::failed("no events")) };
        next = events.first + events.items.len() as u64;
        all.extend(events.items);
        if next >= events.end {
            return Ok((all, next));
        }
    }
}

/// A paused guest uses no time, one that was resumed does.
fn pause(link: &mut Link) -> Outcome<()> {
    let used = |link: &mut Link| -> Outcome<u64> {
        thread::sleep(Duration::from_millis(300));
        Ok(stats(link)?.guests.iter().find(|one| one.name == "spin").map_or(0, |one| one.used))
    };
    act(link, "spin", Action::Pause)?;
    wait_for(link, "spin", State::Paused)?;
    let (first, second) = (used(link)?, used(link)?);
    expect(first == second && first != 0, &format!("a paused guest used {first}, then {second} ticks"))?;
    act(link, "spin", Action::Resume)?;
    let third = used(link)?;
    expect(third > second, "a guest that was resumed does not run")
}

/// Bytes of memory that are nobody's.
pub fn free_bytes(link: &mut Link) -> Outcome<u64> {
    let mut free = 0;
    pages(|from| match one(link, &Operation::Memory(from), "memmap")?.response()? {
        Response::Memory(page) => {
            let guests =
                page.items.iter().filter(|range| range.owner.starts_with("guest ") && !range.owner.contains("Image"));
            expect(guests.count() == 0, "a destroyed guest has memory")?;
            let nobodys = page.items.iter().filter(|range| range.owner.contains("free"));
            free += nobodys.map(|range| range.bytes).sum::<u64>();
            Ok(page.next)
        }
        _ => Err(Failure::failed("no memory map")),
    })?;
    Ok(free)
}
