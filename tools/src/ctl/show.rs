//! What comes back from the machine, for people or as JSON.

use super::AllStats;
use crate::failure::{Failure, Outcome};
use crate::style::harmless;
use bulkhead_control::{Event, Exits, Guest, Memory, Moment, Response};
use serde_json::{Value, json};
use std::io::Write;

/// Columns of a row of the list.
const LIST: u16 = 100;

/// Where it goes.
pub struct Show<'a> {
    json: bool,
    /// Columns that rows should fit, if there is a terminal.
    pub columns: Option<u16>,
    /// Standard output.
    pub out: &'a mut dyn Write,
}

/// Year to millisecond in UTC, as RFC 3339 writes it.
pub fn utc(moment: Moment) -> String {
    let (days, ms) = (moment.unix_ms / 86_400_000, moment.unix_ms % 86_400_000);
    // Years begin in March, so that the day that is sometimes there is the last: 400 of them have 146,097 days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// Two digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn moment(at: Moment) -> Value {
    json!({ "time": utc(at), "ticks": at.ticks })
}

/// What went wrong, as JSON.
pub fn failure(failure: &Failure) -> Value {
    json!({ "error": failure.message, "hint": failure.hint, "status": failure.status })
}

/// A guest as JSON.
fn guest(guest: &Guest) -> Value {
    json!({
        "id": guest.id,
        "name": guest.name,
        "zone": guest.zone,
        "state": guest.state.to_string(),
        "vcpus": guest.vcpus,
        "memory": guest.memory,
        "origin": guest.origin.map(|origin| hex(&origin)),
        "creator": guest.creator.to_string(),
        "started": guest.started.map(moment),
        "lease": guest.lease,
    })
}

impl<'a> Show<'a> {
    /// To `out`.
    pub fn new(json: bool, out: &'a mut dyn Write) -> Self {
        Self { json, columns: None, out }
    }

    fn line(&mut self, text: impl std::fmt::Display) -> Outcome<()> {
        let written = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
        written.map_err(|e| Failure::unwritten(&e))
    }

    /// One answer.
    pub fn response(&mut self, response: &Response<'_>) -> Outcome<()> {
        let (text, value) = match response {
            Response::Done => ("done".to_owned(), json!({ "result": "done" })),
            Response::Unchanged => ("it is so already".to_owned(), json!({ "result": "unchanged" })),
            Response::Asked => {
                let text = "asked; `events` tells when it has ended, and `kill` does not wait";
                (text.to_owned(), json!({ "result": "asked" }))
            }
            Response::Created(id) => (format!("guest {id}"), json!({ "result": "created", "id": id })),
            Response::Version { version, backend, cpus, hertz } => (
                format!(
                    "Bulkhead {} with {} on {cpus} CPUs, {} kHz",
                    harmless(version),
                    harmless(backend),
                    hertz / 1000
                ),
                json!({ "version": version, "backend": backend, "cpus": cpus, "hertz": hertz }),
            ),
            Response::Audit { tables, frames, violations } => (
                format!("{tables} page tables, {frames} frames, {violations} violations"),
                json!({ "tables": tables, "frames": frames, "violations": violations }),
            ),
            other => return Err(super::strange(other)),
        };
        if self.json { self.line(value) } else { self.line(text) }
    }

    /// The list of guests.
    pub fn guests(&mut self, guests: &[Guest]) -> Outcome<()> {
        if self.json {
            return self.line(Value::from(guests.iter().map(guest).collect::<Vec<_>>()));
        }
        // Origin and date are left out where they do not fit.
        let (origins, date) = if self.columns.is_some_and(|columns| columns < LIST) { (0, 11) } else { (12, 0) };
        let origin_of = |one: &Guest| one.origin.map_or_else(|| "-".to_owned(), |origin| hex(&origin));
        let cell = |text: &str| if origins == 0 { String::new() } else { format!(" {text:<origins$.origins$}") };
        self.line(format!(
            "{:>2} {:<16} {:<10} {:<8} {:>5} {:>7} {:<8}{} started",
            "id",
            "name",
            "zone",
            "state",
            "vcpus",
            "MiB",
            "creator",
            cell("origin")
        ))?;
        for one in guests {
            let started = one.started.map_or_else(|| "-".to_owned(), utc);
            let started = started.get(date..).unwrap_or(&started);
            let lease = one.lease.map_or_else(String::new, |seconds| format!(", for {seconds} s"));
            let (id, name, zone, origin) = (one.id, harmless(&one.name), harmless(&one.zone), cell(&origin_of(one)));
            self.line(format!(
                "{id:>2} {name:<16} {zone:<10} {:<8} {:>5} {:>7} {:<8}{origin} {started}{lease}",
                one.state,
                one.vcpus,
                one.memory >> 20,
                one.creator
            ))?;
        }
        Ok(())
    }

