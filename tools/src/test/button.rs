//! `stop`: of a guest that obeys, one that does not listen, one that ignores it.

use super::commands::{Terminal, hv_ctl};
use super::control::{PATIENCE, act, connect, events, expect, machine, wait_for};
use super::tally::Row;
use crate::ctl::{Link, guests, one, stats};
use crate::emulator::{Kind, Place, RunFolder, Running};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::workspace::Workspace;
use bulkhead_control::{Action, Ending, EventKind, Operation, Refusal, Response, Source, State};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const LINE: &str = "line";
const MACHINE: &str = "tests/manifests/button.toml";
const LINUX: &str = "tests/manifests/linux.toml";
/// Longest that Linux takes to its prompt.
const BOOTS: Duration = Duration::from_secs(300);
const DEAF: Response<'static> = Response::Refused(Refusal::Deaf);
/// Times that the one that ignores its button is asked.
const PRESSES: usize = 50;

/// A row for each of these machines.
pub fn rows<'a>(workspace: &'a Workspace, builder: &'a Builder, machines: &[Kind], quick: bool) -> Vec<Row<'a>> {
    let own = machines.iter().flat_map(|kind| [1, 2].map(|cpus| (*kind, cpus))).map(|(kind, cpus)| {
        let name = format!("power button on {kind} with {cpus} processors");
        Row::new(name, move || verdict(workspace, builder, kind, cpus))
    });
    let linux = machines
        .iter()
        .copied()
        .filter(|_| !quick)
        .map(|kind| Row::new(format!("power button of Linux on {kind}"), move || linux(workspace, builder, kind)));
    own.chain(linux).collect()
}

/// Starts the machine of a manifest; the folder that its line is in, by that name.
fn start_machine(
    workspace: &Workspace,
    builder: &Builder,
    manifest: &str,
    place: Place,
) -> Outcome<(Running, RunFolder)> {
    let machine = machine(workspace, manifest)?;
    let folder = RunFolder::new(workspace)?;
    let place = Place { control: Some(folder.file(LINE)), ..place };
    Ok((builder.start_at(&place, &machine)?, folder))
}

/// A kernel that is not ours: its module hears the button, and a program that reads the button's events switches it off.
fn linux(workspace: &Workspace, builder: &Builder, kind: Kind) -> Outcome<()> {
    let (running, folder) = start_machine(workspace, builder, LINUX, Place::of(kind))?;
    let path = folder.file(LINE);
    let terminal = Terminal::new(&running)?;
    terminal.wait_for("/root # ", 0, BOOTS)?;
    let mut link = connect(&path);
    let end = Instant::now() + BOOTS;
    // A press before the program has opened the button's device is nobody's.
    while state(&mut link, "linux")? == Some(State::Running) {
        expect(Instant::now() < end, &format!("Linux does not obey its power button:\n{}", terminal.come()))?;
        let _ = link.call(&Operation::Act { guest: "linux", action: Action::Stop })?;
        thread::sleep(Duration::from_secs(2));
    }
    let (told, _) = events(&mut link, 0)?;
    let has = |kind| told.iter().any(|event| event.kind == kind);
    let right = has(EventKind::Stopping(Source::Line)) && has(EventKind::Ended(Ending::PowerOff));
    expect(right, &format!("events do not tell of it: {told:?}"))
}

fn verdict(workspace: &Workspace, builder: &Builder, kind: Kind, cpus: u16) -> Outcome<()> {
    let place = Place { cpus, ..Place::of(kind) };
    let (running, folder) = start_machine(workspace, builder, MACHINE, place)?;
    let path = folder.file(LINE);
    let mut terminal = Terminal::new(&running)?;
    let mut link = connect(&path);
    pressed(&mut link)?;
    refused(&mut link)?;
    obeyed(&mut link)?;
    start(&mut link, &terminal)?;
    // The line has one client.
    drop(link);
    by_tool(workspace, &path, &["obeys", "--wait", "60s"], 0, "asked")?;
    by_tool(workspace, &path, &["deaf", "--wait", "60s"], 1, "does not listen to its power button")?;
    let mut link = connect(&path);
    expect(state(&mut link, "obeys")? == Some(State::Stopped), "`hv ctl stop` did not wait")?;
    start(&mut link, &terminal)?;
    terminal.send(b"\x10\x40")?;
    terminal.ask("stop deaf", "it does not listen to its power button")?;
    terminal.ask("stop obeys", "asked; the log tells when it has ended")?;
    wait_for(&mut link, "obeys", State::Stopped)?;
    let audit = one(&mut link, &Operation::Audit, "audit")?;
    expect(matches!(audit.response()?, Response::Audit { violations: 0, tables: 1.., .. }), "the audit is not clean")
}

