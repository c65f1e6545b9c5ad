//! Each command against a hypervisor's end of the line with a machine of no processor behind it.

use super::console::{Console, Form, for_guest};
use super::link::{Link, Patience};
use super::top::{Look, Screen};
use super::{CtlArgs, metrics, run, send_pack};
use crate::ctl::show::{self, Show};
use crate::failure::Outcome;
use crate::session::Input;
use bulkhead_control::fake::Fake;
use bulkhead_control::line::{KEPT, Line, Refused, Step};
use bulkhead_control::screen::Rows;
use bulkhead_control::{Action, Ending, EventKind, Machine as _, Operation, Response, Source, State};
use clap::Parser;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

const KEY: [u8; 32] = [7; 32];

/// The line of a machine with this boot. A tick is a millisecond.
fn line(boot: u8) -> Line {
    Line::new(KEY, [boot; 16], 1000)
}

/// What happens to the bytes on the way to the client.
type Spoil = Box<dyn FnMut(&mut Vec<u8>) -> bool + Send>;

/// The machine and its end of the line.
struct Machine {
    fake: Fake,
    line: Line,
    /// Changes what is sent; whether the line stays.
    spoil: Spoil,
    /// The line's clock.
    now: u64,
}

struct Bench {
    path: PathBuf,
    machine: Arc<Mutex<Machine>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves one client after the other.
fn serve(listener: &UnixListener, machine: &Mutex<Machine>) {
    for mut stream in listener.incoming().flatten() {
        let mut buffer = [0; 512];
        'client: while let Ok(count @ 1..) = stream.read(&mut buffer) {
            for byte in &buffer[..count] {
                let Ok(mut machine) = machine.lock() else { return };
                let Machine { fake, line, spoil, now } = &mut *machine;
                let mut sent = match line.receive(*byte, *now) {
                    Step::Nothing => continue,
                    Step::Send(bytes) | Step::Welcome(bytes) => bytes.to_vec(),
                    Step::Request(operation) => {
                        let copy = postcard::to_allocvec(&operation).unwrap();
                        let response = fake.perform(&postcard::from_bytes(&copy).unwrap(), Source::Line);
                        line.respond(&response).to_vec()
                    }
                };
                let stays = spoil(&mut sent);
                if stream.write_all(&sent).is_err() || !stays {
                    break 'client;
                }
            }
        }
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: CtlArgs,
}

impl Bench {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hv-ctl-{}-{number}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let machine = Machine { fake: Fake::new(&["linux", "lab"]), line: line(3), spoil: Box::new(|_| true), now: 0 };
        let machine = Arc::new(Mutex::new(machine));
        let serving = Arc::clone(&machine);
        thread::spawn(move || serve(&listener, &serving));
        Self { path, machine }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    fn spoil(&self, spoil: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static) {
        self.machine().spoil = Box::new(spoil);
    }

    fn link_with(&self, key: [u8; 32]) -> Link {
        let patience = Patience { answer: Duration::from_millis(60), all: Duration::from_secs(2) };
        Link::new(&self.path, key, patience)
    }

    fn link(&self) -> Link {
        self.link_with(KEY)
    }

    /// Status and output of `hv ctl` with these words.
    fn ctl(&self, words: &str) -> Outcome<(u8, String)> {
        let cli = Cli::try_parse_from(format!("ctl {words}").split(' ')).unwrap();
        let mut out = Vec::new();
        run(&cli.args, self.link(), &mut out).map(|status| (status, String::from_utf8(out).unwrap()))
    }

    fn good(&self, words: &str) -> String {
        let (status, text) = self.ctl(words).unwrap_or_else(|failure| panic!("{words}: {failure}"));
        assert_eq!(status, 0, "{words}");
        text
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.good(&format!("{words} --json"))).unwrap()
    }

    fn state(&self, guest: &str) -> State {
        self.machine().fake.find(guest).unwrap().guest.state
    }
}

