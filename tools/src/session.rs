//! One run of a machine: its serial line taken apart, its reports followed, to its end.

use crate::emulator::Running;
use crate::event::{End, Event};
use crate::failure::Outcome;
use crate::frames::{Demux, Lines, Mux};
use bulkhead_control::editor::PROMPT;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a dying hypervisor may be silent before it counts as dead.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the emulator is looked at.
const POLL: Duration = Duration::from_millis(200);

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// Bytes of the serial line.
    Serial(Vec<u8>),
    /// The serial line is closed.
    SerialEnd,
    /// Bytes of the user's terminal or of standard input.
    Keys(Vec<u8>),
    /// A signal that ends us.
    Signal,
}

/// Who watches the run.
pub trait View {
    /// A guest wrote `bytes` to its console.
    fn console(&mut self, guest: u8, bytes: &[u8], wire: &mut Wire);
    /// The hypervisor's channel, as it comes: the monitor's prompt is no line.
    fn monitor(&mut self, _bytes: &[u8]) {}
    /// The hypervisor wrote a line.
    fn log(&mut self, line: &str);
    /// The user typed `bytes`; `Break` ends the run.
    fn keys(&mut self, _bytes: &[u8], _wire: &mut Wire) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    /// Whether the run may end, since all that was wanted has been seen.
    fn has_enough(&self) -> bool {
        false
    }
}

/// The way to the guests' consoles.
#[derive(Debug, Default)]
pub struct Wire {
    mux: Mux,
    stream: Option<TcpStream>,
}

impl Wire {
    /// Says again which console what is sent next is for: the machine may have chosen another one itself.
    pub const fn forget(&mut self) {
        self.mux.forget();
    }

    /// Sends `bytes` to the console of `guest`.
    pub fn send(&mut self, guest: u8, bytes: &[u8]) {
        let framed = self.mux.frame(guest, bytes);
        if let Some(stream) = &mut self.stream {
            // A machine that has ended takes nothing more; its end is noticed elsewhere.
            let _ = stream.write_all(&framed);
        }
    }
}

/// Why the run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// All guests have ended.
    Done,
    /// The machine lacks something.
    Preflight(String),
    /// The hypervisor died; its last lines.
    Panic(Vec<String>),
    /// The emulator ended before the guests.
    Died(String),
    /// The time is up.
    Timeout,
    /// The user, or a signal, ended it.
    Quit,
}

/// What became of the machine.
#[derive(Clone, Debug)]
pub struct Report {
    /// Why the run is over.
    pub finish: Finish,
    /// Guests that ended: number, name, how.
    pub ends: Vec<(u8, String, End)>,
    /// Verdicts of the isolation audit that were good.
    pub audits: u32,
    /// Verdicts that were not.
    pub audit_failures: Vec<String>,
    /// Benchmark results.
    pub bench: Vec<(String, u64)>,
    /// Whether the dump that was asked for was written.
    pub dump: Option<Outcome<()>>,
}

/// A machine and its inputs.
pub struct Session {
    running: Running,
    inputs: Receiver<Input>,
    demux: Demux,
    lines: Lines,
    wire: Wire,
    report: Report,
    last_words: Option<(Vec<String>, Instant)>,
    dump: Option<PathBuf>,
}

impl Session {
    /// A session with `running`. Other inputs may be sent through the sender.
    pub fn new(running: Running) -> (Self, Sender<Input>) {
        let (sender, inputs) = channel();
        let out = running.serial.try_clone().ok();
        if let Ok(serial) = running.serial.try_clone() {
            let sender = sender.clone();
            thread::spawn(move || read_serial(serial, &sender));
        }
        let report = Report {
            finish: Finish::Quit,
            ends: Vec::new(),
            audits: 0,
            audit_failures: Vec::new(),
            bench: Vec::new(),
            dump: None,
        };
        let session = Self {
            running,
            inputs,
            demux: Demux::default(),
            lines: Lines::default(),
            wire: Wire { mux: Mux::default(), stream: out },
            report,
            last_words: None,
            dump: None,
        };
        (session, sender)
    }

    /// Has the machine's memory and registers written to `path` when the run is over, before the emulator ends.
    #[must_use]
    pub fn dump_to(mut self, path: Option<PathBuf>) -> Self {
        self.dump = path;
        self
    }

    /// Follows the run to its end, or until `timeout` is over.
    pub fn follow(mut self, view: &mut dyn View, timeout: Option<Duration>) -> Report {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let finish = loop {
            if let Some(finish) = self.step(view, deadline) {
                break finish;
            }
        };
        self.report.finish = finish;
        if let Some(path) = &self.dump {
            self.report.dump = Some(self.running.dump(path));
        }
        self.report
    }

