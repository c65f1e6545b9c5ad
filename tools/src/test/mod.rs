//! `hv test`: everything that says whether this tree is sound, in one command.
//!
//! Host tests first, then the case table in the emulator, then the boot paths. It ends with a line
//! `N passed, N failed`.

mod account;
mod attack;
mod boots;
mod budgets;
mod button;
mod cases;
mod command;
mod commands;
mod conformance;
mod control;
mod dumps;
mod echo;
mod endless;
mod fair;
mod fault;
mod fuzz;
mod graph;
mod host;
pub mod hostile;
mod images;
mod judge;
mod lies;
mod made;
mod many;
mod orders;
mod pty;
mod races;
mod rows;
mod strangers;
mod table;
mod tally;
mod typed;

use crate::emulator::{self, Kind, On};
use crate::failure::{FAILED, Failure, OK, Outcome};
use crate::machine::Builder;
use crate::workspace::Workspace;
use cases::Run;
use clap::Args;
use std::time::Instant;
use tally::{Tally, Verdict, try_all};

/// Arguments of `hv test`.
#[derive(Args, Debug, Clone, Default)]
pub struct TestArgs {
    /// Leave out what takes long.
    #[arg(long)]
    quick: bool,
    /// Only machines whose test has this in its name, like `hello` or `on qemu`; no host tests.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Where the cases run; on Bochs (VT-x) and on QEMU (SVM) if it is not said.
    #[arg(long, value_enum)]
    on: Option<On>,
    /// Machines at a time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

impl TestArgs {
    fn takes(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|text| name.contains(text))
    }

    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, |n| n.get().min(8)))
    }
}

/// Runs the tests; status 1 if one fails.
pub fn test(args: &TestArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let mut tally = Tally::default();
    if args.filter.is_none() {
        host::run(&workspace, args.quick, &mut tally);
    }
    if let Err(failure) = fuzz::run(&workspace, args, &mut tally) {
        tally.note("fuzz", Verdict::Failed(failure.to_string()), std::time::Duration::ZERO);
    }
    if let Err(failure) = machines(&workspace, args, &mut tally) {
        tally.note("machines", Verdict::Failed(failure.to_string()), std::time::Duration::ZERO);
    }
    Ok(if tally.close() { OK } else { FAILED })
}

fn machines(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Outcome<()> {
    let machines = match args.on {
        None => vec![Kind::Bochs, Kind::Qemu],
        Some(on) => vec![emulator::choose(on)?],
    };
    let cases = table::read(workspace)?.into_iter();
    let mut runs: Vec<Run> =
        cases.flat_map(|case| machines.iter().map(move |on| Run { case: case.clone(), on: *on })).collect();
    runs.retain(|run| args.takes(&run.name()));
    let left_out = |run: &Run| match run.case.not_on.get(&run.on) {
        Some(why) => Some(why.clone()),
        None => (args.quick && run.case.slow).then(|| "slow".to_owned()),
    };
    let skipped: Vec<(String, String)> = runs.iter().filter_map(|run| Some((run.name(), left_out(run)?))).collect();
    runs.retain(|run| left_out(run).is_none());
    let started = Instant::now();
    crate::cargo::suite(workspace)?;
    let builder = Builder::new(workspace)?;
    eprintln!("built the image and the guests in {:.1} s", started.elapsed().as_secs_f64());
    graph::run(workspace, builder.image(), args, tally);
    cases::run(workspace, &builder, &runs, args.jobs(), tally)?;
    for (name, why) in skipped {
        tally.note(&name, Verdict::Skipped(why), std::time::Duration::ZERO);
    }
    for call in command::CALLS.iter().filter(|call| args.takes(call.name)) {
        if args.quick && call.boots {
            continue;
        }
        let start = Instant::now();
        let verdict = command::run(workspace, call)?;
        tally.note(&format!("command: {}", call.name), verdict, start.elapsed());
    }
    if machines.contains(&Kind::Bochs) {
        budgets::run(workspace, args, tally)?;
    }
    boots::run(workspace, args, tally);
    let mut rows = control::rows(workspace, &builder, &machines);
    rows.extend(commands::rows(workspace, &builder, &machines));
    rows.extend(typed::rows(workspace, &builder, &machines));
    rows.extend(button::rows(workspace, &builder, &machines, args.quick));
    if machines.contains(&Kind::Qemu) {
        let own = [many::row, races::row, made::row, strangers::row, rows::row, dumps::row];
        rows.extend(own.map(|row| row(workspace, &builder)));
        rows.extend(orders::rows(workspace, &builder));
        rows.extend(account::rows(workspace, &builder, &machines));
        rows.extend(fault::rows(&builder));
    }
    try_all(&rows, args, tally);
    conformance::run(workspace, args, tally)?;
    hostile::run_all(&builder, args, &machines, tally)?;
    if tally.is_empty() {
        return Err(Failure::usage("no test has that in its name").hint("leave --filter out to see all names"));
    }
    Ok(())
}
