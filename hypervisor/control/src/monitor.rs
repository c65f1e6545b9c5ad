//! The monitor: a prompt on the console's terminal, and the way from there to the guests' consoles and back.
//!
//! What is typed goes to one guest, or to the prompt. **Ctrl-]** begins a command to the monitor, as it does in `hv run`,
//! telnet and the consoles of libvirt and Xen's tools. It is chosen over Ctrl-A, which QEMU and Xen's own serial console
//! take: that is the beginning of the line in every shell, and what minicom, picocom and screen keep for themselves, which
//! is what a serial console is looked at with. Ctrl-] m is the prompt, Ctrl-] 1 to 9 a guest's console, Ctrl-] Ctrl-] sends
//! Ctrl-] to the guest.
//!
//! Guests' rows go to the same terminal through [`screen::Rows`](crate::screen::Rows); [`Monitor::hide`] and
//! [`Monitor::show`] make room for them.

mod command;
mod show;
#[cfg(test)]
mod tests;

pub use command::{COMMANDS, Command, Mistake, parse};

use crate::editor::{Editor, Key, put};
use crate::{Machine, Name, Operation, PAGE, Refusal, Response, Source};
use bulkhead_types::manifest::MAX_GUESTS;
use core::fmt::{self, Write};

/// The key that begins a command to the monitor: Ctrl-].
pub const ESCAPE: u8 = 0x1D;
const KEYS: &str = "\r\nCtrl-] m is the monitor, Ctrl-] 1 to 9 a guest's console, Ctrl-] Ctrl-] sends Ctrl-]\r\n";

/// The monitor.
pub struct Monitor {
    editor: Editor,
    /// The guest that gets what is typed; the prompt does if there is none.
    focus: Option<u16>,
    escaped: bool,
    /// Ticks that each guest had used when `top` was asked last, and when that was.
    sample: [u64; MAX_GUESTS + 1],
    sampled: u64,
}

impl Monitor {
    /// A monitor; what is typed goes to the guest `focus`, or to the prompt.
    #[must_use]
    pub const fn new(focus: Option<u16>) -> Self {
        Self { editor: Editor::new(), focus, escaped: false, sample: [0; MAX_GUESTS + 1], sampled: 0 }
    }

    /// The guest that gets what is typed.
    #[must_use]
    pub const fn focus(&self) -> Option<u16> {
        self.focus
    }

    /// Has what is typed go to this guest, or to the prompt.
    pub const fn set_focus(&mut self, focus: Option<u16>) {
        self.focus = focus;
    }

    /// Takes the prompt off the screen, so that something else can be shown in its row.
    pub fn hide(&self, out: &mut impl Write) {
        if self.focus.is_none() {
            Editor::hide(out);
        }
    }

    /// Shows the prompt again.
    pub fn show(&self, out: &mut impl Write) {
        if self.focus.is_none() {
            self.editor.show(out);
        }
    }

    /// Takes a typed byte: a guest's number and the byte if it is for that guest.
    pub fn key(&mut self, byte: u8, machine: &mut impl Machine, out: &mut impl Write) -> Option<(u16, u8)> {
        if core::mem::take(&mut self.escaped) {
            return self.escaped_key(byte, machine, out);
        }
        if byte == ESCAPE {
            self.escaped = true;
            return None;
        }
        if let Some(guest) = self.focus {
            return Some((guest, byte));
        }
        match self.editor.key(byte, out) {
            Key::Edited => {}
            Key::Tab => self.complete(machine, out),
            Key::Enter => {
                let line = self.editor.take();
                // The terminal takes everything.
                let _ = self.execute(&line, machine, out);
                self.show(out);
            }
        }
        None
    }

