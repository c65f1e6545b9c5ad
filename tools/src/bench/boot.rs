//! A Linux boot with and without us: ticks from the kernel's entry to its first program, and the ratio.
//!
//! Both start with the time-stamp counter at zero at the kernel's entry (natively the boot sector writes it, below us
//! the guest's counter begins there), and the first program prints the counter as its first act.

use super::{Measured, expect_good};
use crate::disk;
use crate::emulator::{self, Kind, RunFolder, Running, Spec};
use crate::failure::{Failure, Outcome};
use crate::frames::Lines;
use crate::machine::{Builder, loader, write_disk};
use crate::run::{OneGuest, one_guest};
use crate::session::{Session, View, Wire};
use crate::workspace::Workspace;
use crate::{boot_params, files, linux};
use std::time::Duration;

/// Little is printed and nothing is calibrated: what remains is work.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=0 mitigations=off tsc=reliable no_timer_check lpj=400000 \
                       cryptomgr.notests audit=0 random.trust_cpu=on";
/// Memory of both, in MiB.
const MEMORY: u64 = 256;
/// Where the native initial RAM disk goes.
const INITRD_AT: u32 = 0xC00_0000;
const TIMEOUT: Duration = Duration::from_secs(600);
/// What the first program prints before the counter.
const LINE: &str = "bulkhead-init tsc=";

/// Boots both.
pub fn measure(workspace: &Workspace, kind: Kind, native_only: bool) -> Outcome<Vec<Measured>> {
    let native = ticks(native(workspace, kind)?, "Linux without us")?;
    let mut measured = vec![Measured::ticks("without Bulkhead", native)];
    if !native_only {
        let guest = ticks(guest(workspace, kind)?, "Linux as a guest")?;
        measured.push(Measured::ticks("as its guest", guest));
        measured.push(Measured { name: "ratio".to_owned(), value: guest as f64 / native as f64, unit: "ratio" });
    }
    Ok(measured)
}

fn native(workspace: &Workspace, kind: Kind) -> Outcome<Running> {
    if kind == Kind::Kvm {
        return Err(Failure::machine("a native boot can not be timed under KVM").hint("use --on bochs"));
    }
    let kernel = files::read(&linux::kernel(workspace)?)?;
    let initrd = files::read(&linux::initrd(workspace)?)?;
    let folder = RunFolder::new(workspace)?;
    let plan: disk::Plan<'_> = boot_params::plan(&kernel, &initrd, INITRD_AT, CMDLINE.as_bytes())?;
    let medium = write_disk(&loader(workspace)?, &plan, &folder)?;
    emulator::start(kind, &Spec { medium, memory: MEMORY, cpu: None, cpus: 1, counted: false, control: None }, folder)
}

fn guest(workspace: &Workspace, kind: Kind) -> Outcome<Running> {
    let args = OneGuest {
        initrd: Some("@busybox".to_owned()),
        cmdline: Some(CMDLINE.to_owned()),
        memory: Some(format!("{MEMORY}M")),
        ..OneGuest::default()
    };
    Builder::new(workspace)?.start(kind, &one_guest("@debian", &args)?)
}

/// The counter that the first program prints.
fn ticks(running: Running, what: &str) -> Outcome<u64> {
    let (session, _) = Session::new(running);
    let mut first = First::default();
    let report = session.follow(&mut first, Some(TIMEOUT));
    match first.ticks {
        Some(ticks) => Ok(ticks),
        None => {
            expect_good(&report, what)?;
            Err(Failure::failed(format!("{what} ended before its first program")))
        }
    }
}

#[derive(Default)]
struct First {
    lines: Lines,
    ticks: Option<u64>,
}

impl First {
    fn line(&mut self, line: &str) {
        if let Some((_, ticks)) = line.split_once(LINE) {
            self.ticks = self.ticks.or(ticks.trim().parse().ok());
        }
    }
}

impl View for First {
    fn console(&mut self, _guest: u8, bytes: &[u8], _wire: &mut Wire) {
        let mut whole = Vec::new();
        self.lines.push(bytes, |line| whole.push(line.to_owned()));
        whole.iter().for_each(|line| self.line(line));
    }

    /// Without a hypervisor the whole line is on its channel.
    fn log(&mut self, line: &str) {
        self.line(line);
    }

    fn has_enough(&self) -> bool {
        self.ticks.is_some()
    }
}
