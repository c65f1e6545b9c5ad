//! The ISO image, started by GRUB from each firmware.

use super::TestArgs;
use super::control::expect;
use super::tally::{Row, Tally, Verdict, try_all};
use crate::emulator::{self, Kind, Medium, RunFolder, Running, Spec};
use crate::failure::Outcome;
use crate::frames::Lines;
use crate::image;
use crate::manifest;
use crate::session::{Session, View, Wire};
use crate::workspace::Workspace;
use std::path::Path;
use std::time::{Duration, Instant};

/// A machine that starts from the ISO, and what must come of it.
#[derive(Clone, Copy)]
struct Boot(Firmware, Comes);

#[derive(Clone, Copy, PartialEq)]
enum Firmware {
    SeaBios,
    Ovmf,
    Bochs,
}

#[derive(Clone, Copy, PartialEq)]
enum Comes {
    /// Both guests of the demo machine.
    Demo,
    /// The sentence of the preflight, on a processor without virtualization.
    Preflight,
}

const BOOTS: [Boot; 5] = [
    Boot(Firmware::SeaBios, Comes::Demo),
    Boot(Firmware::Ovmf, Comes::Demo),
    Boot(Firmware::Bochs, Comes::Demo),
    Boot(Firmware::SeaBios, Comes::Preflight),
    Boot(Firmware::Ovmf, Comes::Preflight),
];

/// In MiB.
const MEMORY: u64 = 512;
const TIMEOUT: Duration = Duration::from_secs(300);

impl Boot {
    fn name(self) -> String {
        let machine = match self.0 {
            Firmware::SeaBios => "QEMU with SeaBIOS",
            Firmware::Ovmf => "QEMU with OVMF",
            Firmware::Bochs => "Bochs",
        };
        let comes = match self.1 {
            Comes::Demo => "the demo machine comes up",
            Comes::Preflight => "the preflight names what is missing",
        };
        format!("ISO on {machine}: {comes}")
    }

    fn is_slow(self) -> bool {
        self.0 == Firmware::Bochs
    }

    /// Pieces that it must say, in this order.
    const fn pieces(self) -> &'static [&'static str] {
        match self.1 {
            Comes::Demo => &["[hello] ", "[linux] bulkhead-init"],
            Comes::Preflight => &["event preflight", "VT-x", "SVM"],
        }
    }

    fn start(self, iso: &Path, folder: RunFolder) -> Outcome<Running> {
        let kind = if self.0 == Firmware::Bochs { Kind::Bochs } else { Kind::Qemu };
        let medium = Medium::Iso { path: iso.to_owned(), uefi: self.0 == Firmware::Ovmf };
        let cpu = (self.1 == Comes::Preflight).then(|| "max,-svm".to_owned());
        emulator::start(kind, &Spec { medium, memory: MEMORY, cpu, cpus: 1, counted: false, control: None }, folder)
    }
}

/// Makes the ISO of the demo machine and starts it from each firmware.
pub fn run(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) {
    let wanted = BOOTS.into_iter().filter(|boot| args.takes(&boot.name()) && !(args.quick && boot.is_slow()));
    let wanted: Vec<Boot> = wanted.collect();
    if wanted.is_empty() {
        return;
    }
    let start = Instant::now();
    let made = RunFolder::new(workspace).and_then(|folder| {
        let path = folder.file("test.iso");
        let machine = manifest::read(&workspace.path("tools/demo.toml"))?;
        image::of_machine(workspace, machine, &path)?;
        Ok((folder, path))
    });
    let (folder, path) = match made {
        Ok(made) => made,
        Err(failure) => return tally.note("ISO image", Verdict::Failed(failure.to_string()), start.elapsed()),
    };
    tally.note("ISO image", Verdict::Passed, start.elapsed());
    let path = &path;
    let rows = wanted.into_iter().map(|boot| Row::new(boot.name(), move || verdict(workspace, boot, path)));
    try_all(&rows.collect::<Vec<_>>(), args, tally);
    drop(folder);
}

fn verdict(workspace: &Workspace, boot: Boot, iso: &Path) -> Outcome<()> {
    let running = boot.start(iso, RunFolder::new(workspace)?)?;
    let mut awaited = Awaited { pieces: boot.pieces(), said: Vec::new(), lines: Lines::default() };
    let (session, _) = Session::new(running);
    let report = session.follow(&mut awaited, Some(TIMEOUT));
    let said = format!("{:?} did not come; {:?}\n{}", awaited.pieces.first(), report.finish, awaited.said.join("\n"));
    expect(awaited.pieces.is_empty(), &said)
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
