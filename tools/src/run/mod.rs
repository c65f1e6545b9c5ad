//! `hv run`: builds a machine, boots it, and connects the terminal to its guests' consoles.

mod guests;
mod interactive;
mod plain;
mod until;

pub use until::Until;

use crate::emulator::{self, Kind, On, Place};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::manifest::{self, Guest, ImageRef, Machine, Module};
use crate::session::{Finish, Report, Session};
use crate::workspace::Workspace;
use crate::{ctl, style, symbols, terminal};
use bulkhead_types::manifest::{ConsoleMode, CpuTime, LoadAs, Zone};
use bulkhead_types::{Barriers, MAX_VCPUS};
use clap::Args;
use std::io::{IsTerminal as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `hv run`.
#[derive(Args, Debug, Clone, Default)]
pub struct RunArgs {
    /// The machine's description; without one, and without --kernel: the demo machine.
    #[arg(conflicts_with = "kernel")]
    pub manifest: Option<PathBuf>,
    #[command(flatten)]
    pub one: OneGuest,
    /// Where to run it.
    #[arg(long, value_enum, default_value_t)]
    pub on: On,
    /// Start it by UEFI firmware, from a CD image (QEMU and KVM).
    #[arg(long)]
    pub uefi: bool,
    /// End the machine after so many seconds, with status 124.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Write the console of this guest (or of `all`) to standard output, byte for byte.
    #[arg(long, value_name = "NAME|all")]
    pub console: Option<String>,
    /// Offer the control line here, for `hv ctl` (build/control if no path is given), and its key beside it in PATH.key.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true)]
    pub control: Option<Option<PathBuf>>,
    /// Take no input; standard output is the guest's console, byte for byte.
    #[arg(long)]
    pub no_input: bool,
    /// Write memory and registers of the stopped machine here when the run is over, however it ends (QEMU, KVM).
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// End the run when a guest, or the hypervisor's log, has printed a line with this in it.
    #[arg(long, value_name = "TEXT", requires = "dump")]
    pub dump_at: Option<String>,
    /// The machine's processors.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub cpus: u16,
    /// The emulator's CPU model.
    #[arg(long, value_name = "MODEL", hide = true)]
    pub cpu: Option<String>,
    /// A hypervisor that is built already.
    #[arg(long, value_name = "ELF", hide = true)]
    pub hypervisor: Option<PathBuf>,
}

/// A machine of one guest, which is called `guest`.
#[derive(Args, Debug, Clone, Default)]
pub struct OneGuest {
    /// Boot this kernel alone: bzImage, PVH ELF, multiboot, or @debian, @xen, @suite/NAME.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<String>,
    /// Its initial RAM disk (or @busybox).
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<String>,
    /// A boot module, with its command line behind the first blank. May be given more than once.
    #[arg(long = "module", value_name = "FILE [ARGS]", requires = "kernel")]
    pub modules: Vec<String>,
    /// Its command line.
    #[arg(long, value_name = "STRING", requires = "kernel", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Its memory.
    #[arg(long, value_name = "SIZE", requires = "kernel")]
    pub memory: Option<String>,
    /// Its virtual CPUs.
    #[arg(long, value_name = "N", requires = "kernel")]
    pub vcpus: Option<u16>,
    /// Copy the kernel to this guest-physical address as it is, and enter it there.
    #[arg(long, value_name = "ADDRESS", requires = "kernel", value_parser = parse_address)]
    pub flat: Option<u64>,
    /// Map its memory when it is first touched.
    #[arg(long, requires = "kernel")]
    pub lazy: bool,
    /// Give it the MMIO test device.
    #[arg(long, requires = "kernel")]
    pub test_device: bool,
}

fn parse_address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "write an address like 0x7c00".to_owned())
}

/// MiB that a machine with a control line has for guests that are made over it.
const SPARE: u64 = 256;

/// Runs the machine that `args` describe; the exit status.
pub fn run(args: &RunArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let mut machine = machine(&workspace, args)?;
    let console = console_of(&machine, args)?;
    let kind = emulator::choose(args.on)?;
    let place = Place { uefi: args.uefi, cpu: args.cpu.clone(), cpus: args.cpus.max(1), ..Place::of(kind) };
    let control = control(&workspace, args, &mut machine)?;
    // Room for guests that come over the line.
    let place = Place { spare: if control.is_some() { SPARE } else { 0 }, control, ..place };
    if args.dump.is_some() && place.kind == Kind::Bochs {
        return Err(Failure::usage("Bochs can not write its memory").hint("use --on qemu for a --dump"));
    }
    let builder = match &args.hypervisor {
        Some(image) => Builder::with(&workspace, image.clone())?,
        None => Builder::new(&workspace)?,
    };
    let running = builder.start_at(&place, &machine)?;
    let (session, sender) = Session::new(running);
    let session = session.dump_to(args.dump.clone());
    let text = args.dump_at.as_deref();
    terminal::forward_signals(sender.clone());

    let names: Vec<String> = machine.guests.iter().map(|g| g.name.clone()).collect();
    let timeout = args.timeout.map(Duration::from_secs);
    let on_terminal = stdin().is_terminal() && stdout().is_terminal();
    let report = if on_terminal && !args.no_input && args.console.is_none() {
        let raw = terminal::Raw::enter();
        terminal::forward_keys(sender);
        let report = session.follow(&mut Until::new(interactive::Interactive::new(names), text), timeout);
        drop(raw);
        println!();
        report
    } else {
        if !args.no_input {
            terminal::forward_keys(sender);
        }
        session.follow(&mut Until::new(plain::Plain::new(names, console), text), timeout)
    };
    explain(&report, &builder, args.timeout);
    if let Some(Err(failure)) = report.dump {
        return Err(failure);
    }
    Ok(report.status())
}

