//! Which emulator to use.

use crate::failure::{Failure, Outcome};
use clap::ValueEnum;
use std::fs;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum On {
    /// KVM where it can nest, otherwise Bochs.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bochs.
    Bochs,
    /// QEMU with TCG.
    Qemu,
    /// QEMU with KVM.
    Kvm,
}

/// Chooses by what this machine has.
pub fn choose(on: On) -> Outcome<Kind> {
    let kvm = nested_kvm();
    match (on, kvm) {
        (On::Bochs, _) => Ok(Kind::Bochs),
        (On::Qemu, _) => Ok(Kind::Qemu),
        (On::Auto | On::Kvm, Ok(())) => Ok(Kind::Kvm),
        (On::Auto, Err(_)) => Ok(Kind::Bochs),
        (On::Kvm, Err(missing)) => {
            Err(Failure::machine(format!("KVM can not be used here: {missing}")).hint("use --on bochs"))
        }
    }
}

/// Whether KVM can give a guest VT-x here, or what is missing. The CPU's flags come first: where they say no, the
/// device is not touched.
pub fn nested_kvm() -> Result<(), String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|f| f == "vmx") {
        return Err("this CPU shows no VT-x (no `vmx` in /proc/cpuinfo)".to_owned());
    }
    let nested = fs::read_to_string("/sys/module/kvm_intel/parameters/nested").unwrap_or_default();
    if !matches!(nested.trim(), "Y" | "1") {
        return Err("kvm_intel is not loaded with nested=1".to_owned());
    }
    let open = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    open.map(|_| ()).map_err(|e| format!("/dev/kvm can not be opened: {e}"))
}
