//! What is typed at guests that do not read it, or not now.
//!
//! The monitor can be had all the same, and who is slow gets it all.

use super::commands::{Terminal, hv_ctl, in_each_mode};
use super::control;
use super::echo;
use super::pty::{self, Pty};
use super::tally::Row;
use crate::ctl::Link;
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest::{Guest, ImageRef, Machine};
use crate::workspace::Workspace;
use bulkhead_control::{Action, State};
use bulkhead_types::manifest::{ConsoleMode, LoadAs};
use std::path::Path;

const MACHINE: &str = "tests/manifests/control.toml";
/// More than a guest's queue holds.
const MUCH: usize = 2000;
/// What it holds, and its chip has room for.
const FITS: usize = 1000;

/// Puts its serial port into loopback and waits for ever; entered in real mode.
const DEAF: [u8; 10] = [
    0xBA, 0xFC, 0x03, // mov dx, 3FCh
    0xB0, 0x10, // mov al, 10h
    0xEE, // out dx, al
    0xFA, // cli
    0xF4, // hlt
    0xEB, 0xFD, // jmp back to it
];

/// A row for each of these machines.
pub fn rows<'a>(workspace: &'a Workspace, builder: &'a Builder, machines: &[Kind]) -> Vec<Row<'a>> {
    let test = move |kind, mode| verdict(workspace, builder, kind, mode);
    in_each_mode("typed at guests that do not read", machines, test)
}

fn verdict(workspace: &Workspace, builder: &Builder, kind: Kind, mode: ConsoleMode) -> Outcome<()> {
    let folder = RunFolder::new(workspace)?;
    let mut machine = Machine { console: mode, ..control::machine(workspace, MACHINE)? };
    machine.guests.truncate(1);
    let first = machine.guests.first().cloned().ok_or_else(|| Failure::failed("no guest"))?;
    for (name, program) in [("deaf", &DEAF[..]), (echo::NAME, &echo::PROGRAM)] {
        let kernel = folder.file(name);
        files::write(&kernel, program)?;
        let (image, load) = (ImageRef::File(kernel), LoadAs::Flat { at: 0x8000 });
        machine.guests.push(Guest { name: name.to_owned(), kernel: image, load, ..first.clone() });
    }
    let path = folder.file("line");
    let place = Place { control: Some(path.clone()), ..Place::of(kind) };
    let running = builder.start_at(&place, &machine)?;
    let mut link = control::connect(&path);
    echo::wait(&mut link, 0, b">")?;
    link.hang_up();
    on_a_terminal(workspace, &path)?;
    let mut operator = Operator { terminal: Terminal::new(&running)?, mode };
    operator.check(&mut link)
}

/// All that a guest can do to a terminal, as far as it is known how to take it back.
fn modes() -> String {
    pty::MODES.map(|(begin, ..)| begin).concat()
}

/// Has the guest that echoes do that to the terminal of a `hv ctl console`: it is as it was when that has ended.
fn on_a_terminal(workspace: &Workspace, line: &Path) -> Outcome<()> {
    let mut console = Pty::start(&hv_ctl(workspace, line, &["console", echo::NAME])?, 80, 24)?;
    console.wait("Ctrl-] q leaves it")?;
    console.send(b" ")?;
    console.send(modes().as_bytes())?;
    console.wait_for(&modes())?;
    console.send(b"\x1dq")?;
    console.end(control::PATIENCE).map(drop)
}

/// Who is at the console's terminal.
struct Operator {
    terminal: Terminal,
    mode: ConsoleMode,
}

impl Operator {
    fn check(&mut self, link: &mut Link) -> Outcome<()> {
        // At power-on the first guest has the keyboard.
        self.terminal.send(b"typed")?;
        self.back()?;
        for guest in [1, 2] {
            self.type_at(guest, b"typed, and not read")?;
            self.back()?;
        }
        for guest in [1, 2, 3] {
            control::act(link, &guest.to_string(), Action::Pause)?;
            self.type_at(guest, b"typed at one that is paused")?;
            self.back()?;
            self.terminal.ask(&format!("resume {guest}"), "done")?;
        }
        // What was typed is not lost.
        let mut all = ["> ", &modes(), "typed at one that is paused"].concat().into_bytes();
        echo::wait(link, 0, &all)?;
        let text = |count| (b'a'..=b'z').cycle().take(count).collect::<Vec<u8>>();
        let from = all.len();
        self.type_at(3, &text(MUCH))?;
        all.extend(text(MUCH));
        echo::wait(link, from, &all)?;
        let from = all.len();
        self.back()?;
        control::act(link, echo::NAME, Action::Pause)?;
        self.type_at(3, &text(FITS))?;
        self.back()?;
        control::act(link, echo::NAME, Action::Resume)?;
        all.extend(text(FITS));
        echo::wait(link, from, &all)?;
        // More than there is room for, and it is said.
        for guest in [1, 2] {
            self.type_at(guest, &text(MUCH))?;
            self.back()?;
            self.terminal.wait(&format!("log guest {guest} console: "), 0)?;
        }
        self.terminal.wait(" bytes dropped, typed while it did not read", 0)?;
        self.terminal.ask("kill spin", "event guest 1 spin ended stopped")?;
        self.type_at(1, &text(MUCH))?;
        self.back()?;
        control::wait_for(link, "spin", State::Stopped)
    }

    /// Types this at a guest, from the prompt.
    fn type_at(&mut self, guest: u8, bytes: &[u8]) -> Outcome<()> {
        match self.mode {
            ConsoleMode::Framed => self.terminal.send(&[0x10, 0x40 + guest])?,
            ConsoleMode::Lines => self.terminal.ask(&format!("console {guest}"), "comes back")?,
        }
        self.terminal.send(bytes)
    }

    /// Calls the monitor, which must answer.
    fn back(&mut self) -> Outcome<()> {
        self.terminal.send(if self.mode == ConsoleMode::Framed { b"\x10\x40" } else { b"\x1dm" })?;
        self.terminal.ask("version", "Bulkhead 0.1.0 with ")
    }
}
