//! Other ends that do not behave: a stranger on the control line, and a console that nobody reads.
//!
//! The stranger talks without end, alone or between a client's frames.
//!
//! One processor, so that the guests and the ends of both lines share it.

use super::control::{KEY, PATIENCE, act, connect, drain, expect, machine, wait_for};
use super::tally::Row;
use crate::ctl::{Link, Patience, stats};
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::manifest::Machine;
use crate::workspace::Workspace;
use bulkhead_control::{Action, State};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/control.toml";
/// So long he has the line.
const LASTS: Duration = Duration::from_secs(3);
/// Between two requests of a client, most of the time nothing is asked.
const REST: Duration = Duration::from_millis(50);
/// Between two pieces: the line never rests.
const PAUSE: Duration = Duration::from_millis(1);
/// Thousandths of its processor that the guest has beside a stranger: the looks for him may take a hundred, and turns and orders take some.
const LEAST: u64 = 750;

/// Requests that a client has answered at least while a stranger talks.
const ASKED: usize = 3;

/// Dumps that are ordered while nobody reads the log: some 12 MB, of which a socket's two ends keep at most 8.
const ORDERS: usize = 8000;

/// The row, on QEMU.
pub fn row<'a>(workspace: &'a Workspace, builder: &'a Builder) -> Row<'a> {
    Row::new("strangers on the control line, on qemu", || verdict(workspace, builder))
}

fn verdict(workspace: &Workspace, builder: &Builder) -> Outcome<String> {
    let machine = machine(workspace, MACHINE)?;
    let folder = RunFolder::new(workspace)?;
    let line = folder.file("line");
    let running = builder.start_at(&Place { control: Some(line.clone()), ..Place::of(Kind::Qemu) }, &machine)?;
    drain(&running)?;
    let share = beside(&line)?;
    expect(share >= LEAST, &format!("beside a stranger who talks the guest has {share} thousandths"))?;
    let (among, asked) = among(&line)?;
    drop(running);
    let right = among >= LEAST && asked >= ASKED;
    let told = format!("{among} thousandths beside one who talks between a client's {asked} requests");
    expect(right, &format!("the guest has {told}"))?;
    let lost = unread(builder, &machine, &line)?;
    Ok(format!(
        "{share}/1000 of the CPU beside a stranger who talks, {told}; {lost} bytes of log lost that nobody read"
    ))
}

/// Orders more log than fits between the machine and who does not read it: the machine goes on without it, and its log too when
/// somebody reads again. Bytes that were lost.
fn unread(builder: &Builder, machine: &Machine, line: &Path) -> Outcome<usize> {
    let place = Place { control: Some(line.to_owned()), ..Place::of(Kind::Qemu) };
    let running = builder.start_at(&place, machine)?;
    let mut link = Link::new(line, KEY, Patience { answer: Duration::from_secs(5), all: PATIENCE });
    wait_for(&mut link, "spin", State::Running)?;
    let mut serial = &running.serial;
    serial.set_read_timeout(Some(Duration::from_secs(1))).map_err(|e| Failure::failed(e.to_string()))?;
    let mut dump = |orders: usize| -> Outcome<Vec<u8>> {
        (0..orders).try_for_each(|_| act(&mut link, "spin", Action::Dump))?;
        let mut log = Vec::new();
        // It never ends: the read times out when all has come.
        let _ = serial.read_to_end(&mut log);
        Ok(log)
    };
    // What start-up wrote comes first, and each dump is like the other.
    dump(0)?;
    let one = dump(1)?.len();
    let lost = (ORDERS * one).saturating_sub(dump(ORDERS)?.len());
    expect(lost != 0, &format!("{ORDERS} dumps of {one} bytes found room: nothing was tried"))?;
    let after = dump(1)?.len();
    expect(after >= one, &format!("when the log was read again, {after} bytes came where {one} should"))?;
    Ok(lost)
}

/// Thousandths of its processor that the guest has while a stranger sends without end; each byte makes a look longer.
fn beside(line: &Path) -> Outcome<u64> {
    let used = || -> Outcome<(u64, u64)> {
        let mut link = connect(line);
        wait_for(&mut link, "spin", State::Running)?;
        let all = stats(&mut link)?;
        let spin = all.guests.iter().find(|guest| guest.name == "spin");
        Ok((spin.map_or(0, |guest| guest.used), all.whole.at.ticks))
    };
    let (used_before, before) = used()?;
    let fail = |e: std::io::Error| Failure::failed(format!("the control line: {e}"));
    let mut raw = UnixStream::connect(line).map_err(fail)?;
    raw.set_write_timeout(Some(PAUSE)).map_err(fail)?;
    let mut reader = raw.try_clone().map_err(fail)?;
    thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let end = Instant::now() + LASTS;
    while Instant::now() < end {
        // There may be no room.
        let _ = raw.write(&[0x55; 4]);
        thread::sleep(PAUSE);
    }
    raw.shutdown(std::net::Shutdown::Both).map_err(fail)?;
    let (used_after, after) = used()?;
    Ok(used_after.saturating_sub(used_before) * 1000 / after.saturating_sub(before).max(1))
}

/// Thousandths of its processor that the guest has while a client asks again and again, and a stranger sends between its
/// frames without end; how often it was answered.
fn among(line: &Path) -> Outcome<(u64, usize)> {
    let relay = line.with_extension("relay");
    mix(line, &relay)?;
    let mut link = connect(&relay);
    // There is one client for the relay.
    link.turn = PATIENCE;
    let (mut looks, end) = (Vec::new(), Instant::now() + LASTS);
    while Instant::now() < end {
        let all = stats(&mut link)?;
        let spin = all.guests.iter().find(|guest| guest.name == "spin");
        looks.push((spin.map_or(0, |guest| guest.used), all.whole.at.ticks));
        thread::sleep(REST);
    }
    let _ = std::fs::remove_file(relay);
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else { return Ok((0, 0)) };
    Ok((last.0.saturating_sub(first.0) * 1000 / last.1.saturating_sub(first.1).max(1), looks.len()))
}

/// Passes one client's frames on to the line, and garbage between them.
fn mix(line: &Path, relay: &Path) -> Outcome<()> {
    let fail = |e: std::io::Error| Failure::failed(format!("the relay: {e}"));
    let _ = std::fs::remove_file(relay);
    let listener = UnixListener::bind(relay).map_err(fail)?;
    let mut machine = UnixStream::connect(line).map_err(fail)?;
    let mut back = machine.try_clone().map_err(fail)?;
    thread::spawn(move || {
        let Ok((mut client, _)) = listener.accept() else { return };
        let Ok(mut answers) = client.try_clone() else { return };
        let _ = client.set_read_timeout(Some(PAUSE));
        thread::spawn(move || _ = std::io::copy(&mut back, &mut answers));
        let mut buffer = [0; 4096];
        loop {
            let sent = match client.read(&mut buffer) {
                Ok(0) => break,
                // A short frame comes whole.
                Ok(count) => machine.write_all(buffer.get(..count).unwrap_or_default()),
                Err(_) => machine.write_all(&[0x55; 4]),
            };
            if sent.is_err() {
                break;
            }
        }
        let _ = machine.shutdown(std::net::Shutdown::Both);
    });
    Ok(())
}
