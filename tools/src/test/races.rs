//! Orders raced with exits, frames that come again, and more guests than there is room for.
//!
//! Two processors: the operator is on the first, and the flooding guests are on both, beside one that resets itself.

use super::control::{self, KEY, PATIENCE, act, connect, drain, events, expect, free_bytes, wait_for};
use super::tally::Row;
use crate::ctl::{Link, Patience, guests, one, stats, upload};
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest::{Guest, ImageRef, Machine};
use crate::pack;
use crate::workspace::Workspace;
use bulkhead_control::line::{KEPT, Refused};
use bulkhead_control::{Action, Event, EventKind, Operation, Refusal, Response, Source, State};
use bulkhead_types::manifest::{LoadAs, MAX_GUESTS};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/many.toml";
/// Guests that flood.
const FLOODING: usize = 3;
/// Orders that are given without waiting for what comes of them.
const ORDERS: u64 = 400;
/// Between two looks at events, of which the machine keeps 256: each order is one, and each end may be two.
const LOOK: u64 = 20;
/// Spare memory in MiB.
const SPARE: u64 = 96;
/// Of the memory that is free, one part is that of each guest of the flood of creates: fewer find memory than there can be.
const PARTS: u64 = 20;

/// Reads the power-management timer without end; entered in real mode.
const FLOOD: [u8; 6] = [
    0xBA, 0x08, 0x06, // mov dx, 608h
    0xED, // in ax, dx
    0xEB, 0xFD, // jmp back
];

/// Resets itself at once; entered in real mode.
const RESET: [u8; 10] = [
    0xBA, 0xF9, 0x0C, // mov dx, 0CF9h
    0xB0, 0x02, 0xEE, // mov al, 2; out dx, al
    0xB0, 0x06, 0xEE, // mov al, 6; out dx, al
    0xF4, // hlt
];
/// How often it is made anew, and its name.
const RESTARTS: u16 = 10_000;
const RESETTING: &str = "r0";

/// The row, on QEMU.
pub fn row<'a>(workspace: &'a Workspace, builder: &'a Builder) -> Row<'a> {
    Row::new("races and lies on a machine that runs, on qemu", || verdict(workspace, builder))
}

fn verdict(workspace: &Workspace, builder: &Builder) -> Outcome<String> {
    let folder = RunFolder::new(workspace)?;
    let [line, flood, reset] = ["line", "flood", "reset"].map(|name| folder.file(name));
    files::write(&flood, &FLOOD)?;
    files::write(&reset, &RESET)?;
    let machine = machine(workspace, &flood, &reset)?;
    let place = Place { control: Some(line.clone()), cpus: 2, spare: SPARE, ..Place::of(Kind::Qemu) };
    let running = builder.start_at(&place, &machine)?;
    drain(&running)?;
    let raced = race(&mut connect(&line))?;
    replay(&line)?;
    withhold(&line)?;
    let made = too_many(workspace, &machine, &mut connect(&line))?;
    Ok(format!("{raced}; {made}"))
}

/// A machine of guests that flood, f0 to f2, and one that resets itself.
fn machine(workspace: &Workspace, flood: &Path, reset: &Path) -> Outcome<Machine> {
    let machine = control::machine(workspace, MACHINE)?;
    let first = machine.guests.first().ok_or_else(|| Failure::failed("no guest"))?;
    let guest = |name: String, kernel: &Path, restarts| Guest {
        name,
        kernel: ImageRef::File(kernel.to_owned()),
        load: LoadAs::Flat { at: 0x8000 },
        restarts,
        ..first.clone()
    };
    let flooding = (0..FLOODING).map(|number| guest(format!("f{number}"), flood, 0));
    let resetting = Guest { vcpus: 2, ..guest(RESETTING.to_owned(), reset, RESTARTS) };
    let guests = flooding.chain([resetting]).collect();
    Ok(Machine { guests, ..machine.clone() })
}

