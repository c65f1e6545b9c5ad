//! `hv bench`: what exits and a Linux boot cost, in ticks.

pub mod boot;
pub mod exits;

use crate::emulator::{self, Kind, On};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::session::{Finish, Report};
use crate::workspace::Workspace;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `hv bench`.
#[derive(Args, Debug, Clone, Default)]
pub struct BenchArgs {
    /// What to measure; everything if it is not said.
    #[arg(value_enum)]
    what: Option<What>,
    /// Write the results to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to measure.
    #[arg(long, value_enum, default_value = "bochs")]
    on: On,
    /// Measure Linux without us only.
    #[arg(long, hide = true)]
    native_only: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Ticks of each exit class, net of the loop.
    Exits,
    /// Ticks from kernel entry to the first program of Linux, with and without us.
    Boot,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// How much it was.
    pub value: f64,
    /// Of what: `ticks` or `ratio`.
    pub unit: &'static str,
}

impl Measured {
    /// A number of ticks.
    pub fn ticks(name: impl Into<String>, ticks: u64) -> Self {
        Self { name: name.into(), value: ticks as f64, unit: "ticks" }
    }
}

/// Measures and prints.
pub fn bench(args: &BenchArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let kind = emulator::choose(args.on)?;
    let mut all = Vec::new();
    if args.what != Some(What::Boot) && !args.native_only {
        let measured = exits::measure(&workspace, kind)?;
        show("exits, net of the loop", &measured);
        all.extend(measured);
    }
    if args.what != Some(What::Exits) {
        let measured = boot::measure(&workspace, kind, args.native_only)?;
        show("Linux, kernel entry to /init", &measured);
        all.extend(measured);
    }
    if let Some(path) = &args.json {
        files::write(path, json(kind, &all).as_bytes())?;
    }
    Ok(crate::failure::OK)
}

/// Prints the numbers.
pub fn show(title: &str, measured: &[Measured]) {
    println!("{title}");
    for Measured { name, value, unit } in measured {
        match *unit {
            "ticks" => println!("  {name:<24} {value:>14.0} ticks"),
            _ => println!("  {name:<24} {value:>14.4}"),
        }
    }
}

/// Names are of letters, digits, blanks and dashes, so that nothing is to be escaped but what a guest may have written.
fn json(kind: Kind, all: &[Measured]) -> String {
    let plain = |name: &str| name.replace(|c: char| c.is_control() || c == '"' || c == '\\', "_");
    let rows: Vec<String> = all
        .iter()
        .map(|m| format!("    {{\"name\": \"{}\", \"value\": {}, \"unit\": \"{}\"}}", plain(&m.name), m.value, m.unit))
        .collect();
    format!("{{\n  \"on\": \"{kind}\",\n  \"results\": [\n{}\n  ]\n}}\n", rows.join(",\n"))
}

/// That the machine got where it was meant to get, or what happened instead.
fn expect_good(report: &Report, what: &str) -> Outcome<()> {
    match &report.finish {
        Finish::Done | Finish::Quit if report.status() == 0 => Ok(()),
        Finish::Preflight(message) => Err(Failure::machine(message.clone())),
        finish => Err(Failure::failed(format!("{what} did not end well: {finish:?}, {:?}", report.ends))
            .hint("run the same with ./hv run to see its console")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Measured, json};
    use crate::emulator::Kind;

    #[test]
    fn json_names_each_number_and_its_unit() {
        let ratio = Measured { name: "a \"ratio\"".into(), value: 1.25, unit: "ratio" };
        let text = json(Kind::Bochs, &[Measured::ticks("cpuid", 240), ratio]);
        let want = "{\n  \"on\": \"bochs\",\n  \"results\": [\n    \
                    {\"name\": \"cpuid\", \"value\": 240, \"unit\": \"ticks\"},\n    \
                    {\"name\": \"a _ratio_\", \"value\": 1.25, \"unit\": \"ratio\"}\n  ]\n}\n";
        assert_eq!(text, want);
    }
}
