//! Each command, each mistake, and the keys between consoles and prompt.

extern crate std;

use super::{COMMANDS, Monitor};
use crate::fake::Fake;
use crate::screen::COLUMNS;
use crate::{Ending, EventKind, Name, State};
use proptest::prelude::{any, prop_assert, proptest};
use std::string::{String, ToString};
use std::vec::Vec;

struct Bench {
    monitor: Monitor,
    machine: Fake,
    to_guests: Vec<(u16, u8)>,
}

impl Bench {
    fn new() -> Self {
        Self { monitor: Monitor::new(None), machine: Fake::new(&["linux", "lab-1", "lab-2"]), to_guests: Vec::new() }
    }

    fn keys(&mut self, keys: &[u8]) -> String {
        let mut out = String::new();
        for key in keys {
            self.to_guests.extend(self.monitor.key(*key, &mut self.machine, &mut out));
        }
        out
    }

    /// What a command prints, without echo and prompt.
    fn run(&mut self, line: &str) -> String {
        let out = self.keys(std::format!("{line}\r").as_bytes());
        let (_, after) = out.split_once("\r\n").unwrap();
        let (answer, _) = after.rsplit_once("\rbulkhead> ").unwrap_or((after, ""));
        answer.to_string()
    }

    fn state(&mut self, guest: &str) -> State {
        self.machine.find(guest).unwrap().guest.state
    }
}

#[test]
fn each_action_is_done() {
    let mut bench = Bench::new();
    for (line, answer, state) in [
        ("pause linux", "done", State::Paused),
        ("pause linux", "it is so already", State::Paused),
        ("reset linux", "it is paused: resume it first", State::Paused),
        ("resume linux", "done", State::Running),
        ("reset linux", "done", State::Running),
        ("inject linux nmi", "done", State::Running),
        ("dump linux", "done", State::Running),
        ("trace linux on", "done", State::Running),
        ("destroy linux", "it is running: stop it first", State::Running),
        ("stop linux", "asked; the log tells when it has ended, and `kill` does not wait", State::Stopped),
        ("inject linux nmi", "it is stopped: start it first", State::Stopped),
        ("start linux", "done", State::Running),
        ("kill 1", "done", State::Stopped),
    ] {
        assert_eq!(bench.run(line).trim_end(), answer, "{line}");
        assert_eq!(bench.state("linux"), state, "{line}");
    }
    assert_eq!(bench.machine.find("linux").unwrap().counts, [1, 1, 2]);
    assert_eq!(bench.run("destroy linux"), "done\r\n");
    assert!(bench.machine.find("linux").is_none());
    assert_eq!(bench.run("start linux"), "there is no such guest: `list` shows them\r\n");
}

#[test]
fn what_is_asked_is_told() {
    let mut bench = Bench::new();
    let list = bench.run("list");
    assert!(list.starts_with("id name") && list.contains("abababab 22:13:20"), "{list}");
    assert!(list.lines().count() == 4 && list.contains(" 2 lab-1            zone     running"), "{list}");
    assert!(bench.run("stats").contains("3 lab-2                    3000"), "{}", bench.run("stats"));
    assert!(bench.run("stats lab-1").contains("cpuid                   3 exits"));
    assert_eq!(bench.run("stats nobody"), "there is no such guest: `list` shows them\r\n");
    assert_eq!(bench.run("version"), "Bulkhead 0.1.0 with none on 2 CPUs, 1000 kHz\r\n");
    assert_eq!(bench.run("audit"), "70 page tables, 145312 frames, 0 violations\r\n");
    assert!(bench.run("memmap").contains("000020000000-000020ffffff      16384 KiB lab-1"));
    let log = bench.run("log");
    assert!(log.contains("guest 2 lab-1: started by manifest") && log.lines().count() == 6, "{log}");
    assert!(bench.run("log 5").starts_with("     5 "));
    assert!(bench.run("help").lines().count() == COMMANDS.len() + 1);
    assert!(bench.run("help pause").starts_with("pause    GUEST"));
}

#[test]
fn top_shows_what_was_used_since_the_last_one() {
    let mut bench = Bench::new();
    assert!(!bench.run("top").contains("lab-2            0.0") && bench.run("top").contains("0.0"));
}

#[test]
fn long_lists_come_whole() {
    let names: Vec<String> = (0..64).map(|n| std::format!("guest-{n:02}")).collect();
    let mut bench = Bench::new();
    bench.machine = Fake::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(bench.run("list").lines().count(), 65);
    assert_eq!(bench.run("stats").lines().count(), 66);
    assert_eq!(bench.run("memmap").lines().count(), 64);
}

