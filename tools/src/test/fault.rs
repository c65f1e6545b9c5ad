//! What is said when the machine under the hypervisor breaks.
//!
//! A machine check while no guest has anything to do, and a processor that stands still.

use super::control::expect;
use super::tally::Row;
use crate::emulator::{Kind, Place};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::run::{OneGuest, one_guest};
use crate::symbols;
use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const NAME: &str = "a machine check on qemu: registers and a backtrace with names";
/// A guest that ends in a halt with its interrupts off, and the last that it says.
const GUEST: &str = "@xen";
const CMDLINE: &str = "xen console=com1 com1=115200 noreboot";
const LAST: &str = "Manual reset required";
const TIMEOUT: Duration = Duration::from_secs(60);
/// What the report must have, in this order: the cause, a register, and the outermost function of
/// the idle compartment. (What is inside depends on the moment: an interrupt may be taken just then.)
const WANTED: [&str; 5] = ["event panic exception 18 #MC", "  rip ", "  at 0x", "enter_context", "event panic end"];

const ALL: &str = "a machine check of one processor on qemu: the other one stops, too";
/// A guest that never stops writing, on the second processor, and what it writes.
const WITNESS: &str = "seed=1 until-told";
const ROUND: &str = "witness round 2";
/// So long nothing may come behind the report.
const SILENCE: Duration = Duration::from_secs(3);

const STILL: &str = "a processor that stands still on qemu: it is said";
/// A guest of the first processor, whose end the second one is to wait for.
const COUNTS: &str = "warm=0 window=300";

/// The rows, on QEMU.
pub fn rows(builder: &Builder) -> [Row<'_>; 3] {
    [
        Row::new(NAME, || machine_check(builder)),
        Row::new(ALL, || stops_all(builder)),
        Row::new(STILL, || stands_still(builder)),
    ]
}

fn stands_still(builder: &Builder) -> Outcome<()> {
    let args = OneGuest { cmdline: Some(COUNTS.to_owned()), ..OneGuest::default() };
    let mut machine = one_guest("@suite/count", &args)?;
    machine.guests.iter_mut().for_each(|guest| guest.cpu.cpus = 1);
    let mut running = builder.start_at(&Place { cpus: 2, ..Place::of(Kind::Qemu) }, &machine)?;
    let mut said = String::new();
    wait_for("guest started", &mut running.serial, &mut said)?;
    let held = running.hold_others()?;
    wait_for("event processor stopped: 1 of 1 do not answer", &mut running.serial, &mut said)?;
    drop(held);
    Ok(())
}

fn stops_all(builder: &Builder) -> Outcome<()> {
    let args = OneGuest { cmdline: Some(WITNESS.to_owned()), ..OneGuest::default() };
    let mut machine = one_guest("@suite/witness", &args)?;
    machine.guests.iter_mut().for_each(|guest| {
        guest.cpu.cpus = 2;
        // A round looks at all of it.
        guest.memory = 4 << 20;
    });
    let mut running = builder.start_at(&Place { cpus: 2, ..Place::of(Kind::Qemu) }, &machine)?;
    let mut said = String::new();
    wait_for(ROUND, &mut running.serial, &mut said)?;
    running.machine_check()?;
    wait_for("event panic end\r\n", &mut running.serial, &mut said)?;
    let after = listen(&mut running.serial, SILENCE)?;
    let (_, behind) = said.rsplit_once("event panic end\r\n").unwrap_or_default();
    let silent = behind.is_empty() && after.is_empty();
    expect(silent, &format!("it goes on: {behind}{after}"))
}

fn machine_check(builder: &Builder) -> Outcome<()> {
    let args = OneGuest { cmdline: Some(CMDLINE.to_owned()), ..OneGuest::default() };
    let mut running = builder.start(Kind::Qemu, &one_guest(GUEST, &args)?)?;
    let mut said = String::new();
    wait_for(LAST, &mut running.serial, &mut said)?;
    running.machine_check()?;
    said.clear();
    wait_for("event panic end", &mut running.serial, &mut said)?;
    let loader = symbols::load(builder.image());
    let named: Vec<String> = said.lines().map(|line| symbols::symbolize(line, loader.as_ref())).collect();
    let named = named.join("\n");
    let mut rest = named.as_str();
    for piece in WANTED {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return Err(Failure::failed(format!("{piece:?} is missing in\n{named}"))),
        }
    }
    Ok(())
}

/// What comes within `time`.
fn listen(serial: &mut TcpStream, time: Duration) -> Outcome<String> {
    let (end, mut said, mut buffer) = (Instant::now() + time, String::new(), [0; 4096]);
    while Instant::now() < end {
        match serial.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => said.push_str(&String::from_utf8_lossy(buffer.get(..count).unwrap_or_default())),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(Failure::failed(format!("the serial line: {e}"))),
        }
    }
    Ok(said)
}

/// Reads until `text` has come.
fn wait_for(text: &str, serial: &mut TcpStream, said: &mut String) -> Outcome<()> {
    let end = Instant::now() + TIMEOUT;
    let fail = |e: std::io::Error| Failure::failed(format!("the serial line: {e}"));
    serial.set_read_timeout(Some(Duration::from_millis(200))).map_err(fail)?;
    let mut buffer = [0; 4096];
    while !said.contains(text) {
        if Instant::now() > end {
            return Err(Failure::failed(format!("{text:?} does not come:\n{said}")));
        }
        match serial.read(&mut buffer) {
            Ok(0) => return Err(Failure::failed(format!("the machine ended before {text:?}:\n{said}"))),
            Ok(count) => said.push_str(&String::from_utf8_lossy(buffer.get(..count).unwrap_or_default())),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(())
}
