//! Each command of the monitor and of `hv ctl`, right and wrong, on a machine that runs; and lies about images.

use super::control::{PATIENCE, connect, expect, machine, wait_for};
use super::echo;
use super::endless;
use super::many::COUNTER;
use super::tally::{Row, on_each};
use crate::ctl::{Link, one, pages};
use crate::emulator::{Kind, Place, RunFolder, Running};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest::Machine;
use crate::workspace::Workspace;
use bulkhead_control::mac::Hash;
use bulkhead_control::upload::Wrong;
use bulkhead_control::{Operation, Refusal, Response, State};
use bulkhead_types::manifest::ConsoleMode;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const MACHINE: &str = "tests/manifests/control.toml";
/// For the monitor's answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What is typed at the monitor's prompt, and what must come. The guests: 1 spin, which runs, and 2 hello, which has ended.
const MONITOR: [(&str, &str); 55] = [
    ("list", " 1 spin             spin     running"),
    ("list x", "`list` takes no arguments"),
    ("lits", "there is no command `lits`: did you mean `list`?"),
    ("version", "Bulkhead 0.1.0 with "),
    ("version x", "`version` takes no arguments"),
    ("help", "Tab completes"),
    ("help pause", "pause    GUEST         let a guest run no further"),
    ("help nothing", "there is no command `nothing`"),
    ("stats", " 1 spin "),
    ("stats spin", "timer"),
    ("stats nobody", "there is no such guest"),
    ("top", "cpu %"),
    ("top x", "`top` takes no arguments"),
    ("log", "guest 1 spin: started by "),
    ("log 0", "guest 1 spin: started by manifest"),
    ("log x", "write `log [NUMBER]`"),
    ("memmap", "nobody (free)"),
    ("memmap x", "`memmap` takes no arguments"),
    ("audit", " 0 violations"),
    ("audit x", "`audit` takes no arguments"),
    ("pause hello", "it is stopped: start it first"),
    ("pause", "write `pause GUEST`"),
    ("pause spin", "done"),
    ("pause spin", "it is so already"),
    ("inject spin nmi", "it is paused: resume it first"),
    ("stop spin", "it is paused: resume it first"),
    ("reset spin", "it is paused: resume it first"),
    ("resume 1", "done"),
    ("resume", "write `resume GUEST`"),
    ("dump spin", "dump Rax="),
    ("dump nobody", "there is no such guest"),
    ("trace spin on", "log guest 1 trace: "),
    ("trace spin", "write `trace GUEST on|off`"),
    ("trace spin off", "done"),
    ("inject hello nmi", "it is stopped"),
    ("inject spin", "write `inject GUEST nmi`"),
    ("stop spin", "it does not listen to its power button: `kill` ends it at once"),
    ("stop hello", "it is so already"),
    ("stop nobody", "there is no such guest"),
    ("stop", "write `stop GUEST`"),
    ("reset spin", "event guest 1 spin started"),
    ("reset hello", "it is stopped: start it first"),
    ("reset spin now", "write `reset GUEST`"),
    ("start spin", "it is so already"),
    ("start nobody", "there is no such guest"),
    ("destroy spin", "it is running: stop it first"),
    ("kill spin", "event guest 1 spin ended stopped"),
    ("kill spin", "it is so already"),
    ("kill", "write `kill GUEST`"),
    ("destroy spin", "event guest 1 spin destroyed"),
    ("start spin", "event guest 1 spin started"),
    ("console nobody", "there is no such guest"),
    ("console spin", "console of guest 1 spin; Ctrl-] m comes back"),
    ("console spin x", "write `console GUEST`"),
    ("inject spin nmi", "event guest 1 spin ended"),
];