#[test]
fn each_action_is_done_and_told() {
    let bench = Bench::new();
    for (words, says, state) in [
        ("pause linux", "done\n", State::Paused),
        ("pause linux", "it is so already\n", State::Paused),
        ("resume linux", "done\n", State::Running),
        ("reset 1", "done\n", State::Running),
        ("inject linux", "done\n", State::Running),
        ("stop linux", "asked; `events` tells when it has ended, and `kill` does not wait\n", State::Stopped),
        ("start linux", "done\n", State::Running),
        ("kill linux", "done\n", State::Stopped),
    ] {
        assert_eq!(bench.good(words), says, "{words}");
        assert_eq!(bench.state("linux"), state, "{words}");
    }
    assert_eq!(bench.json("stop linux")["result"], "unchanged");
    assert_eq!(bench.json("destroy linux")["result"], "done");
    assert!(bench.machine().fake.find("linux").is_none());
}

#[test]
fn what_is_asked_is_shown() {
    let bench = Bench::new();
    let list = bench.good("list");
    assert!(list.starts_with("id name") && list.lines().count() == 3, "{list}");
    assert!(
        list.contains(" 2 lab              zone       running      1      16 manifest abababababab 2023-"),
        "{list}"
    );
    let list = bench.json("list");
    assert_eq!((&list[1]["name"], &list[1]["origin"]), (&"lab".into(), &"ab".repeat(32).into()));
    assert!(bench.good("stats").contains(" 2 lab                          2000 "));
    assert_eq!(bench.json("stats")["guests"][1]["used"], 2000);
    assert!(bench.good("stats lab").starts_with("cpuid                   3 exits"));
    assert_eq!(bench.json("stats lab")[1]["exit"], "port");
    assert_eq!(bench.good("version"), "Bulkhead 0.1.0 with none on 2 CPUs, 1000 kHz\n");
    assert_eq!(bench.json("version")["cpus"], 2);
    assert!(bench.good("audit").ends_with(" 0 violations\n"));
    assert_eq!(bench.json("audit")["violations"], 0);
    assert!(bench.good("memmap").starts_with("000010000000-000010ffffff      16384 KiB linux"));
    let events = bench.good("events");
    assert!(events.contains("     3 2023-11-14T22:13:20.000Z guest 2 lab: started by manifest"), "{events}");
    assert_eq!(bench.good("events --from 3").lines().count(), 1);
    assert_eq!(bench.json("events --from 3")["sequence"], 3);
}

#[test]
fn what_can_not_be_done_is_one_line_and_status_1() {
    let bench = Bench::new();
    for (words, message, hint) in [
        ("start nobody", "nobody: there is no such guest", "`list` shows them"),
        ("destroy linux", "linux: it is running", "stop it first"),
        ("stats nobody", "nobody: there is no such guest", "`list` shows them"),
        ("console nobody", "nobody: there is no such guest", "`list` shows them"),
    ] {
        let failure = bench.ctl(words).unwrap_err();
        assert_eq!((failure.status, failure.message.as_str()), (1, message), "{words}");
        assert_eq!(failure.hint.as_deref(), Some(hint), "{words}");
    }
    let failure = bench.ctl("top").map(|_| ());
    assert!(failure.is_err_and(|f| f.status == 2 && f.message == "top needs a terminal"));
    let told = show::failure(&bench.ctl("destroy linux --json").unwrap_err());
    assert_eq!(told, json!({ "error": "linux: it is running", "hint": "stop it first", "status": 1 }));
}

#[test]
fn a_stop_can_wait_for_the_end() {
    let bench = Bench::new();
    bench.machine().fake = Fake::new(&["obedient", "stubborn"]);
    let asked = bench.good("stop obedient --wait 60s");
    assert!(asked.starts_with("asked;"), "{asked}");
    assert_eq!(bench.good("stop 1 --wait 60s"), "it is so already\n");
    assert_eq!(bench.json("stop stubborn")["result"], "asked");
    let failure = bench.ctl("stop 2 --wait 1s").unwrap_err();
    assert_eq!((failure.status, failure.message.as_str()), (1, "2: it has not ended after 1 s"));
    assert_eq!(bench.state("stubborn"), State::Running);
}

