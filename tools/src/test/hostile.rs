//! `hv hostile`: each hostile guest beside a witness, on each machine.
//!
//! `tests/hostile.toml` has a row for each attack. The machine of a row has two guests in two zones: the witness, and the
//! attacker. The witness goes on until it is told to end, which is when the attacker has ended (or, if it never does, when
//! it has said its last line and the witness has made some more rounds). A row holds if the attacker saw and ended as the
//! table says, the witness saw no change, each audit was clean, and the hypervisor counted what the table says.

use super::TestArgs;
use super::cases::in_parallel;
use super::judge::Watch;
use super::lies::{self, Lie};
use super::table::{Case, Expected, GuestCase};
use super::tally::{Tally, Verdict};
use crate::emulator::{self, Kind, On, Place};
use crate::failure::{FAILED, Failure, OK, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest;
use crate::pack;
use crate::session::{Finish, Report, Session, View, Wire};
use crate::symbols;
use crate::workspace::Workspace;
use clap::Args;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const TABLE: &str = "tests/hostile.toml";
const WITNESS: &str = "witness";
const ATTACKER: &str = "attacker";
/// Seed of the witness's words.
const SEED: u64 = 77;
/// Thousandths of the CPU that a guest must get beside one that floods: half of it, less 2 %.
const LEAST_SHARE: u64 = 490;
/// Seconds of the host.
const TIMEOUT: u64 = 60;

/// Arguments of `hv hostile`.
#[derive(Args, Debug, Clone, Default)]
pub struct HostileArgs {
    /// Only attacks that have this in their name.
    name: Option<String>,
    /// Print the table, run nothing.
    #[arg(long)]
    list: bool,
    /// Where they run; on Bochs (VT-x) and on QEMU (SVM) if it is not said.
    #[arg(long, value_enum)]
    on: Option<On>,
    /// Machines at a time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "attack")]
    attacks: Vec<Attack>,
}

/// A row of the table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Attack {
    /// Its name within its family.
    name: String,
    /// The program that it is in.
    family: String,
    /// What it attacks.
    on: String,
    /// More words for its command line.
    #[serde(default)]
    cmdline: String,
    /// Its memory.
    #[serde(default = "default_memory")]
    memory: String,
    /// Whether its memory is mapped when first touched.
    #[serde(default)]
    lazy: bool,
    /// Pieces of its console beside the protocol's.
    #[serde(default)]
    lines: Vec<String>,
    /// How it ends: `held` (by test exit 0, having said so), else as in the case table; `never` if it goes on for ever.
    #[serde(default = "held")]
    ends: String,
    /// Least counts of its exits, by kind.
    #[serde(default)]
    least: BTreeMap<String, u64>,
    /// Whether the witness measures its share of the CPU.
    #[serde(default)]
    share: bool,
    /// What is changed in the pack; the program is `memory`, and has no say in it.
    lie: Option<Lie>,
    /// Machines that it does not apply to, and why.
    #[serde(default)]
    not_on: BTreeMap<Kind, String>,
}

fn default_memory() -> String {
    "8M".to_owned()
}

fn held() -> String {
    "held".to_owned()
}

impl Attack {
    fn full_name(&self) -> String {
        format!("hostile {}-{}", self.family, self.name)
    }

    /// What must come of it, in words.
    fn verdict(&self) -> String {
        let mut words = vec![self.ends.clone()];
        words.extend(self.least.iter().map(|(kind, least)| format!("{kind} at least {least}")));
        words.extend(self.share.then(|| format!("share at least {LEAST_SHARE}/1000")));
        words.join(", ")
    }

    fn manifest(&self) -> String {
        let Self { family, name, cmdline, memory, lazy, share, .. } = self;
        let share = u8::from(*share);
        let family = if self.lie.is_some() { "memory" } else { family };
        let name = if self.lie.is_some() { "edge" } else { name };
        format!(
            r#"zones = [{{ name = "witness" }}, {{ name = "attacker" }}]
            [[guest]]
            name = "{WITNESS}"
            zone = "witness"
            kernel = "@suite/witness"
            cmdline = "seed={SEED} until-told share={share}"
            memory = "4M"
            test-exit = true
            [[guest]]
            name = "{ATTACKER}"
            zone = "attacker"
            kernel = "@hostile/{family}"
            cmdline = "attack={name} witness={SEED} {cmdline}"
            memory = "{memory}"
            lazy = {lazy}
            test-exit = true
            test-device = true
            "#
        )
    }

