//! Commands of `hv ctl` that go on until they are ended, on a machine that runs.

use super::commands::{Terminal, hv_ctl};
use super::control::expect;
use super::pty::Pty;
use crate::emulator::Running;
use crate::failure::{Failure, Outcome, UNREAD};
use crate::workspace::Workspace;
use rustix::process::Signal;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// The longest that a command may wait for its turn beside those.
const TURN: Duration = Duration::from_secs(5);
/// Who is told to end has ended after this.
const SOON: Duration = Duration::from_secs(2);
/// More minutes than it takes to come here.
const FEW: usize = 8;

/// Tries them; the guest `spin` runs afterwards.
pub fn run(workspace: &Workspace, line: &Path, running: &Running, terminal: &mut Terminal) -> Outcome<()> {
    let events = Going::start(workspace, line, "events --follow")?;
    events.wait("guest 1 spin: started by manifest", 1)?;
    terminal.ask("start spin", "event guest 1 spin started")?;
    events.wait("guest 1 spin: started by monitor", 1)?;
    drop(events);
    for (words, want) in [("stats --watch", "ticks of all CPUs"), ("stats spin --watch", "timer ")] {
        Going::start(workspace, line, &format!("{words} --interval 0.1"))?.wait(want, 3)?;
    }
    unread(workspace, line)?;
    let (_serving, address) = metrics(workspace, line)?;
    together(workspace, line, address)?;
    on_a_terminal(workspace, line, running)
}

/// `top` and `console` on a terminal: what is on the screen, and that it is put back, whatever ends them.
fn on_a_terminal(workspace: &Workspace, line: &Path, running: &Running) -> Outcome<()> {
    let start = |words: &[&str]| Pty::start(&hv_ctl(workspace, line, words)?, 80, 24);
    let mut top = start(&["top"])?;
    top.wait("q quits")?;
    let screen = top.screen();
    let heading = "id name             zone       state     cpu %    MiB exits/look KiB out  KiB in";
    let has = |row: &str| screen.iter().any(|shown| shown.starts_with(row));
    let right =
        has(heading) && has(" 1 spin             spin       running") && has("Bulkhead  20") && screen.len() == 24;
    expect(right, &format!("the screen of `top`:\n{}", screen.join("\n")))?;
    // Others come in between; a key and a signal end it.
    let list = hv_ctl(workspace, line, &["list"])?.output().map_err(fail)?;
    expect(list.status.success(), "`list` beside `top`")?;
    top.send(b"q")?;
    expect(top.end(SOON)?.success(), "the end of `top` by q")?;
    for signal in [Signal::TERM, Signal::HUP] {
        let top = start(&["top"])?;
        top.wait("q quits")?;
        top.signal(signal)?;
        expect(top.end(SOON)?.success(), "the end of `top` by a signal")?;
    }
    let mut console = start(&["console", "1"])?;
    console.wait("console of spin; Ctrl-] q leaves it")?;
    console.signal(Signal::TERM)?;
    console.end(SOON)?;
    // While nobody answers, too.
    (top, console) = (start(&["top"])?, start(&["console", "spin"])?);
    top.wait("q quits")?;
    console.wait("console of spin; Ctrl-] q leaves it")?;
    running.freeze(true)?;
    let told = [(&mut top, "q"), (&mut console, "\x1dq")].into_iter().try_for_each(|(one, keys)| {
        one.wait("waits for an answer at")?;
        one.send(keys.as_bytes())
    });
    let ended = told.and_then(|()| top.end(SOON)).and_then(|_| console.end(SOON));
    running.freeze(false)?;
    ended.map(|_| ())
}

