//! `hv ctl console`: a guest's console.
//!
//! A person is connected as by `hv run` to the guest in front: its bytes go to the terminal as they are, since that is what
//! full-screen programs and shells write for. Such a guest can write what looks like anything. `--plain` shows it as the
//! monitor shows guests: no control sequences, and the name before each row. `--json` is for scripts.
//!
//! The hypervisor counts a guest's bytes. What is read next is asked for by its offset, so that a line that drops loses
//! nothing; what is gone because it was written too long ago is said.

use super::link::Link;
use super::show::hex;
use super::{guests, one, refused, strange};
use crate::failure::{Failure, Outcome};
use crate::session::Input;
use crate::style::harmless;
use crate::terminal;
use bulkhead_control::line::{CHUNK, Nonce};
use bulkhead_control::screen::Rows;
use bulkhead_control::{Operation, Refusal, Response};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Write, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

const ESCAPE: u8 = 0x1D;
/// How often the guest's output is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Once standard input has ended, so long without output or input that is taken is the end.
const QUIET: Duration = Duration::from_secs(1);

/// How output is shown.
pub enum Form {
    /// As it is.
    Bytes,
    /// Nothing that a terminal obeys.
    Plain(Rows),
    /// A line of JSON for each piece.
    Json,
}

/// Connects standard input and `out` to the console of `guest`, from offset `from` on, or all that is kept.
pub fn attach(link: &mut Link, guest: &str, from: Option<u64>, form: Form, out: &mut dyn Write) -> Outcome<()> {
    let mut console = Console::new(link, guest, from, form);
    // It may have been called by its number.
    let (all, number) = (guests(console.link)?, guest.parse().ok());
    let found = all.iter().find(|one| one.name == guest).or(all.iter().find(|one| number == Some(one.id)));
    let name = found.map_or_else(|| guest.to_owned(), |one| harmless(&one.name));
    console.name.clone_from(&name);
    if found.is_none() {
        // What is wrong is said before the terminal is raw.
        console.show(out)?;
    }
    let on_terminal = stdin().is_terminal() && !matches!(console.form, Form::Json);
    // A signal that comes while the terminal is raw must be heard.
    hear_signals(&console.link.leave);
    let raw = on_terminal.then(terminal::Raw::enter).flatten();
    if raw.is_some() {
        eprint!("console of {name}; Ctrl-] q leaves it, Ctrl-] Ctrl-] sends Ctrl-]\r\n");
        console.raw = true;
        console.link.say = Box::new(|word| eprint!("[{word}]\r\n"));
    }
    let keys = hear_keys(&console.link.leave, raw.is_some().then_some(false));
    let outcome = console.follow(&keys, out);
    if matches!(console.form, Form::Bytes) && stdout().is_terminal() {
        // If nobody sees it any more, it is not missed.
        let _ = out.write_all(terminal::RESET.as_bytes()).and_then(|()| out.flush());
    }
    drop(raw);
    if outcome.is_ok() && on_terminal {
        eprintln!();
    }
    outcome
}

/// Hears signals, while the machine does not answer, too. These threads never end.
fn hear_signals(leave: &Arc<AtomicBool>) {
    let ((sender, signals), leave) = (channel(), Arc::clone(leave));
    terminal::forward_signals(sender);
    std::thread::spawn(move || {
        if signals.recv().is_ok() {
            leave.store(true, Ordering::Relaxed);
        }
    });
}

/// Hears keys, while the machine does not answer, too; what is typed for the guest. These threads end with standard input.
fn hear_keys(leave: &Arc<AtomicBool>, escaped: Option<bool>) -> Receiver<Vec<u8>> {
    let ((typed, from), (sender, keys), leave) = (channel(), channel(), Arc::clone(leave));
    terminal::forward_keys(typed);
    std::thread::spawn(move || for_guest(&from, escaped, &sender, &leave));
    keys
}

/// Passes what is typed on, less what is for us: on a terminal `escaped` is whether Ctrl-] was typed before.
pub fn for_guest(from: &Receiver<Input>, mut escaped: Option<bool>, to: &Sender<Vec<u8>>, leave: &AtomicBool) {
    for input in from {
        let Input::Keys(bytes) = input else { continue };
        let mut typed = Vec::new();
        for byte in bytes {
            match (&mut escaped, byte) {
                (Some(true), b'q' | b'Q') => return leave.store(true, Ordering::Relaxed),
                (Some(escaped @ true), _) => {
                    *escaped = false;
                    typed.push(byte);
                }
                (Some(escaped), ESCAPE) => *escaped = true,
                _ => typed.push(byte),
            }
        }
        if to.send(typed).is_err() {
            return;
        }
    }
}

/// A console that is connected.
pub struct Console<'a> {
    link: &'a mut Link,
    guest: &'a str,
    /// What its rows begin with.
    name: String,
    /// Offset of the next byte of output, if some was shown or it was asked for.
    at: Option<u64>,
    /// The start of the machine that it was written after.
    boot: Option<Nonce>,
    form: Form,
    /// Whether the terminal is raw, and a person is at it.
    pub raw: bool,
    /// What was typed and the guest has not taken.
    typed: Vec<u8>,
}

