//! What passed, failed and was skipped, as it comes.

use super::TestArgs;
use super::cases::in_parallel;
use crate::emulator::Kind;
use crate::failure::Outcome;
use crate::style;
use std::time::Duration;

/// The count.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    failed: Vec<String>,
    skipped: u64,
}

/// What became of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed, with what there is to say.
    Failed(String),
    /// It was left out, and why.
    Skipped(String),
}

/// A test that has machines of its own.
pub struct Row<'a> {
    name: String,
    test: Box<dyn Fn() -> Outcome<String> + Sync + 'a>,
}

impl<'a> Row<'a> {
    /// `test` says what it measured, if anything.
    pub fn new<T: Told>(name: impl Into<String>, test: impl Fn() -> Outcome<T> + Sync + 'a) -> Self {
        Self { name: name.into(), test: Box::new(move || test().map(Told::told)) }
    }
}

/// A row for each of these machines.
pub fn on_each<'a>(
    what: &str,
    machines: &[Kind],
    test: impl Fn(Kind) -> Outcome<()> + Copy + Sync + 'a,
) -> Vec<Row<'a>> {
    machines.iter().map(|&kind| Row::new(format!("{what} on {kind}"), move || test(kind))).collect()
}

/// What a test has to tell besides that it passed.
pub trait Told {
    /// In words.
    fn told(self) -> String;
}

impl Told for () {
    fn told(self) -> String {
        String::new()
    }
}

impl Told for String {
    fn told(self) -> String {
        self
    }
}

/// Tries those of `rows` that are wanted, several at a time.
pub fn try_all(rows: &[Row<'_>], args: &TestArgs, tally: &mut Tally) {
    let wanted: Vec<&Row<'_>> = rows.iter().filter(|row| args.takes(&row.name)).collect();
    in_parallel(
        &wanted,
        args.jobs(),
        |row| (row.test)(),
        |row, result, took| {
            let verdict = match result {
                Ok(told) => {
                    tally.say(&told);
                    Verdict::Passed
                }
                Err(failure) => Verdict::Failed(failure.to_string()),
            };
            tally.note(&row.name, verdict, took);
        },
    );
}

impl Tally {
    /// Counts one test and prints its line.
    pub fn note(&mut self, name: &str, verdict: Verdict, took: Duration) {
        let seconds = style::dim(&format!("({:.1} s)", took.as_secs_f64()));
        match verdict {
            Verdict::Passed => {
                println!("test {name} ... {} {seconds}", style::good("ok"));
                self.passed += 1;
            }
            Verdict::Failed(why) => {
                println!("test {name} ... {} {seconds}", style::error("FAILED"));
                println!("{}", indent(&why));
                self.failed.push(format!("{name}: {}", why.lines().next().unwrap_or_default()));
            }
            Verdict::Skipped(why) => {
                println!("test {name} ... skipped: {why}");
                self.skipped += 1;
            }
        }
    }

    /// Prints what a test measured.
    pub fn say(&self, text: &str) {
        if !text.is_empty() {
            println!("{}", indent(text));
        }
    }

    /// Counts what another runner counted.
    pub fn add(&mut self, passed: u64, failed: Vec<String>, skipped: u64) {
        self.passed += passed;
        self.failed.extend(failed);
        self.skipped += skipped;
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed.is_empty() && self.skipped == 0
    }

    /// Prints the failures, each with the first line of its reason, and the closing line; whether all is well.
    pub fn close(&self) -> bool {
        println!();
        for name in &self.failed {
            println!("failed: {name}");
        }
        let skipped = if self.skipped == 0 { String::new() } else { format!(", {} skipped", self.skipped) };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed.len());
        self.failed.is_empty() && self.passed > 0
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
