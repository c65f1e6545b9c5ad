//! What needs no machine: format, lints, and the crates' own tests on the host.

use super::tally::{Tally, Verdict};
use crate::cargo::{QUIET, cargo, hypervisor_command};
use crate::workspace::Workspace;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs all of it.
pub fn run(workspace: &Workspace, quick: bool, tally: &mut Tally) {
    check(tally, "format", "cargo-fmt", cargo(workspace).args(["fmt", "--all", "--check"]));
    let mut clippy = cargo(workspace);
    clippy.args(["clippy", "--all-targets", "--", "-D", "warnings"]);
    check(tally, "clippy", "cargo-clippy", &mut clippy);
    if !quick {
        let mut clippy = hypervisor_command(workspace, "clippy");
        clippy.args(["-p", "bulkhead-conformance-image", "--", "-D", "warnings"]);
        check(tally, "clippy of the images", "cargo-clippy", &mut clippy);
    }
    // Built first, since what makes the build quiet would take the names of the tests away too.
    let mut build = cargo(workspace);
    check(tally, "host tests build", "cargo", build.args(["test", "--no-run"]));
    cargo_test(tally, cargo(workspace).args(["test", "--no-fail-fast"]));
    show_measures(cargo(workspace).args(["test", "-p", "bulkhead-tests", "--", "--nocapture", "--test-threads=1"]));
}

/// A command that passes if it ends well; skipped if its program is not there.
fn check(tally: &mut Tally, name: &str, program: &str, command: &mut Command) {
    let start = Instant::now();
    let there = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    let verdict = if there {
        match command.output() {
            Ok(output) if output.status.success() => Verdict::Passed,
            Ok(output) => Verdict::Failed(
                [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat(),
            ),
            Err(e) => Verdict::Failed(e.to_string()),
        }
    } else {
        Verdict::Skipped(format!("there is no {program}"))
    };
    tally.note(name, verdict, start.elapsed());
}

/// Runs a `cargo test` and counts each test of it.
fn cargo_test(tally: &mut Tally, command: &mut Command) {
    let start = Instant::now();
    let mut child = match command.env_remove(QUIET).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(e) => return tally.note("host tests", Verdict::Failed(e.to_string()), start.elapsed()),
    };
    let mut counted = Counted::default();
    let mut all = Vec::new();
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
        counted.line(&line);
        all.push(line);
    }
    let well = child.wait().is_ok_and(|status| status.success());
    if !well {
        all.iter().filter(|line| !is_noise(line)).for_each(|line| println!("{line}"));
        if counted.failed.is_empty() {
            counted.failed.push("host tests (cargo test did not end well)".to_owned());
        }
    }
    let (passed, failed) = (counted.passed, counted.failed.len());
    println!("host tests: {passed} passed, {failed} failed in {:.1} s", start.elapsed().as_secs_f64());
    tally.add(counted.passed, counted.failed, counted.ignored);
}

/// Shows what tests print that measure the tree: they have been counted already.
fn show_measures(command: &mut Command) {
    let Ok(output) = command.env_remove(QUIET).stderr(Stdio::null()).output() else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    // The first line that a test prints follows its name.
    let lines = text.lines().map(|line| match line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
        Some((_, said)) => said,
        None => line,
    });
    lines.filter(|line| !is_noise(line) && !matches!(line.trim(), "ok" | "FAILED")).for_each(|line| println!("{line}"));
}

fn is_noise(line: &str) -> bool {
    line.trim().is_empty()
        || line.starts_with("running ")
        || line.starts_with("test result: ok")
        || (line.starts_with("test ") && line.ends_with("... ok"))
}

/// Counts of the `test result:` lines, and the names of failed tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    passed: u64,
    failed: Vec<String>,
    ignored: u64,
}

impl Counted {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed.push(name.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let counts = result.split_once(". ").map_or(result, |(_, counts)| counts);
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (count, what) = (words.next().and_then(|w| w.parse::<u64>().ok()), words.next());
            match (count, what) {
                (Some(n), Some("passed")) => self.passed += n,
                (Some(n), Some("ignored")) => self.ignored += n,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counted;

    #[test]
    fn results_of_several_crates_add_up() {
        let mut counted = Counted::default();
        for line in [
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            counted.line(line);
        }
        assert_eq!(counted, Counted { passed: 41, failed: vec!["a::c".into()], ignored: 2 });
    }
}