impl<'a> Console<'a> {
    /// The console of this guest.
    pub fn new(link: &'a mut Link, guest: &'a str, from: Option<u64>, form: Form) -> Self {
        Self { link, guest, name: guest.to_owned(), at: from, boot: None, form, raw: false, typed: Vec::new() }
    }

    /// Passes bytes both ways until the user leaves, or input has ended and nothing moves.
    pub fn follow(&mut self, keys: &Receiver<Vec<u8>>, out: &mut dyn Write) -> Outcome<()> {
        let leave = Arc::clone(&self.link.leave);
        let mut moved_at = Instant::now();
        while !leave.load(Ordering::Relaxed) {
            let moved = match self.show(out).and_then(|shown| Ok(shown | self.send(out)?)) {
                // It was waiting.
                Err(_) if leave.load(Ordering::Relaxed) => break,
                moved => moved?,
            };
            if moved {
                moved_at = Instant::now();
            } else {
                self.link.hang_up();
            }
            match keys.recv_timeout(if moved { Duration::ZERO } else { POLL }) {
                Ok(bytes) => self.typed.extend(bytes),
                Err(RecvTimeoutError::Disconnected) if moved_at.elapsed() > QUIET => return self.end(),
                Err(RecvTimeoutError::Disconnected) if !moved => std::thread::sleep(POLL),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn end(&self) -> Outcome<()> {
        match self.typed.len() {
            0 => Ok(()),
            left => Err(Failure::failed(format!("{}: {left} bytes of input were not taken", self.guest))
                .hint("the guest does not read its console")),
        }
    }

    /// Says something beside the guest's output; to a script, in its stream.
    fn note(&self, out: &mut dyn Write, text: &str, value: &Value) -> Outcome<()> {
        if self.is_json() {
            return writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|e| Failure::unwritten(&e));
        }
        eprint!("[{text}]{}", if self.raw { "\r\n" } else { "\n" });
        Ok(())
    }

    const fn is_json(&self) -> bool {
        matches!(self.form, Form::Json)
    }

    /// Shows what the guest has written; whether there was anything.
    pub fn show(&mut self, out: &mut dyn Write) -> Outcome<bool> {
        let operation = Operation::Read { guest: self.guest, from: self.at.unwrap_or(0) };
        let reply = one(self.link, &operation, self.guest)?;
        let response = reply.response()?;
        let Response::Output { at, bytes } = response else { return Err(strange(&response)) };
        let boot = self.link.boot;
        if self.boot.replace(boot).is_some_and(|before| before != boot) {
            self.note(out, "the machine was started anew", &json!({ "restarted": at }))?;
            self.at = Some(0);
            return Ok(true);
        }
        let lost = at.saturating_sub(self.at.unwrap_or(at));
        if self.at.is_some_and(|before| at < before) {
            self.note(out, "it is another guest now", &json!({ "replaced": at }))?;
        } else if lost > 0 && (bytes.is_empty() || !self.is_json()) {
            self.note(out, &format!("{lost} bytes are gone"), &json!({ "lost": lost }))?;
        }
        self.at = Some(at.saturating_add(bytes.len() as u64));
        if bytes.is_empty() {
            return Ok(false);
        }
        let written = match &mut self.form {
            Form::Bytes => out.write_all(bytes),
            Form::Plain(rows) => {
                let mut shown = Vec::new();
                bytes.iter().for_each(|byte| rows.push(*byte, &self.name, true, &mut |byte| shown.push(byte)));
                out.write_all(&shown)
            }
            Form::Json => {
                let text = String::from_utf8_lossy(bytes);
                writeln!(out, "{}", json!({ "at": at, "lost": lost, "text": text, "hex": hex(bytes) }))
            }
        };
        written.and_then(|()| out.flush()).map_err(|e| Failure::unwritten(&e))?;
        Ok(true)
    }

    /// Sends some of what was typed; whether the guest took any.
    fn send(&mut self, out: &mut dyn Write) -> Outcome<bool> {
        let piece = self.typed.get(..CHUNK).unwrap_or(&self.typed);
        if piece.is_empty() {
            return Ok(false);
        }
        let count = piece.len();
        let Some(reply) = self.link.once(&Operation::Write { guest: self.guest, bytes: piece })? else {
            let text = format!("the line dropped: the guest may have taken some of {count} bytes typed, or none");
            self.note(out, &text, &json!({ "uncertain": count }))?;
            self.typed.drain(..count);
            return Ok(false);
        };
        match reply.response()? {
            Response::Taken(taken) => {
                self.typed.drain(..count.min(taken.into()));
                Ok(taken != 0)
            }
            Response::Refused(refusal @ Refusal::Is(_)) if self.raw => {
                self.note(out, &format!("{refusal}; what was typed is dropped"), &Value::Null)?;
                self.typed.clear();
                Ok(false)
            }
            Response::Refused(refusal) => Err(refused(self.guest, refusal)),
            response => Err(strange(&response)),
        }
    }
}