/// Arguments of `hv ctl`, its status, and what standard output, or if it fails the one line of standard error, must have.
const CTL: [(&str, i32, &str); 57] = [
    ("", 2, "write `hv ctl [OPTIONS] <COMMAND>`"),
    ("list", 0, " 1 spin             spin       running"),
    ("list --json", 0, "\"origin\""),
    ("list x", 2, "write `hv ctl list"),
    ("lst", 2, "'list'"),
    ("version", 0, "Bulkhead 0.1.0 with "),
    ("version x", 2, "unexpected argument"),
    ("audit", 0, " 0 violations"),
    ("audit x", 2, "unexpected argument"),
    ("memmap", 0, "guest 1 (Ram)"),
    ("memmap x", 2, "unexpected argument"),
    ("stats", 0, " 1 spin "),
    ("stats spin", 0, "timer"),
    ("stats nobody", 1, "there is no such guest"),
    ("stats --interval 0", 2, "a number of seconds"),
    ("events", 0, "guest 1 spin: started by manifest"),
    ("events --from x", 2, "invalid"),
    ("pause spin", 0, "done"),
    ("pause spin", 0, "it is so already"),
    ("pause hello", 1, "it is stopped"),
    ("inject spin", 1, "it is paused"),
    ("reset spin", 1, "it is paused"),
    ("resume spin", 0, "done"),
    ("resume hello", 1, "it is stopped"),
    ("inject hello", 1, "it is stopped"),
    ("stop spin", 1, "does not listen to its power button"),
    ("stop spin --wait 1", 2, "1"),
    ("stop hello --wait 1s", 0, "it is so already"),
    ("stop nobody", 1, "there is no such guest"),
    ("console hello", 0, "hello from a guest"),
    ("console hello --json", 0, "\"at\":0"),
    ("console hello --plain", 0, "[hello] hello from a guest"),
    ("console 2 --plain", 0, "[hello] hello from a guest"),
    ("console spin --from 1", 0, "pinning"),
    ("console spin --from x", 2, "invalid"),
    ("console spin x", 2, "unexpected argument"),
    ("console", 2, "GUEST"),
    ("console nobody", 1, "there is no such guest"),
    ("reset nobody", 1, "there is no such guest"),
    ("reset spin", 0, "done"),
    ("destroy spin", 1, "it is running"),
    ("destroy spin --json", 1, "{\"error\":\"spin: it is running\",\"hint\":\"stop it first\",\"status\":1}"),
    ("destroy hello", 0, "done"),
    ("destroy hello", 1, "there is no such guest"),
    ("destroy", 2, "GUEST"),
    ("start hello", 0, "done"),
    ("start", 2, "GUEST"),
    ("top", 2, "top needs a terminal"),
    ("metrics --listen nowhere", 2, "nowhere"),
    ("create no/such.toml", 2, "no/such.toml"),
    ("create tests/manifests/control.toml", 2, "say which guest"),
    ("create COUNTER", 0, "guest 3"),
    ("create COUNTER", 1, "another guest, or a zone, has this name"),
    ("create COUNTER --name other --lease 1s", 0, "guest 4"),
    ("create COUNTER --lease 1ms", 2, "a number of seconds"),
    ("kill nobody", 1, "there is no such guest"),
    ("kill spin", 0, "done"),
];

/// The same when the monitor's are done: on Bochs, who ends in the handler of an NMI leaves none for others.
const LAST: [(&str, i32, &str); 2] = [("start spin", 0, "done"), ("inject spin", 0, "done")];

/// A row for each of these machines.
pub fn rows<'a>(workspace: &'a Workspace, builder: &'a Builder, machines: &[Kind]) -> Vec<Row<'a>> {
    in_each_mode("commands", machines, move |kind, mode| verdict(workspace, builder, kind, mode))
}

/// A row for each of these machines and each way to show consoles.
pub fn in_each_mode<'a>(
    what: &str,
    machines: &[Kind],
    test: impl Fn(Kind, ConsoleMode) -> Outcome<()> + Copy + Sync + 'a,
) -> Vec<Row<'a>> {
    let modes = [(ConsoleMode::Framed, "framed"), (ConsoleMode::Lines, "lines")];
    let rows =
        modes.map(|(mode, name)| on_each(&format!("{what}, console {name},"), machines, move |kind| test(kind, mode)));
    rows.into_iter().flatten().collect()
}

fn verdict(workspace: &Workspace, builder: &Builder, kind: Kind, mode: ConsoleMode) -> Outcome<()> {
    let machine = Machine { console: mode, ..machine(workspace, MACHINE)? };
    let folder = RunFolder::new(workspace)?;
    let path = folder.file("line");
    let place = Place { control: Some(path.clone()), spare: 64, ..Place::of(kind) };
    let running = builder.start_at(&place, &machine)?;
    let mut terminal = Terminal::new(&running)?;
    terminal.wait("event guest 2 hello ended", 0)?;
    if mode == ConsoleMode::Framed {
        let manifest = folder.file("counter.toml");
        let kernel = folder.file("counter.bin");
        files::write(&kernel, &COUNTER)?;
        let text = format!("[[guest]]\nname = \"counter\"\nkernel = \"{}\"\nmemory = \"4M\"\n", kernel.display());
        files::write(&manifest, format!("{text}load = {{ flat = 0x8000 }}\n").as_bytes())?;
        echo::run(workspace, &path)?;
        ctl(workspace, &path, &manifest, &CTL)?;
        lies(&path)?;
        terminal.back = b"\x10\x40";
        terminal.send(terminal.back)?;
        endless::run(workspace, &path, &running, &mut terminal)?;
    } else {
        terminal.back = b"\x1dm";
        terminal.send(terminal.back)?;
        terminal.wait("bulkhead> ", 0)?;
    }
    let wrong = MONITOR.iter().filter_map(|(line, want)| terminal.ask(line, want).err());
    let wrong: Vec<String> = wrong.map(|failure| failure.to_string()).collect();
    expect(wrong.is_empty(), &wrong.join("\n"))?;
    wait_for(&mut connect(&path), "spin", State::Stopped)?;
    ctl(workspace, &path, Path::new(""), &LAST)
}

