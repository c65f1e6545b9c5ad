//! QEMU: SVM in software, or this machine's CPU through KVM.

use super::{Kind, Medium, Ports, Spec};
use crate::failure::Outcome;
use std::process::Command;

const CPU: &str = "max,+svm,+npt";
const UEFI: &str = "/usr/share/ovmf/OVMF.fd";

fn host_cpus() -> u16 {
    std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(u16::MAX))
}

/// The command that starts the machine.
pub fn command(kind: Kind, spec: &Spec, ports: &Ports) -> Outcome<Command> {
    let mut command = Command::new("qemu-system-x86_64");
    let (accelerator, cpu) = match kind {
        Kind::Kvm => ("kvm", "host"),
        // Where they can not all run at once, a processor that waits for another one is to give way to it (PAUSE).
        Kind::Bochs | Kind::Qemu if spec.cpus > host_cpus() => ("tcg,thread=single", CPU),
        Kind::Bochs | Kind::Qemu => ("tcg", CPU),
    };
    command.args(["-machine", "q35", "-accel", accelerator, "-cpu", spec.cpu.as_deref().unwrap_or(cpu)]);
    if spec.counted && kind == Kind::Qemu {
        // An instruction takes 64 ns, in which the host's time has no part; while the processor halts, time flies.
        command.args(["-icount", "shift=6,sleep=off"]);
    }
    command.arg("-m").arg(spec.memory.to_string()).arg("-smp").arg(spec.cpus.to_string());
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "chardev:serial"]);
    command.arg("-chardev").arg(format!("socket,id=serial,host=127.0.0.1,port={}", ports.serial));
    command.arg("-chardev").arg(format!("socket,id=monitor,host=127.0.0.1,port={}", ports.monitor));
    command.args(["-mon", "chardev=monitor,mode=control"]);
    if let Some(port) = ports.control {
        command.args(["-serial", "chardev:control"]);
        command.arg("-chardev").arg(format!("socket,id=control,host=127.0.0.1,port={port},nodelay=on"));
    }
    match &spec.medium {
        Medium::Disk { path, .. } => {
            command.arg("-drive").arg(format!("file={},format=raw,if=ide,snapshot=on", path.display()));
        }
        Medium::Kernel { image, pack } => {
            command.arg("-kernel").arg(image).arg("-initrd").arg(pack);
        }
        Medium::Iso { path, uefi } => {
            command.arg("-cdrom").arg(path);
            if *uefi {
                command.args(["-bios", UEFI]);
            }
        }
    }
    Ok(command)
}
