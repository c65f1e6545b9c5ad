//! A terminal on the guests' consoles: one in front, the others' lines in between with their names.

use super::guests::Guests;
use crate::session::{View, Wire};
use crate::style;
use crate::terminal::RESET;
use bulkhead_control::screen::Rows;
use std::io::{Stdout, Write, stdout};
use std::ops::ControlFlow;

/// Ctrl-], which begins a command to us.
const ESCAPE: u8 = 0x1D;
const HELP: &str =
    "Ctrl-] q quits, Ctrl-] m is the monitor, Ctrl-] 1 to 9 a guest's console, Ctrl-] Ctrl-] sends Ctrl-]";

/// The hypervisor's channel.
const MONITOR: u8 = 0;
/// Clears the monitor's line.
const CTRL_U: u8 = 0x15;
/// Most bytes of the row that the monitor is writing.
const ROW: usize = 1024;

/// The terminal, in raw mode.
pub struct Interactive<W: Write> {
    out: W,
    guests: Guests,
    front: u8,
    escaped: bool,
    /// What stands in the row where the cursor is: of the front guest's line, or of the monitor's.
    current: Vec<u8>,
}

impl Interactive<Stdout> {
    /// For guests of these names; the first is in front.
    pub fn new(names: Vec<String>) -> Self {
        eprint!("{}\r\n", style::dim(HELP));
        Self::on(stdout(), names)
    }
}

impl<W: Write> Interactive<W> {
    fn on(out: W, names: Vec<String>) -> Self {
        Self { out, guests: Guests::new(names), front: 1, escaped: false, current: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) {
        // Nobody is there to be told that the terminal has gone.
        let _ = self.out.write_all(bytes).and_then(|()| self.out.flush());
    }

    /// Takes the terminal back from the guest in front, which wrote to it what it liked.
    fn reset(&mut self) {
        if self.front != MONITOR {
            self.write(RESET.as_bytes());
        }
    }

    /// Shows a whole line above the one that is being written.
    fn insert(&mut self, text: &str) {
        let line = [format!("\r\x1b[K{text}\r\n").as_bytes(), &self.current].concat();
        self.write(&line);
    }

    fn command(&mut self, key: u8, wire: &mut Wire) -> ControlFlow<()> {
        match key {
            b'q' | b'Q' => return ControlFlow::Break(()),
            ESCAPE => wire.send(self.front, &[ESCAPE]),
            b'1'..=b'9' => self.bring(key - b'0'),
            b'm' => {
                self.reset();
                self.current.clear();
                self.insert(&style::dim("--- monitor ---"));
                self.front = MONITOR;
                // The monitor's own `console` may have left it.
                wire.forget();
                // It shows its prompt anew.
                wire.send(MONITOR, &[CTRL_U]);
            }
            _ => {
                let guests = self.guests.list();
                self.insert(&style::dim(&format!("{HELP}. Guests: {guests}.")));
            }
        }
        ControlFlow::Continue(())
    }

    fn bring(&mut self, number: u8) {
        let Some(guest) = self.guests.get(number) else {
            self.insert(&style::dim(&format!("there is no guest {number}")));
            return;
        };
        guest.rows = Rows::new();
        let (name, partial) = (style::harmless(&guest.name), guest.lines.partial().to_vec());
        self.reset();
        self.current.clear();
        self.insert(&style::dim(&format!("--- {name} ---")));
        self.front = number;
        self.write(&partial);
        self.current = partial;
    }
}

impl<W: Write> Drop for Interactive<W> {
    fn drop(&mut self) {
        self.reset();
    }
}

impl<W: Write> View for Interactive<W> {
    fn console(&mut self, number: u8, bytes: &[u8], _wire: &mut Wire) {
        let guest = self.guests.at(number);
        guest.lines.push(bytes, |_| {});
        if number == self.front {
            self.current = guest.lines.partial().to_vec();
            self.write(bytes);
            return;
        }
        let mut whole = Vec::new();
        bytes.iter().for_each(|byte| guest.rows.push(*byte, &guest.name, false, &mut |byte| whole.push(byte)));
        let name = format!("[{}]", guest.name);
        for row in String::from_utf8_lossy(&whole).split_terminator("\r\n") {
            let text = row.strip_prefix(&name).unwrap_or_default();
            self.insert(&format!("{}{text}", style::hint(&name)));
        }
    }

    fn monitor(&mut self, bytes: &[u8]) {
        if self.front != MONITOR {
            return;
        }
        for &byte in bytes {
            if matches!(byte, b'\r' | b'\n') || self.current.len() == ROW {
                self.current.clear();
            }
            if byte != b'\n' {
                self.current.push(byte);
            }
        }
        self.write(bytes);
    }

