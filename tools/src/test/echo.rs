//! A guest that echoes, made over the control line and typed at over that line.

use super::control::{act, connect_within, expect};
use crate::ctl::{Link, one};
use crate::emulator::RunFolder;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::workspace::Workspace;
use bulkhead_control::{Action, Operation, Refusal, Response, State};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The guest's name.
pub const NAME: &str = "echo";
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that a guest takes from the line before it reads any: its queue, and its chip.
const MOST: u16 = 1024 + 16;

/// Says that it is ready, and sends what comes on COM1 back; entered in real mode.
pub const PROGRAM: [u8; 27] = [
    0xBA, 0xFA, 0x03, // mov dx, 3FAh
    0xB0, 0x01, // mov al, 1: FIFOs on
    0xEE, // out dx, al
    0xBA, 0xF8, 0x03, // mov dx, 3F8h
    0xB0, b'>', // mov al, '>'
    0xEE, // out dx, al
    0xBA, 0xFD, 0x03, // mov dx, 3FDh
    0xEC, // in al, dx
    0xA8, 0x01, // test al, 1
    0x74, 0xFB, // jz back to the in
    0xBA, 0xF8, 0x03, // mov dx, 3F8h
    0xEC, // in al, dx
    0xEE, // out dx, al
    0xEB, 0xF1, // jmp back to that mov
];

/// Has `hv ctl` make the guest over the line at `line`, and types at it.
pub fn run(workspace: &Workspace, line: &Path) -> Outcome<()> {
    let own = std::env::current_exe().map_err(|e| Failure::failed(e.to_string()))?;
    let folder = RunFolder::new(workspace)?;
    let (manifest, kernel) = (folder.file("echo.toml"), folder.file("echo.bin"));
    files::write(&kernel, &PROGRAM)?;
    let text = format!("[[guest]]\nname = \"{NAME}\"\nkernel = \"{}\"\nmemory = \"4M\"\n", kernel.display());
    files::write(&manifest, format!("{text}load = {{ flat = 0x8000 }}\n").as_bytes())?;
    let mut create = Command::new(&own);
    let made = create.args(["ctl", "create"]).arg(&manifest).arg("--line").arg(line).output();
    let made = made.map_err(|e| Failure::failed(e.to_string()))?;
    expect(made.status.success(), &format!("ctl create: {}", String::from_utf8_lossy(&made.stderr)))?;
    check(&own, line)
}

/// Types at it, by `hv ctl console` at `line` and by itself. The guest is there, and stopped.
fn check(own: &Path, line: &Path) -> Outcome<()> {
    let open = || connect_within(line, PATIENCE);
    let mut link = open();
    expect(read(&mut link, 0)? == (0, Vec::new()), "a guest that was never started has written")?;
    let refused = type_in(&mut link, b"x")?;
    expect(matches!(refused, Response::Refused(Refusal::Is(_))), &format!("a stopped guest took input: {refused:?}"))?;
    act(&mut link, NAME, Action::Start)?;
    wait(&mut link, 0, b">")?;
    drop(link);
    let mut all = b">typed at a person's console\n".to_vec();
    let shown = console(own, line, &[], all.get(1..).unwrap_or_default())?;
    expect(shown == all, &format!("not what was typed came back: {:?}", String::from_utf8_lossy(&shown)))?;
    // Each time by another connection, from the offset where the last one stopped.
    for number in 0..3 {
        let (mut link, from) = (open(), all.len());
        all.extend(format!("line {number}\x1b[2J\0\n").bytes());
        send(&mut link, all.get(from..).unwrap_or_default())?;
        drop(link);
        wait(&mut open(), from, &all)?;
    }
    let mut link = open();
    act(&mut link, NAME, Action::Pause)?;
    let text: Vec<u8> = (b'a'..=b'z').cycle().take(2000).collect();
    let Response::Taken(taken) = type_in(&mut link, &text)? else { return Err(Failure::failed("nothing was taken")) };
    expect((1..=MOST).contains(&taken), &format!("a paused guest took {taken} bytes"))?;
    let Response::Taken(0) = type_in(&mut link, &text)? else { return Err(Failure::failed("a full queue took more")) };
    act(&mut link, NAME, Action::Resume)?;
    let from = all.len();
    all.extend(text.iter().take(taken.into()));
    wait(&mut link, from, &all)?;
    // What it wrote outlives it, and what it writes in its next life comes after it.
    kill(&mut link)?;
    wait(&mut link, 0, &all)?;
    act(&mut link, NAME, Action::Start)?;
    let from = all.len();
    all.push(b'>');
    wait(&mut link, from, &all)?;
    all.extend(b"again");
    send(&mut link, b"again")?;
    wait(&mut link, from, &all)?;
    let (at, _) = read(&mut link, 3)?;
    expect(at == from as u64, &format!("after its first life it has bytes from {at} on, not from {from}"))?;
    let (at, bytes) = read(&mut link, u64::MAX)?;
    expect((at, bytes.as_slice()) == (from as u64, b">again"), "an offset that there is not yet is not told")?;
    drop(link);
    let json = console(own, line, &["--json", "--from", &from.to_string()], b"")?;
    let json = String::from_utf8_lossy(&json).into_owned();
    expect(json.contains("\"text\":\">again\"") && json.contains("\"lost\":0"), &format!("JSON: {json}"))?;
    let mut link = open();
    kill(&mut link)?;
    act(&mut link, NAME, Action::Destroy)?;
    let gone = link.call(&Operation::Read { guest: NAME, from: 0 })?;
    expect(gone.response()? == Response::Refused(Refusal::NoGuest), "a destroyed guest has a console")
}

