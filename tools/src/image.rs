//! `hv image`: a CD image that starts a machine by GRUB, on a BIOS and on UEFI.

use crate::failure::{Failure, Outcome};
use crate::machine::tool;
use crate::manifest::{self, Machine};
use crate::workspace::Workspace;
use crate::{cargo, emulator::RunFolder, files, pack, progress::Progress};
use bulkhead_types::manifest::ConsoleMode;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arguments of `hv image`.
#[derive(Args, Debug, Clone)]
pub struct ImageArgs {
    /// The machine's description; without one: the demo machine.
    manifest: Option<PathBuf>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE.iso")]
    output: PathBuf,
}

/// Serial line and screen, and no waiting.
const GRUB: &str = "\
insmod all_video
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=0
menuentry Bulkhead {
    multiboot2 /boot/bulkhead
    module2 /boot/pack
}
";

/// Writes the image.
pub fn image(args: &ImageArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let demo = workspace.path("tools/demo.toml");
    let machine = manifest::read(args.manifest.as_deref().unwrap_or(&demo))?;
    of_machine(&workspace, machine, &args.output)?;
    eprintln!("{} starts the machine on a BIOS and on UEFI", args.output.display());
    Ok(crate::failure::OK)
}

/// Writes the image of `machine` to `output`. Its consoles share the serial line by lines, since no tool takes the
/// line apart there.
pub fn of_machine(workspace: &Workspace, mut machine: Machine, output: &Path) -> Outcome<()> {
    machine.console = ConsoleMode::Lines;
    let hypervisor = cargo::hypervisor(workspace)?;
    write(workspace, &hypervisor, &pack::pack(workspace, &machine)?, output)
}

/// Writes an image with this hypervisor and pack to `output`.
pub fn write(workspace: &Workspace, hypervisor: &Path, pack: &[u8], output: &Path) -> Outcome<()> {
    let folder = RunFolder::new(workspace)?;
    let boot = folder.file("iso/boot");
    std::fs::create_dir_all(boot.join("grub"))
        .map_err(|e| Failure::failed(format!("can not make {}: {e}", boot.display())))?;
    files::write(&boot.join("pack"), pack)?;
    files::write(&boot.join("grub/grub.cfg"), GRUB.as_bytes())?;
    // GRUB would load the symbols too.
    tool(Command::new("strip").arg("-o").arg(boot.join("bulkhead")).arg(hypervisor))?;
    let _progress = Progress::start(format!("writing {}", output.display()));
    let mut mkrescue = Command::new("grub-mkrescue");
    mkrescue.args(["--locales=", "--fonts=", "--themes=", "-o"]).arg(output).arg(folder.file("iso"));
    tool(&mut mkrescue)
}
