//! Watches a case's guests and judges what they did.

use super::table::{Case, Expected};
use crate::emulator::Kind;
use crate::session::{Finish, Report, View, Wire};
use std::collections::{BTreeMap, BTreeSet};

/// What a case's machine has said so far.
pub struct Watch {
    guests: Vec<Guest>,
    log: Vec<String>,
}

struct Guest {
    name: String,
    console: Vec<u8>,
    typed: Vec<(String, String)>,
    /// Pairs of `typed` that are done, and how far the console has been looked at for them.
    done: usize,
    looked: usize,
}

impl Watch {
    /// For the machine's guests, by name, in order.
    pub fn new(case: &Case, names: &[String]) -> Self {
        let expectations = case.expectations();
        let guests = names
            .iter()
            .map(|name| {
                let expected = expectations.iter().find(|(n, _)| n == name);
                let typed = expected.map(|(_, e)| e.typed.clone()).unwrap_or_default();
                Guest { name: name.clone(), console: Vec::new(), typed, done: 0, looked: 0 }
            })
            .collect();
        Self { guests, log: Vec::new() }
    }

    /// What is wrong with what was seen; nothing if the case passes.
    pub fn judge(&self, case: &Case, on: Kind, report: &Report) -> Vec<String> {
        let mut wrong = Vec::new();
        match &report.finish {
            Finish::Done => {}
            Finish::Timeout if case.ends_by_time() => {}
            Finish::Timeout => wrong.push(format!("it hangs: not over after {} s", case.timeout)),
            other => wrong.push(format!("the machine ended with {other:?}")),
        }
        for (name, expected) in case.expectations() {
            match (1..).zip(&self.guests).find(|(_, g)| g.name == name) {
                Some((number, guest)) => {
                    guest.judge(expected, on, report, &mut wrong);
                    if let Some(most) = expected.most.get(&on) {
                        self.judge_exits(number, most, &mut wrong);
                    }
                }
                None => wrong.push(format!("the machine has no guest {name}")),
            }
        }
        in_order("hypervisor", &self.log.join("\n"), &case.log, &mut wrong);
        wrong.extend(report.audit_failures.iter().map(|text| format!("the isolation audit failed: {text}")));
        // One that stands still, or that refused what is another one's.
        let processors = self.log.iter().filter(|line| line.starts_with("event processor "));
        wrong.extend(processors.map(|line| format!("the hypervisor says {line:?}")));
        if report.audits == 0 && !case.ends_by_time() {
            wrong.push("the isolation audit gave no verdict".to_owned());
        }
        wrong
    }

    /// The exits of guest `number` against the most that it may have made.
    fn judge_exits(&self, number: u8, most: &BTreeMap<String, u64>, wrong: &mut Vec<String>) {
        let prefix = format!("log guest {number} exits: ");
        let Some(counted) = self.log.iter().find_map(|line| line.strip_prefix(&prefix)) else {
            return wrong.push(format!("nothing says how often guest {number} left"));
        };
        // A kind that is not there did not come.
        let over = most.iter().map(|(kind, most)| (kind, most, count(counted, kind).unwrap_or(0)));
        let over = over.filter(|(_, most, count)| count > most);
        wrong
            .extend(over.map(|(kind, most, count)| format!("{count} exits of kind {kind}, and at most {most} may be")));
    }

    /// What a guest printed.
    pub fn console_of(&self, name: &str) -> String {
        self.guests.iter().find(|g| g.name == name).map(Guest::text).unwrap_or_default()
    }

    /// The hypervisor's lines.
    pub fn lines(&self) -> &[String] {
        &self.log
    }

    /// Everything that was seen, of each part at most the last `most` bytes.
    pub fn transcript(&self, most: usize) -> String {
        let mut out = String::new();
        for guest in &self.guests {
            out.push_str(&format!("--- console of {} ---\n{}\n", guest.name, tail(&guest.text(), most)));
        }
        out.push_str(&format!("--- hypervisor ---\n{}\n", tail(&self.log.join("\n"), most)));
        out
    }
}