#[test]
fn wrong_arguments_are_one_helpful_line_before_the_line_is_opened() {
    for (words, message, next) in [
        ("", "requires a subcommand", "write `hv ctl [OPTIONS] <COMMAND>`"),
        ("lst", "unrecognized subcommand 'lst'", "'list'"),
        ("list linux", "unexpected argument 'linux'", "write `hv ctl list [OPTIONS]`"),
        ("list --jsn", "unexpected argument '--jsn'", "'--json'"),
        ("start", "required arguments were not provided: <GUEST>", "write `hv ctl start <GUEST>`"),
        ("start a b", "unexpected argument 'b'", "write `hv ctl start"),
        ("stats --interval 0", "invalid value '0'", "write a number of seconds from 0.1 to 3600"),
        ("stats --interval x", "invalid value 'x'", "write a number of seconds"),
        ("events --from x", "invalid value 'x' for '--from <N>'", "`--help` says more"),
        ("console", "<GUEST>", "write `hv ctl console"),
        ("console lab x", "unexpected argument 'x'", "write `hv ctl console"),
        ("console lab --from x", "invalid value 'x'", "`--help` says more"),
        ("console lab --plain --json", "cannot be used with", "write `hv ctl console"),
        ("metrics --listen nowhere", "invalid value 'nowhere'", "`--help` says more"),
        ("create file --lease 1", "invalid value '1'", "write it like"),
        ("list --manifest a --key-file b", "cannot be used with", "write `hv ctl list"),
    ] {
        let arguments = ["hv", "ctl"].into_iter().chain(words.split_whitespace());
        let failure = crate::cli::parse(arguments.map(Into::into)).err().unwrap();
        assert_eq!((failure.status, failure.message.lines().count(), &failure.hint), (2, 1, &None), "{failure}");
        assert!(failure.message.contains(message) && failure.message.contains(next), "{words}: {failure}");
    }
}

#[test]
fn a_wrong_key_is_told_and_changes_nothing() {
    let bench = Bench::new();
    let mut out = Vec::new();
    let cli = Cli::try_parse_from(["ctl", "kill", "linux"]).unwrap();
    let failure = run(&cli.args, bench.link_with([8; 32]), &mut out).unwrap_err();
    assert_eq!(failure.message, "the hypervisor does not take this key");
    assert_eq!(bench.state("linux"), State::Running);
    assert_eq!(bench.machine().line.refused().unproved, 3);
}

#[test]
fn a_hypervisor_without_the_key_is_not_believed() {
    let bench = Bench::new();
    // It welcomes whoever comes, by a proof that it has not.
    bench.spoil(|bytes| {
        if bytes.get(2) == Some(&4) {
            bytes[9] ^= 1;
        }
        true
    });
    assert_eq!(bench.ctl("list").unwrap_err().message, "the hypervisor does not take this key");
}

#[test]
fn nobody_there_is_told() {
    let bench = Bench::new();
    bench.spoil(|bytes| {
        bytes.clear();
        true
    });
    assert!(bench.ctl("list").unwrap_err().message.starts_with("nobody answers on "));
    let gone = Link::new(std::path::Path::new("/nowhere/at/all"), KEY, Patience::default());
    let cli = Cli::try_parse_from(["ctl", "list"]).unwrap();
    assert!(run(&cli.args, gone, &mut Vec::new()).unwrap_err().message.starts_with("can not open the control line"));
}

#[test]
fn who_talks_without_an_answer_is_not_listened_to_without_end() {
    for noise in [&[0; 512][..], b"\x04no frame\0", b"no zero"] {
        let bench = Bench::new();
        std::fs::remove_file(&bench.path).unwrap();
        let listener = UnixListener::bind(&bench.path).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || while stream.write_all(noise).is_ok() {});
            }
        });
        let (told, failure) = channel();
        thread::spawn(move || told.send(bench.ctl("list").unwrap_err().message));
        let failure = failure.recv_timeout(Duration::from_secs(10)).expect("it gives up after 2 s");
        assert!(failure.starts_with("nobody answers on "), "{failure}");
    }
}

