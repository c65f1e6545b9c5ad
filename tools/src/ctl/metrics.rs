//! `hv ctl metrics`: what guests use, for Prometheus.
//!
//! Prometheus, "Exposition formats", text-based format, version 0.0.4, over HTTP/1.1. One request is served at a time, and
//! the machine is asked anew for each.

use super::link::Link;
use super::{AllStats, guests, one, stats};
use crate::failure::{Failure, Outcome};
use bulkhead_control::{Guest, Operation, Response, State, Usage};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Longest head of a request that is read.
const HEAD: u64 = 8192;
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves at `address` without end.
pub fn serve(link: &mut Link, address: SocketAddr) -> Outcome<()> {
    let listener = TcpListener::bind(address).map_err(|e| {
        Failure::usage(format!("can not listen at {address}: {e}")).hint("give --listen another address")
    })?;
    // A wrong key is to be told now, not to Prometheus.
    page(link)?;
    link.hang_up();
    eprintln!("hv: http://{address}/metrics");
    for stream in listener.incoming().flatten() {
        // A client that goes away is no matter of ours.
        let _ = answer(link, &stream);
        link.hang_up();
    }
    Ok(())
}

/// Answers one request.
pub fn answer(link: &mut Link, mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(HEAD)).lines();
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
        stream,
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
    Ok(text(&stats(link)?, &guests(link)?, hertz))
}

/// A metric: its name, what it is, of which kind, and its value.
type Metric = (&'static str, &'static str, &'static str, fn(&Usage, f64) -> f64);

#[expect(clippy::cast_precision_loss, reason = "the format has floating point only")]
const METRICS: [Metric; 7] = [
    ("cpu_seconds_total", "Time that its virtual CPUs ran.", "counter", |one, hertz| one.used as f64 / hertz),
    ("stolen_seconds_total", "Time that they were ready and another ran.", "counter", |one, hertz| {
        one.stolen as f64 / hertz
    }),
    ("waiting_seconds_total", "Time that they waited for an interrupt.", "counter", |one, hertz| {
        one.waiting as f64 / hertz
    }),
    ("exits_total", "How often it left to the hypervisor.", "counter", |one, _| one.exits as f64),
    ("memory_bytes", "Memory that it owns.", "gauge", |one, _| one.memory as f64),
    ("written_bytes_total", "Bytes that it wrote to its devices.", "counter", |one, _| one.written as f64),
    ("read_bytes_total", "Bytes that it read from its devices.", "counter", |one, _| one.read as f64),
];

/// The page for these guests.
#[expect(clippy::cast_precision_loss, reason = "the format has floating point only")]
fn text(stats: &AllStats, guests: &[Guest], hertz: u64) -> String {
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
            let _ = writeln!(out, "bulkhead_{name}{{guest=\"{}\"}} {}", one.name, value(one, hertz));
        }
    }
    head(&mut out, "guest_running", "Whether it runs.", "gauge");
    for guest in guests {
        let runs = u8::from(guest.state == State::Running);
        let _ = writeln!(out, "bulkhead_guest_running{{guest=\"{}\",zone=\"{}\"}} {runs}", guest.name, guest.zone);
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