/// Asks a guest to stop.
fn stop(link: &mut Link, guest: &str, right: &Response<'_>) -> Outcome<()> {
    let reply = link.call(&Operation::Act { guest, action: Action::Stop })?;
    let got = reply.response()?;
    expect(got == *right, &format!("stop {guest}: {got:?}, not {right:?}"))
}

/// Asks a guest to stop until it listens.
fn stop_when_it_listens(link: &mut Link, guest: &str) -> Outcome<()> {
    let (end, mut tries) = (Instant::now() + PATIENCE, 0);
    loop {
        match stop(link, guest, &Response::Asked) {
            Err(_) if Instant::now() < end => {}
            result => return result,
        }
        // In step with the guest each try could come when it does not listen.
        tries += 1;
        thread::sleep(Duration::from_millis(tries % 17));
    }
}

fn state(link: &mut Link, guest: &str) -> Outcome<Option<State>> {
    Ok(guests(link)?.iter().find(|one| one.name == guest).map(|one| one.state))
}

/// Those that can not be asked, who go on as they were.
fn refused(link: &mut Link) -> Outcome<()> {
    stop(link, "deaf", &DEAF)?;
    stop(link, "nobody", &Response::Refused(Refusal::NoGuest))?;
    act(link, "obeys", Action::Pause)?;
    stop(link, "obeys", &Response::Refused(Refusal::Is(State::Paused)))?;
    act(link, "obeys", Action::Resume)?;
    wait_for(link, "obeys", State::Running)?;
    wait_for(link, "deaf", State::Running)
}

/// One that hears it, leaves its interrupt up and goes on: it alone suffers. It does not listen all the time.
fn pressed(link: &mut Link) -> Outcome<()> {
    for _ in 0..PRESSES {
        stop_when_it_listens(link, "ignores")?;
    }
    wait_for(link, "ignores", State::Running)?;
    let used = |link: &mut Link| -> Outcome<u64> {
        Ok(stats(link)?.guests.iter().find(|one| one.name == "deaf").map_or(0, |one| one.used))
    };
    let before = used(link)?;
    thread::sleep(Duration::from_millis(300));
    expect(used(link)? > before, "a guest whose interrupt stays up keeps another one from running")?;
    act(link, "ignores", Action::Kill)?;
    wait_for(link, "ignores", State::Stopped)
}

/// One that obeys: it is told, and stays off, though its manifest lets it come again.
fn obeyed(link: &mut Link) -> Outcome<()> {
    stop_when_it_listens(link, "obeys")?;
    wait_for(link, "obeys", State::Stopped)?;
    let (told, _) = events(link, 0)?;
    let at = |kind| told.iter().rposition(|event| event.kind == kind);
    let (asked, ended) = (at(EventKind::Stopping(Source::Line)), at(EventKind::Ended(Ending::PowerOff)));
    expect(asked.is_some() && asked < ended, &format!("events do not tell of it: {told:?}"))?;
    stop(link, "obeys", &Response::Unchanged)?;
    expect(state(link, "obeys")? == Some(State::Stopped), "it has come again")
}

/// The same by `hv ctl stop`: its status, and what it says.
fn by_tool(workspace: &Workspace, line: &Path, words: &[&str], status: i32, want: &str) -> Outcome<()> {
    let words: Vec<&str> = ["stop"].iter().chain(words).copied().collect();
    let output = hv_ctl(workspace, line, &words)?.output().map_err(|e| Failure::failed(e.to_string()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let right = output.status.code() == Some(status) && text.contains(want);
    expect(right, &format!("ctl {words:?}: {}, not {status} and `{want}`:\n{text}", output.status))
}

/// Starts the one that obeys, and waits until it listens.
fn start(link: &mut Link, terminal: &Terminal) -> Outcome<()> {
    let before = terminal.come().len();
    act(link, "obeys", Action::Start)?;
    terminal.wait("listens, and obeys", before)
}