#[test]
fn who_waits_for_an_answer_can_leave_and_is_told_what_for() {
    // From the first answer on, and from the second one, in the middle of the handshake.
    (0..2).for_each(leaves_a_machine_that_answers);
}

/// It answers so often, and no more.
fn leaves_a_machine_that_answers(mut times: u32) {
    let bench = Bench::new();
    bench.spoil(move |bytes| {
        match times.checked_sub(1) {
            Some(left) => times = left,
            None => bytes.clear(),
        }
        true
    });
    let mut link = bench.link();
    let (leave, words) = (Arc::clone(&link.leave), channel());
    link.say = Box::new(move |word| words.0.send(word.to_owned()).unwrap());
    let begun = Instant::now();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(1500));
        leave.store(true, Ordering::Relaxed);
    });
    Console::new(&mut link, "lab", None, Form::Bytes).follow(&channel().1, &mut Vec::new()).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(1900), "{:?}", begun.elapsed());
    let told: Vec<String> = words.1.try_iter().collect();
    assert!(told.len() == 1 && told[0].starts_with("waits for an answer at "), "{told:?}");
}

#[test]
fn garbled_and_lost_answers_are_asked_for_again_and_nothing_is_done_twice() {
    let bench = Bench::new();
    let mut count = 0;
    bench.spoil(move |bytes| {
        count += 1;
        match count % 3 {
            0 => bytes.clear(),
            1 => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
            }
            _ => {}
        }
        true
    });
    for _ in 0..4 {
        // A second NMI for one command would be seen in the count.
        let before = bench.machine().fake.find("linux").unwrap().counts[0];
        let told = bench.ctl("inject linux");
        let after = bench.machine().fake.find("linux").unwrap().counts[0];
        assert!(after <= before + 1);
        assert!(told.is_err() || after == before + 1);
    }
}

#[test]
fn a_dropped_line_is_opened_again_and_events_go_on_without_loss() {
    let bench = Bench::new();
    for n in 0..100 {
        let now = bench.machine().fake.now;
        bench.machine().fake.events.push(now, 1, "linux", EventKind::Ended(Ending::TestExit(n)));
    }
    let mut sent = 0;
    bench.spoil(move |_| {
        sent += 1;
        sent % 5 != 0
    });
    let events = bench.good("events --from 4 --json");
    let sequences: Vec<u64> =
        events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (4..104).collect::<Vec<_>>());
}

#[test]
fn a_machine_that_was_started_anew_is_told_and_followed_from_its_start() {
    let bench = Bench::new();
    // When all that there is has been shown, another machine is there, which has had as many events, and one more.
    let mut anew =
        Some(Machine { fake: Fake::new(&["linux", "lab"]), line: line(4), spoil: Box::new(|_| true), now: 0 });
    let now = bench.machine().fake.now;
    anew.as_mut().unwrap().fake.events.push(now, 1, "linux", EventKind::LeaseOver);
    let mut out = Watched(Vec::new(), &bench, anew);
    let cli = Cli::try_parse_from(["ctl", "events", "--follow"]).unwrap();
    assert!(run(&cli.args, bench.link(), &mut out).is_err(), "it ends when it can not write");
    let shown = String::from_utf8(out.0).unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 4 + 1 + 5, "{shown}");
    assert_eq!(lines[4], "-- the machine was started anew: it has had 5 events");
    assert!(lines[5].starts_with("     0 ") && lines[9].ends_with("guest 1 linux: lease over"), "{shown}");
    // A console as well, even if the guest has written as much.
    let mut link = bench.link();
    let mut console = Console::new(&mut link, "lab", None, Form::Bytes);
    let mut out = Vec::new();
    assert!(console.show(&mut out).unwrap());
    bench.machine().line = line(5);
    while console.show(&mut out).unwrap() {}
    assert_eq!(String::from_utf8(out).unwrap(), "hello from lab\nhello from lab\n");
}

/// Puts the other machine in place of the first after its 4 events, and can not be written to after 10 lines.
struct Watched<'a>(Vec<u8>, &'a Bench, Option<Machine>);

