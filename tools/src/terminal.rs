//! The user's terminal: raw while a machine has it, as it was afterwards, however we end.

use crate::session::Input;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{Read as _, stdin};
use std::sync::mpsc::Sender;
use std::thread;

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
