//! What the control line says of a machine that runs: where all time went, what happened, and how long a guest has.
//!
//! Two processors: the guest that resets itself and the one that goes on are side by side.

use super::control::{PATIENCE, act, connect, drain, events, expect, machine, wait_for};
use super::tally::{Row, on_each};
use crate::ctl::{AllStats, Link, guests, one, stats};
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::workspace::Workspace;
use bulkhead_control::{Action, Ending, EventKind, Exits, Operation, Response, Source, State, Stats, Usage};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/lent.toml";
/// Seconds that the guest is lent, and that its end may take.
const LEASE: u64 = 3;
const SLACK: u64 = 2;

/// A row for each of these machines.
pub fn rows<'a>(workspace: &'a Workspace, builder: &'a Builder, machines: &[Kind]) -> Vec<Row<'a>> {
    on_each("account, events and lease over the line,", machines, move |kind| verdict(workspace, builder, kind))
}

fn verdict(workspace: &Workspace, builder: &Builder, kind: Kind) -> Outcome<()> {
    let machine = machine(workspace, MACHINE)?;
    let folder = RunFolder::new(workspace)?;
    let line = folder.file("line");
    let place = Place { control: Some(line.clone()), cpus: 2, ..Place::of(kind) };
    let running = builder.start_at(&place, &machine)?;
    drain(&running)?;
    let mut link = connect(&line);
    wait_for(&mut link, "spin", State::Running)?;
    lease(&mut link)?;
    account(&mut link)?;
    // What was left out is told when the guest could bring about as many again.
    if kind == Kind::Qemu {
        let end = Instant::now() + PATIENCE;
        while !events(&mut link, 0)?
            .0
            .iter()
            .any(|event| event.name == "lent" && matches!(event.kind, EventKind::LeftOut(_)))
        {
            expect(Instant::now() < end, "the events that were left out are never told")?;
            thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(())
}

/// The guest that resets itself is stopped when its lease is over, however often it was made anew, and that is told.
fn lease(link: &mut Link) -> Outcome<()> {
    let left = guests(link)?.iter().find(|guest| guest.name == "lent").and_then(|guest| guest.lease);
    expect(left.is_some_and(|left| left <= LEASE), &format!("of {LEASE} seconds {left:?} are left"))?;
    grows(link, "lent")?;
    let version = one(link, &Operation::Version, "version")?;
    let Response::Version { hertz, .. } = version.response()? else {
        return Err(Failure::failed("no version"));
    };
    let (mut all, _) = events(link, 0)?;
    all.retain(|event| event.name == "lent");
    let at = |wanted: EventKind| all.iter().find(|event| event.kind == wanted).map(|event| event.at.ticks);
    let (Some(started), Some(over)) = (at(EventKind::Started(Source::Manifest)), at(EventKind::LeaseOver)) else {
        return Err(Failure::failed(format!("the end of a lease is not told: {all:?}")));
    };
    let took = over.saturating_sub(started);
    let right = (LEASE * hertz..(LEASE + SLACK) * hertz).contains(&took);
    expect(right, &format!("a lease of {LEASE} seconds took {took} ticks of {hertz} a second"))?;
    let last = all.iter().rev().find(|event| matches!(event.kind, EventKind::Ended(_)));
    expect(last.is_some_and(|event| event.at.ticks >= over), &format!("its last end is not told: {all:?}"))
}

/// What a guest has used never falls, until it is stopped: not while a life becomes one of those that are over, either.
fn grows(link: &mut Link, name: &str) -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    let (mut before, mut looks) = (Usage::default(), 0);
    while !guests(link)?.iter().any(|guest| guest.name == name && guest.state == State::Stopped) {
        expect(Instant::now() < end, &format!("{name} is never stopped"))?;
        let now = usage(&stats(link)?, name)?;
        let pairs = numbers(&before).into_iter().zip(numbers(&now));
        expect(
            pairs.into_iter().all(|(before, now)| before <= now),
            &format!("what a guest used fell: {before:?}, then {now:?}"),
        )?;
        (before, looks) = (now, looks + 1);
    }
    expect(looks > 1, &format!("{looks} looks at {name}"))
}

/// What only grows.
const fn numbers(usage: &Usage) -> [u64; 6] {
    [usage.used, usage.stolen, usage.waiting, usage.exits, usage.written, usage.read]
}

fn usage(stats: &AllStats, name: &str) -> Outcome<Usage> {
    let found = stats.guests.iter().find(|guest| guest.name == name);
    found.cloned().ok_or_else(|| Failure::failed(format!("no {name}")))
}

/// Exits of a guest by reason, and their ticks.
fn exits(link: &mut Link, name: &str) -> Outcome<BTreeMap<String, (u64, u64)>> {
    let reply = one(link, &Operation::Exits(name), name)?;
    let Response::Exits(Exits(kinds)) = reply.response()? else { return Err(Failure::failed("no exits")) };
    Ok(kinds.into_iter().map(|(kind, count, ticks)| (kind.to_owned(), (count, ticks))).collect())
}

/// All time is idle, the hypervisor's own, or what guests used, those that are destroyed, too: to the tick.
pub fn adds_up(AllStats { whole, guests }: &AllStats) -> Outcome<()> {
    let used: u64 = guests.iter().map(|guest| guest.used).sum();
    let Stats { total, idle, own, gone, .. } = whole;
    let what = format!("{used} ticks used, {idle} idle, {own} own, {gone} of destroyed guests, of {total}");
    expect(used + idle + own + gone == *total, &what)
}

/// All time adds up, whoever was ended, started anew or destroyed; and each of these is told, with who wanted it.
fn account(link: &mut Link) -> Outcome<()> {
    let (before, reasons) = (checked(link)?, exits(link, "spin")?);
    for action in [Action::Kill, Action::Start, Action::Reset] {
        act(link, "spin", action)?;
        wait_for(link, "spin", if action == Action::Kill { State::Stopped } else { State::Running })?;
    }
    thread::sleep(Duration::from_millis(500));
    let after = checked(link)?;
    // Each life writes as much, by as many exits.
    let grew = before.used < after.used
        && before.exits < after.exits
        && before.waiting <= after.waiting
        && before.written < after.written;
    expect(
        grew && after.memory > 16 << 20,
        &format!("a guest's numbers since it was made: {before:?}, then {after:?}"),
    )?;
    let now = exits(link, "spin")?;
    let more = |(kind, (count, ticks)): (&String, &(u64, u64))| {
        now.get(kind).is_some_and(|now| *count <= now.0 && *ticks <= now.1 && (kind != "port" || *count < now.0))
    };
    expect(
        reasons.contains_key("port") && reasons.iter().all(more),
        &format!("a guest's exits since it was made: {reasons:?}, then {now:?}"),
    )?;
    act(link, "spin", Action::Kill)?;
    wait_for(link, "spin", State::Stopped)?;
    let last = checked(link)?;
    act(link, "spin", Action::Destroy)?;
    act(link, "spin", Action::Start)?;
    wait_for(link, "spin", State::Running)?;
    let new = checked(link)?;
    expect(new.used < last.used, &format!("a destroyed guest's {} ticks are another's {}", last.used, new.used))?;
    let kinds: Vec<_> =
        events(link, 0)?.0.iter().filter(|event| event.name == "spin").map(|event| event.kind).collect();
    let by = Source::Line;
    let wanted = [
        EventKind::Started(Source::Manifest),
        EventKind::Killed(by),
        EventKind::Ended(Ending::Stopped),
        EventKind::Started(by),
        EventKind::Reset(by),
        EventKind::Ended(Ending::Stopped),
        EventKind::Started(by),
        EventKind::Killed(by),
        EventKind::Ended(Ending::Stopped),
        EventKind::Destroyed(by),
        EventKind::Started(by),
    ];
    expect(kinds == wanted, &format!("what happened to the guest, as it is told: {kinds:?}"))
}

/// What `spin` used, when all adds up.
fn checked(link: &mut Link) -> Outcome<Usage> {
    let all = stats(link)?;
    adds_up(&all)?;
    usage(&all, "spin")
}