    /// What guests have used.
    pub fn stats(&mut self, stats: &AllStats) -> Outcome<()> {
        let whole = &stats.whole;
        if self.json {
            return self.line(json!({
                "at": moment(whole.at), "total": whole.total, "idle": whole.idle, "own": whole.own, "gone": whole.gone,
                "guests": stats.guests,
            }));
        }
        self.line(format!(
            "{:>2} {:<16} {:>16} {:>14} {:>14} {:>10} {:>7} {:>10} {:>10}",
            "id", "name", "ticks used", "stolen", "waiting", "exits", "MiB", "written", "read"
        ))?;
        for one in &stats.guests {
            let name = harmless(&one.name);
            self.line(format!(
                "{:>2} {name:<16} {:>16} {:>14} {:>14} {:>10} {:>7} {:>10} {:>10}",
                one.id,
                one.used,
                one.stolen,
                one.waiting,
                one.exits,
                one.memory >> 20,
                one.written,
                one.read
            ))?;
        }
        let bulkhead_control::Stats { at, total, idle, own, gone, .. } = whole;
        self.line(format!(
            "of {total} ticks of all CPUs, {idle} idle, {own} the hypervisor's, {gone} of destroyed guests, at {}",
            utc(*at)
        ))
    }

    /// Exits of a guest.
    pub fn exits(&mut self, response: &Response<'_>) -> Outcome<()> {
        let Response::Exits(Exits(kinds)) = response else { return Err(super::strange(response)) };
        if self.json {
            let kind = |(name, count, ticks): &(&str, u64, u64)| json!({"exit": name, "count": count, "ticks": ticks});
            return self.line(Value::from(kinds.iter().map(kind).collect::<Vec<_>>()));
        }
        for (name, count, ticks) in kinds {
            self.line(format!("{:<12} {count:>12} exits {ticks:>16} ticks", harmless(name)))?;
        }
        Ok(())
    }

    /// A range of memory.
    pub fn memory(&mut self, range: &Memory) -> Outcome<()> {
        let Memory { start, bytes, owner } = range;
        if self.json {
            return self.line(json!({ "start": start, "bytes": bytes, "owner": owner }));
        }
        let last = start.saturating_add(bytes.saturating_sub(1));
        self.line(format!("{start:012x}-{last:012x} {:>10} KiB {}", bytes >> 10, harmless(owner)))
    }

    /// An event with its sequence number.
    pub fn event(&mut self, sequence: u64, event: &Event) -> Outcome<()> {
        if self.json {
            return self.line(json!({
                "sequence": sequence,
                "time": utc(event.at),
                "ticks": event.at.ticks,
                "guest": event.guest,
                "name": event.name,
                "kind": event.kind,
                "text": event.to_string(),
            }));
        }
        self.line(format!("{sequence:>6} {} {}", utc(event.at), harmless(&event.to_string())))
    }

    /// Where something can be asked for from now on.
    pub fn serves(&mut self, url: &str) -> Outcome<()> {
        if self.json {
            return self.line(json!({ "serves": url }));
        }
        eprintln!("hv: {url}");
        Ok(())
    }

    /// What is to be said of events beside them.
    pub fn note(&mut self, name: &str, text: &str, number: u64) -> Outcome<()> {
        if self.json { self.line(json!({ name: number })) } else { self.line(format!("-- {text}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::utc;
    use bulkhead_control::Moment;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix_ms, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_001, "2000-03-01T00:00:00.001Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(utc(Moment { ticks: 0, unix_ms }), want);
        }
    }
}
