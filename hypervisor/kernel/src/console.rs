//! The serial line, shared by the hypervisor's log and the guests' consoles.
//!
//! Bytes are never kept in the shared part: a guest's output goes to the chip from its own compartment, within its own
//! time, and its input is taken from the chip there. Only the number of the channel is shared.
//!
//! **Who sends when.** An exit puts bytes into the guest's own [`Output`] and touches nothing else. They are sent when a turn
//! of the guest is over, if nobody else has the line: its lock is tried and not waited for. While [`BACKLOG`] bytes wait, no
//! more are taken, and the guest's transmitter is busy in the end. A guest sends for a millisecond at most, ten when it has
//! ended, and not beyond the time at which it is to be woken. If another one, or the log, found the line taken meanwhile, it
//! then leaves it free for as long, so that a flood has half of the line at the most.
//!
//! In [`ConsoleMode::Framed`] the byte 0x10 followed by 0x40 + N says that what follows belongs to channel N (0 the
//! hypervisor's log, else the guest's number), and 0x10 0x10 stands for the byte 0x10. Input is framed the same way. In
//! [`ConsoleMode::Lines`] each guest's rows are printed whole, with its name in front ([`Rows`]), and input goes to guest 1.

use crate::task;
use bulkhead_control::Name;
use bulkhead_control::monitor::ESCAPE;
use bulkhead_control::output::Output;
use bulkhead_control::screen::Rows;
use bulkhead_hw::cpu;
use bulkhead_hw::serial::Serial;
use bulkhead_types::manifest::ConsoleMode;
use bulkhead_types::{Frequency, GuestId};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use spin::{Mutex, MutexGuard};

const SWITCH: u8 = 0x10;
const CHANNEL_BASE: u8 = 0x40;
/// Bytes of a guest that can wait for the line.
const BACKLOG: u64 = 1024;
/// Most bytes that are dropped at once.
const PIECE: usize = 1024;
/// Longest that a guest sends at a time, unless it is a line, in parts of a second.
const LONGEST: u64 = 1000;
/// The same of one that has ended.
const LAST: u64 = 100;

/// Held by whoever sends.
static SENDER: Mutex<()> = Mutex::new(());
/// Somebody has found the line taken.
static CONTENDED: AtomicBool = AtomicBool::new(false);

static FRAMED: AtomicBool = AtomicBool::new(false);
/// Channel of the last byte sent; [`NO_CHANNEL`] if that was lost.
static SENDING: AtomicU16 = AtomicU16::new(0);
const NO_CHANNEL: u16 = u16::MAX;
/// Channel that input belongs to.
static FOCUS: AtomicU16 = AtomicU16::new(1);
/// A switch byte has come in, the channel's has not.
static SWITCHING: AtomicBool = AtomicBool::new(false);

/// The guest at whose console the escape was typed.
static ESCAPED: AtomicU16 = AtomicU16::new(0);
/// The escape itself is to go to the guest that has input now.
static LITERAL: AtomicBool = AtomicBool::new(false);

/// In the row where the cursor is stands something of the monitor's: its prompt, mostly. For who sends; so is the next one.
static PROMPT: AtomicBool = AtomicBool::new(false);
/// It was taken away for something else.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Takes the monitor's prompt off the screen, if it is there; for who sends.
fn hide_prompt() {
    if PROMPT.swap(false, Ordering::Relaxed) {
        HIDDEN.store(true, Ordering::Relaxed);
        b"\r\x1b[K".iter().for_each(|byte| send(0, *byte));
    }
}

/// Whether the monitor, if what is typed goes to it, is to show its prompt again, since something else was shown.
pub fn prompt_is_due() -> bool {
    FOCUS.load(Ordering::Relaxed) == 0 && HIDDEN.load(Ordering::Relaxed)
}

/// Shows a whole row of the monitor's, or one that it writes anew, or what it adds to that: in one piece, since other
/// processors show rows of guests in between. If the row was taken away nothing is added: its prompt is due.
pub fn show(text: &str) {
    let _sender = take_line();
    let (anew, whole) = (text.starts_with('\r'), text.ends_with('\n'));
    if anew || whole || !HIDDEN.load(Ordering::Relaxed) {
        text.bytes().for_each(|byte| send(0, byte));
        PROMPT.store(!whole, Ordering::Relaxed);
    }
    if anew {
        HIDDEN.store(false, Ordering::Relaxed);
    }
}

