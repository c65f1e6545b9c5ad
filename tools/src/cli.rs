//! What the command takes.

use crate::failure::{Failure, Outcome};
use crate::{audit, bench, ctl, doctor, fuzz, image, run, test};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use std::ffi::OsString;

/// Bulkhead, a micro-hypervisor: build it, run it, test it.
#[derive(Parser, Debug)]
#[command(name = "hv", bin_name = "hv", version, max_term_width = 100, after_help = STATUS)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Install what is missing without asking.
    #[arg(long, global = true)]
    yes: bool,
}

const STATUS: &str = "Exit status: 0 the guests ended well; 1 one reported failure or died; 2 wrong manifest or \
                      arguments; 3 this machine can not run it; 124 time-out; 141 nobody reads the output.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Build a machine, boot it, and connect the terminal to its guests' consoles.
    Run(Box<run::RunArgs>),
    /// Say who reaches what in a memory dump, and what is wrong with that.
    Audit(audit::AuditArgs),
    /// Measure what exits and a Linux boot cost.
    Bench(bench::BenchArgs),
    /// Test everything: the crates, the guests, the boot paths.
    Test(test::TestArgs),
    /// Run the hostile guests beside a witness, or one of them.
    Hostile(test::hostile::HostileArgs),
    /// Try inputs without end on what takes bytes from outside, guided by coverage.
    Fuzz(fuzz::FuzzArgs),
    /// Command a machine that runs, over its control line.
    Ctl(ctl::CtlArgs),
    /// Write a CD image that starts a machine on a BIOS and on UEFI.
    Image(image::ImageArgs),
    /// Say what this machine has and lacks.
    Doctor(doctor::DoctorArgs),
}

/// What the arguments say. Help and version are printed, and end us; what is wrong is one line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Outcome<Cli> {
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        _ => wrong(&error),
    })
}

/// The line for wrong arguments: what is wrong, and what to write.
pub fn wrong(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut parts = text.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = parts.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    let hint = parts.find_map(|part| match part.strip_prefix("Usage: ") {
        Some(usage) => Some(format!("write `{usage}`")),
        None => part.strip_prefix("tip: ").map(ToOwned::to_owned),
    });
    let hint = hint.unwrap_or_else(|| "`--help` says more".to_owned());
    Failure::usage(message).hint(hint).in_one_line()
}

/// Runs the sub-command; the exit status.
pub fn dispatch(cli: Cli) -> Outcome<u8> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Test(args) => test::test(&args),
        Command::Hostile(args) => test::hostile::hostile(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Ctl(args) => ctl::ctl(&args).map_err(Failure::in_one_line),
        Command::Image(args) => image::image(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    }
}
