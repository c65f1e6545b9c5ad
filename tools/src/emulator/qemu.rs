//! QEMU: SVM in software, or this machine's CPU through KVM.

use super::{Kind, Medium, Ports, Spec};
use crate::failure::Outcome;
use std::process::Command;

const CPU: &str = "max,+svm,+npt";
const UEFI: &str = "/usr/share/ovmf/OVMF.fd";

/// The command that starts the machine.
pub fn command(kind: Kind, spec: &Spec, ports: &Ports) -> Outcome<Command> {
    let mut command = Command::new("qemu-system-x86_64");
    let (accelerator, cpu) = match kind {
        Kind::Kvm => ("kvm", "host"),
        // With a thread a processor, TCG loses changes of the first one's flags: FLDENV and XRSTOR of any other one write them, too.
        Kind::Bochs | Kind::Qemu => ("tcg,thread=single", CPU),
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
