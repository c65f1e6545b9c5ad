//! The client's end of the control line.
//!
//! The protocol is described where the hypervisor's end is (`bulkhead_control::line`). A frame that is not answered is sent
//! again; a line that was dropped is opened again, with a new session, and what was asked is asked again where that does
//! no harm.
//!
//! One client has the line at a time, and the next one waits until it hangs up. So nobody keeps it: who asks again and
//! again hangs up in between ([`Link::rest`]), and who has much to say does so after each [`TURN`].

use crate::failure::{Failure, Outcome};
use bulkhead_control::frame::{Decoder, MOST, Received};
use bulkhead_control::line::{Kind, Nonce, Purpose, VERSION, derive, open, plain, seal, versioned};
use bulkhead_control::mac::Key;
use bulkhead_control::{Action, Operation, Response};
use rustix::termios::{OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one read waits.
const TICK: Duration = Duration::from_millis(100);

/// Who is in the queue waits for its turn so many times as long as for an answer, before it says hello again.
const QUEUE: u32 = 5;

/// So long nobody is told what is waited for.
const WORDLESS: Duration = Duration::from_secs(1);

/// After so long it is hung up, in case others wait. The next session costs two frames each way.
const TURN: Duration = Duration::from_secs(1);

/// Sent before a frame on a serial port: the hypervisor looks at it every 10 ms, and the chip keeps 16 bytes. Zeros are no
/// frames; so many take 20 ms at 115200 baud.
const WAKE: [u8; 256] = [0; 256];

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For an answer, before the frame is sent again.
    pub answer: Duration,
    /// For the machine, before the command gives up.
    pub all: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: Duration::from_secs(1), all: Duration::from_secs(15) }
    }
}

/// What carries the bytes.
enum Stream {
    Socket(UnixStream),
    /// A terminal's or serial port's device.
    Device(File),
}

/// What a read came to.
enum Got<'a> {
    Frame(&'a [u8]),
    Nothing,
    Dropped,
}

struct Session {
    key: Key,
    number: u32,
}

/// The line.
pub struct Link {
    path: PathBuf,
    key: Key,
    patience: Patience,
    stream: Option<Stream>,
    /// When it was opened.
    since: Instant,
    /// After so long it is hung up.
    pub turn: Duration,
    session: Option<Session>,
    /// Which start of the machine answered last.
    pub boot: Nonce,
    decoder: Decoder,
    /// What has come and was not looked at.
    pending: Vec<u8>,
    /// The last frame.
    frame: Vec<u8>,
    /// Since when nobody is heard, unless that was said.
    unheard: Option<Instant>,
    /// Tells what is waited for.
    pub say: Box<dyn FnMut(&str) + Send>,
    /// Set by who has enough: what is waited for is not waited for any more.
    pub leave: Arc<AtomicBool>,
}

/// An answer.
pub struct Reply(Vec<u8>);

impl Reply {
    /// What it says.
    pub fn response(&self) -> Outcome<Response<'_>> {
        postcard::from_bytes(&self.0).map_err(|_| {
            Failure::failed("the hypervisor's answer is of another kind").hint("use the `hv` that it came with")
        })
    }
}

/// Whether an operation that was perhaps done can be asked for again.
fn is_repeatable(operation: &Operation<'_>) -> bool {
    !matches!(
        operation,
        Operation::Commit
            | Operation::Write { .. }
            | Operation::Act { action: Action::Reset | Action::Destroy | Action::Nmi, .. }
    )
}

impl Link {
    /// A line at `path`, opened when it is needed.
    pub fn new(path: &Path, key: Key, patience: Patience) -> Self {
        Self {
            path: path.to_owned(),
            key,
            patience,
            stream: None,
            since: Instant::now(),
            turn: TURN,
            session: None,
            boot: Nonce::default(),
            decoder: Decoder::new(),
            pending: Vec::new(),
            frame: Vec::new(),
            unheard: None,
            say: Box::new(|word| eprintln!("hv: {word}")),
            leave: Arc::default(),
        }
    }

    /// Has `operation` carried out.
    pub fn call(&mut self, operation: &Operation<'_>) -> Outcome<Reply> {
        let deadline = Instant::now() + self.patience.all;
        loop {
            if let Some(reply) = self.try_once(operation, deadline)? {
                return Ok(reply);
            }
            if !is_repeatable(operation) {
                return Err(Failure::failed("the line dropped before the answer: it may be done or not")
                    .hint("`hv ctl list` and `hv ctl events` tell"));
            }
        }
    }