impl Guest {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }

    fn judge(&self, expected: &Expected, on: Kind, report: &Report, wrong: &mut Vec<String>) {
        let name = &self.name;
        let text = self.text();
        in_order(name, &text, &expected.lines, wrong);
        for piece in &expected.never {
            if let Some(line) = text.lines().find(|line| line.contains(piece.as_str())) {
                wrong.push(format!("{name}: says {line:?}"));
            }
        }
        self.judge_skips(expected, on, wrong);
        if let Some((awaited, _)) = expected.typed.get(self.done) {
            wrong.push(format!("{name}: {awaited:?} was waited for"));
        }
        let end = report.ends.iter().find(|(_, n, _)| n == name).map(|(_, _, end)| end.to_string());
        let end = end.unwrap_or_else(|| "time-out".to_owned());
        match expected.ends.as_deref() {
            Some(want) if want.starts_with("killed") && end.starts_with(want) => {}
            Some(want) if want != end => wrong.push(format!("{name}: ended with {end}, not with {want}")),
            _ => {}
        }
    }

    /// What it left out against what the table lets it leave out.
    fn judge_skips(&self, expected: &Expected, on: Kind, wrong: &mut Vec<String>) {
        let none = BTreeMap::new();
        let listed = expected.skips.get(&on).unwrap_or(&none);
        let text = self.text();
        let said: BTreeSet<&str> = text.lines().filter_map(|line| line.trim_end().strip_prefix("skip ")).collect();
        let name = &self.name;
        let unlisted = said.iter().filter(|check| !listed.contains_key(**check));
        wrong.extend(unlisted.map(|check| format!("{name}: leaves {check:?} out, and the table gives no reason")));
        let unsaid = listed.keys().filter(|check| !said.contains(check.as_str()));
        wrong.extend(unsaid.map(|check| format!("{name}: {check:?} is not left out, as the table says")));
    }

    /// What is to be typed now.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let (awaited, typed) = self.typed.get(self.done)?;
        let new = self.console.get(self.looked..)?;
        let at = new.windows(awaited.len().max(1)).position(|w| w == awaited.as_bytes())?;
        self.looked += at + awaited.len();
        self.done += 1;
        Some(typed.as_bytes().to_vec())
    }
}

/// The number behind the word `kind`.
pub fn count(text: &str, kind: &str) -> Option<u64> {
    let mut words = text.split([' ', ',', '(', ')']);
    words.find(|word| *word == kind)?;
    words.next()?.parse().ok()
}

/// Notes which of `pieces` do not come in `text`, in this order.
fn in_order(whose: &str, text: &str, pieces: &[String], wrong: &mut Vec<String>) {
    let mut rest = text;
    for piece in pieces {
        match rest.split_once(piece.as_str()) {
            Some((_, after)) => rest = after,
            None if text.contains(piece.as_str()) => wrong.push(format!("{whose}: {piece:?} comes too early")),
            None => wrong.push(format!("{whose}: {piece:?} does not come")),
        }
    }
}

fn tail(text: &str, most: usize) -> &str {
    let start = text.len().saturating_sub(most);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(start..).unwrap_or_default().trim_end()
}

impl View for Watch {
    fn console(&mut self, guest: u8, bytes: &[u8], wire: &mut Wire) {
        let index = usize::from(guest).wrapping_sub(1);
        let Some(watched) = self.guests.get_mut(index) else { return };
        watched.console.extend(bytes);
        while let Some(typed) = watched.answer() {
            wire.send(guest, &typed);
        }
    }

