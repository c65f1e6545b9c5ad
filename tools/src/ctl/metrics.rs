//! `hv ctl metrics`: what guests use, for Prometheus.
//!
//! Prometheus, "Exposition formats", text-based format, version 0.0.4, over HTTP/1.1. One request is served at a time, and
//! the machine is asked anew for each.

use super::link::Link;
use super::show::Show;
use super::{AllStats, guests, one, stats};
use crate::failure::{Failure, Outcome};
use bulkhead_control::{Exits, Guest, Operation, Refusal, Response, State, Usage};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Longest head of a request that is read.
const HEAD: u64 = 8192;
/// How long a client may take to ask, and to take what it is answered: meanwhile others wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves at `address` without end.
pub fn serve(link: &mut Link, show: &mut Show<'_>, address: SocketAddr) -> Outcome<()> {
    let listener = TcpListener::bind(address).map_err(|e| {
        Failure::usage(format!("can not listen at {address}: {e}")).hint("give --listen another address")
    })?;
    // A wrong key is to be told now, not to Prometheus.
    page(link)?;
    link.hang_up();
    show.serves(&format!("http://{}/metrics", listener.local_addr().unwrap_or(address)))?;
    for stream in listener.incoming().flatten() {
        // A client that goes away is no matter of ours.
        let _ = answer(link, &stream, PATIENCE);
        link.hang_up();
    }
    Ok(())
}

/// A client until its time is up, however little it takes or sends at once.
struct Client<'a>(&'a TcpStream, Instant);

impl Client<'_> {
    fn left(&self) -> std::io::Result<Option<Duration>> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.set_read_timeout(self.left()?)?;
        self.0.read(buffer)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.set_write_timeout(self.left()?)?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Answers one request, of a client that may take so long to ask, and so long to be answered.