/// Marsaglia's xorshift.
fn next(number: &mut u64) -> u64 {
    *number ^= *number << 13;
    *number ^= *number >> 7;
    *number ^= *number << 17;
    *number >> 11
}

/// What an order that was done is told as. A start after a reset is told as one that was ordered, and so each start is left out.
const fn told_as(action: Action) -> Option<EventKind> {
    let by = Source::Line;
    Some(match action {
        Action::Kill => EventKind::Killed(by),
        Action::Reset => EventKind::Reset(by),
        Action::Pause => EventKind::Paused(by),
        Action::Resume => EventKind::Resumed(by),
        Action::Destroy => EventKind::Destroyed(by),
        Action::Nmi => EventKind::Injected(by),
        _ => return None,
    })
}

/// Orders, and what comes of them.
struct Orders<'a> {
    link: &'a mut Link,
    /// How many were done, had nothing to do, and were refused.
    answers: [u32; 3],
    /// Those that were done, and those that events tell of, with the guest of each.
    done: Vec<(String, EventKind)>,
    told: Vec<(String, EventKind)>,
    /// Number of the next event.
    next: u64,
}

impl<'a> Orders<'a> {
    fn new(link: &'a mut Link) -> Outcome<Self> {
        let (_, next) = events(link, 0)?;
        Ok(Self { link, answers: [0; 3], done: Vec::new(), told: Vec::new(), next })
    }

    fn give(&mut self, guest: &str, action: Action) -> Outcome<()> {
        let reply = self.link.call(&Operation::Act { guest, action })?;
        let [done, unchanged, refused] = &mut self.answers;
        match reply.response()? {
            Response::Done => {
                *done += 1;
                self.done.extend(told_as(action).map(|kind| (guest.to_owned(), kind)));
            }
            Response::Unchanged => *unchanged += 1,
            Response::Refused(Refusal::Is(_) | Refusal::NoGuest | Refusal::Deaf) => *refused += 1,
            other => return Err(Failure::failed(format!("{action:?} of {guest}: {other:?}"))),
        }
        Ok(())
    }

    /// Each order that was done is an event, in their order, and no other is.
    fn compare(&mut self) -> Outcome<()> {
        let (new, next) = events(self.link, self.next)?;
        self.next = next;
        let ordered = |kind: &EventKind| ACTIONS.iter().any(|action| told_as(*action) == Some(*kind));
        let new = new.iter().filter(|event| ordered(&event.kind));
        self.told.extend(new.map(|event| (event.name.to_string(), event.kind)));
        let different = self.done.iter().zip(&self.told).find(|(done, told)| done != told);
        let right = different.is_none() && self.done.len() == self.told.len();
        let (done, told) = (self.done.len(), self.told.len());
        expect(right, &format!("{done} orders were done, {told} are told; the first that differ: {different:?}"))
    }
}

const ACTIONS: [Action; 12] = [
    Action::Start,
    Action::Start,
    Action::Start,
    Action::Kill,
    Action::Reset,
    Action::Reset,
    Action::Pause,
    Action::Resume,
    Action::Destroy,
    Action::Nmi,
    Action::Stop,
    Action::Dump,
];