    fn log(&mut self, line: &str) {
        self.log.push(line.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::Watch;
    use crate::emulator::Kind;
    use crate::event::End;
    use crate::session::{Finish, Report, View as _, Wire};
    use crate::test::table::{Case, Expected};

    fn case() -> Case {
        Case {
            name: "c".into(),
            kernel: Some("k".into()),
            expected: Expected {
                lines: vec!["one".into(), "two".into()],
                never: vec!["BUG".into()],
                typed: vec![("> ".into(), "a\n".into()), ("> ".into(), "b\n".into())],
                ends: Some("power-off".into()),
                skips: [(Kind::Qemu, [("#AC".into(), "why".into())].into())].into(),
                most: [(Kind::Kvm, [("msr".into(), 10)].into())].into(),
            },
            timeout: 5,
            ..Case::default()
        }
    }

    fn report(finish: Finish, end: Option<End>) -> Report {
        Report {
            finish,
            ends: end.into_iter().map(|end| (1, "guest".into(), end)).collect(),
            audits: 1,
            audit_failures: vec![],
            bench: vec![],
            dump: None,
        }
    }

    fn watch(console: &[&str]) -> Watch {
        let mut watch = Watch::new(&case(), &["guest".to_owned()]);
        let mut wire = Wire::default();
        for piece in console {
            watch.console(1, piece.as_bytes(), &mut wire);
        }
        watch
    }

    #[test]
    fn a_case_passes_if_all_comes_in_order_and_ends_right() {
        let good = watch(&["one\n>", " a\ntwo\n> b\n"]);
        assert_eq!(good.judge(&case(), Kind::Bochs, &report(Finish::Done, Some(End::PowerOff))), Vec::<String>::new());
    }

    #[test]
    fn what_is_left_out_is_listed() {
        let done = report(Finish::Done, Some(End::PowerOff));
        let [all, less] = ["one\n> > two\n", "one\n> > two\nskip #AC\r\n"].map(|text| watch(&[text]));
        assert_eq!(less.judge(&case(), Kind::Qemu, &done), Vec::<String>::new());
        assert!(less.judge(&case(), Kind::Bochs, &done).concat().contains("gives no reason"));
        assert!(all.judge(&case(), Kind::Qemu, &done).concat().contains("is not left out"));
    }

    #[test]
    fn exits_are_held_against_the_most() {
        let done = report(Finish::Done, Some(End::PowerOff));
        for (line, want) in [
            ("log guest 1 exits: cpuid 70 msr 10 port 3 (unknown-msr 11, emulated 0)", ""),
            ("log guest 1 exits: cpuid 7", ""),
            ("log guest 1 exits: cpuid 7 msr 11 port 3", "11 exits of kind msr"),
            ("log guest 2 exits: msr 1", "nothing says"),
        ] {
            let mut watch = watch(&["one > > two"]);
            watch.log(line);
            let wrong = watch.judge(&case(), Kind::Kvm, &done).concat();
            assert!(if want.is_empty() { wrong.is_empty() } else { wrong.contains(want) }, "{line}: {wrong}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let good = ["one > > two"];
        let cases = [
            (watch(&["two one > >  "]), report(Finish::Done, Some(End::PowerOff)), "comes too early"),
            (watch(&["one > > "]), report(Finish::Done, Some(End::PowerOff)), "does not come"),
            (watch(&["one > two"]), report(Finish::Done, Some(End::PowerOff)), "was waited for"),
            (watch(&["one > > two\nBUG: x\n"]), report(Finish::Done, Some(End::PowerOff)), "BUG: x"),
            (watch(&good), report(Finish::Done, Some(End::TripleFault)), "ended with triple-fault"),
            (watch(&good), report(Finish::Timeout, None), "hangs"),
            (watch(&good), report(Finish::Died("x".into()), None), "Died"),
            (watch(&good), Report { audits: 0, ..report(Finish::Done, Some(End::PowerOff)) }, "no verdict"),
            (
                watch(&good),
                Report { audit_failures: vec!["frame 7".into()], ..report(Finish::Done, Some(End::PowerOff)) },
                "frame 7",
            ),
        ];
        for (watch, report, want) in cases {
            let wrong = watch.judge(&case(), Kind::Bochs, &report).join("; ");
            assert!(wrong.contains(want), "{want}: {wrong}");
        }
    }
}