/// Sets how the line is shared.
pub fn set_mode(mode: ConsoleMode) {
    FRAMED.store(mode == ConsoleMode::Framed, Ordering::Relaxed);
}

fn send(channel: u16, byte: u8) {
    let serial = Serial::again();
    let framed = FRAMED.load(Ordering::Relaxed);
    let mut sent = true;
    if framed && SENDING.swap(channel, Ordering::Relaxed) != channel {
        let number = u8::try_from(channel).map_or(u8::MAX, |channel| CHANNEL_BASE.saturating_add(channel));
        sent = serial.send(SWITCH) && serial.send(number);
    }
    if framed && byte == SWITCH {
        sent = sent && serial.send(SWITCH);
    }
    if !(sent && serial.send(byte)) {
        // Whoever listens again is to be told whose it is.
        SENDING.store(NO_CHANNEL, Ordering::Relaxed);
    }
}

/// Waits until nobody else sends. Not on the way of an exit.
fn take_line() -> MutexGuard<'static, ()> {
    SENDER.try_lock().unwrap_or_else(|| {
        CONTENDED.store(true, Ordering::Relaxed);
        SENDER.lock()
    })
}

/// The hypervisor's log, as long as nobody else sends.
pub struct Log(#[expect(dead_code, reason = "held, not looked at")] Option<MutexGuard<'static, ()>>);

impl Log {
    /// Waits until nobody else sends.
    pub fn open() -> Self {
        let log = Self(Some(take_line()));
        hide_prompt();
        log
    }

    /// Waits for nobody: for the report of a fault, whose processor may have been sending.
    pub const fn force() -> Self {
        Self(None)
    }
}

impl Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(0, b'\r');
            }
            send(0, byte);
        }
        Ok(())
    }
}

/// Writes a line to the hypervisor's log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // The line takes everything: there is no error to act on.
        let _ = writeln!($crate::console::Log::open(), $($argument)*);
    }};
}

/// One guest's end of the line. Lies in the guest's compartment, and is touched by this guest's vCPUs alone.
pub struct GuestConsole {
    channel: u16,
    name: Name,
    output: Output,
    /// Offset of the first byte that was not sent.
    sent: u64,
    /// In line mode.
    rows: Rows,
    tsc: Frequency,
    /// Count of the time-stamp counter before which it leaves the line to others.
    rest: u64,
    /// Something waits, and others had the line when it was last to be sent.
    kept_off: bool,
}

impl GuestConsole {
    /// The console of the guest with this number and name, on a machine with this time-stamp counter.
    pub fn new(id: GuestId, name: &str, tsc: Frequency) -> Self {
        let name = Name::try_from(name).unwrap_or_default();
        let (channel, output, rows) = (id.number(), Output::new(), Rows::new());
        Self { channel, name, output, sent: 0, rows, tsc, rest: 0, kept_off: false }
    }

    /// Takes a byte of the guest's output. `false`: so much waits already that it has to wait, too.
    pub fn push(&mut self, byte: u8) -> bool {
        let room = self.output.end() - self.sent < BACKLOG;
        if room {
            self.output.push(byte);
        }
        room
    }

    /// What the guest has written.
    pub const fn output(&self) -> &Output {
        &self.output
    }

    /// Whether some of it was not sent.
    pub const fn waits(&self) -> bool {
        self.sent < self.output.end()
    }

    /// Whether some of it waits for others to leave the line.
    pub const fn is_kept_off(&self) -> bool {
        self.kept_off
    }

    /// Sends a piece of what waits, if the line is free. Between turns; the guest is due at this count of the time-stamp
    /// counter.
    pub fn flush(&mut self, due: u64, ended: bool) {
        if ended && Serial::again().is_stuck() {
            // Its end waits for nobody.
            self.sent = self.output.end();
        }
        self.kept_off = self.waits() && !self.try_flush(due, ended);
    }

    fn try_flush(&mut self, due: u64, ended: bool) -> bool {
        let now = cpu::tsc();
        if now < self.rest || Serial::again().is_stuck() {
            return false;
        }
        let hertz = self.tsc.as_hertz();
        let piece = due.saturating_sub(now).min(hertz / if ended { LAST } else { LONGEST });
        let sender = SENDER.try_lock();
        match &sender {
            Some(sender) => self.send_piece(piece, sender),
            None => CONTENDED.store(true, Ordering::Relaxed),
        }
        sender.is_some()
    }

