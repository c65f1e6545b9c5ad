//! Consoles as bytes on standard output, for scripts; all else goes to standard error.

use crate::frames::Lines;
use crate::session::{View, Wire};
use crate::style;
use std::io::{Write as _, stdout};
use std::ops::ControlFlow;

/// One guest's console as it is, or every guest's lines with its name in front.
pub struct Plain {
    names: Vec<String>,
    only: Option<u8>,
    lines: Vec<Lines>,
}

impl Plain {
    /// For guests of these names; of all of them if not `only` one.
    pub fn new(names: Vec<String>, only: Option<u8>) -> Self {
        let lines = names.iter().map(|_| Lines::default()).collect();
        Self { names, only, lines }
    }
}

impl View for Plain {
    fn console(&mut self, guest: u8, bytes: &[u8], _wire: &mut Wire) {
        // Who reads our output may have gone; the machine goes on.
        let mut out = stdout().lock();
        if self.only == Some(guest) {
            let _ = out.write_all(bytes);
        } else if self.only.is_none()
            && let Some(index) = usize::from(guest).checked_sub(1)
            && let Some((name, lines)) = self.names.get(index).zip(self.lines.get_mut(index))
        {
            lines.push(bytes, |line| {
                let _ = writeln!(out, "[{name}] {line}");
            });
        }
        let _ = out.flush();
    }

    fn log(&mut self, line: &str) {
        eprintln!("{}", style::dim(line));
    }

    fn keys(&mut self, bytes: &[u8], wire: &mut Wire) -> ControlFlow<()> {
        wire.send(self.only.unwrap_or(1), bytes);
        ControlFlow::Continue(())
    }
}
