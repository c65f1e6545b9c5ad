//! Exits, measured by the guest `bench_exits` of the suite: it prints `bench NAME TICKS`.

use super::{Measured, expect_good};
use crate::emulator::Kind;
use crate::event::Event;
use crate::failure::{Failure, Outcome};
use crate::frames::Lines;
use crate::machine::Builder;
use crate::run::{OneGuest, one_guest};
use crate::session::{Session, View, Wire};
use crate::workspace::Workspace;
use std::time::Duration;

const GUEST: &str = "@suite/bench_exits";
const TIMEOUT: Duration = Duration::from_secs(120);

/// Runs the guest.
pub fn measure(workspace: &Workspace, kind: Kind) -> Outcome<Vec<Measured>> {
    let args = OneGuest { lazy: true, memory: Some("32M".to_owned()), ..OneGuest::default() };
    let machine = one_guest(GUEST, &args)?;
    let running = Builder::new(workspace)?.start(kind, &machine)?;
    let (session, _) = Session::new(running);
    let mut results = Results::default();
    let report = session.follow(&mut results, Some(TIMEOUT));
    expect_good(&report, "the benchmark")?;
    let all: Vec<_> = results.all.into_iter().chain(report.bench).collect();
    if all.is_empty() {
        return Err(Failure::failed("the benchmark printed no result").hint(format!("see ./hv run --kernel {GUEST}")));
    }
    Ok(all.into_iter().map(|(name, ticks)| Measured::ticks(name, ticks)).collect())
}

#[derive(Default)]
struct Results {
    lines: Lines,
    all: Vec<(String, u64)>,
}

impl View for Results {
    fn console(&mut self, _guest: u8, bytes: &[u8], _wire: &mut Wire) {
        let all = &mut self.all;
        self.lines.push(bytes, |line| {
            if let Some(Event::Bench { name, ticks }) = line.strip_prefix("bench ").and_then(Event::of_bench) {
                all.push((name, ticks));
            }
        });
    }

    fn log(&mut self, _line: &str) {}
}