/// Output that is not read any more, as by `head`: it ends without a word.
fn unread(workspace: &Workspace, line: &Path) -> Outcome<()> {
    let mut command = hv_ctl(workspace, line, &["stats", "--watch", "--interval", "0.1"])?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(fail)?;
    let first = child.stdout.take().map(|mut out| out.read(&mut [0; 10]));
    expect(matches!(first, Some(Ok(1..))), "`stats --watch` says nothing")?;
    let output = child.wait_with_output().map_err(fail)?;
    let right = output.status.code() == Some(UNREAD.into()) && output.stderr.is_empty();
    expect(right, &format!("unread: {}, {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// All of them at once: each goes on, and a command in between is answered.
fn together(workspace: &Workspace, line: &Path, address: SocketAddr) -> Outcome<()> {
    let mut going = Vec::new();
    for words in ["events --follow", "stats --watch --interval 0.1", "stats spin --watch --interval 0.1"] {
        going.push(Going::start(workspace, line, words)?);
    }
    // Its input does not end while it goes on.
    going.push(Going::start(workspace, line, "console hello")?);
    for round in 1..=3 {
        let times = round * 5;
        for (one, (want, times)) in going.iter().zip([
            ("started by monitor", 1),
            ("ticks of all CPUs", times),
            ("timer ", times),
            ("hello from a guest", 1),
        ]) {
            one.wait(want, times)?;
        }
        let asked = Instant::now();
        let list = hv_ctl(workspace, line, &["list"])?.output().map_err(fail)?;
        expect(list.status.success(), &format!("beside others: {}", String::from_utf8_lossy(&list.stderr)))?;
        expect(asked.elapsed() < TURN, &format!("`list` had to wait for {:?} beside others", asked.elapsed()))?;
        scrape(address)?;
    }
    // They came some hundred times, which is told once a minute.
    let told = going.first().map_or(0, |events| events.count("a client has proved the key"));
    expect((1..FEW).contains(&told), &format!("{told} events of clients that came"))
}

/// The command, and where it listens.
fn metrics(workspace: &Workspace, line: &Path) -> Outcome<(Going, SocketAddr)> {
    // One that is free now.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(fail)?;
    let serving = Going::start(workspace, line, &format!("metrics --listen {address}"))?;
    serving.wait(&format!("http://{address}/metrics"), 1)?;
    scrape(address)?;
    Ok((serving, address))
}

fn scrape(address: SocketAddr) -> Outcome<()> {
    let mut text = String::new();
    let mut stream = TcpStream::connect(address).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").map_err(fail)?;
    stream.read_to_string(&mut text).map_err(fail)?;
    let right = text.starts_with("HTTP/1.1 200 ") && text.contains("guest=\"spin\"");
    expect(right, &format!("ctl metrics served:\n{text}"))
}

fn fail(error: std::io::Error) -> Failure {
    Failure::failed(error.to_string())
}

/// A command that goes on; it is ended when this is dropped.
struct Going {
    words: String,
    child: Child,
    come: Arc<Mutex<String>>,
}

impl Going {
    fn start(workspace: &Workspace, line: &Path, words: &str) -> Outcome<Self> {
        let all: Vec<&str> = words.split(' ').collect();
        let mut command = hv_ctl(workspace, line, &all)?;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(fail)?;
        let come = Arc::new(Mutex::new(String::new()));
        if let (Some(out), Some(errors)) = (child.stdout.take(), child.stderr.take()) {
            collect(out, &come);
            collect(errors, &come);
        }
        Ok(Self { words: words.to_owned(), child, come })
    }

    /// How often `text` has come.
    fn count(&self, text: &str) -> usize {
        self.come.lock().unwrap_or_else(PoisonError::into_inner).matches(text).count()
    }

    /// Waits until `text` has come so many times.
    fn wait(&self, text: &str, times: usize) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.count(text) >= times {
                return Ok(());
            }
            let come = self.come.lock().unwrap_or_else(PoisonError::into_inner).clone();
            expect(Instant::now() < end, &format!("ctl {}: no `{text}`, {times} times, in:\n{come}", self.words))?;
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

fn collect(mut from: impl Read + Send + 'static, come: &Arc<Mutex<String>>) {
    let come = Arc::clone(come);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
            come.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
}