impl std::io::Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend(bytes);
        let lines = self.0.iter().filter(|byte| **byte == b'\n').count();
        if lines == 4
            && let Some(anew) = self.2.take()
        {
            *self.1.machine() = anew;
        }
        if lines < 10 { Ok(bytes.len()) } else { Err(std::io::ErrorKind::StorageFull.into()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_machine_that_was_there_may_come_back() {
    let bench = Bench::new();
    let mut link = bench.link();
    assert!(link.call(&Operation::Version).is_ok());
    let away = bench.path.with_extension("away");
    std::fs::rename(&bench.path, &away).unwrap();
    let (from, to) = (away.clone(), bench.path.clone());
    let back = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        std::fs::rename(from, to).unwrap();
    });
    link.hang_up();
    assert!(link.call(&Operation::Version).is_ok());
    back.join().unwrap();
    // One that never was there is not waited for.
    std::fs::rename(&bench.path, &away).unwrap();
    let begun = Instant::now();
    assert!(bench.link().call(&Operation::Version).is_err() && begun.elapsed() < Duration::from_secs(1));
    std::fs::remove_file(away).unwrap();
}

#[test]
fn who_was_silent_begins_another_session() {
    let bench = Bench::new();
    let mut link = bench.link();
    link.turn = Duration::from_millis(10);
    assert!(link.call(&Operation::Version).is_ok());
    thread::sleep(Duration::from_millis(20));
    bench.machine().now += (KEPT + 1) * 1000;
    // One that is asked once.
    let reset = Operation::Act { guest: "linux", action: Action::Reset };
    assert_eq!(link.call(&reset).unwrap().response(), Ok(Response::Done));
    assert_eq!(bench.machine().line.refused(), Refused::default());
}

#[test]
fn what_must_not_be_done_twice_is_not_asked_again() {
    let bench = Bench::new();
    let mut sent = 0;
    // Challenge, welcome, and then the answer is lost with the line.
    bench.spoil(move |bytes| {
        sent += 1;
        if sent == 3 {
            bytes.clear();
        }
        sent != 3
    });
    assert!(bench.ctl("reset linux").unwrap_err().message.contains("it may be done or not"));
    assert_eq!(bench.machine().fake.find("linux").unwrap().counts[1], 1);
}

#[test]
fn lost_events_are_told() {
    let bench = Bench::new();
    for _ in 0..1000 {
        let now = bench.machine().fake.now;
        bench.machine().fake.events.push(now, 0, "", EventKind::Session);
    }
    let events = bench.good("events");
    assert!(events.starts_with("-- 876 earlier events are gone\n"), "{events}");
    assert_eq!(events.lines().count(), 129);
}

