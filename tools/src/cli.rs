//! What the command takes.

use crate::failure::Outcome;
use crate::run;
use clap::{Parser, Subcommand};

/// Bulkhead, a micro-hypervisor: build it, run it, test it.
#[derive(Parser, Debug)]
#[command(name = "hv", version, max_term_width = 100, after_help = STATUS)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Install what is missing without asking.
    #[arg(long, global = true)]
    yes: bool,
}

const STATUS: &str = "Exit status: 0 the guests ended well; 1 one reported failure or died; 2 wrong manifest or \
                      arguments; 3 this machine can not run it; 124 time-out.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Build a machine, boot it, and connect the terminal to its guests' consoles.
    Run(run::RunArgs),
}

/// Runs the sub-command; the exit status.
pub fn dispatch(cli: Cli) -> Outcome<u8> {
    match cli.command {
        Command::Run(args) => run::run(&args),
    }
}
