//! `hv hostile`: each hostile guest beside a witness, on each machine.
//!
//! The machine of an attack has guests in two zones: the witness, and the attacker (of boot images that lie, one for each
//! lie). The witness goes on until it is told to end, which is when all attackers have ended (or, if it never does, when
//! it has said its last line and the witness has made some more rounds). A row holds if the attackers saw and ended as the
//! table says, the witness saw no change, each audit was clean, and the hypervisor counted what the table says.

use super::TestArgs;
use super::attack::{ATTACKER, Attack, TABLE, TIMEOUT, read};
use super::cases::in_parallel;
use super::judge::{Watch, count};
use super::tally::{Tally, Verdict};
use crate::emulator::{self, Kind, On, Place};
use crate::failure::{FAILED, OK, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest;
use crate::pack;
use crate::session::{Finish, Report, Session, View, Wire};
use crate::symbols;
use crate::workspace::Workspace;
use clap::Args;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
    /// Processors of each machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    cpus: u16,
    /// Machines at a time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
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
    /// Ticks that the witness had of how many, in each round while the flood was on; thousandths that it must have.
    shares: Vec<[u64; 2]>,
    least: Option<u64>,
}

/// Of its fair part of the processors, in thousandths, what it must have beside guests that only compute: turns cost something,
/// 100 a second, of 100,000 ticks each on Bochs.
const FAIR: u64 = 950;
/// Processors of the machines on which attacks of several vCPUs are made again.
const SEVERAL: [u16; 2] = [2, 4];
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
            let share = line.strip_prefix("witness share ").and_then(|share| {
                let (work, time) = share.trim().split_once(" of ")?;
                Some([work.parse().ok()?, time.parse().ok()?])
            });
            if attacker.contains("saw the flood begin") && !attacker.contains("saw the flood end") {
                self.shares.extend(share);
            }
            self.line = rest.to_owned();
        }
        let never = self.attack.ends == "never" && attacker.contains("saw the last of it");
        let ended =
            self.watch.lines().iter().filter(|line| line.starts_with("event guest ") && line.contains(" ended "));
        let gone = ended.count() == self.attack.attackers().len() * usize::from(self.attack.restarts + 1);
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
        wrong.extend(self.attack.unsaid(on, self.watch.lines()));
        let counted = self.watch.lines().iter().find_map(|line| line.strip_prefix("log guest 2 exits: "));
        for (kind, least) in &self.attack.least {
            let count = counted.and_then(|text| count(text, kind)).unwrap_or(0);
            if count < *least {
                wrong.push(format!("{ATTACKER}: {count} exits of kind {kind}, and at least {least} should be"));
            }
        }
        if let Some(least) = self.least {
            match self.share() {
                Some(share) if share >= least => {}
                share => wrong.push(format!(
                    "the witness has {share:?} thousandths of the CPU, and must have {least}: {:?}",
                    self.shares
                )),
            }
        }
        wrong
    }

    /// Share of the CPU in thousandths, over all rounds but the first and the last, which may reach out of the flood.
    fn share(&self) -> Option<u64> {
        let inner = self.shares.get(1..self.shares.len().checked_sub(1)?).filter(|inner| inner.len() >= 3)?;
        let [work, time] = inner.iter().fold([0, 0], |[work, time], [w, t]| [work + w, time + t]);
        (work * 1000).checked_div(time)
    }
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
    run(&Builder::new(&workspace)?, &test, &machines, args.cpus, &|_| true, &mut tally)?;
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

/// All on one processor, and those of several vCPUs on more, which is where they are side by side.
pub fn run_all(builder: &Builder, args: &TestArgs, machines: &[Kind], tally: &mut Tally) -> Outcome<()> {
    run(builder, args, machines, 1, &|_| true, tally)?;
    for cpus in SEVERAL.into_iter().filter(|_| !args.quick) {
        run(builder, args, machines, cpus, &|attack| attack.vcpus.is_some(), tally)?;
    }
    Ok(())
}