/// Ends the guest, and waits until it has ended.
fn kill(link: &mut Link) -> Outcome<()> {
    act(link, NAME, Action::Kill)?;
    let end = Instant::now() + PATIENCE;
    while !matches!(type_in(link, b"")?, Response::Refused(Refusal::Is(State::Stopped))) {
        expect(Instant::now() < end, "it does not end")?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What `hv ctl console` shows, with this as its input.
fn console(own: &Path, line: &Path, more: &[&str], input: &[u8]) -> Outcome<Vec<u8>> {
    let fail = |e: std::io::Error| Failure::failed(e.to_string());
    let mut command = Command::new(own);
    command.args(["ctl", "console", NAME]).args(more).arg("--line").arg(line);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).map_err(fail)?;
    }
    let output = child.wait_with_output().map_err(fail)?;
    expect(output.status.success(), &format!("ctl console: {}", output.status))?;
    Ok(output.stdout)
}

fn read(link: &mut Link, from: u64) -> Outcome<(u64, Vec<u8>)> {
    let reply = one(link, &Operation::Read { guest: NAME, from }, NAME)?;
    match reply.response()? {
        Response::Output { at, bytes } => Ok((at, bytes.to_vec())),
        other => Err(Failure::failed(format!("not a console's output: {other:?}"))),
    }
}

/// Waits until the guest's output from offset `from` on is that of `all`.
pub fn wait(link: &mut Link, from: usize, all: &[u8]) -> Outcome<()> {
    let want = all.get(from..).unwrap_or_default();
    let end = Instant::now() + PATIENCE;
    loop {
        let (at, bytes) = read(link, from as u64)?;
        if at == from as u64 && bytes == want {
            return Ok(());
        }
        if Instant::now() >= end {
            let [got, want] = [&bytes, want].map(String::from_utf8_lossy);
            return Err(Failure::failed(format!("from {from} on came, at {at}, {got:?} and not {want:?}")));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What comes of input, once.
fn type_in(link: &mut Link, bytes: &[u8]) -> Outcome<Response<'static>> {
    let reply = link.once(&Operation::Write { guest: NAME, bytes })?;
    let reply = reply.ok_or_else(|| Failure::failed("the line dropped"))?;
    match reply.response()? {
        Response::Taken(count) => Ok(Response::Taken(count)),
        Response::Refused(refusal) => Ok(Response::Refused(refusal)),
        other => Err(Failure::failed(format!("not an answer to input: {other:?}"))),
    }
}

/// Sends all of it.
fn send(link: &mut Link, mut bytes: &[u8]) -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        let Response::Taken(count) = type_in(link, bytes)? else { return Err(Failure::failed("input was refused")) };
        bytes = bytes.get(usize::from(count)..).unwrap_or_default();
        expect(Instant::now() < end, "input is not taken")?;
    }
    Ok(())
}