/// Gives guests that flood exits, and one that ends all the time, orders without waiting for their ends: each answer fits,
/// what was done is told, no order is lost, and no memory is.
fn race(link: &mut Link) -> Outcome<String> {
    let before = emptied(link)?;
    let mut number = 0x0123_4567_89AB_CDEF;
    let names: Vec<String> = (0..FLOODING).map(|number| format!("f{number}")).chain([RESETTING.to_owned()]).collect();
    let mut orders = Orders::new(link)?;
    for count in 1..=ORDERS {
        let mut pick = |length: usize| usize::try_from(next(&mut number) % length as u64).unwrap_or(0);
        let guest = names.get(pick(names.len())).map_or("", String::as_str);
        let action = ACTIONS.get(pick(ACTIONS.len())).copied().unwrap_or(Action::Kill);
        orders.give(guest, action)?;
        if count % LOOK == 0 {
            orders.compare()?;
        }
    }
    let [done, unchanged, refused] = orders.answers;
    // A kill behind a reset and before an NMI is the one that counts.
    for guest in &names {
        for action in
            [Action::Start, Action::Resume, Action::Reset, Action::Kill, Action::Nmi, Action::Pause, Action::Stop]
        {
            orders.give(guest, action)?;
        }
    }
    orders.compare()?;
    for guest in &names {
        wait_for(link, guest, State::Stopped)?;
    }
    let after = emptied(link)?;
    expect(before == after, &format!("memory was lost in races: {before}, then {after} bytes were free"))?;
    let audit = one(link, &Operation::Audit, "audit")?;
    expect(matches!(audit.response()?, Response::Audit { violations: 0, tables: 1.., .. }), "the audit is not clean")?;
    Ok(format!(
        "{ORDERS} orders raced with exits and ends: {done} done, {unchanged} had nothing to do, {refused} refused"
    ))
}

/// Ends and destroys all; bytes that are free then.
fn emptied(link: &mut Link) -> Outcome<u64> {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = guests(link)?;
        if all.is_empty() {
            return free_bytes(link);
        }
        expect(Instant::now() < end, &format!("guests do not end: {all:?}"))?;
        for guest in all {
            let ended = matches!(guest.state, State::Stopped | State::Failed);
            let action = if ended { Action::Destroy } else { Action::Kill };
            // Between list and order it may have ended.
            let _ = link.call(&Operation::Act { guest: &guest.name, action })?;
        }
    }
}

/// Frames of one session, one after the other.
type Frames = Arc<Mutex<Vec<Vec<u8>>>>;

/// Records what a client sends, and sends it again to the machine that runs: in the same session out of order and changed, and
/// when the next session is there. Nothing changes, and it is told.
fn replay(line: &Path) -> Outcome<()> {
    let relay = line.with_extension("relay");
    let frames = record(line, &relay, Arc::default())?;
    let mut link = connect(&relay);
    // All in one session.
    link.turn = PATIENCE;
    act(&mut link, "f0", Action::Start)?;
    for action in [Action::Pause, Action::Resume, Action::Kill] {
        act(&mut link, "f0", action)?;
    }
    wait_for(&mut link, "f0", State::Stopped)?;
    act(&mut link, "f0", Action::Start)?;
    wait_for(&mut link, "f0", State::Running)?;
    let (_, before) = events(&mut link, 0)?;
    drop(link);
    let _ = std::fs::remove_file(relay);
    let sent = frames.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // The session is the hypervisor's still. What is left of it are all requests but the last, which would be answered.
    let requests: Vec<&Vec<u8>> = sent.iter().skip(2).rev().skip(1).collect();
    expect(requests.len() > 6, &format!("{} requests were recorded", requests.len()))?;
    send(line, requests.iter().map(|frame| frame.to_vec()))?;
    send(line, sent.iter().map(|frame| changed(frame)))?;
    // Another session, then all of the former one: its hello, its proof, its requests.
    let mut link = connect(line);
    expect(guests(&mut link)?.iter().any(|guest| guest.name == "f0"), "a guest is gone by frames that came again")?;
    drop(link);
    send(line, sent.iter().cloned())?;
    let mut link = connect(line);
    wait_for(&mut link, "f0", State::Running)?;
    let (told, _) = events(&mut link, before)?;
    let new: Vec<EventKind> = told.iter().map(|event| event.kind).collect();
    let harmless =
        |kind: &EventKind| matches!(kind, EventKind::Session | EventKind::Refused(_) | EventKind::LeftOut(_));
    expect(new.iter().all(harmless), &format!("frames that came again did something: {new:?}"))?;
    let count = |of: fn(&Refused) -> u32| -> u32 {
        let refused =
            new.iter().filter_map(|kind| if let EventKind::Refused(refused) = kind { Some(refused) } else { None });
        refused.map(of).sum()
    };
    let (replayed, spoiled) = (count(|refused| refused.replayed), count(|refused| refused.unproved + refused.garbled));
    let right = replayed as usize >= requests.len() && spoiled as usize >= sent.len();
    expect(right, &format!("{replayed} replayed and {spoiled} spoiled frames were told: {new:?}"))
}

