//! The user's terminal: raw while a machine has it, as it was afterwards, however we end.

use crate::session::Input;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{Read as _, stdin};
use std::sync::mpsc::Sender;
use std::thread;

/// Takes back what a guest that had the terminal may have done to it, so that it does not stay beside what others show
/// there (ECMA-48, and xterm's control sequences).
pub const RESET: &str = concat!(
    // What it left open ends: a sequence by CAN, a string by ST.
    "\x18\x1b\\",
    // The screen of before, and the cursor stays where it is if that is shown already.
    "\x1b7\x1b[?1049l",
    // All rows scroll, which would move the cursor.
    "\x1b7\x1b[r\x1b8",
    // Soft reset: modes of cursor, keys, wrapping and origin, characters and how they look. Not all terminals know it.
    "\x1b[!p\x1b[4l\x1b[20l\x1b[?1l\x1b[?5l\x1b[?7h\x1b[?25h\x1b>\x1b(B\x0f\x1b[0m",
    // Reports of the mouse and of the focus, brackets around what is pasted.
    "\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?1015l\x1b[?2004l",
    // Colours.
    "\x1b]104\x1b\\\x1b]110\x1b\\\x1b]111\x1b\\\x1b]112\x1b\\",
    // What it has shown below.
    "\x1b[J",
);

/// Raw mode, until it is dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts the terminal of standard input into raw mode, if it is one.
    pub fn enter() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Sends what is typed, or comes from standard input, to `sender`.
pub fn forward_keys(sender: Sender<Input>) {
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stdin().read(&mut buffer) {
            let bytes = buffer.get(..n).unwrap_or_default().to_vec();
            if sender.send(Input::Keys(bytes)).is_err() {
                return;
            }
        }
    });
}

/// Sends the signals that would end us to `sender` instead, so that the machine and the terminal are put away first.
pub fn forward_signals(sender: Sender<Input>) {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    thread::spawn(move || {
        for _ in &mut signals {
            if sender.send(Input::Signal).is_err() {
                return;
            }
        }
    });
}