/// The machine's console.
pub struct Terminal {
    serial: TcpStream,
    come: Arc<Mutex<String>>,
    /// What is typed before each command, in case another console has the keyboard.
    back: &'static [u8],
}

impl Terminal {
    pub fn new(running: &Running) -> Outcome<Self> {
        let fail = |e: std::io::Error| Failure::failed(e.to_string());
        let serial = running.serial.try_clone().map_err(fail)?;
        let mut from = serial.try_clone().map_err(fail)?;
        let come = Arc::new(Mutex::new(String::new()));
        let all = Arc::clone(&come);
        thread::spawn(move || {
            let (mut buffer, mut switching) = ([0; 4096], false);
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in buffer.iter().take(count) {
                    // Whose it is does not matter here.
                    match (std::mem::replace(&mut switching, false), *byte) {
                        (false, 0x10) => switching = true,
                        (false, byte) => all.push(byte.into()),
                        (true, _) => {}
                    }
                }
            }
        });
        Ok(Self { serial, come, back: b"" })
    }

    /// Types them.
    pub fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.serial.write_all(bytes).map_err(|e| Failure::failed(e.to_string()))
    }

    /// All that has come.
    pub fn come(&self) -> String {
        self.come.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `text` has come, after so many bytes.
    pub fn wait(&self, text: &str, after: usize) -> Outcome<()> {
        self.wait_for(text, after, PATIENCE)
    }

    /// The same, and so long.
    pub fn wait_for(&self, text: &str, after: usize, patience: Duration) -> Outcome<()> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if self.come().get(after..).is_some_and(|come| come.contains(text)) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let come = self.come();
        Err(Failure::failed(format!("`{text}` did not come, but:\n{}", come.get(after..).unwrap_or_default())))
    }

    /// Types a command at the prompt; its answer must have this in it.
    pub fn ask(&mut self, line: &str, want: &str) -> Outcome<()> {
        // What is still to come of the command before it.
        thread::sleep(Duration::from_millis(50));
        let before = self.come().len();
        self.send(self.back)?;
        self.send(format!("{line}\r").as_bytes())?;
        self.wait_for(want, before, ANSWER).map_err(|failure| Failure::failed(format!("monitor: {line}: {failure}")))
    }
}

/// `hv ctl` with these words.
pub fn hv_ctl(workspace: &Workspace, line: &Path, words: &[&str]) -> Outcome<Command> {
    let own = std::env::current_exe().map_err(|e| Failure::failed(e.to_string()))?;
    let mut command = Command::new(own);
    command.current_dir(workspace.path("")).arg("ctl").args(words).arg("--line").arg(line);
    Ok(command)
}

fn ctl(workspace: &Workspace, line: &Path, counter: &Path, rows: &[(&str, i32, &str)]) -> Outcome<()> {
    for &(words, status, want) in rows {
        let counter = counter.to_string_lossy();
        let words = words.split_whitespace().map(|word| if word == "COUNTER" { counter.as_ref() } else { word });
        let words: Vec<&str> = words.collect();
        let output = hv_ctl(workspace, line, &words)?.output().map_err(|e| Failure::failed(e.to_string()))?;
        let text = if status == 0 { output.stdout } else { output.stderr };
        let text = String::from_utf8_lossy(&text).into_owned();
        let right = output.status.code() == Some(status) && text.contains(want);
        expect(right, &format!("ctl {words:?}: {}, not {status} and `{want}`:\n{text}", output.status))?;
        let lines = text.lines().count();
        expect(status == 0 || lines == 1, &format!("ctl {words:?}: {lines} lines, not one:\n{text}"))?;
    }
    Ok(())
}