pub fn answer(link: &mut Link, stream: &TcpStream, patience: Duration) -> std::io::Result<()> {
    let client = || Client(stream, Instant::now() + patience);
    let mut lines = BufReader::new(client().take(HEAD)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => match page(link) {
            Ok(page) => ("200 OK", page),
            Err(failure) => ("503 Service Unavailable", format!("{failure}\n")),
        },
        (Some("GET"), Some(_)) => ("404 Not Found", "there is /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "there is GET /metrics\n".to_owned()),
    };
    write!(
        client(),
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn page(link: &mut Link) -> Outcome<String> {
    let hertz = match one(link, &Operation::Version, "version")?.response()? {
        Response::Version { hertz, .. } => hertz.max(1),
        other => return Err(super::strange(&other)),
    };
    let stats = stats(link)?;
    let mut exits = Vec::new();
    for one in &stats.guests {
        exits.extend(of_guest(link, &one.name)?);
    }
    Ok(text(&stats, &guests(link)?, &exits, hertz))
}

/// A guest's exits of one kind.
struct Exit {
    guest: String,
    reason: String,
    count: u64,
    ticks: u64,
}

/// A guest's exits by kind; none, if it is gone meanwhile.
fn of_guest(link: &mut Link, guest: &str) -> Outcome<Vec<Exit>> {
    let of = |&(reason, count, ticks): &(&str, u64, u64)| Exit {
        guest: guest.to_owned(),
        reason: reason.to_owned(),
        count,
        ticks,
    };
    match link.call(&Operation::Exits(guest))?.response()? {
        Response::Exits(Exits(kinds)) => Ok(kinds.iter().map(of).collect()),
        Response::Refused(Refusal::NoGuest) => Ok(Vec::new()),
        other => Err(super::strange(&other)),
    }
}

/// A label's value, as the format wants it.
fn label(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// A metric: its name, what it is, of which kind, and its value.
type Metric = (&'static str, &'static str, &'static str, fn(&Usage, f64) -> f64);

#[expect(clippy::cast_precision_loss, reason = "the format has floating point only")]
const METRICS: [Metric; 6] = [
    ("cpu_seconds_total", "Time that its virtual CPUs ran.", "counter", |one, hertz| one.used as f64 / hertz),
    ("stolen_seconds_total", "Time that they were ready and another ran.", "counter", |one, hertz| {
        one.stolen as f64 / hertz
    }),
    ("waiting_seconds_total", "Time that they waited for an interrupt.", "counter", |one, hertz| {
        one.waiting as f64 / hertz
    }),
    ("memory_bytes", "Memory that it owns.", "gauge", |one, _| one.memory as f64),
    ("written_bytes_total", "Bytes that it wrote to its devices.", "counter", |one, _| one.written as f64),
    ("read_bytes_total", "Bytes that it read from its devices.", "counter", |one, _| one.read as f64),
];

/// The page for these guests.
#[expect(clippy::cast_precision_loss, reason = "the format has floating point only")]
fn text(stats: &AllStats, guests: &[Guest], exits: &[Exit], hertz: u64) -> String {
    let hertz = hertz as f64;
    let mut out = String::new();
    let head = |out: &mut String, name: &str, what: &str, kind: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP bulkhead_{name} {what}\n# TYPE bulkhead_{name} {kind}");
    };
    for (name, what, kind, value) in METRICS {
        let name = format!("guest_{name}");
        head(&mut out, &name, what, kind);
        for one in &stats.guests {
            let _ = writeln!(out, "bulkhead_{name}{{guest=\"{}\"}} {}", label(&one.name), value(one, hertz));
        }
    }
    type Value = fn(&Exit, f64) -> f64;
    let by_reason: [(_, _, Value); 2] = [
        ("guest_exits_total", "How often it left to the hypervisor.", |exit, _| exit.count as f64),
        ("guest_exit_seconds_total", "Time that it was served for that.", |exit, hertz| exit.ticks as f64 / hertz),
    ];
    for (name, what, value) in by_reason {
        head(&mut out, name, what, "counter");
        for exit in exits {
            let (guest, reason, value) = (label(&exit.guest), label(&exit.reason), value(exit, hertz));
            let _ = writeln!(out, "bulkhead_{name}{{guest=\"{guest}\",reason=\"{reason}\"}} {value}");
        }
    }
    head(&mut out, "guest_running", "Whether it runs.", "gauge");
    for guest in guests {
        let (name, zone, runs) = (label(&guest.name), label(&guest.zone), u8::from(guest.state == State::Running));
        let _ = writeln!(out, "bulkhead_guest_running{{guest=\"{name}\",zone=\"{zone}\"}} {runs}");
    }
    for (name, what, ticks) in [
        ("cpu_seconds_total", "Time of all processors.", stats.whole.total),
        ("idle_seconds_total", "Time that no guest had.", stats.whole.idle),
        ("own_seconds_total", "Time that the hypervisor used for no guest.", stats.whole.own),
        ("gone_seconds_total", "Time that guests used that are destroyed.", stats.whole.gone),
    ] {
        head(&mut out, name, what, "counter");
        let _ = writeln!(out, "bulkhead_{name} {}", ticks as f64 / hertz);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Exit, label, text};
    use crate::ctl::AllStats;
    use bulkhead_control::{Guest, Name, Source, State, Stats, Usage};
    use std::collections::BTreeSet;

    fn page() -> String {
        let name = |text: &str| Name::try_from(text).unwrap();
        let used = |name| Usage { name, used: 2_000_000, ..Usage::default() };
        let guests = vec![used(name("a")), used(name("b"))];
        let guest = Guest {
            id: 1,
            name: name("a"),
            zone: name("z"),
            state: State::Paused,
            vcpus: 1,
            memory: 1 << 20,
            origin: None,
            creator: Source::Manifest,
            started: None,
            lease: None,
        };
        let exit = |reason: &str, count, ticks| Exit { guest: "a".to_owned(), reason: reason.to_owned(), count, ticks };
        text(
            &AllStats { whole: Stats { gone: 500_000, ..Stats::default() }, guests },
            &[guest],
            &[exit("port", 4, 500_000), exit("halt", 1, 10)],
            1_000_000,
        )
    }

    #[test]
    fn exits_are_told_by_reason_with_their_time() {
        let page = page();
        for line in [
            "bulkhead_guest_exits_total{guest=\"a\",reason=\"port\"} 4\n",
            "bulkhead_guest_exit_seconds_total{guest=\"a\",reason=\"port\"} 0.5\n",
            "bulkhead_guest_exits_total{guest=\"a\",reason=\"halt\"} 1\n",
            "bulkhead_guest_cpu_seconds_total{guest=\"b\"} 2\n",
            "bulkhead_gone_seconds_total 0.5\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
    }

    /// Prometheus, "Exposition formats": one HELP and one TYPE line of each metric, its samples in one group behind them.
    #[test]
    fn each_metric_is_told_of_once_and_counters_are_called_totals() {
        let (mut told, mut samples) = (BTreeSet::new(), BTreeSet::new());
        let mut about = ("", "");
        let page = page();
        assert!(page.ends_with('\n'));
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, what) = help.split_once(' ').unwrap();
                assert!(told.insert(name) && what.ends_with('.'), "{line}");
                about = (name, "");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                let right = if name.ends_with("_total") { "counter" } else { "gauge" };
                assert!(about == (name, "") && kind == right, "{line}");
                about.1 = kind;
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                assert!(about.0 == name && !about.1.is_empty() && samples.insert(series), "{line}");
                assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            }
        }
        assert!(told.iter().all(|name| samples.iter().any(|series| series.split('{').next() == Some(name))), "{page}");
    }

    #[test]
    fn labels_can_not_end_early() {
        assert_eq!(label("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
