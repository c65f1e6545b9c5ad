//! The `hv` command: builds, boots and tests Bulkhead on the developer's machine.
//!
//! `./hv` at the root installs what is missing, builds this program and runs it. See [`cli`] for what it takes; each
//! sub-command has its own module.
#![forbid(unsafe_code)]

mod audit;
mod bench;
mod boot_params;
mod cargo;
mod cli;
mod cpio;
mod ctl;
mod disk;
mod doctor;
mod elf;
mod emulator;
mod event;
mod failure;
mod files;
mod frames;
mod fuzz;
mod image;
mod linux;
mod machine;
mod manifest;
mod pack;
mod package;
mod progress;
mod pvh;
mod run;
mod session;
mod style;
mod symbols;
mod terminal;
mod test;
mod vmlinux;
mod workspace;
mod xen;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()).and_then(cli::dispatch) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.status)
        }
    }
}