/// Images that are none: nothing comes of them, and all their frames are given back.
fn lies(line: &Path) -> Outcome<()> {
    let link = &mut connect(line);
    // What was started or ended just now has its memory, or has given it back.
    wait_for(link, "hello", State::Stopped)?;
    wait_for(link, "spin", State::Stopped)?;
    let before = free(link)?;
    let mut hash = Hash::default();
    hash.update(&[0; 8192]);
    let zeros = hash.finish();
    let create = |bytes, sha256| Operation::Create { bytes, sha256 };
    let chunk = |offset| Operation::Chunk { offset, bytes: b"some bytes" };
    let whole = Operation::Zeros { offset: 0, count: 8192 };
    let wrong = |wrong| Some(Refusal::Upload(wrong));
    for (number, (operation, refusal)) in [
        (Operation::Commit, wrong(Wrong::NoPack)),
        (chunk(0), wrong(Wrong::NoPack)),
        (create(5000, zeros), Some(Refusal::Pack)),
        (create(4096, zeros), Some(Refusal::Pack)),
        (create(0, zeros), Some(Refusal::Pack)),
        (create(u64::MAX, zeros), Some(Refusal::Pack)),
        (create(u64::MAX - 4095, zeros), Some(Refusal::NoRoom)),
        (create(1 << 40, zeros), Some(Refusal::NoRoom)),
        // Another one in its place, and another.
        (create(8 << 20, zeros), None),
        (create(16 << 20, zeros), None),
        (create(8192, [1; 32]), None),
        (chunk(5), wrong(Wrong::Gap)),
        (chunk(u64::MAX), wrong(Wrong::Gap)),
        (Operation::Commit, wrong(Wrong::Incomplete)),
        (Operation::Zeros { offset: 0, count: u32::MAX }, wrong(Wrong::TooLong)),
        (Operation::Commit, wrong(Wrong::Hash)),
        (Operation::Commit, wrong(Wrong::NoPack)),
        (create(8192, zeros), None),
        (whole, None),
        (whole, None),
        (Operation::Commit, Some(Refusal::Pack)),
        (chunk(0), wrong(Wrong::NoPack)),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = link.call(&operation)?;
        let got = match reply.response()? {
            Response::Refused(refusal) => Some(refusal),
            _ => None,
        };
        expect(got == refusal, &format!("lie {number}, {operation:?}: {got:?}, not {refusal:?}"))?;
    }
    let after = free(link)?;
    expect(after == before, &format!("lies about images: {before} bytes were free, now {after}"))
}

pub fn free(link: &mut Link) -> Outcome<u64> {
    let mut free = 0;
    pages(|from| match one(link, &Operation::Memory(from), "memmap")?.response()? {
        Response::Memory(page) => {
            free +=
                page.items.iter().filter(|range| range.owner.contains("free")).map(|range| range.bytes).sum::<u64>();
            Ok(page.next)
        }
        _ => Err(Failure::failed("no memory map")),
    })?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::{CTL, LAST, MONITOR};
    use crate::cli::Cli;
    use bulkhead_control::monitor::COMMANDS;
    use clap::CommandFactory as _;

    /// Whether the first word of `line` is `name`.
    fn is(line: &str, name: &str) -> bool {
        line.split(' ').next() == Some(name)
    }

    #[test]
    fn each_command_of_the_monitor_is_tried_right_and_wrong() {
        const WRONG: [&str; 5] = ["write `", "takes no arguments", "there is no ", "it is stopped", "it is running"];
        for (name, ..) in COMMANDS {
            let wrong = |want: &str| WRONG.iter().any(|start| want.contains(start));
            let rows: Vec<&(&str, &str)> = MONITOR.iter().filter(|(line, _)| is(line, name)).collect();
            let (bad, good): (Vec<&(&str, &str)>, Vec<_>) = rows.into_iter().partition(|(_, want)| wrong(want));
            assert!(!good.is_empty(), "{name} is not tried");
            assert!(!bad.is_empty(), "{name} is not tried with wrong arguments");
        }
    }

    #[test]
    fn each_command_of_the_tool_is_tried_right_and_wrong() {
        let cli = Cli::command();
        let ctl = cli.find_subcommand("ctl").unwrap();
        for name in ctl.get_subcommands().map(clap::Command::get_name) {
            let rows: Vec<_> = CTL.iter().chain(&LAST).filter(|(line, ..)| is(line, name)).collect();
            // Those go on without end, or want a terminal.
            let elsewhere = ["top", "metrics"].contains(&name);
            assert!(elsewhere || rows.iter().any(|(_, status, _)| *status == 0), "{name} is not tried");
            assert!(rows.iter().any(|(_, status, _)| *status != 0), "{name} is not tried with wrong arguments");
        }
    }

    #[test]
    fn no_answer_is_what_was_typed() {
        // It is searched in all that comes, and what was typed does.
        assert!(MONITOR.iter().all(|(line, want)| !line.contains(want)));
    }
}
