//! Guests that count (`guests/suite/src/bin/count.rs`): whether each had its part, and whether all time adds up.
//!
//! What each should have is computed from its line in the manifest: all parts grow by the shares until one has a processor, or
//! its cap; a reservation is had in any case. It is held against the guest's own count, and that against the hypervisor's.
//! A guest that may use some processors only is not foreseen here.

use crate::manifest::{Guest, Machine};
use bulkhead_types::manifest::CpuTime;

/// Parts in a thousand by which a count may differ from what it should be.
const SLACK: f64 = 10.0;
/// The same where what turns cost is in one of the two only: 3,000 to 4,600 instructions of 100,000 on Bochs, with several
/// processors the most.
const TURNS: f64 = 50.0;
/// The part of a guest's window that its start and what it says take at most, of which it does not know.
const START: f64 = 0.03;
/// The same for sums of the hypervisor's account.
const ACCOUNT: f64 = 1.0;
/// The least and the most that a guest had in a stretch of time, to a bin of its count.
const BINS: f64 = 400.0;
/// Windows are of ten seconds: in one are so many slices, and so many microseconds.
const SLICES: f64 = 1e3;
const MICROSECONDS: f64 = 1e7;

fn near(what: &str, got: f64, want: f64, parts: f64, wrong: &mut Vec<String>) {
    if (got - want).abs() * 1000.0 > want.abs() * parts {
        wrong.push(format!("{what} is {got:.4} and should be {want:.4}, within {parts} parts in 1000"));
    }
}

/// What a guest asks for, in processors, and what it has of them once that is settled.
struct Claim {
    share: f64,
    floor: f64,
    limit: f64,
    part: Option<f64>,
}

impl Claim {
    fn of(cpu: &CpuTime) -> Self {
        Self {
            share: f64::from(cpu.share),
            floor: if cpu.period == 0 { 0.0 } else { cpu.budget as f64 / cpu.period as f64 },
            limit: if cpu.cap == 0 { 1.0 } else { (f64::from(cpu.cap) / 1000.0).min(1.0) },
            part: None,
        }
    }
}

/// What each would have of `total` processors that are divided without end.
fn fair(guests: &[CpuTime], total: f64) -> Vec<f64> {
    let mut claims: Vec<Claim> = guests.iter().map(Claim::of).collect();
    loop {
        let weight: f64 = claims.iter().filter(|c| c.part.is_none()).map(|c| c.share).sum();
        let level = (total - claims.iter().filter_map(|c| c.part).sum::<f64>()) / weight;
        let open = |c: &&mut Claim| c.part.is_none();
        if let Some(claim) = claims.iter_mut().filter(open).find(|c| c.floor > level * c.share) {
            claim.part = Some(claim.floor);
        } else if let Some(claim) = claims.iter_mut().filter(open).find(|c| c.limit < level * c.share) {
            claim.part = Some(claim.limit);
        } else {
            return claims.iter().map(|c| c.part.unwrap_or(level * c.share)).collect();
        }
    }
}

/// The numbers of `A of B` behind `key` in what a guest said.
fn counted(text: &str, key: &str) -> Option<(f64, f64)> {
    let (ran, of) = text.lines().find_map(|line| line.strip_prefix(key))?.split_once(" of ")?;
    Some((ran.trim().parse().ok()?, of.trim().parse().ok()?))
}

/// A guest, what it should have, and what it counted.
struct Counted<'a> {
    guest: &'a Guest,
    part: f64,
    /// Ticks in its window, and of it; in its life.
    ran: f64,
    window: f64,
    all: f64,
    /// Ticks that were stolen in its window, as it was told and as it counted; in its life.
    stolen: (f64, f64),
    all_stolen: f64,
    stretches: Option<Stretches>,
}

/// The ticks that it had in any stretch of so many: the most, and the least of each that begin one after the other, at the
/// best moment for it.
struct Stretches {
    best: f64,
    most: f64,
    of: f64,
}

impl Stretches {
    fn told(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("count stretches least "))?;
        let best = line.split(' ').nth(1)?.parse().ok()?;
        Some(Self { best, most: number(line, "most")?, of: number(line, "of")? })
    }
}