    fn escaped_key(&mut self, byte: u8, machine: &mut impl Machine, out: &mut impl Write) -> Option<(u16, u8)> {
        match (byte, self.focus) {
            (ESCAPE, Some(guest)) => return Some((guest, ESCAPE)),
            (b'm', Some(_)) => {
                self.focus = None;
                put(out, "\r\n");
            }
            (b'1'..=b'9', _) => {
                let number = [byte];
                let name = core::str::from_utf8(&number).unwrap_or_default();
                put(out, "\r\n");
                let _ = self.connect(name, machine, out);
            }
            _ => put(out, KEYS),
        }
        self.show(out);
        None
    }

    /// Carries out a line.
    fn execute(&mut self, line: &str, machine: &mut impl Machine, out: &mut impl Write) -> fmt::Result {
        match parse(line) {
            Ok(Command::Nothing) => Ok(()),
            Ok(Command::Do(operation)) => pages(operation, machine, out),
            Ok(Command::Console(guest)) => self.connect(guest, machine, out),
            Ok(Command::Top) => self.top(machine, out),
            Ok(Command::Log(from)) => log(from, machine, out),
            Ok(Command::Help(about)) => help(about, out),
            Err(mistake) => write!(out, "{mistake}\r\n"),
        }
    }

    fn connect(&mut self, guest: &str, machine: &mut impl Machine, out: &mut impl Write) -> fmt::Result {
        match find(guest, machine) {
            Some((id, name)) => {
                self.focus = Some(id);
                write!(out, "console of guest {id} {name}; Ctrl-] m comes back\r\n")
            }
            None => write!(out, "{}\r\n", Refusal::NoGuest),
        }
    }

    fn top(&mut self, machine: &mut impl Machine, out: &mut impl Write) -> fmt::Result {
        let mut from = Some(0);
        let mut now = 0;
        write!(out, "{:>2} {:<16} {:>7} {:>7} {:>9} {:>9}\r\n", "id", "name", "cpu %", "MiB", "KiB out", "KiB in")?;
        while let Some(Response::Stats(stats)) =
            from.map(|from| machine.perform(&Operation::Stats(from), Source::Monitor))
        {
            now = stats.at.ticks;
            let elapsed = now.saturating_sub(self.sampled).max(1);
            for one in &stats.guests.items {
                let before = self.sample.get_mut(usize::from(one.id));
                let before = before.map_or(0, |before| core::mem::replace(before, one.used));
                // In tenths of a percent of one processor.
                let used = one.used.saturating_sub(before).saturating_mul(1000) / elapsed;
                let (id, name) = (one.id, &one.name);
                write!(out, "{id:>2} {name:<16.16} {:>5}.{} {:>7}", used / 10, used % 10, one.memory >> 20)?;
                write!(out, " {:>9} {:>9}\r\n", one.written >> 10, one.read >> 10)?;
            }
            from = stats.guests.next;
        }
        self.sampled = now;
        Ok(())
    }

    /// Completes the word before the cursor: the first as a command, others as guests' names.
    fn complete(&mut self, machine: &mut impl Machine, out: &mut impl Write) {
        let (before, _) = self.editor.parts();
        let start = before.bytes().rposition(|byte| byte == b' ').map_or(0, |at| at + 1);
        let (earlier, word) = before.split_at_checked(start).unwrap_or(("", before));
        let mut found = Found::default();
        let mut list = |name: &str| found.add(name, word);
        if earlier.trim().is_empty() {
            COMMANDS.iter().for_each(|(name, ..)| list(name));
        } else {
            each_guest(machine, |_, name| list(name));
        }
        let more = found.common.get(word.len()..).unwrap_or_default();
        let more = Name::try_from(more).unwrap_or_default();
        if found.count == 0 {
            return put(out, "\x07");
        }
        self.editor.complete(&more, out);
        if found.count == 1 {
            return self.editor.complete(" ", out);
        }
        if more.is_empty() {
            let (before, _) = self.editor.parts();
            let word = before.get(start..).unwrap_or_default();
            put(out, "\r\n");
            let mut list = |name: &str| {
                if name.starts_with(word) {
                    put(out, name);
                    put(out, "  ");
                }
            };
            if start == 0 {
                COMMANDS.iter().for_each(|(name, ..)| list(name));
            } else {
                each_guest(machine, |_, name| list(name));
            }
            put(out, "\r\n");
            self.editor.show(out);
        }
    }
}