/// Holds back a request and lets it come when its client has gone: at once, it is done; when its session is over, it is not.
fn withhold(line: &Path) -> Outcome<()> {
    let mut link = connect(line);
    let (first, began) = (clock(&mut link)?, Instant::now());
    link.hang_up();
    // It ends.
    deliver_late(line, Duration::ZERO)?;
    wait_for(&mut link, "f0", State::Stopped)?;
    act(&mut link, "f0", Action::Start)?;
    wait_for(&mut link, "f0", State::Running)?;
    let (_, before) = events(&mut link, 0)?;
    // The machine's seconds are as long as it has measured them, which on a busy host may be too long.
    let passed = clock(&mut link)?.saturating_sub(first).max(1);
    let late = u128::from(KEPT + 2) * 1000 * began.elapsed().as_millis() / u128::from(passed);
    let late = Duration::from_millis(u64::try_from(late).unwrap_or(u64::MAX));
    link.hang_up();
    deliver_late(line, late)?;
    let (told, _) = events(&mut link, before)?;
    let killed = told.iter().any(|event| matches!(event.kind, EventKind::Killed(_)));
    let refused = |event: &Event| matches!(event.kind, EventKind::Refused(refused) if refused.unproved > 0);
    let right = !killed && told.iter().any(refused);
    expect(
        right,
        &format!(
            "a kill that came when its session was over is to be refused, and told; it came after {late:?}: {told:?}"
        ),
    )?;
    wait_for(&mut link, "f0", State::Running)
}

/// Milliseconds that the machine runs, by its own clock.
fn clock(link: &mut Link) -> Outcome<u64> {
    let version = one(link, &Operation::Version, "version")?;
    let Response::Version { hertz, .. } = version.response()? else { return Err(Failure::failed("no version")) };
    let ticks = stats(link)?.whole.at.ticks;
    Ok(u64::try_from(u128::from(ticks) * 1000 / u128::from(hertz.max(1))).unwrap_or(u64::MAX))
}

/// Holds a client's kill of f0 back, which it gives up, and sends it so much later.
fn deliver_late(line: &Path, late: Duration) -> Outcome<()> {
    let (relay, hold) = (line.with_extension("relay"), Arc::new(AtomicBool::new(false)));
    let frames = record(line, &relay, Arc::clone(&hold))?;
    let mut link = Link::new(&relay, KEY, Patience { answer: Duration::from_millis(500), all: PATIENCE });
    link.turn = PATIENCE;
    act(&mut link, "f0", Action::Resume)?;
    hold.store(true, Ordering::Relaxed);
    let reply = link.once(&Operation::Act { guest: "f0", action: Action::Kill })?;
    expect(reply.is_none(), "a request that was held back is answered")?;
    drop(link);
    let _ = std::fs::remove_file(relay);
    thread::sleep(late);
    let held = frames.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    send(line, std::iter::once(held))
}

/// One byte of it is another one, and it is a frame still.
fn changed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let middle = frame.len() / 2;
    frame.iter_mut().skip(middle).take(1).for_each(|byte| *byte = if *byte == 0x55 { 0xAA } else { 0x55 });
    frame
}

