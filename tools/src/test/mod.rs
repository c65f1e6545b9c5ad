//! `hv test`: everything that says whether this tree is sound, in one command.
//!
//! Host tests first, then the case table in the emulator, then the boot paths. It ends with a line
//! `N passed, N failed`.

mod boots;
mod budgets;
mod cases;
mod command;
mod host;
mod judge;
mod table;
mod tally;

use crate::emulator::{self, On};
use crate::failure::{FAILED, Failure, OK, Outcome};
use crate::machine::Builder;
use crate::workspace::Workspace;
use clap::Args;
use std::time::Instant;
use tally::{Tally, Verdict};

/// Arguments of `hv test`.
#[derive(Args, Debug, Clone, Default)]
pub struct TestArgs {
    /// Leave out what takes long.
    #[arg(long)]
    quick: bool,
    /// Only machines whose case has this in its name; no host tests.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Where the cases run.
    #[arg(long, value_enum, default_value_t)]
    on: On,
    /// Machines at a time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

impl TestArgs {
    fn takes(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|text| name.contains(text))
    }
}

/// Runs the tests; status 1 if one fails.
pub fn test(args: &TestArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let mut tally = Tally::default();
    if args.filter.is_none() {
        host::run(&workspace, args.quick, &mut tally);
    }
    if let Err(failure) = machines(&workspace, args, &mut tally) {
        tally.note("machines", Verdict::Failed(failure.to_string()), std::time::Duration::ZERO);
    }
    Ok(if tally.close() { OK } else { FAILED })
}

fn machines(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Outcome<()> {
    let kind = emulator::choose(args.on)?;
    let mut all = table::read(workspace)?;
    all.retain(|case| args.takes(&case.name));
    let slow: Vec<String> = all.iter().filter(|c| args.quick && c.slow).map(|c| c.name.clone()).collect();
    all.retain(|case| !(args.quick && case.slow));
    let started = Instant::now();
    crate::cargo::suite(workspace)?;
    let builder = Builder::new(workspace)?;
    eprintln!("built the image and the guests in {:.1} s", started.elapsed().as_secs_f64());
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, |n| n.get().min(8)));
    cases::run(workspace, &builder, kind, &all, jobs, tally)?;
    for name in slow {
        tally.note(&format!("case {name}"), Verdict::Skipped("slow".to_owned()), std::time::Duration::ZERO);
    }
    for call in command::CALLS.iter().filter(|call| args.takes(call.name)) {
        if args.quick && call.boots {
            continue;
        }
        let start = Instant::now();
        let verdict = command::run(workspace, call)?;
        tally.note(&format!("command: {}", call.name), verdict, start.elapsed());
    }
    budgets::run(workspace, kind, args, tally)?;
    boots::run(workspace, args, tally);
    if tally.is_empty() {
        return Err(Failure::usage("no test has that in its name").hint("leave --filter out to see all names"));
    }
    Ok(())
}
