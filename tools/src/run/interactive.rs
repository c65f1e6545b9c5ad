//! A terminal on the guests' consoles: one in front, the others' lines in between with their names.

use crate::frames::Lines;
use crate::session::{View, Wire};
use crate::style;
use std::io::{Write as _, stdout};
use std::ops::ControlFlow;

/// Ctrl-], which begins a command to us.
const ESCAPE: u8 = 0x1D;
const HELP: &str =
    "Ctrl-] q quits, Ctrl-] m is the monitor, Ctrl-] 1 to 9 a guest's console, Ctrl-] Ctrl-] sends Ctrl-]";

/// The hypervisor's channel.
const MONITOR: u8 = 0;
/// Clears the monitor's line.
const CTRL_U: u8 = 0x15;

/// The terminal, in raw mode.
pub struct Interactive {
    names: Vec<String>,
    front: u8,
    escaped: bool,
    lines: Vec<Lines>,
    /// What the front guest has written of its current line.
    current: Vec<u8>,
}

impl Interactive {
    /// For guests of these names; the first is in front.
    pub fn new(names: Vec<String>) -> Self {
        let lines = names.iter().map(|_| Lines::default()).collect();
        let new = Self { names, front: 1, escaped: false, lines, current: Vec::new() };
        eprint!("{}\r\n", style::dim(HELP));
        new
    }

    /// Shows a whole line above the one that the front guest is writing.
    fn insert(&self, text: &str) {
        let mut out = stdout().lock();
        let _ = write!(out, "\r\x1b[K{text}\r\n");
        let _ = out.write_all(&self.current);
        let _ = out.flush();
    }

    fn command(&mut self, key: u8, wire: &mut Wire) -> ControlFlow<()> {
        match key {
            b'q' | b'Q' => return ControlFlow::Break(()),
            ESCAPE => wire.send(self.front, &[ESCAPE]),
            b'1'..=b'9' => self.bring(key - b'0'),
            b'm' => {
                self.insert(&style::dim("--- monitor ---"));
                self.front = MONITOR;
                self.current.clear();
                // It shows its prompt anew.
                wire.send(MONITOR, &[CTRL_U]);
            }
            _ => {
                let guests: Vec<String> =
                    self.names.iter().enumerate().map(|(i, name)| format!("{} {name}", i + 1)).collect();
                self.insert(&style::dim(&format!("{HELP}. Guests: {}.", guests.join(", "))));
            }
        }
        ControlFlow::Continue(())
    }

    fn bring(&mut self, guest: u8) {
        let index = usize::from(guest).saturating_sub(1);
        let Some(name) = self.names.get(index) else {
            self.insert(&style::dim(&format!("there is no guest {guest}")));
            return;
        };
        let line = style::dim(&format!("--- {name} ---"));
        self.current.clear();
        self.insert(&line);
        self.front = guest;
        self.current = self.lines.get(index).map(|l| l.partial().to_vec()).unwrap_or_default();
        let mut out = stdout().lock();
        let _ = out.write_all(&self.current);
        let _ = out.flush();
    }
}

impl View for Interactive {
    fn console(&mut self, guest: u8, bytes: &[u8], _wire: &mut Wire) {
        let Some(index) = usize::from(guest).checked_sub(1) else { return };
        let mut whole = Vec::new();
        if let Some(lines) = self.lines.get_mut(index) {
            lines.push(bytes, |line| whole.push(line.to_owned()));
            if guest == self.front {
                self.current = lines.partial().to_vec();
            }
        }
        if guest == self.front {
            let mut out = stdout().lock();
            let _ = out.write_all(bytes);
            let _ = out.flush();
            return;
        }
        let name = self.names.get(index).map_or("?", String::as_str);
        for line in whole {
            self.insert(&format!("{} {}", style::hint(&format!("[{name}]")), style::harmless(&line)));
        }
    }

    fn monitor(&mut self, bytes: &[u8]) {
        if self.front == MONITOR {
            let mut out = stdout().lock();
            let _ = out.write_all(bytes);
            let _ = out.flush();
        }
    }

    fn log(&mut self, line: &str) {
        if self.front == MONITOR {
            return;
        }
        self.insert(&style::dim(&style::harmless(line)));
    }

    fn keys(&mut self, bytes: &[u8], wire: &mut Wire) -> ControlFlow<()> {
        let mut typed = Vec::new();
        for &key in bytes {
            if self.escaped {
                self.escaped = false;
                self.command(key, wire)?;
            } else if key == ESCAPE {
                self.escaped = true;
            } else {
                typed.push(key);
            }
        }
        if !typed.is_empty() {
            wire.send(self.front, &typed);
        }
        ControlFlow::Continue(())
    }
}
