//! The targets with libFuzzer under them: building, running, reading what it says.
//!
//! Only the crates that are fuzzed count coverage, not the libraries below them: more edges would be more to follow and
//! less to find. Comparisons are traced where files and magic numbers are read.

use crate::cargo::{BOOTSTRAP, cargo};
use crate::failure::{Failure, Outcome};
use crate::workspace::Workspace;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGE: &str = "bulkhead-fuzz";
const TARGET: &str = "BULKHEAD_FUZZ_TARGET";
/// Crates that count coverage, and whether their comparisons are traced too.
const COVERED: [(&str, bool); 11] = [
    ("types", true),
    ("core", true),
    ("boot", true),
    ("paging", false),
    ("devices", false),
    ("emulate", false),
    ("sched", false),
    ("svm", false),
    ("vmx", false),
    ("fuzz", false),
    ("arch", false),
];
const COVERAGE: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];
const COMPARISONS: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";
/// Seconds after which one execution counts as endless.
const PATIENCE: u32 = 10;
/// How often progress is shown.
const PULSE: Duration = Duration::from_secs(10);

/// The program.
pub struct Engine<'a> {
    workspace: &'a Workspace,
    program: PathBuf,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Ran {
    /// Executions, those of the corpus included.
    pub executions: u64,
    /// What was found, if anything.
    pub crash: Option<Crash>,
}

/// An input that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// What the target said.
    pub message: Vec<String>,
    /// Where the input is, if it could be saved.
    pub input: Option<PathBuf>,
}

impl Crash {
    /// For a person: the message, the input, the command that shows it again.
    pub fn text(&self, target: &str) -> String {
        let mut text = self.message.join("\n");
        if let Some(input) = &self.input {
            let input = input.display();
            text.push_str(&format!("\ninput: {input}\nagain: ./hv fuzz {target} --replay {input}"));
        }
        text
    }
}

impl<'a> Engine<'a> {
    /// Builds it.
    pub fn build(workspace: &'a Workspace) -> Outcome<Self> {
        let mut command = cargo(workspace);
        command.env(BOOTSTRAP.0, BOOTSTRAP.1).args(["build", "-Zprofile-rustflags", "--profile", "fuzz"]);
        command.args(["-p", PACKAGE, "--features", "engine"]);
        for (name, comparisons) in COVERED {
            let flags: Vec<_> = COVERAGE.into_iter().chain(comparisons.then_some(COMPARISONS)).collect();
            command.args(["--config", &format!("profile.fuzz.package.bulkhead-{name}.rustflags={flags:?}")]);
        }
        let status = command.stdout(std::io::stderr()).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(Failure::failed("building the fuzz targets failed").hint("the compiler's errors are above"));
        }
        Ok(Self { workspace, program: workspace.target().join("fuzz").join(PACKAGE) })
    }

    /// Runs `target` for `time`, or `runs` executions if that comes first. New inputs go to the target's folder `found`
    /// below `build/fuzz`; `progress` is told how it goes.
    pub fn run(
        &self,
        target: &str,
        time: Duration,
        runs: Option<u64>,
        found: &str,
        progress: &mut dyn FnMut(&str),
    ) -> Outcome<Ran> {
        let (kept, longest) = self.unpack(target)?;
        let folder = self.folder(target, found)?;
        let prefix = self.folder(target, "crashes")?.join("input-");
        let mut command = self.command(target);
        command.arg(&folder).arg(&kept).args(["-print_final_stats=1", &format!("-timeout={PATIENCE}")]);
        command.arg(format!("-max_len={longest}")).arg(format!("-max_total_time={}", time.as_secs().max(1)));
        command.arg(format!("-artifact_prefix={}", prefix.display()));
        if let Some(runs) = runs {
            command.arg(format!("-runs={runs}"));
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Failure::machine(format!("can not start {}: {e}", self.program.display())))?;
        let mut heard = Heard::default();
        let mut shown = Instant::now();
        let lines = child.stderr.take().into_iter().flat_map(|err| BufReader::new(err).split(b'\n'));
        for line in lines.map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            heard.line(&line);
            if let Some(counts) = counts(&line).filter(|_| shown.elapsed() > PULSE) {
                progress(&counts);
                shown = Instant::now();
            }
        }
        let well = child.wait().is_ok_and(|status| status.success());
        Ok(heard.ran(well))
    }

    /// Runs `target` on one input, for a person to see; whether all is well.
    pub fn replay(&self, target: &str, input: &Path) -> Outcome<bool> {
        if !input.is_file() {
            return Err(Failure::usage(format!("there is no file {}", input.display())));
        }
        let status = self.command(target).arg(input).status();
        Ok(status.is_ok_and(|status| status.success()))
    }

    /// Makes the target's corpus of what it has and what was found: the fewest inputs that reach all that they reach.
    pub fn keep(&self, target: &str) -> Outcome<()> {
        let (kept, _) = self.unpack(target)?;
        let merged = self.empty(target, "merged")?;
        let mut merge = self.command(target);
        merge.args(["-merge=1", "-set_cover_merge=1"]).arg(&merged).arg(kept).arg(self.folder(target, "found")?);
        let merged_well = merge.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        let packed = || {
            self.command(target)
                .env("BULKHEAD_FUZZ_PACK", &merged)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        if merged_well && packed() { Ok(()) } else { Err(Failure::failed(format!("can not merge {target}'s corpus"))) }
    }

    /// Unpacks the target's corpus; the folder, and the longest input worth trying.
    fn unpack(&self, target: &str) -> Outcome<(PathBuf, u32)> {
        let kept = self.empty(target, "kept")?;
        let output = self.command(target).env("BULKHEAD_FUZZ_UNPACK", &kept).output();
        let said = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        let longest = said.and_then(|said| String::from_utf8(said).ok()?.trim().parse().ok());
        let longest = longest.ok_or_else(|| Failure::failed(format!("can not unpack {target}'s corpus")))?;
        Ok((kept, longest))
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.workspace.root()).env(TARGET, target).env("RUST_BACKTRACE", "0");
        command
    }

    fn folder(&self, target: &str, name: &str) -> Outcome<PathBuf> {
        self.workspace.build(&format!("fuzz/{target}/{name}"))
    }

    /// The same folder, without what was in it.
    pub fn empty(&self, target: &str, name: &str) -> Outcome<PathBuf> {
        let _ = std::fs::remove_dir_all(self.folder(target, name)?);
        self.folder(target, name)
    }
}

