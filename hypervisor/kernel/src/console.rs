//! The serial line, shared by the hypervisor's log and the guests' consoles.
//!
//! Bytes are never kept in the shared part: a guest's output goes to the chip from its own compartment, within its own
//! time, and its input is taken from the chip there. Only the number of the channel is shared. Processors take turns at
//! the line by a lock; a guest whose processor does not get it keeps its output, and waits only when it has no room left.
//!
//! In [`ConsoleMode::Framed`] the byte 0x10 followed by 0x40 + N says that what follows belongs to channel N (0 the
//! hypervisor's log, else the guest's number), and 0x10 0x10 stands for the byte 0x10. Input is framed the same way. In
//! [`ConsoleMode::Lines`] each guest's lines are printed whole, with its name in front, and input goes to guest 1.

use bulkhead_control::Name;
use bulkhead_control::monitor::ESCAPE;
use bulkhead_hw::serial::Serial;
use bulkhead_types::GuestId;
use bulkhead_types::manifest::ConsoleMode;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use heapless::Deque;
use spin::{Mutex, MutexGuard};

const SWITCH: u8 = 0x10;
const CHANNEL_BASE: u8 = 0x40;
/// Longest line that is printed whole in line mode.
const LINE: usize = 200;
/// Bytes that a guest can keep until the line is free.
const KEPT: usize = 1024;

/// Held by whoever sends.
static SENDER: Mutex<()> = Mutex::new(());

static FRAMED: AtomicBool = AtomicBool::new(false);
/// Channel of the last byte sent.
static SENDING: AtomicU16 = AtomicU16::new(0);
/// Channel that input belongs to.
static FOCUS: AtomicU16 = AtomicU16::new(1);
/// A switch byte has come in, the channel's has not.
static SWITCHING: AtomicBool = AtomicBool::new(false);

/// The guest at whose console the escape was typed.
static ESCAPED: AtomicU16 = AtomicU16::new(0);
/// The escape itself is to go to the guest that has input now.
static LITERAL: AtomicBool = AtomicBool::new(false);

/// The monitor's prompt stands in the row where the cursor is.
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

/// Whether the monitor is to show its prompt again, since something else was shown. It is there from now on, if what is
/// typed goes to it.
pub fn prompt_is_due() -> bool {
    let at_prompt = FOCUS.load(Ordering::Relaxed) == 0;
    PROMPT.store(at_prompt, Ordering::Relaxed);
    HIDDEN.swap(false, Ordering::Relaxed) && at_prompt
}

/// Sets how the line is shared.
pub fn set_mode(mode: ConsoleMode) {
    FRAMED.store(mode == ConsoleMode::Framed, Ordering::Relaxed);
}

fn send(channel: u16, byte: u8) {
    let serial = Serial::again();
    if !FRAMED.load(Ordering::Relaxed) {
        return serial.send(byte);
    }
    if SENDING.swap(channel, Ordering::Relaxed) != channel {
        serial.send(SWITCH);
        serial.send(u8::try_from(channel).map_or(u8::MAX, |channel| CHANNEL_BASE.saturating_add(channel)));
    }
    if byte == SWITCH {
        serial.send(SWITCH);
    }
    serial.send(byte);
}