    /// Has `operation` carried out; nothing if the line dropped, and it may have been or not.
    pub fn once(&mut self, operation: &Operation<'_>) -> Outcome<Option<Reply>> {
        self.try_once(operation, Instant::now() + self.patience.all)
    }

    fn try_once(&mut self, operation: &Operation<'_>, deadline: Instant) -> Outcome<Option<Reply>> {
        // Nor is a session known any more in which nothing was asked for long.
        if self.since.elapsed() > self.turn {
            self.hang_up();
        }
        self.connect(deadline)?;
        let reply = self.ask(operation, deadline)?;
        if reply.is_none() || self.since.elapsed() > self.turn {
            self.hang_up();
        }
        Ok(reply)
    }

    /// Leaves the line to others for so long.
    pub fn rest(&mut self, time: Duration) {
        self.hang_up();
        std::thread::sleep(time);
    }

    /// Leaves the line to others until the next call.
    pub fn hang_up(&mut self) {
        self.stream = None;
        self.session = None;
        self.decoder = Decoder::new();
        self.pending.clear();
    }

    /// Sends the request until it is answered; nothing if the line dropped, or the machine has forgotten the session.
    fn ask(&mut self, operation: &Operation<'_>, deadline: Instant) -> Outcome<Option<Reply>> {
        let Some(session) = &mut self.session else { return Ok(None) };
        let (key, number) = (session.key, session.number);
        session.number += 1;
        let mut payload = vec![0; MOST];
        let payload = postcard::to_slice(operation, &mut payload).ok();
        let frame = payload.and_then(|payload| seal(&key, Kind::Request, number, payload));
        let frame = frame.ok_or_else(|| Failure::usage("this is too long for the line").hint("use a shorter name"))?;
        for _ in 0..5 {
            if !self.send(&frame) {
                return Ok(None);
            }
            let until = deadline.min(Instant::now() + self.patience.answer);
            while Instant::now() < until {
                match self.receive(until) {
                    Got::Frame(frame) => {
                        if let Some((of, payload)) = open(&key, Kind::Response, frame)
                            && of == number
                        {
                            return Ok(Some(Reply(payload.to_vec())));
                        }
                    }
                    Got::Nothing => {}
                    Got::Dropped => return Ok(None),
                }
            }
            if Instant::now() >= deadline {
                return Err(self.silent());
            }
        }
        Ok(None)
    }

    fn silent(&self) -> Failure {
        Failure::failed(format!("nobody answers on {}", self.path.display()))
            .hint("is the machine running, and the control line in its manifest?")
    }

    /// Opens the line and proves the key, unless that is done.
    fn connect(&mut self, deadline: Instant) -> Outcome<()> {
        let mut unproved = 0;
        self.unheard = Some(Instant::now());
        while self.session.is_none() {
            if self.leave.load(Ordering::Relaxed) {
                return Err(Failure::failed("left"));
            }
            self.tell();
            if self.stream.is_none() {
                match stream(&self.path) {
                    Ok(stream) => (self.stream, self.since) = (Some(stream), Instant::now()),
                    // While it was there before, it may come back.
                    Err(_) if Instant::now() < deadline && (self.path.exists() || self.was_there()) => {
                        std::thread::sleep(TICK);
                        continue;
                    }
                    Err(e) => {
                        let path = self.path.display();
                        return Err(Failure::failed(format!("can not open the control line {path}: {e}"))
                            .hint("start the machine with `hv run --control`, or give --line PATH"));
                    }
                }
            }
            match self.handshake(deadline)? {
                Some(true) => {}
                Some(false) => {
                    unproved += 1;
                    // It was heard; if it is not any more, that is told.
                    self.unheard = Some(Instant::now());
                }
                None => self.hang_up(),
            }
            if unproved >= 3 {
                return Err(Failure::failed("the hypervisor does not take this key")
                    .hint("give the --manifest that the machine runs with, or a --key-file"));
            }
            if self.session.is_none() && Instant::now() >= deadline {
                return Err(self.silent());
            }
        }
        Ok(())
    }

    /// Whether a machine has answered before.
    fn was_there(&self) -> bool {
        self.boot != Nonce::default()
    }

    /// Says once what is waited for, if that takes long.
    fn tell(&mut self) {
        if self.unheard.take_if(|begun| begun.elapsed() >= WORDLESS).is_none() {
            return;
        }
        let path = self.path.display();
        (self.say)(&match self.stream {
            None => format!("waits for a machine at {path}, where one was"),
            Some(_) => format!("waits for an answer at {path}: perhaps another `hv ctl` has its turn"),
        });
    }

