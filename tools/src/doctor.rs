//! `hv doctor`: what this machine has and lacks, by name, and what to do about it.

use crate::emulator::nested_kvm;
use crate::failure::{MACHINE, OK, Outcome};
use crate::style;
use clap::Args;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Arguments of `hv doctor`: none.
#[derive(Args, Debug, Clone)]
pub struct DoctorArgs {}

/// How much depends on a thing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing runs without it.
    Must,
    /// Something runs without it.
    May,
}

struct Finding {
    what: String,
    /// What is missing, and what to do.
    missing: Option<String>,
    need: Need,
}

/// Packages by a file of theirs, and what needs them.
const PACKAGES: [(&str, &str, &str, Need); 13] = [
    ("gcc", "/usr/bin/gcc", "building", Need::Must),
    ("g++", "/usr/bin/g++", "fuzz and test", Need::May),
    ("lld", "/usr/bin/ld.lld", "building", Need::Must),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64", "running", Need::Must),
    ("bochs", "/usr/bin/bochs", "running with VT-x in software", Need::May),
    ("bochsbios", "/usr/share/bochs/BIOS-bochs-latest", "running with VT-x in software", Need::May),
    ("vgabios", "/usr/share/bochs/VGABIOS-lgpl-latest", "running with VT-x in software", Need::May),
    ("ovmf", "/usr/share/ovmf/OVMF.fd", "run --uefi and test", Need::May),
    ("grub-common", "/usr/bin/grub-mkrescue", "image and run --uefi", Need::May),
    ("grub-pc-bin", "/usr/lib/grub/i386-pc/multiboot2.mod", "image and run --uefi", Need::May),
    ("grub-efi-amd64-bin", "/usr/lib/grub/x86_64-efi/multiboot2.mod", "image and run --uefi", Need::May),
    ("xorriso", "/usr/bin/xorriso", "image and run --uefi", Need::May),
    ("mtools", "/usr/bin/mformat", "image and run --uefi", Need::May),
];

/// CPU flags that the hypervisor needs on metal and under KVM.
const INTEL: [(&str, &str); 4] = [
    ("vmx", "VT-x; if the CPU has it, switch it on in the firmware set-up"),
    ("ept", "extended page tables"),
    ("vpid", "virtual processor ids"),
    CONSTANT_TSC,
];
const AMD: [(&str, &str); 3] = [
    ("svm", "AMD-V; if the CPU has it, switch it on in the firmware set-up"),
    ("npt", "nested page tables"),
    CONSTANT_TSC,
];
const CONSTANT_TSC: (&str, &str) = ("constant_tsc", "a time-stamp counter of constant rate");

/// Looks at everything and prints it; status 3 if nothing can run.
pub fn doctor(_args: &DoctorArgs) -> Outcome<u8> {
    let mut well = true;
    for (title, findings) in [("building", toolchain()), ("packages", packages()), ("this machine's CPU", cpu())] {
        println!("{title}");
        for finding in findings {
            match &finding.missing {
                None => println!("  {} {}", style::good("has"), finding.what),
                Some(advice) => {
                    let word = if finding.need == Need::Must { style::error("lacks") } else { style::dim("lacks") };
                    println!("  {word} {}: {advice}", finding.what);
                    well &= finding.need == Need::May;
                }
            }
        }
    }
    println!();
    match (well, nested_kvm()) {
        (true, Ok(extension)) => println!("./hv run uses this machine's {extension} through KVM."),
        (true, Err(missing)) => println!("./hv run uses QEMU, which has SVM in software: {missing}."),
        (false, _) => println!("./hv can not run here yet: see what it lacks above; ./hv run installs packages."),
    }
    Ok(if well { OK } else { MACHINE })
}

fn toolchain() -> Vec<Finding> {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    let rustc = version(&std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()));
    let right = rustc.as_ref().is_some_and(|v| v.starts_with(&format!("rustc {wanted}.")));
    let compiler = Finding {
        what: rustc.unwrap_or_else(|| "rustc".to_owned()),
        missing: (!right).then(|| format!("Rust {wanted} is needed: start this through ./hv, which installs it")),
        need: Need::Must,
    };
    let sysroot = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()))
        .args(["--print", "sysroot"])
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default();
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists();
    let sources = Finding {
        what: "the compiler's sources".to_owned(),
        missing: (!sources).then(|| "install the package rust-web-src, or `rustup component add rust-src`".to_owned()),
        need: Need::Must,
    };
    vec![compiler, sources]
}

fn packages() -> Vec<Finding> {
    PACKAGES
        .iter()
        .map(|(package, file, what_for, need)| Finding {
            what: (*package).to_owned(),
            missing: (!Path::new(file).exists())
                .then(|| format!("needed for {what_for}: apt-get install {package} (./hv does it when it is needed)")),
            need: *need,
        })
        .collect()
}

fn cpu() -> Vec<Finding> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let words = |prefix: &str| -> Vec<String> {
        let line = text.lines().find(|l| l.starts_with(prefix)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    // Linux 5.10 and later list what VT-x can do on a line of its own.
    let flags = [words("flags"), words("vmx flags")].concat();
    let wanted: &[_] = if text.contains("AuthenticAMD") { &AMD } else { &INTEL };
    let mut findings: Vec<Finding> = wanted
        .iter()
        .map(|(flag, meaning)| Finding {
            what: format!("{flag} ({})", meaning.split(';').next().unwrap_or_default()),
            missing: (!flags.iter().any(|f| f == flag)).then(|| format!("/proc/cpuinfo does not show it: {meaning}")),
            need: Need::May,
        })
        .collect();
    findings.push(Finding { what: "nested KVM".to_owned(), missing: nested_kvm().err(), need: Need::May });
    findings
}
