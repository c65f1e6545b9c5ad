//! The ISO image, started by GRUB from each firmware.

use super::TestArgs;
use super::tally::{Tally, Verdict};
use crate::emulator::{self, Kind, Medium, RunFolder, Spec};
use crate::failure::Outcome;
use crate::frames::Lines;
use crate::image;
use crate::manifest;
use crate::session::{Session, View, Wire};
use crate::workspace::Workspace;
use std::path::Path;
use std::time::{Duration, Instant};

/// A machine that starts from the ISO, and what it must say in which order.
struct Boot {
    name: &'static str,
    kind: Kind,
    uefi: bool,
    memory: u64,
    lines: &'static [&'static str],
    timeout: u64,
    slow: bool,
}

const BOOTS: [Boot; 3] = [
    Boot {
        name: "ISO on QEMU with SeaBIOS: the preflight names what is missing",
        kind: Kind::Qemu,
        uefi: false,
        memory: 512,
        lines: &["event preflight", "VT-x"],
        timeout: 120,
        slow: false,
    },
    Boot {
        name: "ISO on QEMU with OVMF: the preflight names what is missing",
        kind: Kind::Qemu,
        uefi: true,
        memory: 512,
        lines: &["event preflight", "VT-x"],
        timeout: 180,
        slow: false,
    },
    Boot {
        name: "ISO on Bochs: the demo machine comes up",
        kind: Kind::Bochs,
        uefi: false,
        memory: 512,
        lines: &["[hello] ", "[linux] bulkhead-init"],
        timeout: 600,
        slow: true,
    },
];

/// Makes the ISO of the demo machine and starts it from each firmware.
pub fn run(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) {
    let wanted: Vec<&Boot> = BOOTS.iter().filter(|boot| args.takes(boot.name) && !(args.quick && boot.slow)).collect();
    if wanted.is_empty() {
        return;
    }
    let start = Instant::now();
    let made = RunFolder::new(workspace).and_then(|folder| {
        let path = folder.file("test.iso");
        let machine = manifest::read(&workspace.path("tools/demo.toml"))?;
        image::write(workspace, machine, &path)?;
        Ok((folder, path))
    });
    let (folder, path) = match made {
        Ok(made) => made,
        Err(failure) => return tally.note("ISO image", Verdict::Failed(failure.to_string()), start.elapsed()),
    };
    tally.note("ISO image", Verdict::Passed, start.elapsed());
    for boot in wanted {
        let start = Instant::now();
        let verdict = verdict(workspace, boot, &path).unwrap_or_else(|failure| Verdict::Failed(failure.to_string()));
        tally.note(boot.name, verdict, start.elapsed());
    }
    drop(folder);
}

fn verdict(workspace: &Workspace, boot: &Boot, iso: &Path) -> Outcome<Verdict> {
    let medium = Medium::Iso { path: iso.to_owned(), uefi: boot.uefi };
    let spec = Spec { medium, memory: boot.memory, cpu: None };
    let running = emulator::start(boot.kind, &spec, RunFolder::new(workspace)?)?;
    let mut awaited = Awaited { pieces: boot.lines, said: Vec::new(), lines: Lines::default() };
    let (session, _) = Session::new(running);
    let report = session.follow(&mut awaited, Some(Duration::from_secs(boot.timeout)));
    if awaited.pieces.is_empty() {
        return Ok(Verdict::Passed);
    }
    Ok(Verdict::Failed(format!(
        "{:?} did not come; {:?}\n{}",
        awaited.pieces.first(),
        report.finish,
        awaited.said.join("\n")
    )))
}

/// Pieces that are still to come. Consoles come on the hypervisor's channel here, as lines.
struct Awaited {
    pieces: &'static [&'static str],
    said: Vec<String>,
    lines: Lines,
}

impl Awaited {
    fn line(&mut self, line: &str) {
        let mut rest = line;
        while let Some((first, later)) = self.pieces.split_first()
            && let Some((_, behind)) = rest.split_once(*first)
        {
            rest = behind;
            self.pieces = later;
        }
        self.said.push(line.to_owned());
    }
}

impl View for Awaited {
    fn console(&mut self, _guest: u8, bytes: &[u8], _wire: &mut Wire) {
        let mut whole = Vec::new();
        self.lines.push(bytes, |line| whole.push(line.to_owned()));
        whole.iter().for_each(|line| self.line(line));
    }

    fn log(&mut self, line: &str) {
        self.line(line);
    }

    fn has_enough(&self) -> bool {
        self.pieces.is_empty()
    }
}