/// Whether the guests had what they should, `consoles` by their order.
pub fn shares(machine: &Machine, cpus: u16, consoles: &[String], log: &[String]) -> Vec<String> {
    let claims: Vec<CpuTime> = machine.guests.iter().map(|guest| guest.cpu).collect();
    let parts = fair(&claims, f64::from(cpus));
    let each = machine.guests.iter().zip(parts).zip(consoles);
    let counts: Vec<Counted<'_>> = each
        .filter_map(|((guest, part), text)| {
            let ((ran, window), (all, _)) = (counted(text, "count window ")?, counted(text, "count life ")?);
            let stolen = counted(text, "count stolen ")?;
            let all_stolen = number(text.lines().find(|line| line.starts_with("count stolen in all"))?, "all")?;
            let stretches = Stretches::told(text);
            Some(Counted { guest, part, ran, window, all, stolen, all_stolen, stretches })
        })
        .collect();
    if counts.len() != machine.guests.len() {
        return vec!["a guest did not count".to_owned()];
    }
    let mut wrong = Vec::new();
    // Turns cost something; that is nobody's part.
    let whole = |c: &Counted<'_>| c.part > 0.999;
    let sum = |of: fn(&Counted<'_>) -> f64| counts.iter().filter(|c| !whole(c)).map(of).sum::<f64>();
    let left = sum(|c| c.ran / c.window) / sum(|c| c.part);
    near("of their parts all had", left, 1.0, TURNS, &mut wrong);
    for (id, count) in (1..).zip(&counts) {
        let want = if whole(count) { count.part } else { count.part * left };
        // Beside who has longer turns, one with a cap has more of what turns cost; who has a processor alone may have one turn,
        // or as many as others.
        let slack = if count.guest.cpu.cap == 0 && !whole(count) { SLACK } else { TURNS };
        near(&format!("{}'s part", count.guest.name), count.ran / count.window, want, slack, &mut wrong);
        let account = log.iter().find_map(|line| line.strip_prefix(&format!("log guest {id} ticks: ")));
        told(count, account.unwrap_or(""), &mut wrong);
    }
    wrong
}

/// Holds the hypervisor's account of a guest against its own, and its cap.
fn told(count: &Counted<'_>, account: &str, wrong: &mut Vec<String>) {
    let Counted { guest, window, all, stolen, all_stolen, .. } = count;
    let ticks = |word| number(account, word).unwrap_or(0.0);
    let (ran, life) = (ticks("ran"), ticks("ran") + ticks("waited") + ticks("slept"));
    let start = START * window / 2.0;
    let name = &guest.name;
    // What a guest did not count in its window was stolen, or is what turns cost. Behind its count it waits for others' ends.
    near(&format!("{name}'s window with what was stolen"), window - stolen.1 + stolen.0, *window, TURNS, wrong);
    if *all_stolen > ticks("waited") {
        wrong.push(format!("{name} was told more to be stolen than it waited"));
    }
    near(&format!("{name}'s time"), ran, all + start, TURNS + 1000.0 * start / all, wrong);
    if let Some(stretches) = &count.stretches {
        each_stretch(count, stretches, wrong);
    }
    if guest.cpu.cap == 0 {
        return;
    }
    let most = f64::from(guest.cpu.cap) / 1000.0 * life + guest.cpu.burst as f64 / MICROSECONDS * window;
    near(&format!("{name}'s time below its cap"), ran, most, SLACK, wrong);
    if ran > most + window / SLICES {
        wrong.push(format!("{name} ran {ran} ticks, and its cap and burst allow {most}"));
    }
}

/// Holds what a guest had in each stretch of time against its reservation, whose periods those are, and its cap.
fn each_stretch(count: &Counted<'_>, stretches: &Stretches, wrong: &mut Vec<String>) {
    let Counted { guest, window, .. } = count;
    let Stretches { best, most, of } = stretches;
    let ticks = |microseconds: u64| microseconds as f64 / MICROSECONDS * window;
    let (name, bin) = (&guest.name, of / BINS);
    if guest.cpu.period != 0 {
        // What turns cost is of the budget, and not of the count.
        let least = ticks(guest.cpu.budget) * (1.0 - TURNS / 1000.0) - bin;
        if (ticks(guest.cpu.period) - of).abs() > bin || *best < least {
            wrong.push(format!("{name} had {best} ticks in a period of {of}, and {least} are the least"));
        }
    }
    if guest.cpu.cap != 0 {
        let limit = f64::from(guest.cpu.cap) / 1000.0 * of + ticks(guest.cpu.burst).max(window / SLICES) + bin;
        if *most > limit {
            wrong.push(format!("{name} had {most} ticks of {of}, and its cap and burst allow {limit}"));
        }
    }
}

/// The number behind a word.
fn number(text: &str, word: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    words.find(|other| *other == word)?;
    words.next()?.parse().ok()
}

/// Whether the processors' and the guests' times, and those of all minutes, `least` at least, are the whole time.
pub fn adds_up(log: &[String], least: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines = |kind: &str| -> Vec<&str> {
        let behind = |line: &'_ String| line.starts_with(&format!("log {kind} ")) && line.contains(" ticks: ");
        log.iter().filter(|line| behind(line)).filter_map(|line| Some(line.split_once(" ticks: ")?.1)).collect()
    };
    let sum = |lines: &[&str], word: &str| lines.iter().filter_map(|line| number(line, word)).sum::<f64>();
    let (processors, guests, minutes) = (lines("processor"), lines("guest"), lines("minute"));
    if processors.is_empty() || guests.is_empty() || minutes.is_empty() {
        return vec!["there is no account".to_owned()];
    }
    if minutes.len() < least {
        wrong.push(format!("the account has {} minutes instead of {least}", minutes.len()));
    }
    for line in &processors {
        let parts: f64 = ["ran", "idle", "own"].iter().filter_map(|word| number(line, word)).sum();
        near("a processor's time", parts, number(line, "of").unwrap_or(0.0), ACCOUNT, &mut wrong);
    }
    let whole = sum(&processors, "of");
    let ran = sum(&guests, "ran");
    near("what the guests ran", ran, sum(&processors, "ran"), ACCOUNT, &mut wrong);
    near("all time", ran + sum(&processors, "idle") + sum(&processors, "own"), whole, ACCOUNT, &mut wrong);
    // Each guest's number is behind the word and its own.
    let of_guests = |line: &&str| -> f64 {
        let behind = line.split(" guest ").skip(1).filter_map(|part| part.split_ascii_whitespace().nth(1));
        behind.filter_map(|ticks| ticks.parse::<f64>().ok()).sum()
    };
    let in_minutes: f64 = minutes.iter().map(of_guests).sum();
    // The last one is cut short, and each begins where the one before it ended.
    let [all_but_last @ .., _] = minutes.as_slice() else { return wrong };
    let lengths = all_but_last.iter().map(|line| of_guests(line) + sum(&[*line], "idle") + sum(&[*line], "own"));
    for (first, next) in lengths.clone().zip(lengths.skip(1)) {
        near("a minute", next, first, ACCOUNT, &mut wrong);
    }
    near("what the guests ran in all minutes", in_minutes, ran, ACCOUNT, &mut wrong);
    let all = in_minutes + sum(&minutes, "idle") + sum(&minutes, "own");
    near("all minutes", all, whole, ACCOUNT, &mut wrong);
    wrong
}

#[cfg(test)]
mod tests {
    use super::{adds_up, fair};
    use bulkhead_types::manifest::CpuTime;

    fn guest(share: u32) -> CpuTime {
        CpuTime { share, cap: 0, burst: 0, period: 0, budget: 0, cpus: 0 }
    }

    #[test]
    fn parts_are_those_of_max_min_fairness() {
        let close = |got: Vec<f64>, want: &[f64]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?} {want:?}");
        };
        close(fair(&[guest(1), guest(2), guest(3)], 1.0), &[1.0 / 6.0, 1.0 / 3.0, 0.5]);
        close(fair(&[guest(1), guest(1), guest(9)], 2.0), &[0.5, 0.5, 1.0]);
        close(fair(&[CpuTime { cap: 500, ..guest(3) }, guest(1)], 1.0), &[0.5, 0.5]);
        let reserved = CpuTime { period: 20, budget: 5, ..guest(1) };
        close(fair(&[reserved, guest(10), guest(10)], 1.0), &[0.25, 0.375, 0.375]);
    }

    #[test]
    fn an_account_that_loses_something_is_told() {
        let account = |own: u64, minute: u64| -> Vec<String> {
            [
                "log guest 1 ticks: ran 600 waited 0 slept 0".to_owned(),
                format!("log processor 0 ticks: ran 600 idle 300 own {own} of 1000"),
                format!("log minute 0 ticks: idle 100 own 50 guest 1 {minute}"),
                "log minute 1 ticks: idle 150 own 50 guest 1 200".to_owned(),
                "log minute 2 ticks: idle 50 own 0 guest 1 150".to_owned(),
            ]
            .into()
        };
        assert_eq!(adds_up(&account(100, 250), 3), Vec::<String>::new());
        assert_ne!(adds_up(&account(98, 250), 3), Vec::<String>::new());
        assert_ne!(adds_up(&account(100, 248), 3), Vec::<String>::new());
        assert_ne!(adds_up(&account(100, 250), 4), Vec::<String>::new());
        assert_ne!(adds_up(&[], 0), Vec::<String>::new());
        let mut moved = account(100, 260);
        moved[3] = "log minute 1 ticks: idle 150 own 50 guest 1 190".to_owned();
        assert_ne!(adds_up(&moved, 3), Vec::<String>::new(), "ticks of one minute are another's");
    }
}
