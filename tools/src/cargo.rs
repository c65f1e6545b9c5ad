//! Building what runs below: the hypervisor's image, the guests, the first program of the guest Linux.

use crate::failure::{Failure, Outcome};
use crate::workspace::Workspace;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::Command;

/// Rust's target for code without an operating system.
const TARGET: &str = "x86_64-hv";
/// The compiler takes unstable flags with this, which `core` for a target of our own needs.
pub const BOOTSTRAP: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");

/// Keeps cargo, and the tests it runs, quiet.
pub const QUIET: &str = "CARGO_TERM_QUIET";

/// Builds the hypervisor; its ELF.
pub fn hypervisor(workspace: &Workspace) -> Outcome<PathBuf> {
    run(hypervisor_command(workspace, "build"), "the hypervisor")?;
    Ok(workspace.target().join(TARGET).join("image/bulkhead"))
}

/// Builds the hypervisor with the conformance suite in its guest's place; its ELF.
pub fn conformance(workspace: &Workspace) -> Outcome<PathBuf> {
    let mut command = bare(workspace, "build", "image");
    command.args(["-p", "bulkhead-conformance-image"]);
    run(command, "the conformance suite")?;
    Ok(workspace.target().join(TARGET).join("image/conformance"))
}

/// The cargo command that builds the hypervisor, or with another `verb` does something else with it.
pub fn hypervisor_command(workspace: &Workspace, verb: &str) -> Command {
    let mut command = bare(workspace, verb, "image");
    command.args(["-p", "bulkhead-kernel"]);
    command
}

/// Builds one guest of a package; its ELF.
pub fn guest(workspace: &Workspace, package: &str, name: &str) -> Outcome<PathBuf> {
    let mut command = bare(workspace, "build", "guest");
    command.args(["-p", package, "--bin", name]);
    run(command, &format!("the guest {name}"))?;
    Ok(workspace.target().join(TARGET).join("guest").join(name))
}

/// Builds every guest of the suite, and every hostile one.
pub fn suite(workspace: &Workspace) -> Outcome<()> {
    let mut command = bare(workspace, "build", "guest");
    command.args(["-p", "bulkhead-suite", "-p", "bulkhead-hostile", "--bins"]);
    run(command, "the guests")
}

/// Builds the first program of the guest Linux; its ELF, static and without a C library.
pub fn linux_init(workspace: &Workspace) -> Outcome<PathBuf> {
    let mut command = cargo(workspace);
    command.args(["rustc", "--profile", "guest", "--target", "x86_64-unknown-linux-gnu", "-p", "bulkhead-linux-init"]);
    command.args(["--", "-Crelocation-model=static", "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib"]);
    command.args(["-Clink-arg=-static", "-Clink-arg=-no-pie"]);
    run(command, "the first program of the guest Linux")?;
    Ok(workspace.target().join("x86_64-unknown-linux-gnu/guest/bulkhead-linux-init"))
}

fn bare(workspace: &Workspace, verb: &str, profile: &str) -> Command {
    let mut command = cargo(workspace);
    command.env(BOOTSTRAP.0, BOOTSTRAP.1);
    command.args([verb, "--profile", profile, "-Zbuild-std=core,alloc,compiler_builtins"]);
    command.args(["-Zbuild-std-features=compiler-builtins-mem", "-Zjson-target-spec"]);
    command.arg("--target").arg(workspace.path("x86_64-hv.json"));
    command
}

/// A cargo command in the workspace. On a terminal cargo shows its own progress; elsewhere it is quiet.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace.root());
    if !std::io::stderr().is_terminal() {
        command.env(QUIET, "true");
    }
    command
}

fn run(mut command: Command, what: &str) -> Outcome<()> {
    let status = command.stdout(std::io::stderr()).status().map_err(|e| {
        Failure::machine(format!("can not start cargo: {e}"))
            .hint("run this through ./hv, which installs the toolchain")
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("building {what} failed")).hint("the compiler's errors are above"))
}
