//! The conformance suite on real processors: the image of `tests/conformance/image` on each machine.
//!
//! Its lines are read from the log: each rule is a test, and so is each way of breaking the backend, which some rule must
//! catch. That the suite came to its end is one more.

use super::TestArgs;
use super::tally::{Tally, Verdict};
use crate::cargo;
use crate::emulator::Kind;
use crate::failure::Outcome;
use crate::machine::Builder;
use crate::manifest::{self, Machine};
use crate::pack;
use crate::session::{Finish, Report, Session, View, Wire};
use crate::symbols;
use crate::workspace::Workspace;
use std::time::{Duration, Instant};

const MANIFEST: &str = "tests/conformance/machine.toml";
const MACHINES: [(Kind, &str); 2] =
    [(Kind::Bochs, "conformance on Bochs (VT-x)"), (Kind::Qemu, "conformance on QEMU (SVM)")];
const TIMEOUT: Duration = Duration::from_secs(180);
/// Lines of the log that a failure shows.
const SHOWN: usize = 10;

/// Runs the suite on each machine.
pub fn run(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Outcome<()> {
    let wanted: Vec<_> = MACHINES.into_iter().filter(|(_, name)| args.takes(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let builder = Builder::with(workspace, cargo::conformance(workspace)?)?;
    let machine = manifest::read(&workspace.path(MANIFEST))?;
    pack::resolve_all(workspace, &machine)?;
    for (kind, name) in wanted {
        let start = Instant::now();
        let mut watch = Watch::default();
        let verdict = follow(&builder, kind, &machine, &mut watch);
        let log = workspace.build("logs")?.join(format!("{name}.log"));
        let _ = std::fs::write(log, watch.log.join("\n"));
        watch.count(name, tally);
        let verdict = verdict.unwrap_or_else(|failure| Verdict::Failed(failure.to_string()));
        tally.note(name, verdict, start.elapsed());
    }
    Ok(())
}

fn follow(builder: &Builder, kind: Kind, machine: &Machine, watch: &mut Watch) -> Outcome<Verdict> {
    let (session, _) = Session::new(builder.start(kind, machine)?);
    let report = session.follow(watch, Some(TIMEOUT));
    let wrong = watch.wrong(&report, builder);
    Ok(if wrong.is_empty() { Verdict::Passed } else { Verdict::Failed(wrong.join("\n")) })
}

/// What the suite has said.
#[derive(Debug, Default)]
struct Watch {
    log: Vec<String>,
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<String>,
    /// The ways of breaking the backend, and what caught them.
    ways: Vec<String>,
}

impl Watch {
    fn line(&mut self, line: &str) {
        self.log.push(line.to_owned());
        let Some(said) = line.strip_prefix("conformance ") else { return };
        match said.split_once(' ') {
            Some(("kept", _)) => self.passed += 1,
            Some(("skipped", rule)) => self.skipped.push(rule.to_owned()),
            Some(("way", way)) if way.contains(" caught by ") => {
                self.passed += 1;
                self.ways.push(way.to_owned());
            }
            _ => self.failed.push(said.to_owned()),
        }
    }

    /// Counts the rules and ways, and shows those that there is something to say of.
    fn count(&self, name: &str, tally: &mut Tally) {
        self.ways.iter().for_each(|way| println!("  {way}"));
        for rule in &self.skipped {
            tally.note(name, Verdict::Skipped(rule.clone()), Duration::ZERO);
        }
        self.failed.iter().for_each(|rule| println!("  {rule}"));
        println!("{name}: {} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
        tally.add(self.passed, self.failed.iter().map(|rule| format!("{name}: {rule}")).collect(), 0);
    }

    /// Why it did not come to its end, or not well.
    fn wrong(&self, report: &Report, builder: &Builder) -> Vec<String> {
        let mut wrong = Vec::new();
        match &report.finish {
            Finish::Done => {}
            Finish::Timeout => wrong.push(format!("it hangs: not over after {} s", TIMEOUT.as_secs())),
            Finish::Panic(lines) => {
                let loader = symbols::load(builder.image());
                wrong.extend(lines.iter().map(|line| symbols::symbolize(line, loader.as_ref())));
            }
            other => wrong.push(format!("the machine ended with {other:?}")),
        }
        // With a rule that is not kept the suite ends badly, and that rule is counted already.
        if report.ends.len() != 1 || self.failed.is_empty() && report.ends.iter().any(|(_, _, end)| !end.is_good()) {
            wrong.push(format!("the suite ended with {:?}", report.ends));
        }
        wrong.extend(report.audit_failures.iter().map(|text| format!("the isolation audit failed: {text}")));
        if self.passed == 0 || self.ways.is_empty() || report.audits == 0 {
            wrong.push("no rule was asked, no way was tried, or no audit was made".to_owned());
        }
        if !wrong.is_empty() {
            let last = self.log.len().saturating_sub(SHOWN);
            wrong.extend(self.log.iter().skip(last).map(|line| format!("| {line}")));
        }
        wrong
    }
}

impl View for Watch {
    fn console(&mut self, _guest: u8, _bytes: &[u8], _wire: &mut Wire) {}

    fn log(&mut self, line: &str) {
        self.line(line);
    }
}

#[cfg(test)]
mod tests {
    use super::{MANIFEST, Watch};
    use crate::manifest;
    use crate::workspace::Workspace;

    #[test]
    fn the_machine_can_be_made() {
        let machine = manifest::read(&Workspace::find().unwrap().path(MANIFEST)).unwrap();
        assert!(machine.guests.len() == 1 && machine.guests[0].lazy);
    }

    #[test]
    fn what_is_neither_kept_nor_skipped_nor_caught_has_failed() {
        let mut watch = Watch::default();
        for line in [
            "Bulkhead 0.1.0",
            "conformance kept one",
            "conformance skipped two: why",
            "conformance broken three: how",
            "conformance way Timer caught by one, two",
            "conformance way Window unnoticed",
            "conformance",
            "conformance ?",
        ] {
            watch.line(line);
        }
        assert_eq!((watch.passed, watch.log.len()), (2, 8));
        assert_eq!(watch.skipped, ["two: why"]);
        assert_eq!(watch.failed, ["broken three: how", "way Window unnoticed", "?"]);
        assert_eq!(watch.ways, ["Timer caught by one, two"]);
    }
}
