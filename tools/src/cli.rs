//! What the command takes.

use crate::failure::Outcome;
use crate::{audit, bench, ctl, doctor, fuzz, image, run, test};
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

/// Runs the sub-command; the exit status.
pub fn dispatch(cli: Cli) -> Outcome<u8> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Test(args) => test::test(&args),
        Command::Hostile(args) => test::hostile::hostile(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Ctl(args) => ctl::ctl(&args),
        Command::Image(args) => image::image(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    }
}
