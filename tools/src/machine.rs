//! From a checked machine to one that runs: image, pack, medium, emulator.

use crate::disk;
use crate::emulator::{self, Kind, Medium, Place, RunFolder, Running, Spec};
use crate::failure::{Failure, Outcome};
use crate::manifest::Machine;
use crate::workspace::Workspace;
use crate::{elf, files, image, pack, pvh};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Memory beside the guests' and the pack: the hypervisor, its tables, the firmware's.
const OVERHEAD: u64 = 64 << 20;
const MIB: u64 = 1 << 20;
/// Machines get whole multiples of this.
const STEP: u64 = 32 << 20;

/// A machine's memory in MiB, for its guests and a pack of `pack_bytes`.
pub fn memory(machine: &Machine, pack_bytes: usize) -> u64 {
    let guests: u64 = machine.guests.iter().map(|g| g.memory).sum();
    let pack = pack_bytes as u64;
    // Every 2 MiB of guest memory may need a table of 4 KiB.
    let state = machine.guests.len() as u64 * 2 * MIB;
    let all = guests.saturating_add(guests >> 8).saturating_add(state).saturating_add(pack).saturating_add(OVERHEAD);
    all.max(128 << 20).next_multiple_of(STEP) / MIB
}

/// What is built once and started as often as wanted.
#[derive(Clone, Debug)]
pub struct Builder {
    workspace: Workspace,
    image: PathBuf,
    loader: Vec<u8>,
}

impl Builder {
    /// Builds the hypervisor and the boot sector.
    pub fn new(workspace: &Workspace) -> Outcome<Self> {
        Self::with(workspace, crate::cargo::hypervisor(workspace)?)
    }

    /// The same with a hypervisor that is built already.
    pub fn with(workspace: &Workspace, image: PathBuf) -> Outcome<Self> {
        Ok(Self { workspace: workspace.clone(), image, loader: loader(workspace)? })
    }

    /// The repository that it builds.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// The hypervisor's ELF.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Packs `machine` and starts it, on the default CPU and without a firmware of its own.
    pub fn start(&self, kind: Kind, machine: &Machine) -> Outcome<Running> {
        self.start_at(&Place::of(kind), machine)
    }

    /// Packs `machine` and starts it.
    pub fn start_at(&self, place: &Place, machine: &Machine) -> Outcome<Running> {
        self.start_pack(place, machine, pack::pack(&self.workspace, machine)?)
    }

    /// Starts the machine of `pack`, which may say other things than `machine`.
    pub fn start_pack(&self, place: &Place, machine: &Machine, pack: Vec<u8>) -> Outcome<Running> {
        let folder = RunFolder::new(&self.workspace)?;
        let memory = memory(machine, pack.len()) + place.spare;
        let medium = match place.kind {
            _ if place.uefi => {
                let path = folder.file("iso");
                image::write(&self.workspace, &self.image, &pack, &path)?;
                Medium::Iso { path, uefi: true }
            }
            Kind::Bochs => {
                let image = elf::read(&files::read(&self.image)?)?;
                write_disk(&self.loader, &pvh::plan(&image, &pack)?, &folder)?
            }
            Kind::Qemu | Kind::Kvm => {
                let file = folder.file("pack");
                files::write(&file, &pack)?;
                Medium::Kernel { image: self.image.clone(), pack: file }
            }
        };
        emulator::start(
            place.kind,
            &Spec {
                medium,
                memory,
                cpu: place.cpu.clone(),
                cpus: place.cpus,
                counted: place.counted,
                control: place.control.clone().zip(machine.control),
            },
            folder,
        )
    }
}

/// Writes the disk for `plan` into `folder`.
pub fn write_disk(loader: &[u8], plan: &disk::Plan<'_>, folder: &RunFolder) -> Outcome<Medium> {
    let disk = disk::write(loader, plan)?;
    let path = folder.file("disk");
    files::write(&path, &disk.bytes)?;
    Ok(Medium::Disk { path, cylinders: disk.cylinders })
}

/// Assembles the boot sector, if it is newer than what there is.
pub fn loader(workspace: &Workspace) -> Outcome<Vec<u8>> {
    let source = workspace.path("boot/direct/boot.s");
    let folder = workspace.build("boot")?;
    let binary = folder.join("direct.bin");
    let fresh = files::modified(&binary).zip(files::modified(&source)).is_some_and(|(b, s)| b > s);
    if !fresh {
        // Other processes may do the same at this moment.
        let object = folder.join(format!("direct-{}.o", std::process::id()));
        let linked = folder.join(format!("direct-{}.bin", std::process::id()));
        tool(Command::new("as").arg("--32").arg("-o").arg(&object).arg(&source))?;
        let flags = ["-m", "elf_i386", "-Ttext=0x7c00", "-e", "start", "--oformat", "binary"];
        tool(Command::new("ld").args(flags).arg("-o").arg(&linked).arg(&object))?;
        let _ = std::fs::remove_file(&object);
        std::fs::rename(&linked, &binary).map_err(|e| Failure::failed(format!("{}: {e}", binary.display())))?;
    }
    files::read(&binary)
}

/// Runs a tool of the system to its end.
pub fn tool(command: &mut Command) -> Outcome<()> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .map_err(|e| Failure::machine(format!("can not start {name}: {e}")).hint("./hv doctor says what is missing"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