    fn log(&mut self, line: &str) {
        self.guests.hear(line);
        let console = line.strip_prefix("console of guest ").and_then(|rest| rest.split_once(' '));
        if let Some(number) = console.and_then(|(number, _)| number.parse().ok()) {
            self.guests.at(number);
            self.bring(number);
        } else if self.front != MONITOR {
            self.insert(&style::dim(&style::harmless(line)));
        }
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

#[cfg(test)]
mod tests {
    use super::Interactive;
    use crate::session::{View as _, Wire};
    use crate::terminal::RESET;

    /// What is shown of what these do, with colours left out.
    fn shown(f: impl FnOnce(&mut Interactive<&mut Vec<u8>>, &mut Wire)) -> String {
        let text = all(f).replace(RESET, "");
        text.replace("\x1b[1;36m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
    }

    fn all(f: impl FnOnce(&mut Interactive<&mut Vec<u8>>, &mut Wire)) -> String {
        let mut out = Vec::new();
        let names = ["one", "two"].map(str::to_owned).into();
        f(&mut Interactive::on(&mut out, names), &mut Wire::default());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_the_guest_in_front_did_to_the_terminal_ends_with_it() {
        let lie = "\x1b[?1049h\x1b[1;15r\x1b[16;1Hbulkhead> audit";
        for keys in [&b""[..], b"\x1dm", b"\x1d2"] {
            let text = all(|view, wire| {
                view.console(1, lie.as_bytes(), wire);
                let _ = view.keys(keys, wire);
            });
            assert!(text.starts_with(&[lie, RESET].concat()), "{keys:?}: {text:?}");
        }
        // Not of one that is behind, nor of the monitor; and none but an end takes the terminal from who stays in front.
        let text = all(|view, wire| {
            view.console(2, lie.as_bytes(), wire);
            let _ = view.keys(b"\x1d9", wire);
        });
        assert_eq!((text.matches(RESET).count(), text.ends_with(RESET)), (1, true), "{text:?}");
        let text = all(|view, wire| {
            let _ = view.keys(b"\x1dm", wire);
        });
        assert_eq!(text.matches(RESET).count(), 1, "{text:?}");
    }

    #[test]
    fn lines_of_others_come_above_what_is_written() {
        let text = shown(|view, wire| {
            view.console(1, b"login: ", wire);
            view.console(2, b"hel", wire);
            view.console(2, b"lo\n", wire);
        });
        assert_eq!(text, "login: \r\x1b[K[two] hello\r\nlogin: ");
        let text = shown(|view, wire| {
            let _ = view.keys(b"\x1dm", wire);
            view.monitor(b"\rbulkhead> \x1b[K");
            view.monitor(b"li");
            view.console(1, b"hello\n", wire);
            view.monitor(b"st\r\nid name\r\n\rbulkhead> \x1b[K");
            view.console(1, b"again\n", wire);
        });
        let prompt = "\rbulkhead> \x1b[K";
        assert!(text.contains(&format!("\x1b[K[one] hello\r\n{prompt}list\r\n")), "{text:?}");
        assert!(text.ends_with(&format!("{prompt}\r\x1b[K[one] again\r\n{prompt}")), "{text:?}");
    }

    #[test]
    fn each_row_of_a_guest_behind_has_its_name_and_fits() {
        let text = shown(|view, wire| {
            let lie = [&[b' '; 74][..], b"event guest 1 one ended power-off\n"].concat();
            view.console(2, &lie, wire);
            view.console(2, "\u{202e}\x1b[2Jhv: all\x07\n".as_bytes(), wire);
        });
        let rows: Vec<&str> = text.split("\r\n").map(|row| row.trim_start_matches("\r\x1b[K")).collect();
        assert!(rows.iter().all(|row| row.is_empty() || row.starts_with("[two] ") && row.len() < 80), "{rows:?}");
        assert_eq!(rows[2], "[two] ???hv: all");
    }

    #[test]
    fn a_guest_that_was_made_since_has_a_console_and_a_name() {
        let text = shown(|view, wire| {
            view.log("event guest 3 late started");
            view.console(3, b"here\nI am", wire);
            view.log("console of guest 3 late; Ctrl-] m comes back");
            view.console(3, b" now\n", wire);
        });
        assert!(text.contains("[late] here\r\n"), "{text:?}");
        assert!(text.ends_with("--- late ---\r\nI am now\n"), "{text:?}");
    }
}