/// Runs the attacks that are asked for, and prints the table of verdicts.
fn run(
    builder: &Builder,
    args: &TestArgs,
    machines: &[Kind],
    cpus: u16,
    which: &dyn Fn(&Attack) -> bool,
    tally: &mut Tally,
) -> Outcome<()> {
    let workspace = builder.workspace();
    let attacks = read(workspace)?;
    let all = attacks
        .iter()
        .filter(|attack| which(attack))
        .flat_map(|attack| machines.iter().map(move |on| (attack.at(*on), *on)));
    let with = if cpus == 1 { String::new() } else { format!(" with {cpus} processors") };
    let name = |(attack, on): (&Attack, Kind)| format!("{} on {on}{with}", attack.full_name());
    let wanted: Vec<(Attack, Kind)> = all.filter(|(attack, on)| args.takes(&name((attack, *on)))).collect();
    let (out, mut wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(a, on)| a.not_on.contains_key(on));
    for (attack, on) in out {
        let why = attack.not_on.get(&on).cloned().unwrap_or_default();
        tally.note(&name((&attack, on)), Verdict::Skipped(why), Duration::ZERO);
    }
    // What others are held against comes first, whether or not it is asked for.
    let held = |measure: &Attack, on| {
        wanted.iter().any(|(attack, at)| *at == on && attack.share && measure.full_name().ends_with(attack.measure()))
    };
    let both = attacks.iter().flat_map(|attack| machines.iter().map(move |on| (attack.at(*on), *on)));
    let measures: Vec<(Attack, Kind)> = both.filter(|(a, on)| a.is_measure() && held(a, *on)).collect();
    wanted.retain(|(attack, _)| !attack.is_measure());
    wanted.sort_by_key(|(attack, _)| !attack.share);
    let started = Instant::now();
    let mut shares: BTreeMap<(String, Kind), u64> = BTreeMap::new();
    for runs in [&measures, &wanted] {
        let measured = shares.clone();
        // With several processors QEMU's counter is the host's time.
        let least = |attack: &Attack, on: Kind| match on {
            _ if !attack.share || on != Kind::Bochs && (on != Kind::Qemu || cpus != 1) => None,
            _ if attack.is_measure() => Some(FAIR * u64::from(cpus).min(attack.computing()) / attack.computing()),
            _ => {
                let keeps = attack.keeps_of(cpus);
                Some(measured.get(&(attack.measure().to_owned(), on)).map_or(1000, |share| share * keeps / 1000))
            }
        };
        in_parallel(
            runs,
            args.jobs(),
            |(attack, on)| verdict(builder, attack, *on, cpus, least(attack, *on)),
            |(attack, on), (verdict, share), took| {
                let mut name = name((attack, *on));
                if let Some(share) = share {
                    let must = least(attack, *on).map_or(String::new(), |least| format!(" and must have {least}"));
                    name = format!("{name} (the witness had {share}/1000 of the CPU{must})");
                    shares.insert((attack.full_name().replace("hostile ", ""), *on), share);
                }
                tally.note(&name, verdict, took);
            },
        );
    }
    let runs = measures.len() + wanted.len();
    if runs != 0 {
        println!("{runs} hostile runs{with} in {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

type Verdicts = (Verdict, Option<u64>);

fn verdict(builder: &Builder, attack: &Attack, on: Kind, cpus: u16, least: Option<u64>) -> Verdicts {
    attempt(builder, attack, on, cpus, least).unwrap_or_else(|failure| (Verdict::Failed(failure.to_string()), None))
}

fn attempt(builder: &Builder, attack: &Attack, on: Kind, cpus: u16, least: Option<u64>) -> Outcome<Verdicts> {
    let machine = manifest::parse(&attack.manifest(builder.workspace())?, &builder.workspace().path(TABLE))?;
    let place = Place { counted: attack.share && cpus == 1, cpus, ..Place::of(on) };
    let mut pack = pack::pack(builder.workspace(), &machine)?;
    attack.lie(&mut pack)?;
    let running = builder.start_pack(&place, &machine, pack)?;
    let names: Vec<String> = machine.guests.iter().map(|g| g.name.clone()).collect();
    let watch = Watch::new(&attack.case(), &names);
    let (line, shares) = (String::new(), Vec::new());
    let mut beside = Beside { attack, watch, line, rounds: 0, told: false, shares, least };
    let (session, _) = Session::new(running);
    let report = session.follow(&mut beside, Some(Duration::from_secs(TIMEOUT * u64::from(cpus))));
    let wrong = beside.wrong(on, &report);
    let share = if attack.share { beside.share() } else { None };
    let path = builder.workspace().build("logs")?.join(format!("{}.{on}.{cpus}.log", attack.full_name()));
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