/// What a word can become.
#[derive(Default)]
struct Found {
    count: usize,
    /// The beginning that all have in common.
    common: Name,
}

impl Found {
    fn add(&mut self, name: &str, word: &str) {
        if !name.starts_with(word) {
            return;
        }
        self.count += 1;
        if self.count == 1 {
            self.common = Name::try_from(name).unwrap_or_default();
            return;
        }
        let same = self.common.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        self.common = self.common.get(..same).and_then(|same| Name::try_from(same).ok()).unwrap_or_default();
    }
}

/// Calls `with` for each guest's number and name.
fn each_guest(machine: &mut impl Machine, mut with: impl FnMut(u16, &str)) {
    let mut from = Some(0);
    // No machine has more pages, whatever it says.
    for _ in 0..=MAX_GUESTS {
        let Some(Response::Guests(page)) = from.map(|from| machine.perform(&Operation::List(from), Source::Monitor))
        else {
            return;
        };
        page.items.iter().for_each(|guest| with(guest.id, &guest.name));
        from = page.next;
    }
}

/// The guest with this name, or else with this number.
fn find(text: &str, machine: &mut impl Machine) -> Option<(u16, Name)> {
    let number = text.parse().ok();
    let mut found = None;
    each_guest(machine, |id, name| {
        if name == text || found.is_none() && number == Some(id) {
            found = Name::try_from(name).ok().map(|name| (id, name));
        }
    });
    found
}

/// Does it, and shows all pages of what comes of it.
fn pages(operation: Operation<'_>, machine: &mut impl Machine, out: &mut impl Write) -> fmt::Result {
    let mut operation = operation;
    let mut first = true;
    loop {
        let response = machine.perform(&operation, Source::Monitor);
        if core::mem::take(&mut first) {
            show::heading(&response, out)?;
        }
        let Some(next) = show::show(&response, out)? else { return Ok(()) };
        operation = match operation {
            Operation::List(from) if next > from => Operation::List(next),
            Operation::Stats(from) if next > from => Operation::Stats(next),
            Operation::Memory(from) if next > from => Operation::Memory(next),
            _ => return Ok(()),
        };
    }
}

/// Shows events: two pages of the last ones, or a page from a number on.
fn log(from: Option<u64>, machine: &mut impl Machine, out: &mut impl Write) -> fmt::Result {
    let mut end = |from| match machine.perform(&Operation::Events(from), Source::Monitor) {
        Response::Events(events) => events,
        _ => crate::Events::default(),
    };
    let start = from.unwrap_or_else(|| end(u64::MAX).end.saturating_sub(2 * PAGE as u64));
    let mut next = start;
    for _ in 0..2 {
        let events = end(next);
        if events.first > next && from.is_some() {
            write!(out, "{} earlier events are gone\r\n", events.first - next)?;
        }
        next = events.first;
        for event in &events.items {
            show::event(next, event, out)?;
            next = next.saturating_add(1);
        }
    }
    Ok(())
}

fn help(about: Option<&str>, out: &mut impl Write) -> fmt::Result {
    let rows = COMMANDS.iter().filter(|(name, ..)| about.is_none_or(|about| about == *name));
    let mut shown = false;
    for (name, arguments, what) in rows {
        shown = true;
        write!(out, "{name:<8} {arguments:<13} {what}\r\n")?;
    }
    match about {
        Some(about) if !shown => write!(out, "{}\r\n", Mistake::Unknown(about)),
        Some(_) => Ok(()),
        None => write!(out, "Tab completes; the arrow keys go through the history.\r\n"),
    }
}