    fn step(&mut self, view: &mut dyn View, deadline: Option<Instant>) -> Option<Finish> {
        let now = Instant::now();
        if deadline.is_some_and(|d| now >= d) {
            return Some(Finish::Timeout);
        }
        if let Some((said, since)) = &self.last_words
            && now.duration_since(*since) > LAST_WORDS
        {
            return Some(Finish::Panic(said.clone()));
        }
        let wait = deadline.map_or(POLL, |d| POLL.min(d.duration_since(now)));
        match self.inputs.recv_timeout(wait) {
            Ok(Input::Serial(bytes)) => self.serial(&bytes, view).or(view.has_enough().then_some(Finish::Quit)),
            Ok(Input::Keys(bytes)) => view.keys(&bytes, &mut self.wire).is_break().then_some(Finish::Quit),
            Ok(Input::Signal) => Some(Finish::Quit),
            Ok(Input::SerialEnd) => Some(self.died()),
            Err(RecvTimeoutError::Disconnected) => Some(self.died()),
            Err(RecvTimeoutError::Timeout) => None,
        }
    }

    fn died(&mut self) -> Finish {
        match self.last_words.take() {
            Some((said, _)) => Finish::Panic(said),
            None => {
                // The line closes a moment before the process is gone.
                for _ in 0..20 {
                    if self.running.has_ended() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                Finish::Died(self.running.last_words())
            }
        }
    }

    fn serial(&mut self, bytes: &[u8], view: &mut dyn View) -> Option<Finish> {
        let Self { demux, lines, wire, report, last_words, .. } = self;
        let mut finish = None;
        demux.push(bytes, |channel, bytes| {
            if channel != 0 {
                view.console(channel, bytes, wire);
                return;
            }
            view.monitor(bytes);
            lines.push(bytes, |line| {
                let Some(line) = written(line) else { return };
                if let Some((said, since)) = last_words {
                    said.push(line.to_owned());
                    *since = Instant::now();
                    return;
                }
                match Event::parse(line) {
                    Some(Event::Panic(_)) => *last_words = Some((vec![line.to_owned()], Instant::now())),
                    Some(event) => finish = finish.take().or_else(|| report.note(event)),
                    None => {}
                }
                view.log(line);
            });
        });
        finish
    }
}

/// What the hypervisor itself wrote of a line of its channel. Nothing, if the monitor's prompt stands in that row, with what was
/// typed behind it; if that was taken away before, what came then.
fn written(line: &str) -> Option<&str> {
    let row = line.rsplit_once('\r').map_or(line, |(_, row)| row);
    (!row.starts_with(PROMPT)).then(|| row.strip_prefix("\x1b[K").unwrap_or(row))
}

impl Report {
    fn note(&mut self, event: Event) -> Option<Finish> {
        match event {
            Event::Ended { guest, name, end } => self.ends.push((guest, name, end)),
            Event::Audit { ok: true, .. } => self.audits += 1,
            Event::Audit { ok: false, text } => self.audit_failures.push(text),
            Event::Bench { name, ticks } => self.bench.push((name, ticks)),
            Event::Done => return Some(Finish::Done),
            Event::Preflight(message) => return Some(Finish::Preflight(message)),
            Event::Started { .. } | Event::Panic(_) => {}
        }
        None
    }

    /// The exit status that tells of it, see [`crate::failure`].
    pub fn status(&self) -> u8 {
        use crate::failure::{FAILED, MACHINE, OK, TIMEOUT};
        let well = self.audit_failures.is_empty() && self.ends.iter().all(|(_, _, end)| end.is_good());
        match &self.finish {
            Finish::Timeout => TIMEOUT,
            Finish::Preflight(_) => MACHINE,
            Finish::Panic(_) | Finish::Died(_) => FAILED,
            Finish::Done | Finish::Quit if well => OK,
            Finish::Done | Finish::Quit => FAILED,
        }
    }
}

fn read_serial(mut serial: TcpStream, sender: &Sender<Input>) {
    let mut buffer = [0; 4096];
    loop {
        match serial.read(&mut buffer) {
            Ok(0) | Err(_) => {
                let _ = sender.send(Input::SerialEnd);
                return;
            }
            Ok(n) => {
                let bytes = buffer.get(..n).unwrap_or_default().to_vec();
                if sender.send(Input::Serial(bytes)).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::written;
    use bulkhead_control::editor::Editor;

    /// The row of a prompt at which this was typed.
    fn typed(keys: &[u8]) -> String {
        let (mut editor, mut row) = (Editor::new(), String::new());
        editor.show(&mut row);
        for key in keys {
            editor.key(*key, &mut row);
        }
        row
    }

    #[test]
    fn what_is_typed_at_the_monitor_is_no_report() {
        let report = "event machine done";
        assert_eq!(written(report), Some(report));
        // The cursor goes back, and the row is shown anew.
        for keys in [&b"event machine done"[..], b"vent machine done\x01e", b"event machine don\x10\x0ee"] {
            assert_eq!(written(&typed(keys)), None, "{keys:?}");
            let mut hidden = typed(keys);
            Editor::hide(&mut hidden);
            assert_eq!(written(&(hidden + report)), Some(report), "{keys:?}");
        }
    }
}
