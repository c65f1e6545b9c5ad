//! Consoles as bytes on standard output, for scripts; all else goes to standard error.

use super::guests::{Guest, Guests};
use crate::session::{View, Wire};
use crate::style;
use std::io::{Write as _, stdout};
use std::ops::ControlFlow;

/// One guest's console as it is, or every guest's lines with its name in front.
pub struct Plain {
    guests: Guests,
    only: Option<u8>,
    /// Nobody reads our output any more.
    unread: bool,
}

impl Plain {
    /// For guests of these names; of all of them if not `only` one.
    pub fn new(names: Vec<String>, only: Option<u8>) -> Self {
        Self { guests: Guests::new(names), only, unread: false }
    }
}

impl View for Plain {
    fn console(&mut self, guest: u8, bytes: &[u8], _wire: &mut Wire) {
        let mut out = stdout().lock();
        let mut written = Ok(());
        if self.only == Some(guest) {
            written = out.write_all(bytes);
        } else if self.only.is_none() {
            let Guest { name, lines, .. } = self.guests.at(guest);
            lines.push(bytes, |line| {
                if written.is_ok() {
                    written = writeln!(out, "[{name}] {}", style::harmless(line));
                }
            });
        }
        self.unread |= written.and_then(|()| out.flush()).is_err();
    }

    fn log(&mut self, line: &str) {
        self.guests.hear(line);
        eprintln!("{}", style::dim(&style::harmless(line)));
    }

    fn keys(&mut self, bytes: &[u8], wire: &mut Wire) -> ControlFlow<()> {
        wire.send(self.only.unwrap_or(1), bytes);
        ControlFlow::Continue(())
    }

    fn has_enough(&self) -> bool {
        self.unread
    }
}