/// Where the control line is to be. Its key is the manifest's, or a new one that the machine gets.
fn control(workspace: &Workspace, args: &RunArgs, machine: &mut Machine) -> Outcome<Option<PathBuf>> {
    let Some(path) = &args.control else { return Ok(None) };
    let path = match path {
        Some(path) => path.clone(),
        None => ctl::default_line(workspace)?,
    };
    if machine.control.is_none() {
        machine.control = Some(ctl::random()?);
    }
    Ok(Some(path))
}

/// The machine that `args` describe.
pub fn machine(workspace: &Workspace, args: &RunArgs) -> Outcome<Machine> {
    match (&args.one.kernel, &args.manifest) {
        (Some(kernel), _) => one_guest(kernel, &args.one),
        (None, Some(path)) => manifest::read(path),
        (None, None) => manifest::read(&workspace.path("tools/demo.toml")),
    }
}

/// The machine of one guest with this kernel.
pub fn one_guest(kernel: &str, args: &OneGuest) -> Outcome<Machine> {
    let image = |text: &str| {
        let image = ImageRef::parse(text, Path::new("")).map_err(Failure::usage)?;
        match &image {
            ImageRef::File(path) if !path.is_file() => {
                Err(Failure::usage(format!("there is no file {}", path.display())).hint("check the path"))
            }
            _ => Ok(image),
        }
    };
    let mut modules = Vec::new();
    if let Some(initrd) = &args.initrd {
        modules.push(Module { image: image(initrd)?, cmdline: String::new() });
    }
    for module in &args.modules {
        let (path, cmdline) = module.split_once(' ').unwrap_or((module, ""));
        modules.push(Module { image: image(path)?, cmdline: cmdline.to_owned() });
    }
    let size = |text: &String| {
        let bytes = manifest::parse_size(text)?;
        manifest::check_memory(bytes).map(|()| bytes)
    };
    let memory = args.memory.as_ref().map(size).transpose();
    let memory = memory.map_err(|m| Failure::usage(m).hint("give --memory 2M to 1T, like 256M"))?;
    let vcpus = args.vcpus.unwrap_or(1);
    if !(1..=MAX_VCPUS).contains(&usize::from(vcpus)) {
        return Err(Failure::usage(format!("{vcpus} virtual CPUs")).hint(format!("give --vcpus 1 to {MAX_VCPUS}")));
    }
    let guest = Guest {
        name: "guest".to_owned(),
        zone: 0,
        kernel: image(kernel)?,
        load: args.flat.map_or(LoadAs::Detect, |at| LoadAs::Flat { at }),
        modules,
        cmdline: args.cmdline.clone().unwrap_or_default(),
        memory: memory.unwrap_or(manifest::DEFAULT_MEMORY),
        vcpus,
        cpu: CpuTime::default(),
        restarts: 0,
        lease: 0,
        lazy: args.lazy,
        test_exit: true,
        test_device: args.test_device,
    };
    let zone = Zone { name: "guest".to_owned(), barriers: Barriers::ALL };
    Ok(Machine { console: ConsoleMode::Framed, audit: true, zones: vec![zone], guests: vec![guest], control: None })
}

/// Number of the guest whose console goes to standard output; all of them if `None`.
fn console_of(machine: &Machine, args: &RunArgs) -> Outcome<Option<u8>> {
    let Some(name) = &args.console else { return Ok((machine.guests.len() == 1).then_some(1)) };
    if name == "all" {
        return Ok(None);
    }
    let found = machine.guests.iter().position(|g| g.name == *name);
    found.and_then(|index| u8::try_from(index + 1).ok()).map(Some).ok_or_else(|| {
        let names: Vec<&str> = machine.guests.iter().map(|g| g.name.as_str()).collect();
        Failure::usage(format!("there is no guest {name}")).hint(format!("give --console {} or all", names.join(", ")))
    })
}

/// Says on standard error how the run ended, if not well.
fn explain(report: &Report, builder: &Builder, timeout: Option<u64>) {
    match &report.finish {
        Finish::Done | Finish::Quit => {}
        Finish::Timeout => {
            let message = format!("time-out after {} s", timeout.unwrap_or_default());
            Failure::failed(message).hint("give a longer --timeout, or look at the console above").print();
        }
        Finish::Preflight(message) => Failure::machine(message.clone()).print(),
        Finish::Died(words) => {
            Failure::failed(format!("the machine ended by itself: {words}")).print();
        }
        Finish::Panic(lines) => {
            let loader = symbols::load(builder.image());
            eprintln!("{}: the hypervisor died", style::error("hv"));
            for line in lines {
                eprintln!("{}", symbols::symbolize(line, loader.as_ref()));
            }
        }
    }
    for (_, name, end) in report.ends.iter().filter(|(_, _, end)| !end.is_good()) {
        eprintln!("{}: guest {name} ended with {end}", style::error("hv"));
    }
    for text in &report.audit_failures {
        eprintln!("{}: the isolation audit failed: {text}", style::error("hv"));
    }
}
