//! Runs the case table in the emulator, several machines at a time.

use super::fair;
use super::judge::Watch;
use super::table::Case;
use super::tally::{Tally, Verdict};
use crate::emulator::{Kind, Place};
use crate::failure::{Failure, Outcome};
use crate::machine::Builder;
use crate::manifest::{self, Machine};
use crate::pack;
use crate::run::one_guest;
use crate::session::{Finish, Session};
use crate::symbols;
use crate::workspace::Workspace;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of each console that a failure shows.
const SHOWN: usize = 3000;

/// A case on a machine.
#[derive(Clone, Debug)]
pub struct Run {
    /// The case.
    pub case: Case,
    /// The machine.
    pub on: Kind,
}

impl Run {
    /// Its name in the list of tests.
    pub fn name(&self) -> String {
        format!("case {} on {}", self.case.name, self.on)
    }
}

/// Runs all of `runs`, `jobs` at a time.
pub fn run(workspace: &Workspace, builder: &Builder, runs: &[Run], jobs: usize, tally: &mut Tally) -> Outcome<()> {
    let mut machines = Vec::new();
    for run in runs {
        let machine = machine(workspace, &run.case);
        if let Ok(machine) = &machine {
            // What is to be fetched or built is fetched and built by one thread.
            pack::resolve_all(workspace, machine)?;
        }
        machines.push(machine);
    }
    let mut counts: BTreeMap<Kind, [u64; 2]> = BTreeMap::new();
    let items: Vec<(&Run, Outcome<Machine>)> = runs.iter().zip(machines).collect();
    let work = |(run, machine): &(&Run, Outcome<Machine>)| match machine {
        Ok(machine) => judge(builder, run, machine),
        Err(failure) => Verdict::Failed(failure.to_string()),
    };
    in_parallel(&items, jobs, work, |(run, _), verdict, took| {
        let [passed, failed] = counts.entry(run.on).or_default();
        *(if verdict == Verdict::Passed { passed } else { failed }) += 1;
        tally.note(&run.name(), verdict, took);
        let skips = run.case.expectations().into_iter().filter_map(|(_, expected)| expected.skips.get(&run.on));
        skips.flatten().for_each(|(check, why)| println!("    without {check}: {why}"));
    });
    for (on, [passed, failed]) in counts {
        println!("cases on {on}: {passed} passed, {failed} failed");
    }
    Ok(())
}

/// Does `work` on each of `items`, `jobs` at a time, and tells what came of it as it comes.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> R + Sync,
    mut done: impl FnMut(&T, R, Duration),
) {
    let next = AtomicUsize::new(0);
    let (sender, results) = channel();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let sender = sender.clone();
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let _ = sender.send((item, work(item), start.elapsed()));
                }
            });
        }
        drop(sender);
        for (item, result, took) in results {
            done(item, result, took);
        }
    });
}

fn machine(workspace: &Workspace, case: &Case) -> Outcome<Machine> {
    match (&case.kernel, &case.manifest) {
        (Some(kernel), _) => one_guest(kernel, &case.one_guest()),
        (None, Some(path)) => manifest::read(&workspace.path(path)),
        (None, None) => Err(Failure::usage("the case has no kernel and no manifest")),
    }
}

fn judge(builder: &Builder, Run { case, on }: &Run, machine: &Machine) -> Verdict {
    let cpus = case.cpus.unwrap_or(1);
    // Where a busy host has a part in the time, its timers are measured wrong, too.
    let counted = (case.fair || case.minutes != 0 || case.waits.is_some()) && cpus == 1;
    let place = Place { cpus, counted, ..Place::of(*on) };
    let running = match builder.start_at(&place, machine) {
        Ok(running) => running,
        Err(failure) => return Verdict::Failed(failure.to_string()),
    };
    let names: Vec<String> = machine.guests.iter().map(|g| g.name.clone()).collect();
    let mut watch = Watch::new(case, &names);
    let (session, _) = Session::new(running);
    let report = session.follow(&mut watch, Some(Duration::from_secs(case.timeout)));
    let mut wrong = watch.judge(case, *on, &report);
    if case.fair {
        // With several processors QEMU's counter is the host's time, whose other work is in it too.
        if place.counted || *on == Kind::Bochs {
            let consoles: Vec<String> = names.iter().map(|name| watch.console_of(name)).collect();
            wrong.extend(fair::shares(machine, cpus, &consoles, watch.lines()));
        }
    }
    if case.fair || case.minutes != 0 {
        wrong.extend(fair::adds_up(watch.lines(), case.minutes));
    }
    if let Some(most) = case.waits {
        let told = watch.lines().iter().find_map(|line| line.strip_suffix(" times processor 0 had nothing to do"));
        let waits = told.and_then(|line| line.strip_prefix("log ")).and_then(|count| count.parse::<u64>().ok());
        if waits.is_none_or(|waits| waits > most) {
            wrong.push(format!("processor 0 waited {waits:?} times, and may {most}"));
        }
    }
    let whole = builder.workspace().build("logs").map(|folder| folder.join(format!("{}.{on}.log", case.name)));
    if let Ok(path) = &whole {
        let _ = std::fs::write(path, watch.transcript(usize::MAX));
    }
    if wrong.is_empty() {
        return Verdict::Passed;
    }
    let mut said = format!("{}\n{}", wrong.join("\n"), watch.transcript(SHOWN));
    if let Ok(path) = whole {
        said.push_str(&format!("all of it is in {}\n", path.display()));
    }
    if let Finish::Panic(lines) = &report.finish {
        let loader = symbols::load(builder.image());
        for line in lines {
            said.push_str(&symbols::symbolize(line, loader.as_ref()));
            said.push('\n');
        }
    }
    Verdict::Failed(said)
}
