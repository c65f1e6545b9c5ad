//! The command itself: what it writes where, and how it exits.

use super::tally::Verdict;
use crate::failure::Outcome;
use crate::workspace::Workspace;
use std::process::Command;

/// One call.
pub struct Call {
    /// Its name.
    pub name: &'static str,
    arguments: &'static [&'static str],
    status: i32,
    /// What standard output must have, and if `only`, nothing before or behind it but line ends.
    stdout: Stdout,
    stderr: &'static [&'static str],
    /// Whether it starts a machine.
    pub boots: bool,
}

enum Stdout {
    Nothing,
    Has(&'static str),
}

/// All calls.
pub const CALLS: [Call; 9] = [
    Call {
        name: "no such kernel is status 2",
        arguments: &["run", "--kernel", "no/such/file", "--no-input"],
        status: 2,
        stdout: Stdout::Nothing,
        stderr: &["no/such/file", "→"],
        boots: false,
    },
    Call {
        name: "a kernel that is none is status 2",
        arguments: &["run", "--kernel", "LICENSE-MIT", "--no-input"],
        status: 2,
        stdout: Stdout::Nothing,
        stderr: &["LICENSE-MIT", "→"],
        boots: false,
    },
    Call {
        name: "a wrong manifest is status 2, with the place",
        arguments: &["run", "tests/manifests/wrong.toml"],
        status: 2,
        stdout: Stdout::Nothing,
        stderr: &["wrong.toml:4:1: ", "did you mean `kernel`?"],
        boots: false,
    },
    Call {
        name: "a wrong argument is status 2",
        arguments: &["run", "--kernel", "hv", "--memory", "1X"],
        status: 2,
        stdout: Stdout::Nothing,
        stderr: &["1X", "256M"],
        boots: false,
    },
    Call {
        name: "power-off is status 0",
        arguments: &["run", "--kernel", "@suite/poweroff", "--memory", "16M", "--no-input", "--timeout", "120"],
        status: 0,
        stdout: Stdout::Has("PASS"),
        stderr: &["ended power-off"],
        boots: true,
    },
    Call {
        name: "a failing test exit is status 1",
        arguments: &["run", "--kernel", "@suite/testexit_fail", "--memory", "16M", "--no-input", "--timeout", "120"],
        status: 1,
        stdout: Stdout::Has("FAILED 1"),
        stderr: &["test-exit 1"],
        boots: true,
    },
    Call {
        name: "a triple fault is status 1, with a dump",
        arguments: &["run", "--kernel", "@suite/triplefault", "--memory", "16M", "--no-input", "--timeout", "120"],
        status: 1,
        stdout: Stdout::Has("going down"),
        stderr: &["triple-fault", "dump ", "rip"],
        boots: true,
    },
    Call {
        name: "a time-out is status 124",
        arguments: &["run", "--kernel", "@suite/spin", "--memory", "16M", "--no-input", "--timeout", "6"],
        status: 124,
        stdout: Stdout::Has("spinning"),
        stderr: &["time-out", "→"],
        boots: true,
    },
    Call {
        name: "a processor with neither extension is status 3, and named",
        arguments: &[
            "run",
            "--kernel",
            "@suite/hello",
            "--memory",
            "16M",
            "--no-input",
            "--timeout",
            "60",
            "--on",
            "qemu",
            "--cpu",
            "max,-svm",
        ],
        status: 3,
        stdout: Stdout::Nothing,
        stderr: &["VT-x", "SVM", "nested"],
        boots: true,
    },
];

/// Makes one call of this program.
pub fn run(workspace: &Workspace, call: &Call) -> Outcome<Verdict> {
    let program = std::env::current_exe().unwrap_or_else(|_| "hv".into());
    let output = Command::new(program).args(call.arguments).current_dir(workspace.root()).output();
    let output = match output {
        Ok(output) => output,
        Err(e) => return Ok(Verdict::Failed(e.to_string())),
    };
    let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    let mut wrong = Vec::new();
    if output.status.code() != Some(call.status) {
        wrong.push(format!("exit status {:?} instead of {}", output.status.code(), call.status));
    }
    match call.stdout {
        Stdout::Nothing if !stdout.is_empty() => wrong.push("standard output is not empty".to_owned()),
        Stdout::Has(piece) if !stdout.contains(piece) => wrong.push(format!("{piece:?} is not on standard output")),
        _ => {}
    }
    if stdout.contains("event ") {
        wrong.push("the hypervisor's lines are on standard output".to_owned());
    }
    wrong.extend(
        call.stderr.iter().filter(|p| !stderr.contains(**p)).map(|p| format!("{p:?} is not on standard error")),
    );
    if wrong.is_empty() {
        return Ok(Verdict::Passed);
    }
    Ok(Verdict::Failed(format!("{}\n--- stdout ---\n{stdout}\n--- stderr ---\n{stderr}", wrong.join("\n"))))
}
