//! Orders that come while a guest ends: what is answered is what comes of them.
//!
//! With one processor an order that comes behind another one is there before the guest has obeyed that; with two it comes
//! while the guest runs.

use super::control::{act, connect_within, drain, events, expect, machine, wait_for};
use super::tally::Row;
use crate::ctl::{Link, guests, stats};
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::workspace::Workspace;
use bulkhead_control::{Action, EventKind, Operation, Refusal, Response, State};
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/orders.toml";
const PATIENCE: Duration = Duration::from_secs(20);
/// Leases that end while the guest is reset all the time.
const LEASES: usize = 3;
/// Pauses of a guest that resets itself all the time, and resets with an NMI right behind them.
const ROUNDS: usize = 20;
/// Longer than a life of the guest that resets itself.
const MOMENT: Duration = Duration::from_millis(30);

/// The rows, on QEMU with one processor and with two.
pub fn rows<'a>(workspace: &'a Workspace, builder: &'a Builder) -> [Row<'a>; 2] {
    [1, 2].map(|cpus| {
        let name = format!("orders to guests that end, {cpus} processors, on qemu");
        Row::new(name, move || verdict(workspace, builder, cpus))
    })
}

fn verdict(workspace: &Workspace, builder: &Builder, cpus: u16) -> Outcome<()> {
    let machine = machine(workspace, MACHINE)?;
    let folder = RunFolder::new(workspace)?;
    let line = folder.file("line");
    let place = Place { control: Some(line.clone()), cpus, ..Place::of(Kind::Qemu) };
    let running = builder.start_at(&place, &machine)?;
    drain(&running)?;
    let mut link = connect_within(&line, PATIENCE);
    // Orders follow each other without a pause.
    link.turn = PATIENCE;
    // With two a reset is obeyed before the NMI comes.
    let tried: &[fn(&mut Link) -> Outcome<()>] = if cpus == 1 { &[lease, pause, nmi] } else { &[lease, pause] };
    let wrong = tried.iter().filter_map(|try_it| try_it(&mut link).err());
    let wrong: Vec<String> = wrong.map(|failure| failure.to_string()).collect();
    expect(wrong.is_empty(), &wrong.join("\n"))
}

/// What comes of an order: whether it was done, or why not.
fn order(link: &mut Link, guest: &str, action: Action) -> Outcome<Result<bool, Refusal>> {
    match link.call(&Operation::Act { guest, action })?.response()? {
        Response::Done => Ok(Ok(true)),
        Response::Unchanged => Ok(Ok(false)),
        Response::Refused(refusal) => Ok(Err(refusal)),
        other => Err(Failure::failed(format!("{action:?} of {guest}: {other:?}"))),
    }
}

/// A guest ends with its lease, and that once, however often it is reset.
fn lease(link: &mut Link) -> Outcome<()> {
    for _ in 0..LEASES {
        let end = Instant::now() + PATIENCE;
        let refused = loop {
            match order(link, "lent", Action::Reset)? {
                Ok(_) => expect(Instant::now() < end, "resets keep a guest beyond its lease")?,
                Err(refusal) => break refusal,
            }
        };
        let right = matches!(refused, Refusal::Is(State::Stopping | State::Stopped));
        expect(right, &format!("a guest whose lease is over is not reset: {refused}"))?;
        wait_for(link, "lent", State::Stopped)?;
        let (mut told, _) = events(link, 0)?;
        told.retain(|event| event.name == "lent");
        let last = told.iter().rev().take_while(|event| !matches!(event.kind, EventKind::Reset(_)));
        let over = last.filter(|event| event.kind == EventKind::LeaseOver).count();
        expect(over == 1, &format!("a lease is over, and that is told {over} times: {told:?}"))?;
        act(link, "lent", Action::Start)?;
    }
    Ok(())
}

/// A guest that is paused stays so, in whatever of its lives.
fn pause(link: &mut Link) -> Outcome<()> {
    let used = |link: &mut Link| -> Outcome<u64> {
        Ok(stats(link)?.guests.iter().find(|one| one.name == "again").map_or(0, |one| one.used))
    };
    for _ in 0..ROUNDS {
        act(link, "again", Action::Pause)?;
        thread::sleep(MOMENT);
        let before = used(link)?;
        thread::sleep(MOMENT);
        let after = used(link)?;
        expect(before == after, &format!("a paused guest used {} ticks", after - before))?;
        let paused = guests(link)?.iter().any(|one| one.name == "again" && one.state == State::Paused);
        expect(paused, "a guest that was paused in its turn is not")?;
        let answer = order(link, "again", Action::Reset)?;
        expect(answer == Err(Refusal::Is(State::Paused)), &format!("reset of a paused guest: {answer:?}"))?;
        act(link, "again", Action::Resume)?;
        let end = Instant::now() + PATIENCE;
        while used(link)? == after {
            expect(Instant::now() < end, "a guest that was resumed does not run")?;
        }
    }
    Ok(())
}

/// An NMI behind a reset that the guest has not obeyed is not given, and that is said.
fn nmi(link: &mut Link) -> Outcome<()> {
    let mut not_given = 0;
    for _ in 0..ROUNDS {
        // One that was given has ended it, or does so soon.
        let _ = order(link, "spin", Action::Start)?;
        if order(link, "spin", Action::Reset)? != Ok(true) {
            continue;
        }
        let answer = order(link, "spin", Action::Nmi)?;
        let (mut told, _) = events(link, 0)?;
        told.retain(|event| event.name == "spin");
        let after = told.iter().rev().take_while(|event| !matches!(event.kind, EventKind::Reset(_)));
        let injected = after.filter(|event| matches!(event.kind, EventKind::Injected(_))).count();
        let given = answer == Ok(true);
        expect(injected == usize::from(given), &format!("an NMI is answered {answer:?}, and told {injected} times"))?;
        not_given += usize::from(answer == Ok(false));
    }
    expect(not_given > 0, "an NMI right behind a reset is said to be given each time")
}
