//! What comes of an operation, as text on a terminal. Lines end in CR LF.

use crate::{Event, Exits, Guest, Memory, Moment, Page, Response, State, Stats};
use core::fmt::{self, Write};

/// Hours, minutes, seconds of the day in UTC.
struct Clock(Moment);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.unix_ms / 1000;
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        write!(f, "{hours:02}:{minutes:02}:{:02}", seconds % 60)
    }
}

/// The line above such items, if this is the first page of them.
pub fn heading(response: &Response<'_>, out: &mut impl Write) -> fmt::Result {
    match response {
        Response::Guests(_) => write!(
            out,
            "{:>2} {:<16} {:<8} {:<8} {:>5} {:>7} {:<8} {:<8} started\r\n",
            "id", "name", "zone", "state", "vcpus", "MiB", "creator", "origin"
        ),
        Response::Stats(_) => write!(
            out,
            "{:>2} {:<14} {:>14} {:>13} {:>13} {:>9} {:>7}\r\n",
            "id", "name", "ticks used", "stolen", "waiting", "exits", "MiB"
        ),
        _ => Ok(()),
    }
}

/// Shows it; where the next page begins, if there is one.
pub fn show(response: &Response<'_>, out: &mut impl Write) -> Result<Option<u16>, fmt::Error> {
    match response {
        Response::Done => write!(out, "done\r\n")?,
        Response::Unchanged => write!(out, "it is so already\r\n")?,
        Response::Refused(refusal) => write!(out, "{refusal}\r\n")?,
        Response::Version { version, backend, cpus, hertz } => {
            write!(out, "Bulkhead {version} with {backend} on {cpus} CPUs, {} kHz\r\n", hertz / 1000)?;
        }
        Response::Guests(page) => return page_of(page, out, guest),
        Response::Stats(stats) => return usage(stats, out),
        Response::Exits(Exits(kinds)) => {
            for (name, count, ticks) in kinds {
                write!(out, "{name:<12} {count:>12} exits {ticks:>16} ticks\r\n")?;
            }
        }
        Response::Memory(page) => return page_of(page, out, memory),
        Response::Audit { tables, frames, violations } => {
            write!(out, "{tables} page tables, {frames} frames, {violations} violations\r\n")?;
        }
        Response::Asked => write!(out, "asked; the log tells when it has ended, and `kill` does not wait\r\n")?,
        Response::Created(id) => write!(out, "guest {id}\r\n")?,
        // They are no answers to what the monitor asks in this way.
        Response::Events(_) | Response::Send(_) | Response::Taken(_) | Response::Output { .. } => {}
    }
    Ok(None)
}

fn page_of<T, W: Write>(
    page: &Page<T>,
    out: &mut W,
    row: fn(&T, &mut W) -> fmt::Result,
) -> Result<Option<u16>, fmt::Error> {
    page.items.iter().try_for_each(|item| row(item, out))?;
    Ok(page.next)
}

fn guest(guest: &Guest, out: &mut impl Write) -> fmt::Result {
    let Guest { id, name, zone, state, vcpus, memory, origin, creator, started, lease } = guest;
    // What is too long is cut: the number tells guests apart, and `hv ctl list` has the whole.
    write!(out, "{id:>2} {name:<16.16} {zone:<8.8} {state:<8} {vcpus:>5} {:>7} {creator:<8} ", memory >> 20)?;
    match origin {
        Some(origin) => origin.iter().take(4).try_for_each(|byte| write!(out, "{byte:02x}"))?,
        None => write!(out, "{:<8}", "-")?,
    }
    match started {
        Some(at) => write!(out, " {}\r\n", Clock(*at))?,
        None => write!(out, " -\r\n")?,
    }
    match lease {
        Some(seconds) if !matches!(state, State::Stopped | State::Failed) => {
            write!(out, "   is stopped in {seconds} s\r\n")
        }
        Some(seconds) => write!(out, "   is stopped {seconds} s after each start\r\n"),
        None => Ok(()),
    }
}

fn usage(stats: &Stats, out: &mut impl Write) -> Result<Option<u16>, fmt::Error> {
    for one in &stats.guests.items {
        let (id, name, used, stolen, waiting) = (one.id, &one.name, one.used, one.stolen, one.waiting);
        write!(out, "{id:>2} {name:<14.14} {used:>14} {stolen:>13} {waiting:>13} ")?;
        write!(out, "{:>9} {:>7}\r\n", one.exits, one.memory >> 20)?;
    }
    if stats.guests.next.is_none() {
        let Stats { total, idle, own, gone, .. } = stats;
        write!(
            out,
            "of {total} ticks of all CPUs, {idle} idle, {own} the hypervisor's, {gone} of destroyed guests\r\n"
        )?;
    }
    Ok(stats.guests.next)
}

fn memory(range: &Memory, out: &mut impl Write) -> fmt::Result {
    let Memory { start, bytes, owner } = range;
    let last = start.saturating_add(bytes.saturating_sub(1));
    write!(out, "{start:012x}-{last:012x} {:>10} KiB {owner}\r\n", bytes >> 10)
}

/// An event with its number.
pub fn event(number: u64, event: &Event, out: &mut impl Write) -> fmt::Result {
    write!(out, "{number:>6} {} {event}\r\n", Clock(event.at))
}
