//! What things may cost: the numbers of `tests/budgets.toml`, measured as `hv bench` does.

use super::TestArgs;
use super::tally::{Tally, Verdict};
use crate::bench::{self, Measured};
use crate::emulator::Kind;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::workspace::Workspace;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Instant;

const FILE: &str = "tests/budgets.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budgets {
    exits: BTreeMap<String, f64>,
    boot: BTreeMap<String, f64>,
}

/// Measures on Bochs and compares; other machines have other numbers.
pub fn run(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Outcome<()> {
    if args.quick {
        return Ok(());
    }
    let budgets: Budgets = toml::from_str(&files::read_text(&workspace.path(FILE))?)
        .map_err(|e| Failure::usage(format!("{FILE}: {e}")).hint("it has a table [exits] and a table [boot]"))?;
    if args.takes("cost of exits") {
        let start = Instant::now();
        judge(tally, "cost of exits", start, &budgets.exits, bench::exits::measure(workspace, Kind::Bochs));
    }
    if args.takes("cost of a Linux boot") {
        let start = Instant::now();
        judge(tally, "cost of a Linux boot", start, &budgets.boot, bench::boot::measure(workspace, Kind::Bochs, false));
    }
    Ok(())
}

fn judge(
    tally: &mut Tally,
    name: &str,
    start: Instant,
    budgets: &BTreeMap<String, f64>,
    measured: Outcome<Vec<Measured>>,
) {
    let measured = match measured {
        Ok(measured) => measured,
        Err(failure) => return tally.note(name, Verdict::Failed(failure.to_string()), start.elapsed()),
    };
    bench::show(name, &measured);
    let wrong = exceeded(budgets, &measured);
    let verdict = if wrong.is_empty() { Verdict::Passed } else { Verdict::Failed(wrong.join("\n")) };
    tally.note(name, verdict, start.elapsed());
}

fn exceeded(budgets: &BTreeMap<String, f64>, measured: &[Measured]) -> Vec<String> {
    let wrong = budgets.iter().filter_map(|(name, most)| match measured.iter().find(|m| m.name == *name) {
        None => Some(format!("{name} was not measured")),
        Some(m) if m.value > *most => Some(format!("{name} costs {:.4}, at most {most} is wanted", m.value)),
        Some(_) => None,
    });
    wrong.collect()
}

#[cfg(test)]
mod tests {
    use super::{Budgets, FILE, exceeded};
    use crate::bench::Measured;
    use crate::workspace::Workspace;

    #[test]
    fn what_costs_more_or_is_missing_is_named() {
        let text = std::fs::read_to_string(Workspace::find().unwrap().path(FILE)).unwrap();
        let budgets: Budgets = toml::from_str(&text).unwrap();
        let measured = |ticks| -> Vec<Measured> {
            ["cpuid", "vmcall", "rdmsr", "port", "mmio", "first-touch"].map(|n| Measured::ticks(n, ticks)).to_vec()
        };
        assert_eq!(exceeded(&budgets.exits, &measured(100)), Vec::<String>::new());
        assert_eq!(exceeded(&budgets.exits, &measured(400)).len(), 4);
        assert_eq!(exceeded(&budgets.boot, &measured(1)), ["ratio was not measured"]);
    }
}
