//! The machines that Bulkhead boots on: Bochs, QEMU, and KVM through QEMU.

mod bochs;
mod control;
mod monitor;
mod place;
mod qemu;

pub use control::key_file;
pub use place::{Kind, On, Place, choose, nested_kvm};

use crate::failure::{Failure, Outcome};
use crate::workspace::Workspace;
use control::Control;
use monitor::Monitor;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the machine boots from.
#[derive(Clone, Debug)]
pub enum Medium {
    /// A raw disk with our boot sector (Bochs), with its number of cylinders.
    Disk {
        /// The file.
        path: PathBuf,
        /// Cylinders of 16 heads and 63 sectors.
        cylinders: usize,
    },
    /// The hypervisor's ELF and the pack, by the emulator's own loader (QEMU).
    Kernel {
        /// The ELF with the PVH entry.
        image: PathBuf,
        /// The pack.
        pack: PathBuf,
    },
    /// A CD image with GRUB.
    Iso {
        /// The file.
        path: PathBuf,
        /// Whether UEFI firmware starts it, instead of a BIOS.
        uefi: bool,
    },
}

/// The machine to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What it boots from.
    pub medium: Medium,
    /// RAM in MiB.
    pub memory: u64,
    /// A CPU model other than the default.
    pub cpu: Option<String>,
    /// Processors.
    pub cpus: u16,
    /// Whether its time is the count of its instructions, as Bochs's always is; KVM's can not be.
    pub counted: bool,
    /// Where to offer the control line, and its key.
    pub control: Option<(PathBuf, [u8; 32])>,
}

/// A folder for one run's files, removed with it.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A new folder below `build/run`; folders whose process is gone are removed.
    pub fn new(workspace: &Workspace) -> Outcome<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let all = workspace.build("run")?;
        for old in fs::read_dir(&all).into_iter().flatten().flatten() {
            let name = old.file_name();
            let pid = name.to_str().and_then(|n| n.split('-').next()).unwrap_or_default().to_owned();
            if !pid.is_empty() && !Path::new("/proc").join(pid).exists() {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = workspace.build(&format!("run/{}-{number}", std::process::id()))?;
        Ok(Self { path })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A machine that runs. It is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Its first serial port.
    pub serial: TcpStream,
    /// QEMU's monitor.
    monitor: Option<Monitor>,
    _control: Option<Control>,
    log: PathBuf,
    folder: RunFolder,
}

impl Running {
    /// Whether the emulator has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Stops the emulator, so that nobody answers, or lets it go on.
    pub fn freeze(&self, stop: bool) -> Outcome<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        let sent = id.map(|id| kill_process(id, signal));
        if sent == Some(Ok(())) { Ok(()) } else { Err(Failure::failed("the emulator has ended")) }
    }

    /// Stops the machine for good, and writes its memory and registers to `path` as an ELF core.
    pub fn dump(&mut self, path: &Path) -> Outcome<()> {
        match &mut self.monitor {
            Some(monitor) => monitor.dump(path),
            None => Err(Failure::usage("Bochs can not write its memory").hint("use --on qemu")),
        }
    }

    /// Gives the machine's first processor a machine check.
    pub fn machine_check(&mut self) -> Outcome<()> {
        match &mut self.monitor {
            Some(monitor) => monitor.machine_check(),
            None => Err(Failure::usage("Bochs has no machine checks").hint("use --on qemu")),
        }
    }

    /// Lets all processors but the first stand still, as long as what it returns lives.
    pub fn hold_others(&mut self) -> Outcome<UnixStream> {
        let socket = self.folder.file("debugger");
        match &mut self.monitor {
            Some(monitor) => monitor.hold_others(&socket),
            None => Err(Failure::usage("Bochs can not hold a processor").hint("use --on qemu")),
        }
    }

    /// Why the emulator ended, as far as its log tells.
    pub fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let telling = |l: &&str| l.contains(">>PANIC<<") || l.contains("qemu-system") || l.contains("exception()");
        let lines: Vec<&str> = log.lines().filter(telling).take(3).collect();
        if lines.is_empty() { log.lines().last().unwrap_or_default().to_owned() } else { lines.join("\n") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a machine; its files go to `folder`.
pub fn start(kind: Kind, spec: &Spec, folder: RunFolder) -> Outcome<Running> {
    let (listener, port) = listen()?;
    let (monitor_listener, monitor_port) = listen()?;
    let control_listener = spec.control.as_ref().map(|_| listen()).transpose()?;
    let ports =
        Ports { serial: port, control: control_listener.as_ref().map(|(_, port)| *port), monitor: monitor_port };
    let command = match kind {
        Kind::Bochs => bochs::command(spec, &folder, &ports)?,
        Kind::Qemu | Kind::Kvm => qemu::command(kind, spec, &ports)?,
    };
    let log = folder.file("emulator.log");
    let alone = if kind == Kind::Bochs { bochs::display_lock() } else { None };
    let mut child = spawn(command, &log)?;
    if alone.is_some() {
        bochs::wait_for_display(&mut child);
    }
    drop(alone);
    match accept(&listener, &mut child) {
        Some(serial) => {
            let _ = serial.set_nodelay(true);
            let monitor = match kind {
                Kind::Bochs => None,
                Kind::Qemu | Kind::Kvm => accept(&monitor_listener, &mut child).map(Monitor::new),
            };
            let control = match (&spec.control, &control_listener) {
                (Some((path, key)), Some((listener, _))) => {
                    accept(listener, &mut child).map(|line| Control::offer(path, key, line))
                }
                _ => None,
            };
            // From here on the child ends with what is returned, or dropped.
            let mut running = Running { child, serial, monitor, _control: None, log, folder };
            running._control = control.transpose()?;
            Ok(running)
        }
        None => {
            let _ = child.kill();
            let _ = child.wait();
            let said = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = said.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            let message = format!("the emulator did not start:\n{}", tail.join("\n"));
            Err(Failure::machine(message).hint("./hv doctor says what this machine lacks"))
        }
    }
}

/// Ports of ours that the emulator connects its lines to.
#[derive(Clone, Copy, Debug)]
struct Ports {
    serial: u16,
    control: Option<u16>,
    monitor: u16,
}

/// A port of ours that the emulator connects to.
fn listen() -> Outcome<(TcpListener, u16)> {
    let fail = |e: std::io::Error| Failure::machine(format!("can not listen for the machine's lines: {e}"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(fail)?;
    let port = listener.local_addr().map_err(fail)?.port();
    Ok((listener, port))
}

/// Starts `command` so that it ends with us, however we end, and does not see the terminal's Ctrl-C.
fn spawn(command: Command, log: &Path) -> Outcome<Child> {
    let fail = |e: std::io::Error| {
        Failure::machine(format!("can not start {}: {e}", command.get_program().display()))
            .hint("./hv doctor says what this machine lacks")
    };
    let output = fs::File::create(log).map_err(fail)?;
    let errors = output.try_clone().map_err(fail)?;
    let mut guarded = Command::new("setpriv");
    guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    guarded.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    guarded.spawn().map_err(fail)
}

fn accept(listener: &TcpListener, child: &mut Child) -> Option<TcpStream> {
    listener.set_nonblocking(true).ok()?;
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).ok()?;
                return Some(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => return None,
        }
        if !matches!(child.try_wait(), Ok(None)) {
            return None;
        }
    }
    None
}