/// The hypervisor's log, as long as nobody else sends.
pub struct Log(#[expect(dead_code, reason = "held, not looked at")] Option<MutexGuard<'static, ()>>);

impl Log {
    /// Waits until nobody else sends.
    pub fn open() -> Self {
        let log = Self::beside_prompt();
        hide_prompt();
        log
    }

    /// As [`Log::open`], for the monitor itself, which knows where its prompt is.
    pub fn beside_prompt() -> Self {
        Self(Some(SENDER.lock()))
    }

    /// Waits for nobody: for the report of a fault, whose processor may have been sending.
    pub const fn force() -> Self {
        Self(None)
    }

    /// Writes what has its line ends already.
    pub fn write_raw(&mut self, text: &str) {
        text.bytes().for_each(|byte| send(0, byte));
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

/// One guest's end of the line. Lies in the guest's compartment.
pub struct GuestConsole {
    channel: u16,
    name: Name,
    line: [u8; LINE],
    length: usize,
    /// Not sent yet.
    kept: Deque<u8, KEPT>,
}

impl GuestConsole {
    /// The console of the guest with this number and name.
    pub fn new(id: GuestId, name: &str) -> Self {
        let name = Name::try_from(name).unwrap_or_default();
        Self { channel: id.number(), name, line: [0; LINE], length: 0, kept: Deque::new() }
    }

    /// Sends a byte of the guest's output.
    pub fn send(&mut self, byte: u8) {
        if FRAMED.load(Ordering::Relaxed) {
            self.queue(byte);
            return self.flush();
        }
        match byte {
            b'\n' => self.end_line(),
            b'\r' => {}
            // What could move the cursor or ring a bell could imitate another's line. So could the second half of ISO 8859,
            // whose first 32 characters are controls too.
            b'\t' | b' '..=b'~' => self.keep(byte),
            _ => self.keep(b'?'),
        }
    }

    fn keep(&mut self, byte: u8) {
        if let Some(slot) = self.line.get_mut(self.length) {
            *slot = byte;
            self.length += 1;
        }
        if self.length == LINE {
            self.end_line();
        }
    }

    /// Prints what there is of a line.
    pub fn end_line(&mut self) {
        if self.length == 0 {
            return;
        }
        // A line goes out in one piece.
        if self.kept.len() > KEPT / 2 {
            self.wait_and_flush();
        }
        let name = self.name.clone();
        let prefix = ["[", &name, "] "].into_iter().flat_map(str::bytes);
        let line = self.line;
        for byte in prefix.chain(line.into_iter().take(self.length)).chain(*b"\r\n") {
            self.queue(byte);
        }
        self.length = 0;
        self.flush();
    }

    fn queue(&mut self, byte: u8) {
        if self.kept.is_full() {
            self.wait_and_flush();
        }
        let _ = self.kept.push_back(byte);
    }

    /// Sends what was kept.
    fn wait_and_flush(&mut self) {
        self.send_kept(&SENDER.lock());
    }

    /// Sends all there is, of a guest that has ended.
    pub fn finish(&mut self) {
        self.end_line();
        self.wait_and_flush();
    }

    /// Sends what was kept, if the line is free.
    pub fn flush(&mut self) {
        if !self.kept.is_empty()
            && let Some(sender) = SENDER.try_lock()
        {
            self.send_kept(&sender);
        }
    }

    fn send_kept(&mut self, _sender: &MutexGuard<'static, ()>) {
        if !FRAMED.load(Ordering::Relaxed) && !self.kept.is_empty() {
            hide_prompt();
        }
        while let Some(byte) = self.kept.pop_front() {
            send(self.channel, byte);
        }
    }

    /// A byte that has come in for this guest. A switch to another channel on the way is obeyed.
    pub fn receive(&mut self) -> Option<u8> {
        let serial = Serial::again();
        if self.channel != 0 && FOCUS.load(Ordering::Relaxed) == self.channel && LITERAL.swap(false, Ordering::Relaxed)
        {
            return Some(ESCAPE);
        }
        while FOCUS.load(Ordering::Relaxed) == self.channel && serial.has_input() {
            let byte = serial.receive()?;
            if !FRAMED.load(Ordering::Relaxed) {
                if byte == ESCAPE && self.channel != 0 {
                    // The monitor takes what follows.
                    ESCAPED.store(self.channel, Ordering::Relaxed);
                    FOCUS.store(0, Ordering::Relaxed);
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
}

/// The guest that has input waiting, if any. Input for none is dropped.
pub fn input_for() -> Option<GuestId> {
    let serial = Serial::again();
    if !serial.has_input() {
        return None;
    }
    let focus = FOCUS.load(Ordering::Relaxed);
    // Channel 0 is the monitor's.
    (focus != 0).then(|| GuestId::new(focus))
}

/// A byte that has come in for the monitor. A switch to another channel on the way is obeyed.
pub fn monitor_input() -> Option<u8> {
    GuestConsole::new(GuestId::IDLE, "").receive()
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

/// Drops a byte that came in for a guest that does not run.
pub fn drop_input() {
    GuestConsole::new(GuestId::new(FOCUS.load(Ordering::Relaxed)), "").receive();
}