#[test]
fn a_mistake_is_told_in_one_line_and_nothing_is_done() {
    let mut bench = Bench::new();
    for (line, says) in [
        ("lst", "there is no command `lst`: `help` lists them"),
        ("stpo linux", "there is no command `stpo`: did you mean `stop`?"),
        ("list linux", "`list` takes no arguments"),
        ("start", "write `start GUEST`: let a stopped guest run"),
        ("start linux now", "write `start GUEST`"),
        ("start linux now please", "write `start GUEST`"),
        ("inject linux", "write `inject GUEST nmi`"),
        ("inject linux irq", "write `inject GUEST nmi`"),
        ("trace linux", "write `trace GUEST on|off`"),
        ("trace linux maybe", "write `trace GUEST on|off`"),
        ("log x", "write `log [NUMBER]`"),
        ("log 1 2", "write `log [NUMBER]`"),
        ("console", "write `console GUEST`"),
        ("console nobody", "there is no such guest"),
        ("help nobody", "there is no command `nobody`"),
        ("stats a b", "write `stats [GUEST]`"),
        ("top x", "`top` takes no arguments"),
        ("version x", "`version` takes no arguments"),
        ("memmap x", "`memmap` takes no arguments"),
        ("audit x", "`audit` takes no arguments"),
    ] {
        let answer = bench.run(line);
        assert!(answer.starts_with(says), "{line}: {answer}");
        assert_eq!(answer.lines().count(), 1, "{line}: {answer}");
    }
    for (name, arguments, _) in COMMANDS {
        let wrong = bench.run(&std::format!("{name} a b c d"));
        assert!(wrong.lines().count() == 1 && wrong.contains(name), "{name} {arguments}: {wrong}");
    }
    assert!(["linux", "lab-1", "lab-2"].iter().all(|name| bench.state(name) == State::Running));
    assert_eq!(bench.run("   "), "");
}

#[test]
fn keys_go_between_prompt_and_consoles() {
    let mut bench = Bench::new();
    assert_eq!(bench.run("console lab-1"), "console of guest 2 lab-1; Ctrl-] m comes back\r\n");
    bench.keys(b"ab\x1d\x1d");
    assert_eq!(bench.to_guests, [(2, b'a'), (2, b'b'), (2, 0x1D)]);
    assert_eq!(bench.keys(b"\x1dm"), "\r\n\rbulkhead> \x1b[K");
    assert_eq!(bench.keys(b"x\x7f").matches("Ctrl").count(), 0);
    bench.keys(b"\x1d3y\x1d9z");
    assert_eq!(bench.to_guests[3..], [(3, b'y'), (3, b'z')]);
    assert!(bench.keys(b"\x1d?").contains("Ctrl-] m is the monitor"));
    let mut monitor = Monitor::new(Some(1));
    let mut out = String::new();
    monitor.show(&mut out);
    assert_eq!((monitor.focus(), out.as_str()), (Some(1), ""));
    assert_eq!(monitor.key(b'q', &mut bench.machine, &mut out), Some((1, b'q')));
}

#[test]
fn tab_completes_commands_and_names() {
    let mut bench = Bench::new();
    assert!(bench.keys(b"pau\t").ends_with("pause "));
    assert!(bench.keys(b"lin\t").ends_with("linux "));
    assert_eq!(bench.state("linux"), State::Running);
    bench.keys(b"\r");
    assert_eq!(bench.state("linux"), State::Paused);
    bench.keys(b"pause l\t");
    assert!(bench.keys(b"a\t").ends_with("b-"));
    assert!(bench.keys(b"\t").contains("lab-1  lab-2  \r\n\rbulkhead> pause lab-"));
    assert_eq!(bench.keys(b"7\t"), "7\x07");
    bench.keys(b"\x03");
    assert!(bench.keys(b"st\t\t").contains("start  stop  stats  "));
}

#[test]
fn rows_fit_the_screen() {
    let mut bench = Bench::new();
    let guest = &mut bench.machine.guests[0].guest;
    (guest.zone, guest.memory, guest.lease) = (Name::try_from(&*"z".repeat(32)).unwrap(), 1 << 40, Some(86_400));
    (guest.vcpus, guest.state) = (8, State::Stopping);
    bench.machine.guests[1].guest.name = Name::try_from(&*"n".repeat(32)).unwrap();
    let list = bench.run("list");
    assert!(list.contains("zzzzzzzz stopping     8 1048576 ") && list.contains("\r\n   is stopped in 86400 s\r\n"));
    for line in ["help", "list", "stats", "top", "log", "memmap", "version", "audit"] {
        let answer = bench.run(line);
        assert!(answer.lines().all(|row| row.len() < COLUMNS), "{line}: {answer}");
    }
}

#[test]
fn ends_are_told() {
    let mut bench = Bench::new();
    let now = bench.machine.now;
    bench.machine.events.push(now, 1, "linux", EventKind::Ended(Ending::TestExit(3)));
    assert!(bench.run("log").contains("guest 1 linux: ended test-exit 3"));
}

proptest! {
    /// Only escapes of the editor's own come out, and only known bytes; a guest's end gets what is typed to it.
    #[test]
    fn any_keys_are_safe(keys in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bench = Bench::new();
        let out = bench.keys(&keys);
        prop_assert!(out.chars().all(|char| char.is_ascii_graphic() || " \r\n\x07\x1b".contains(char)), "{out:?}");
    }
}