/// Sends frames as a client without any session.
fn send(line: &Path, frames: impl Iterator<Item = Vec<u8>>) -> Outcome<()> {
    let fail = |e: std::io::Error| Failure::failed(format!("the control line: {e}"));
    let mut raw = UnixStream::connect(line).map_err(fail)?;
    raw.set_read_timeout(Some(Duration::from_millis(100))).map_err(fail)?;
    for frame in frames {
        raw.write_all(&frame).map_err(fail)?;
    }
    // What it is answered is taken until nothing comes: frames are looked at every 10 ms.
    let (mut buffer, end) = ([0; 4096], Instant::now() + Duration::from_secs(2));
    while Instant::now() < end {
        match raw.read(&mut buffer) {
            Ok(1..) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    Ok(())
}

/// Passes one client's bytes on to the line, unless `hold` is set, and keeps its frames: each ends with a zero.
fn record(line: &Path, relay: &Path, hold: Arc<AtomicBool>) -> Outcome<Frames> {
    let fail = |e: std::io::Error| Failure::failed(format!("the relay: {e}"));
    let _ = std::fs::remove_file(relay);
    let listener = UnixListener::bind(relay).map_err(fail)?;
    let mut machine = UnixStream::connect(line).map_err(fail)?;
    let mut back = machine.try_clone().map_err(fail)?;
    let frames = Frames::default();
    let kept = Arc::clone(&frames);
    thread::spawn(move || {
        let Ok((mut client, _)) = listener.accept() else { return };
        let Ok(mut answers) = client.try_clone() else { return };
        let backwards = thread::spawn(move || _ = std::io::copy(&mut back, &mut answers));
        let (mut buffer, mut frame) = ([0; 4096], Vec::new());
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            for byte in buffer.iter().take(count) {
                frame.push(*byte);
                if *byte == 0 && frame.len() > 1 {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut frame));
                }
            }
            if !hold.load(Ordering::Relaxed) {
                let _ = machine.write_all(buffer.get(..count).unwrap_or_default());
            }
        }
        let _ = machine.shutdown(std::net::Shutdown::Both);
        let _ = backwards.join();
    });
    Ok(frames)
}

/// Creates guests until it is refused, and starts them; when they are gone, all is free that was.
fn too_many(workspace: &Workspace, machine: &Machine, link: &mut Link) -> Outcome<String> {
    let before = emptied(link)?;
    let memory = (before / PARTS).next_multiple_of(1 << 20);
    let flood = |number: usize| -> Outcome<Vec<u8>> {
        let first = machine.guests.first().ok_or_else(|| Failure::failed("no guest"))?;
        let guest = Guest { name: format!("c{number}"), zone: 0, memory, lazy: false, ..first.clone() };
        let zones = machine.zones.iter().take(1).cloned().collect();
        pack::pack(workspace, &Machine { zones, guests: vec![guest], control: None, ..machine.clone() })
    };
    let (mut made, mut started, mut says) = (0, 0, String::new());
    for number in 0..=MAX_GUESTS {
        match upload(link, &flood(number)?, &format!("c{number}")) {
            Ok(_) => made += 1,
            Err(failure) => {
                says = failure.message;
                break;
            }
        }
        let name = format!("c{number}");
        let reply = link.call(&Operation::Act { guest: &name, action: Action::Start })?;
        match reply.response()? {
            Response::Done => started += 1,
            Response::Refused(Refusal::NoRoom) => {}
            other => return Err(Failure::failed(format!("start {name}: {other:?}"))),
        }
    }
    // The manifest's own have numbers, too.
    expect(made == MAX_GUESTS - machine.guests.len(), &format!("{made} guests were created, then: {says}"))?;
    expect(says.contains("no room for it"), &format!("it is refused by: {says}"))?;
    let running = guests(link)?.iter().filter(|guest| guest.state == State::Running).count();
    let right = running > 0 && running <= started && started < made;
    expect(right, &format!("{started} guests were started, and {running} run"))?;
    for number in 0..made {
        let name = format!("c{number}");
        expect(guests(link)?.iter().any(|guest| guest.name == name.as_str()), &format!("{name} is not in the list"))?;
    }
    let after = emptied(link)?;
    expect(before == after, &format!("memory was lost by creates: {before}, then {after} bytes were free"))?;
    let mib = before >> 20;
    Ok(format!("of {mib} MiB {made} guests created and {started} started, then refused; all is free again"))
}