#[test]
fn a_guest_is_created_from_a_pack_even_if_the_line_drops() {
    let bench = Bench::new();
    let folder = std::env::temp_dir().join(format!("hv-ctl-create-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("kernel"), vec![0x90; 50_000]).unwrap();
    let manifest = folder.join("m.toml");
    let text = "[[guest]]\nname = \"other\"\nkernel = \"kernel\"\nload = { flat = 0x100000 }\n\
                [[guest]]\nname = \"new\"\nkernel = \"kernel\"\nload = { flat = 0x100000 }\nmemory = \"8M\"\n";
    std::fs::write(&manifest, text).unwrap();
    let mut sent = 0;
    bench.spoil(move |bytes| {
        sent += 1;
        // While chunks are on their way.
        let drop = sent == 7 || sent == 20;
        if drop {
            bytes.clear();
        }
        !drop
    });
    let words = format!("create {} new", manifest.display());
    assert_eq!(bench.good(&words), "guest 3\n");
    let new = bench.machine().fake.find("new").unwrap().guest.clone();
    assert_eq!((new.state, new.memory, new.creator), (State::Stopped, 8 << 20, Source::Line));
    assert_eq!(bench.ctl(&words).unwrap_err().message, "new: another guest, or a zone, has this name");
    let failure = bench.ctl(&format!("create {} nobody", manifest.display())).unwrap_err();
    assert_eq!(failure.hint.as_deref(), Some("it has other, new"));
    std::fs::remove_dir_all(folder).unwrap();
    let mut out = Vec::new();
    let failure = send_pack(&mut bench.link(), &mut Show::new(false, &mut out), &[1; 5000], "x").unwrap_err();
    assert!(failure.message.starts_with("x: not a pack of one guest"), "{failure}");
}

/// What a console shows that is typed at, and left at the end of what is typed.
fn console(bench: &Bench, guest: &str, from: Option<u64>, form: Form, typed: &[&[u8]]) -> Outcome<String> {
    let (sender, keys) = channel();
    typed.iter().for_each(|bytes| sender.send(bytes.to_vec()).unwrap());
    drop(sender);
    let (mut link, mut out) = (bench.link(), Vec::new());
    Console::new(&mut link, guest, from, form).follow(&keys, &mut out)?;
    Ok(String::from_utf8(out).unwrap_or_else(|wrong| wrong.into_bytes().into_iter().map(char::from).collect()))
}

/// What a console shows to a script, from this offset on.
fn told(bench: &Bench, from: u64) -> Value {
    serde_json::from_str(&console(bench, "lab", Some(from), Form::Json, &[]).unwrap()).unwrap()
}

#[test]
fn a_console_passes_bytes_both_ways() {
    let bench = Bench::new();
    let ((sender, from), (to, keys), leave) = (channel(), channel(), AtomicBool::new(false));
    sender.send(Input::Keys(b"echo \x1d\x1d\x00\xff".to_vec())).unwrap();
    sender.send(Input::Keys(b"\x1dq never".to_vec())).unwrap();
    for_guest(&from, Some(false), &to, &leave);
    drop(to);
    assert!(leave.into_inner());
    let (mut link, mut out) = (bench.link(), Vec::new());
    let mut terminal = Console::new(&mut link, "lab", None, Form::Bytes);
    terminal.raw = true;
    terminal.follow(&keys, &mut out).unwrap();
    assert!(out.starts_with(b"hello from lab\n"));
    assert_eq!(bench.machine().fake.find("lab").unwrap().input, b"echo \x1d\x00\xff");
    drop(link);
    // Without a terminal: until input has ended and output pauses, from where it is said.
    assert_eq!(console(&bench, "lab", Some(15), Form::Bytes, &[b"\x1dq"]).unwrap(), "echo \x1d\0\u{ff}\x1dq");
}

#[test]
fn a_console_is_told_in_plain_text_and_in_json() {
    let bench = Bench::new();
    bench.machine().fake.find("lab").unwrap().output.extend(b"\x1b[2J[linux] \xc3\xa4\x07");
    let plain = console(&bench, "lab", Some(0), Form::Plain(Rows::new()), &[]).unwrap();
    assert_eq!(plain, "[lab] hello from lab\r\n[lab] [linux] ??");
    let piece = told(&bench, 15);
    assert_eq!((piece["at"].as_u64(), piece["lost"].as_u64()), (Some(15), Some(0)));
    assert_eq!(
        (piece["text"].as_str(), piece["hex"].as_str()),
        (Some("\u{1b}[2J[linux] ä\u{7}"), Some("1b5b324a5b6c696e75785d20c3a407"))
    );
}

#[test]
fn a_console_goes_on_where_it_was_and_says_what_is_gone() {
    let bench = Bench::new();
    let text: Vec<u8> = (0..20_000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    bench.machine().fake.find("lab").unwrap().output.clone_from(&text);
    let mut sent = 0;
    bench.spoil(move |bytes| {
        sent += 1;
        // With the answer on its way, every now and then.
        if sent % 7 == 0 {
            bytes.clear();
        }
        sent % 7 != 0
    });
    let shown = console(&bench, "lab", None, Form::Bytes, &[]).unwrap();
    assert_eq!(shown.as_bytes(), text, "a line that drops loses nothing");
    bench.spoil(|_| true);
    {
        let mut machine = bench.machine();
        let lab = machine.fake.find("lab").unwrap();
        lab.gone = 1000;
        lab.output = b"late".to_vec();
    }
    let late = told(&bench, 100);
    assert_eq!((late["at"].as_u64(), late["lost"].as_u64()), (Some(1000), Some(900)));
    // One of the same name that has not written so much.
    let other = console(&bench, "lab", Some(5000), Form::Json, &[]).unwrap();
    let (note, piece) = other.split_once('\n').unwrap();
    assert_eq!(note, r#"{"replaced":1000}"#);
    let piece: Value = serde_json::from_str(piece).unwrap();
    assert_eq!((piece["at"].as_u64(), piece["lost"].as_u64(), &piece["text"]), (Some(1000), Some(0), &"late".into()));
}

#[test]
fn a_console_takes_what_it_has_room_for_and_the_rest_is_told() {
    let bench = Bench::new();
    bench.machine().fake.find("lab").unwrap().room = 5000;
    let failure = console(&bench, "lab", None, Form::Bytes, &[&[b'x'; 3000], &[b'y'; 3000]]).unwrap_err();
    assert_eq!(failure.message, "lab: 1000 bytes of input were not taken");
    assert_eq!(bench.machine().fake.find("lab").unwrap().input.len(), 5000);
    bench.good("kill lab");
    assert_eq!(console(&bench, "lab", Some(15), Form::Bytes, &[]).unwrap().len(), 5000, "what it wrote is there");
    let failure = console(&bench, "lab", None, Form::Bytes, &[b"x"]).unwrap_err();
    assert_eq!((failure.message.as_str(), failure.hint.as_deref()), ("lab: it is stopped", Some("start it first")));
    // The answer to what is typed is lost with the line: it is not typed again.
    let mut sent = 0;
    bench.spoil(move |bytes| {
        sent += 1;
        if sent == 4 {
            bytes.clear();
        }
        sent != 4
    });
    console(&bench, "linux", None, Form::Bytes, &[b"once"]).unwrap();
    assert_eq!(bench.machine().fake.find("linux").unwrap().input, b"once");
}

#[test]
fn metrics_are_served() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ask = |request: &'static str| {
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let (stream, _) = listener.accept().unwrap();
        metrics::answer(&mut bench.link(), &stream, Duration::from_secs(5)).unwrap();
        drop(stream);
        client.join().unwrap()
    };
    let page = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("# TYPE bulkhead_guest_cpu_seconds_total counter\n"), "{page}");
    assert!(page.contains("bulkhead_guest_cpu_seconds_total{guest=\"lab\"} 0.002\n"), "{page}");
    assert!(page.contains("bulkhead_guest_exit_seconds_total{guest=\"lab\",reason=\"cpuid\"} 0.0003\n"), "{page}");
    assert!(page.contains("bulkhead_guest_running{guest=\"linux\",zone=\"zone\"} 1\n"), "{page}");
    assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask("x\r\n\r\n").starts_with("HTTP/1.1 405 "));
    bench.spoil(|_| false);
    assert!(ask("GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
}

#[test]
fn a_client_of_metrics_that_takes_its_time_does_not_get_that_of_others() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // A byte comes before each read has waited for long.
    thread::spawn(move || {
        while slow.write_all(b"G").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let (stream, _) = listener.accept().unwrap();
    let (done, answered) = channel();
    thread::spawn(move || done.send(metrics::answer(&mut bench.link(), &stream, Duration::from_millis(300))));
    let answered = answered.recv_timeout(Duration::from_secs(5)).expect("its time is up");
    assert!(answered.is_err());
}

/// Takes three lines.
struct Three(Vec<u8>);

impl std::io::Write for Three {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend(bytes);
        let lines = self.0.iter().filter(|byte| **byte == b'\n').count();
        if lines < 3 { Ok(bytes.len()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_goes_on_writes_json_too() {
    let bench = Bench::new();
    let mut out = Three(Vec::new());
    let cli = Cli::try_parse_from(["ctl", "top", "--json"]).unwrap();
    assert_eq!(run(&cli.args, bench.link(), &mut out).unwrap_err().status, 141);
    let looks: Vec<Value> =
        String::from_utf8(out.0).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(looks.len() == 3 && looks.iter().all(|look| look["guests"][1]["used"] == 2000), "{looks:?}");
    let (cli, mut out) = (
        Cli::try_parse_from(["ctl", "metrics", "--listen", "127.0.0.1:0", "--json"]).unwrap(),
        Three(b"\n\n".to_vec()),
    );
    assert_eq!(run(&cli.args, bench.link(), &mut out).unwrap_err().status, 141);
    let said: Value = serde_json::from_slice(&out.0).unwrap();
    let port = said["serves"].as_str().unwrap().strip_prefix("http://127.0.0.1:").unwrap().strip_suffix("/metrics");
    assert!(port.unwrap().parse::<u16>().unwrap() > 0, "{said}");
}

#[test]
fn top_shows_who_uses_what() {
    let bench = Bench::new();
    let mut link = bench.link();
    let mut screen = Screen::new(Look::take(&mut link).unwrap());
    screen.update(Look::take(&mut link).unwrap());
    let shown = drawn(&mut screen, 100, 8);
    assert!(shown.contains("2 guests, 2 running"), "{shown}");
    assert!(shown.contains("lab") && shown.contains("q quits"), "{shown}");
}

fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn top_fits_the_terminal_and_scrolls() {
    let bench = Bench::new();
    let names: Vec<String> = (1..=64).map(|n| format!("guest-number-{n:02}")).collect();
    bench.machine().fake = Fake::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut screen = Screen::new(Look::take(&mut bench.link()).unwrap());
    for (width, has, lacks) in [
        (80, &["zone", "exits/look", "KiB out", "KiB in"][..], &[][..]),
        (72, &["zone", "KiB out"], &["KiB in"]),
        (40, &["name", "state", "cpu %"], &["zone", "MiB"]),
    ] {
        let shown = drawn(&mut screen, width, 24);
        assert!(
            has.iter().all(|name| shown.contains(name)) && !lacks.iter().any(|name| shown.contains(name)),
            "{shown}"
        );
        assert!(shown.lines().count() == 24 && shown.contains("guest-number-64"), "{shown}");
    }
    assert!(drawn(&mut screen, 140, 24).contains("KiB in"));
    // Who used most is the last one made; 20 rows fit below the title and the heading, and above the foot.
    for (code, first, last) in [
        (KeyCode::Down, 63, 44),
        (KeyCode::Char('j'), 62, 43),
        (KeyCode::PageDown, 42, 23),
        (KeyCode::Up, 43, 24),
        (KeyCode::End, 20, 1),
        (KeyCode::PageDown, 20, 1),
        (KeyCode::PageUp, 40, 21),
        (KeyCode::Home, 64, 45),
        (KeyCode::Char('k'), 64, 45),
    ] {
        assert!(screen.key(&KeyEvent::new(code, KeyModifiers::NONE)), "{code:?}");
        let shown = drawn(&mut screen, 80, 24);
        let rows: Vec<usize> =
            shown.lines().filter_map(|row| row.split_once("guest-number-")?.1.get(..2)?.parse().ok()).collect();
        assert_eq!(rows, (last..=first).rev().collect::<Vec<_>>(), "{code:?}: {shown}");
        assert!(shown.contains(&format!("{} to {} of 64", 65 - first, 65 - last)), "{shown}");
    }
    for (code, modifiers) in [
        (KeyCode::Char('q'), KeyModifiers::NONE),
        (KeyCode::Esc, KeyModifiers::NONE),
        (KeyCode::Char('c'), KeyModifiers::CONTROL),
    ] {
        assert!(!screen.key(&KeyEvent::new(code, modifiers)));
    }
}

#[test]
fn garbage_on_the_line_changes_nothing_and_is_counted() {
    let bench = Bench::new();
    let mut raw = UnixStream::connect(&bench.path).unwrap();
    raw.write_all(b"\0garbage\0\x03\x05a\0").unwrap();
    drop(raw);
    let performed = bench.machine().fake.performed;
    assert_eq!(bench.good("list").lines().count(), 3);
    assert!(bench.machine().line.refused().garbled >= 1);
    assert_eq!(bench.machine().fake.performed, performed + 1);
    let mut link = bench.link();
    assert!(link.call(&Operation::Audit).is_ok());
}