    /// Ends the line of a guest that has ended.
    pub fn finish(&mut self) {
        let sender = take_line();
        self.rows.end(&self.name, &mut print(self.channel, &sender));
    }

    fn send_piece(&mut self, piece: u64, sender: &MutexGuard<'static, ()>) {
        let begun = cpu::tsc();
        let mut now = begun;
        while now.saturating_sub(begun) < piece
            && let Some(byte) = self.output.get(self.sent)
        {
            self.sent += 1;
            self.send(byte, sender);
            now = cpu::tsc();
        }
        let others = CONTENDED.swap(false, Ordering::Relaxed);
        self.rest = if others { now.saturating_add(now.saturating_sub(begun)) } else { 0 };
    }

    fn send(&mut self, byte: u8, sender: &MutexGuard<'static, ()>) {
        if FRAMED.load(Ordering::Relaxed) {
            send(self.channel, byte);
        } else {
            self.rows.push(byte, &self.name, false, &mut print(self.channel, sender));
        }
    }

    /// Ticks of a second.
    pub const fn second(&self) -> u64 {
        self.tsc.as_hertz()
    }

    /// A byte that has come in for this guest. A switch to another channel on the way is obeyed.
    pub fn receive(&self) -> Option<u8> {
        receive(self.channel)
    }
}

/// Prints a guest's rows where the monitor's prompt may be.
fn print(channel: u16, _sender: &MutexGuard<'static, ()>) -> impl FnMut(u8) {
    move |byte| {
        hide_prompt();
        send(channel, byte);
    }
}

fn receive(channel: u16) -> Option<u8> {
    let serial = Serial::again();
    if channel != 0 && FOCUS.load(Ordering::Relaxed) == channel && LITERAL.swap(false, Ordering::Relaxed) {
        return Some(ESCAPE);
    }
    while FOCUS.load(Ordering::Relaxed) == channel && serial.has_input() {
        let byte = serial.receive()?;
        if !FRAMED.load(Ordering::Relaxed) {
            if byte == ESCAPE && channel != 0 {
                // The monitor takes what follows.
                ESCAPED.store(channel, Ordering::Relaxed);
                FOCUS.store(0, Ordering::Relaxed);
                task::interrupt(0);
                return None;
            }
            return Some(byte);
        }
        match (SWITCHING.swap(false, Ordering::Relaxed), byte) {
            (false, SWITCH) => SWITCHING.store(true, Ordering::Relaxed),
            (true, CHANNEL_BASE..) => FOCUS.store(u16::from(byte - CHANNEL_BASE), Ordering::Relaxed),
            (_, byte) => return Some(byte),
        }
    }
    None
}

/// The guest that has input waiting, if any.
pub fn input_for() -> Option<GuestId> {
    let serial = Serial::again();
    if !serial.has_input() {
        return None;
    }
    let focus = FOCUS.load(Ordering::Relaxed);
    // Channel 0 is the monitor's.
    (focus != 0).then(|| GuestId::new(focus))
}

/// Whether nothing is to be done for what was typed, or shown: the next byte says by itself that it comes.
pub fn is_quiet() -> bool {
    FOCUS.load(Ordering::Relaxed) != 0 && !Serial::again().has_input()
}

/// A byte that has come in for the monitor. A switch to another channel on the way is obeyed.
pub fn monitor_input() -> Option<u8> {
    receive(0)
}

/// Has what is typed go to this guest from now on, after the escape itself if `literal`.
pub fn focus(guest: u16, literal: bool) {
    LITERAL.store(literal, Ordering::Relaxed);
    FOCUS.store(guest, Ordering::Relaxed);
}

/// The guest at whose console the escape was typed, if it was since this was asked last.
pub fn escaped() -> Option<u16> {
    Some(ESCAPED.swap(0, Ordering::Relaxed)).filter(|guest| *guest != 0)
}

/// Drops what came in for a guest that takes nothing, up to a switch to another channel.
pub fn drop_input() {
    let channel = FOCUS.load(Ordering::Relaxed);
    let _ = (0..PIECE).map_while(|_| receive(channel)).count();
}