/// What libFuzzer has said.
#[derive(Debug, Default)]
struct Heard {
    executions: u64,
    message: Vec<String>,
    panicked: bool,
    input: Option<PathBuf>,
}

impl Heard {
    fn line(&mut self, line: &str) {
        const STATISTIC: &str = "stat::number_of_executed_units:";
        const SAVED: &str = "Test unit written to ";
        if let Some(count) = line.strip_prefix(STATISTIC).and_then(|count| count.trim().parse().ok()) {
            self.executions = count;
        } else if let Some((_, path)) = line.split_once(SAVED) {
            self.input = Some(path.trim().into());
        } else if line.starts_with("==") || line.starts_with("note: ") {
            self.panicked = false;
            if line.contains("ERROR: libFuzzer") {
                self.message.push(line.to_owned());
            }
        } else if line.starts_with("thread '") && line.contains(" panicked at ") || self.panicked {
            self.panicked = true;
            self.message.push(line.to_owned());
        }
    }

    fn ran(self, well: bool) -> Ran {
        let Self { executions, mut message, input, .. } = self;
        if message.is_empty() {
            message.push("the fuzzer did not end well".to_owned());
        }
        Ran { executions, crash: (!well).then_some(Crash { message, input }) }
    }
}

/// What a line like `#1234 NEW cov: 5 ft: 6 corp: 7/8Kb ... exec/s: 9 ...` says, for a person.
fn counts(line: &str) -> Option<String> {
    let mut words = line.strip_prefix('#')?.split_whitespace();
    let executions: u64 = words.next()?.parse().ok()?;
    let after = |name: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).map(|word| word.split('/').next().unwrap_or(word).to_owned())
    };
    let (edges, inputs, rate) = (after("cov:")?, after("corp:")?, after("exec/s:")?);
    Some(format!("{executions} executions ({rate} a second), {edges} edges, {inputs} inputs"))
}

#[cfg(test)]
mod tests {
    use super::{Heard, counts};

    #[test]
    fn progress_is_read() {
        let line = "#2422479\tREDUCE cov: 1135 ft: 6534 corp: 2917/398Kb lim: 512 exec/s: 49438 rss: 33Mb L: 115/512";
        assert_eq!(counts(line).as_deref(), Some("2422479 executions (49438 a second), 1135 edges, 2917 inputs"));
        assert_eq!(counts("INFO: Loaded 1 modules"), None);
    }

    #[test]
    fn a_crash_is_read() {
        let mut heard = Heard::default();
        for line in [
            "#5\tNEW cov: 1",
            "thread '<unnamed>' (1) panicked at tests/fuzz/src/x.rs:1:2:",
            "it is broken",
            "note: run with `RUST_BACKTRACE=1`",
            "==7== ERROR: libFuzzer: deadly signal",
            "artifact_prefix='a/b-'; Test unit written to a/b-crash-1",
            "stat::number_of_executed_units: 42",
        ] {
            heard.line(line);
        }
        let ran = heard.ran(false);
        let crash = ran.crash.unwrap();
        assert_eq!((ran.executions, crash.message.len()), (42, 3));
        assert!(crash.text("x").ends_with("again: ./hv fuzz x --replay a/b-crash-1"), "{}", crash.text("x"));
    }
}
