//! `hv fuzz`: coverage-guided fuzzing of what takes bytes from outside.
//!
//! The targets are functions of `tests/fuzz`, with libFuzzer under them ([`engine`]). Their names, how often each was
//! executed so far, and what was found are in `tests/fuzz/RECORD.toml` ([`record`]).

pub mod engine;
mod record;

use crate::failure::{FAILED, Failure, OK, Outcome};
use crate::style;
use crate::workspace::Workspace;
use clap::Args;
use engine::{Engine, Ran};
pub use record::Record;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `hv fuzz`.
#[derive(Args, Debug, Clone)]
pub struct FuzzArgs {
    /// What to fuzz; `--list` shows all.
    #[arg(required_unless_present_any = ["all", "list"])]
    target: Option<String>,
    /// All targets, one after the other.
    #[arg(long, conflicts_with = "target")]
    all: bool,
    /// Show the targets and how often each was executed so far.
    #[arg(long)]
    list: bool,
    /// Minutes for each target.
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    minutes: f64,
    /// Stop after so many executions of each target, if that comes first.
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Run the target on this one input.
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    replay: Option<PathBuf>,
    /// Add the executions to the record, and what was found to the target's corpus.
    #[arg(long)]
    record: bool,
}

/// Fuzzes; status 1 if something was found.
pub fn fuzz(args: &FuzzArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let mut record = Record::read(&workspace)?;
    if args.list {
        for (name, executions) in record.targets() {
            println!("{name:16} {executions:>14} executions");
        }
        return Ok(OK);
    }
    let targets: Vec<String> = match &args.target {
        Some(name) if record.has(name) => vec![name.clone()],
        Some(name) => {
            return Err(Failure::usage(format!("there is no target `{name}`")).hint("`./hv fuzz --list` shows them"));
        }
        None => record.targets().map(|(name, _)| name.to_owned()).collect(),
    };
    let engine = Engine::build(&workspace)?;
    if let (Some(input), [target]) = (&args.replay, targets.as_slice()) {
        return Ok(if engine.replay(target, input)? { OK } else { FAILED });
    }
    let mut status = OK;
    for target in &targets {
        let time = Duration::try_from_secs_f64(args.minutes * 60.0)
            .map_err(|_| Failure::usage("--minutes is no length of time"))?;
        let ran = engine.run(target, time, args.runs, "found", &mut |line| eprintln!("{target}: {line}"))?;
        println!("{target}: {} executions", ran.executions);
        if let Some(crash) = &ran.crash {
            eprintln!("{}: {target}: {}", style::error("found"), crash.text(target));
            status = FAILED;
        }
        if args.record {
            keep(&engine, &mut record, target, &ran)?;
        }
    }
    Ok(status)
}

fn keep(engine: &Engine<'_>, record: &mut Record, target: &str, ran: &Ran) -> Outcome<()> {
    record.add(target, ran.executions)?;
    if ran.crash.is_none() {
        engine.keep(target)?;
    }
    Ok(())
}
