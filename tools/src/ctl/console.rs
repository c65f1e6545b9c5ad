//! `hv ctl console`: a guest's console, byte for byte.

use super::link::Link;
use super::{one, strange};
use crate::failure::{Failure, Outcome};
use crate::session::Input;
use crate::terminal;
use bulkhead_control::line::CHUNK;
use bulkhead_control::{Operation, Response};
use std::io::{IsTerminal as _, Write, stdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const ESCAPE: u8 = 0x1D;
/// How often the guest's output is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Once standard input has ended, so long without output is the end.
const QUIET: Duration = Duration::from_secs(1);

/// Connects standard input and `out` to the console of `guest`.
pub fn attach(link: &mut Link, guest: &str, out: &mut dyn Write) -> Outcome<()> {
    let (sender, keys) = channel();
    terminal::forward_signals(sender.clone());
    let raw = stdin().is_terminal().then(terminal::Raw::enter).flatten();
    if raw.is_some() {
        eprint!("console of {guest}; Ctrl-] q leaves it, Ctrl-] Ctrl-] sends Ctrl-]\r\n");
    }
    terminal::forward_keys(sender);
    let outcome = Console { link, guest, at: 0, escaped: raw.is_some().then_some(false) }.follow(&keys, out);
    drop(raw);
    if outcome.is_ok() && stdin().is_terminal() {
        eprintln!();
    }
    outcome
}

/// A console that is connected.
pub struct Console<'a> {
    /// The line.
    pub link: &'a mut Link,
    /// The guest.
    pub guest: &'a str,
    /// Bytes of output that were shown.
    pub at: u64,
    /// On a terminal: whether Ctrl-] was typed.
    pub escaped: Option<bool>,
}

impl Console<'_> {
    /// Passes bytes both ways until the user leaves, or input has ended and output pauses.
    pub fn follow(&mut self, keys: &Receiver<Input>, out: &mut dyn Write) -> Outcome<()> {
        let mut ended: Option<Instant> = None;
        loop {
            if self.show(out)? {
                ended = ended.map(|_| Instant::now());
                continue;
            }
            match keys.recv_timeout(POLL) {
                Ok(Input::Keys(bytes)) if !self.typed(&bytes)? => return Ok(()),
                Ok(Input::Signal) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    // Input has ended.
                    if ended.get_or_insert_with(Instant::now).elapsed() > QUIET {
                        return Ok(());
                    }
                    std::thread::sleep(POLL);
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Shows what the guest has written; whether there was anything.
    fn show(&mut self, out: &mut dyn Write) -> Outcome<bool> {
        let reply = one(self.link, &Operation::Read { guest: self.guest, from: self.at }, self.guest)?;
        let response = reply.response()?;
        let Response::Output { at, bytes } = response else { return Err(strange(&response)) };
        if at > self.at && self.at != 0 {
            eprintln!("[{} bytes are gone]", at - self.at);
        }
        self.at = at + bytes.len() as u64;
        let written = out.write_all(bytes).and_then(|()| out.flush());
        written.map_err(|e| Failure::failed(format!("can not write: {e}")))?;
        Ok(!bytes.is_empty())
    }

    /// Sends what was typed; whether to go on.
    fn typed(&mut self, bytes: &[u8]) -> Outcome<bool> {
        let mut input = Vec::new();
        for &byte in bytes {
            match (&mut self.escaped, byte) {
                (Some(escaped @ true), b'q') => {
                    *escaped = false;
                    return Ok(false);
                }
                (Some(escaped @ true), _) => {
                    *escaped = false;
                    input.push(byte);
                }
                (Some(escaped), ESCAPE) => *escaped = true,
                _ => input.push(byte),
            }
        }
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            let piece = rest.get(..CHUNK).unwrap_or(rest);
            let operation = Operation::Write { guest: self.guest, bytes: piece };
            let reply = one(self.link, &operation, self.guest)?;
            let response = reply.response()?;
            let Response::Taken(count) = response else { return Err(strange(&response)) };
            if count == 0 {
                // The guest is to make room first.
                std::thread::sleep(POLL);
            }
            rest = rest.get(usize::from(count)..).unwrap_or_default();
        }
        Ok(true)
    }
}