    /// One try: whether the key was taken; nothing if nobody answered, or the line dropped.
    fn handshake(&mut self, deadline: Instant) -> Outcome<Option<bool>> {
        let mut nonce = Nonce::default();
        nonce.copy_from_slice(&super::random()?[..16]);
        let hello: [&[u8]; 3] = [&[Kind::Hello as u8], &VERSION.to_le_bytes(), &nonce];
        let Some(hello) = plain(&hello) else { return Ok(None) };
        if !self.send(&hello) {
            return Ok(None);
        }
        let Some(challenge) = self.frame_of(Kind::Challenge, deadline, QUEUE) else { return Ok(None) };
        self.unheard = None;
        let Some((version, own)) = versioned(&challenge) else { return Ok(None) };
        if version != VERSION {
            return Err(Failure::failed(format!(
                "the hypervisor's control line is of version {version}, not {VERSION}"
            ))
            .hint("use the `hv` that it came with"));
        }
        let proof = derive(&self.key, Purpose::Client, &nonce, &own);
        let Some(proof) = plain(&[&[Kind::Proof as u8], &proof]) else { return Ok(None) };
        if !self.send(&proof) {
            return Ok(None);
        }
        let Some(welcome) = self.frame_of(Kind::Welcome, deadline, 1) else { return Ok(Some(false)) };
        let Some((boot, proof)) = welcome.split_first_chunk() else { return Ok(Some(false)) };
        if *proof != bulkhead_control::line::welcome(&self.key, &nonce, &own, boot) {
            return Ok(Some(false));
        }
        self.boot = *boot;
        self.session = Some(Session { key: derive(&self.key, Purpose::Session, &nonce, &own), number: 0 });
        Ok(Some(true))
    }

    /// The next frame of this kind, without its first byte, if it comes in so many times what an answer takes.
    fn frame_of(&mut self, kind: Kind, deadline: Instant, times: u32) -> Option<Vec<u8>> {
        let until = deadline.min(Instant::now() + self.patience.answer * times);
        while Instant::now() < until {
            self.tell();
            match self.receive(until.min(Instant::now() + TICK)) {
                Got::Frame([first, rest @ ..]) if *first == kind as u8 => return Some(rest.to_vec()),
                Got::Frame(_) | Got::Nothing => {}
                Got::Dropped => return None,
            }
        }
        None
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        match &mut self.stream {
            Some(Stream::Socket(stream)) => stream.write_all(bytes).is_ok(),
            Some(Stream::Device(file)) => file.write_all(&WAKE).and_then(|()| file.write_all(bytes)).is_ok(),
            None => false,
        }
    }

    fn receive(&mut self, until: Instant) -> Got<'_> {
        loop {
            if self.leave.load(Ordering::Relaxed) {
                return Got::Dropped;
            }
            // A zero ends a frame.
            while let Some(end) = self.pending.iter().position(|byte| *byte == 0) {
                self.frame.clear();
                for byte in self.pending.drain(..=end) {
                    if let Received::Frame(frame) = self.decoder.push(byte) {
                        self.frame.extend(frame);
                    }
                }
                if !self.frame.is_empty() {
                    return Got::Frame(&self.frame);
                }
            }
            // Bytes that are no frame may come without end.
            if Instant::now() >= until {
                return Got::Nothing;
            }
            let mut buffer = [0; 4096];
            let read = match &mut self.stream {
                Some(Stream::Socket(stream)) => stream.read(&mut buffer).map(|count| (count, count == 0)),
                // Its reads end by themselves.
                Some(Stream::Device(file)) => file.read(&mut buffer).map(|count| (count, false)),
                None => return Got::Dropped,
            };
            match read {
                Ok((_, true)) => return Got::Dropped,
                Ok((count, false)) => self.pending.extend(buffer.get(..count).unwrap_or_default()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => return Got::Dropped,
            }
        }
    }
}

fn stream(path: &Path) -> std::io::Result<Stream> {
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_char_device() {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // What queues for a socket does so here.
        file.try_lock()?;
        let mut raw = tcgetattr(&file)?;
        raw.make_raw();
        // A read ends after a tenth of a second without a byte (POSIX, "General Terminal Interface", case C).
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(&file, OptionalActions::Now, &raw)?;
        return Ok(Stream::Device(file));
    }
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TICK))?;
    Ok(Stream::Socket(stream))
}