    /// The case that the runner of the case table takes.
    fn case(&self) -> Case {
        let mut lines = if self.lie.is_some() { Vec::new() } else { vec![format!("attack {}", self.name)] };
        lines.extend(self.lines.iter().cloned());
        let ends = match self.ends.as_str() {
            "held" => {
                lines.push(format!("held {}", self.name));
                "test-exit 0"
            }
            "never" => "time-out",
            other => other,
        };
        let attacker =
            Expected { lines, never: vec!["broke ".to_owned()], ends: Some(ends.to_owned()), ..Expected::default() };
        let witness = Expected {
            lines: vec!["unchanged".to_owned()],
            never: vec!["FAIL".to_owned()],
            ends: Some("test-exit 0".to_owned()),
            ..Expected::default()
        };
        let guests = [(WITNESS, witness), (ATTACKER, attacker)];
        Case {
            name: self.full_name(),
            manifest: Some(TABLE.to_owned()),
            guests: guests.map(|(name, expected)| GuestCase { name: name.to_owned(), expected }).into(),
            timeout: TIMEOUT,
            ..Case::default()
        }
    }
}

fn read(workspace: &Workspace) -> Outcome<Vec<Attack>> {
    let path = workspace.path(TABLE);
    let text = files::read_text(&path)?;
    let table: Table = toml::from_str(&text).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
    Ok(table.attacks)
}

/// Who watches the two: what they say, and when the witness has seen enough.
struct Beside<'a> {
    attack: &'a Attack,
    watch: Watch,
    /// The witness's line so far.
    line: String,
    /// Rounds of the witness since the attacker's end.
    rounds: u32,
    told: bool,
    /// Shares of the CPU that the witness measured while the flood was on.
    shares: Vec<u64>,
}

/// Rounds that the witness makes beside an attacker that never ends.
const ROUNDS: u32 = 4;

impl View for Beside<'_> {
    fn console(&mut self, guest: u8, bytes: &[u8], wire: &mut Wire) {
        self.watch.console(guest, bytes, wire);
        if guest != 1 {
            return;
        }
        let attacker = self.watch.console_of(ATTACKER);
        let text = String::from_utf8_lossy(bytes);
        self.line.push_str(&text);
        while let Some((line, rest)) = self.line.split_once('\n') {
            let share: Option<u64> = line.strip_prefix("witness share ").and_then(|share| share.trim().parse().ok());
            if attacker.contains("saw the flood begin") && !attacker.contains("saw the flood end") {
                self.shares.extend(share);
            }
            self.line = rest.to_owned();
        }
        let never = self.attack.ends == "never" && attacker.contains("saw the last of it");
        let gone = self.watch.lines().iter().any(|line| line.starts_with("event guest 2 ") && line.contains(" ended "));
        self.rounds += u32::from((gone || never) && text.contains('\n'));
        if !self.told && self.rounds >= if never { ROUNDS } else { 1 } {
            self.told = true;
            wire.send(1, b"q");
        }
    }

    fn log(&mut self, line: &str) {
        self.watch.log(line);
    }

    fn has_enough(&self) -> bool {
        let ended = |line: &String| line.starts_with("event guest 1 ") && line.contains(" ended ");
        let behind = self.watch.lines().iter().skip_while(|line| !ended(line));
        self.attack.ends == "never" && behind.into_iter().any(|line| line.starts_with("event audit "))
    }
}

impl Beside<'_> {
    /// What is wrong beside what the case's judge finds.
    fn wrong(&self, on: Kind, report: &Report) -> Vec<String> {
        let mut report = report.clone();
        if self.has_enough() {
            report.finish = Finish::Done;
        }
        if self.attack.ends == "refused" {
            return match &report.finish {
                Finish::Preflight(_) => Vec::new(),
                other => vec![format!("the machine was not refused: {other:?}")],
            };
        }
        let mut wrong = self.watch.judge(&self.attack.case(), on, &report);
        let counted = self.watch.lines().iter().find_map(|line| line.strip_prefix("log guest 2 exits: "));
        for (kind, least) in &self.attack.least {
            let count = counted.and_then(|text| count(text, kind)).unwrap_or(0);
            if count < *least {
                wrong.push(format!("{ATTACKER}: {count} exits of kind {kind}, and at least {least} should be"));
            }
        }
        if self.attack.share && on == Kind::Bochs {
            match self.share() {
                Some(share) if share >= LEAST_SHARE => {}
                share => wrong.push(format!("the witness has {share:?} thousandths of the CPU: {:?}", self.shares)),
            }
        }
        wrong
    }

    /// Mean share of the CPU in thousandths; the first and the last window may reach out of the flood.
    fn share(&self) -> Option<u64> {
        let inner = self.shares.get(1..self.shares.len().checked_sub(1)?)?;
        let count = u64::try_from(inner.len()).ok().filter(|count| *count >= 3)?;
        Some(inner.iter().sum::<u64>() / count)
    }
}

