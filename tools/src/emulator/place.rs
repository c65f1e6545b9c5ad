//! Where a machine runs.

use crate::failure::{Failure, Outcome};
use clap::ValueEnum;
use serde::Deserialize;
use std::fmt;
use std::fs;
use std::path::PathBuf;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum On {
    /// KVM where it can nest, otherwise QEMU's own CPU.
    #[default]
    Auto,
    /// Bochs: VT-x in software.
    Bochs,
    /// QEMU's own CPU: SVM in software.
    Qemu,
    /// Nested virtualization on this machine's CPU.
    Kvm,
}

/// What it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Bochs.
    Bochs,
    /// QEMU with TCG.
    Qemu,
    /// QEMU with KVM.
    Kvm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bochs => "bochs",
            Self::Qemu => "qemu",
            Self::Kvm => "kvm",
        })
    }
}

/// A machine's place in full.
#[derive(Clone, Debug)]
pub struct Place {
    /// What it runs on.
    pub kind: Kind,
    /// Whether UEFI firmware starts it; QEMU and KVM only.
    pub uefi: bool,
    /// A CPU model other than the default.
    pub cpu: Option<String>,
    /// Processors.
    pub cpus: u16,
    /// Whether its time is the count of its instructions, as Bochs's always is; KVM's can not be.
    pub counted: bool,
    /// Memory in MiB beyond what the manifest's guests need, for others.
    pub spare: u64,
    /// Where to offer the control line of a machine that has a key.
    pub control: Option<PathBuf>,
}

impl Place {
    /// The usual one of this kind: a BIOS, the default model, one processor.
    pub const fn of(kind: Kind) -> Self {
        Self { kind, uefi: false, cpu: None, cpus: 1, counted: false, spare: 0, control: None }
    }
}

/// Chooses by what this machine has. Of a choice that was left open it says on standard error what it is, and why.
pub fn choose(on: On) -> Outcome<Kind> {
    match on {
        On::Bochs => Ok(Kind::Bochs),
        On::Qemu => Ok(Kind::Qemu),
        On::Kvm => match nested_kvm() {
            Ok(_) => Ok(Kind::Kvm),
            Err(missing) => Err(Failure::machine(format!("KVM can not be used here: {missing}"))
                .hint("use --on qemu (SVM in software) or --on bochs (VT-x in software)")),
        },
        On::Auto => Ok(match nested_kvm() {
            Ok(extension) => {
                eprintln!("hv: runs on KVM, which gives its guests this CPU's {extension}");
                Kind::Kvm
            }
            Err(missing) => {
                eprintln!("hv: runs on QEMU, which has SVM in software: {missing}");
                Kind::Qemu
            }
        }),
    }
}

/// The extension that KVM can give a guest here, or what is missing. The CPU's flags come first: where they say no, the
/// device is not touched.
pub fn nested_kvm() -> Result<&'static str, String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|f| f == flag);
    let (extension, module) = if has("vmx") {
        ("VT-x", "kvm_intel")
    } else if has("svm") {
        ("SVM", "kvm_amd")
    } else {
        return Err("this CPU shows neither VT-x nor SVM (no `vmx`, no `svm` in /proc/cpuinfo)".to_owned());
    };
    let nested = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
    if !matches!(nested.trim(), "Y" | "1") {
        return Err(format!("{module} is not loaded with nested=1"));
    }
    let open = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    open.map(|_| extension).map_err(|e| format!("/dev/kvm can not be opened: {e}"))
}
