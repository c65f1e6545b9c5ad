//! Bochs: a PC with VT-x in software.
//!
//! Debian's build has the debugger on, so it is told to continue by a command file. It needs no display with `rfb` and
//! no waiting for a viewer. Its serial port connects to a socket of ours.
//!
//! The display tries one port after the other, and if another Bochs begins to listen on the same port between its bind()
//! and its listen(), its socket stays bound, each further bind() is refused, and Bochs ends with "RFB could not bind any
//! port". So the machines of this host are started one after the other ([`display_lock`]).

use super::{Medium, Ports, RunFolder, Spec};
use crate::disk::{HEADS, TRACK};
use crate::failure::{Failure, Outcome};
use crate::files;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The CPU: one with a coherent time base and working XSAVE.
const CPU: &str = "corei7_haswell_4770";
/// Instructions per emulated second.
const IPS: u32 = 10_000_000;
const SHARE: &str = "/usr/share/bochs";

/// The command that starts the machine.
pub fn command(spec: &Spec, folder: &RunFolder, ports: &Ports) -> Outcome<Command> {
    let config = folder.file("bochsrc");
    let commands = folder.file("commands");
    files::write(&config, configuration(spec, ports)?.as_bytes())?;
    files::write(&commands, b"c\n")?;
    let mut command = Command::new("bochs");
    command.arg("-q").arg("-f").arg(config).arg("-rc").arg(commands);
    Ok(command)
}

/// Waits until no other Bochs of this host is being started, and keeps others from it while this lives. Without a place for
/// the lock it goes without.
pub fn display_lock() -> Option<File> {
    let lock = File::create(std::env::temp_dir().join("bulkhead-bochs.lock")).ok()?;
    lock.lock().ok()?;
    Some(lock)
}

/// Waits until the display of this Bochs has its port, or the machine is gone, for ten seconds at most.
pub fn wait_for_display(child: &mut Child) {
    let end = Instant::now() + Duration::from_secs(10);
    while !listens(child.id()) && matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether one of a process's sockets waits for connections.
fn listens(process: u32) -> bool {
    const LISTEN: &str = "0A";
    let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let open: Vec<PathBuf> = open.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let sockets = fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap_or_default();
    let mut rows = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.any(|row| match (row.get(3), row.get(9)) {
        (Some(&LISTEN), Some(inode)) => open.contains(&PathBuf::from(format!("socket:[{inode}]"))),
        _ => false,
    })
}

fn configuration(spec: &Spec, ports: &Ports) -> Outcome<String> {
    let cpu = spec.cpu.as_deref().unwrap_or(CPU);
    let (memory, cpus) = (spec.memory, spec.cpus);
    // Bochs takes no more of the host; beyond that it keeps guest memory in a file.
    let host = memory.min(2048);
    let boot = match &spec.medium {
        Medium::Disk { path, cylinders } => format!(
            "ata0-master: type=disk, mode=volatile, path=\"{}\", cylinders={cylinders}, heads={HEADS}, spt={TRACK}\n\
             boot: disk\n",
            plain(path)?
        ),
        Medium::Iso { path, uefi: false } => {
            format!("ata0-master: type=cdrom, path=\"{}\", status=inserted\nboot: cdrom\n", plain(path)?)
        }
        Medium::Iso { uefi: true, .. } => {
            return Err(Failure::usage("Bochs has no UEFI firmware").hint("use --on qemu"));
        }
        Medium::Kernel { .. } => return Err(Failure::failed("Bochs boots from a disk only")),
    };
    let serial = ports.serial;
    let control = ports.control.map(|port| format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n"));
    let control = control.unwrap_or_default();
    // Each start of a control line must have another date; without one, runs are alike to the second.
    let date = if ports.control.is_some() { "utc" } else { "1700000000" };
    Ok(format!(
        "display_library: rfb, options=\"timeout=0\"\n\
         romimage: file={SHARE}/BIOS-bochs-latest\n\
         vgaromimage: file={SHARE}/VGABIOS-lgpl-latest\n\
         cpu: model={cpu}, count={cpus}, ips={IPS}, reset_on_triple_fault=0\n\
         clock: sync=none, time0={date}\n\
         memory: guest={memory}, host={host}\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         {boot}\
         com1: enabled=1, mode=socket-client, dev=127.0.0.1:{serial}\n\
         {control}\
         speaker: enabled=0\n\
         sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
         mouse: enabled=0\n\
         log: -\n\
         panic: action=fatal\n\
         error: action=report\n\
         info: action=ignore\n\
         debug: action=ignore\n"
    ))
}

/// A path as Bochs' configuration can hold it.
fn plain(path: &Path) -> Outcome<&str> {
    path.to_str().filter(|p| !p.contains(['"', '\n', ','])).ok_or_else(|| {
        Failure::usage(format!("Bochs can not take the path {}", path.display()))
            .hint("use a folder without quotes and commas in its name")
    })
}