/// The number behind the word `kind`.
fn count(text: &str, kind: &str) -> Option<u64> {
    let mut words = text.split([' ', ',', '(', ')']);
    words.find(|word| *word == kind)?;
    words.next()?.parse().ok()
}

/// `hv hostile`: status 1 if a boundary does not hold.
pub fn hostile(args: &HostileArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let attacks = read(&workspace)?;
    if args.list {
        print_table(&attacks);
        return Ok(OK);
    }
    let machines = match args.on {
        None => vec![Kind::Bochs, Kind::Qemu],
        Some(on) => vec![emulator::choose(on)?],
    };
    let test = TestArgs { filter: args.name.clone(), jobs: args.jobs, ..TestArgs::default() };
    crate::cargo::suite(&workspace)?;
    let mut tally = Tally::default();
    run(&Builder::new(&workspace)?, &test, &machines, &mut tally)?;
    Ok(if tally.close() { OK } else { FAILED })
}

fn print_table(attacks: &[Attack]) {
    println!("{:<30} {:<60} verdict", "name", "what it attacks");
    for attack in attacks {
        let name = format!("{}-{}", attack.family, attack.name);
        println!("{name:<30} {:<60} {}", attack.on, attack.verdict());
    }
    println!("{} attacks", attacks.len());
}

/// Runs the attacks that are asked for, and prints the table of verdicts.
pub fn run(builder: &Builder, args: &TestArgs, machines: &[Kind], tally: &mut Tally) -> Outcome<()> {
    let workspace = builder.workspace();
    let attacks = read(workspace)?;
    let all = attacks.iter().flat_map(|attack| machines.iter().map(move |on| (attack, *on)));
    let name = |(attack, on): (&Attack, Kind)| format!("{} on {on}", attack.full_name());
    let wanted: Vec<(&Attack, Kind)> = all.filter(|(attack, on)| args.takes(&name((attack, *on)))).collect();
    let (out, mut wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(a, on)| a.not_on.contains_key(on));
    for (attack, on) in out {
        let why = attack.not_on.get(&on).cloned().unwrap_or_default();
        tally.note(&name((attack, on)), Verdict::Skipped(why), Duration::ZERO);
    }
    wanted.sort_by_key(|(attack, _)| !attack.share);
    let started = Instant::now();
    in_parallel(
        &wanted,
        args.jobs(),
        |(attack, on)| verdict(builder, attack, *on),
        |(attack, on), result, took| {
            let (verdict, share) = result;
            let name = name((attack, *on));
            let name = share.map_or(name.clone(), |share| format!("{name} (the witness had {share}/1000 of the CPU)"));
            tally.note(&name, verdict, took);
        },
    );
    println!("{} hostile runs in {:.0} s", wanted.len(), started.elapsed().as_secs_f64());
    Ok(())
}

fn verdict(builder: &Builder, attack: &Attack, on: Kind) -> (Verdict, Option<u64>) {
    attempt(builder, attack, on).unwrap_or_else(|failure| (Verdict::Failed(failure.to_string()), None))
}

fn attempt(builder: &Builder, attack: &Attack, on: Kind) -> Outcome<(Verdict, Option<u64>)> {
    let machine = manifest::parse(&attack.manifest(), &builder.workspace().path(TABLE))?;
    let place = Place::of(on);
    let mut pack = pack::pack(builder.workspace(), &machine)?;
    if let Some(lie) = &attack.lie {
        lies::tell(lie, &mut pack).ok_or_else(|| Failure::usage(format!("{}: no place for {lie:?}", attack.name)))?;
    }
    let running = builder.start_pack(&place, &machine, pack)?;
    let names: Vec<String> = machine.guests.iter().map(|g| g.name.clone()).collect();
    let watch = Watch::new(&attack.case(), &names);
    let mut beside = Beside { attack, watch, line: String::new(), rounds: 0, told: false, shares: Vec::new() };
    let (session, _) = Session::new(running);
    let report = session.follow(&mut beside, Some(Duration::from_secs(TIMEOUT)));
    let wrong = beside.wrong(on, &report);
    let share = if attack.share { beside.share() } else { None };
    let path = builder.workspace().build("logs")?.join(format!("{}.{on}.log", attack.full_name()));
    files::write(&path, beside.watch.transcript(usize::MAX).as_bytes())?;
    if wrong.is_empty() {
        return Ok((Verdict::Passed, share));
    }
    let mut said = format!("{}\n{}", wrong.join("\n"), beside.watch.transcript(1500));
    if let Finish::Panic(lines) = &report.finish {
        let loader = symbols::load(builder.image());
        lines.iter().for_each(|line| said.push_str(&format!("{}\n", symbols::symbolize(line, loader.as_ref()))));
    }
    Ok((Verdict::Failed(said), share))
}
