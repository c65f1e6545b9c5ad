//! `hv ctl`: commands a machine that runs, over its control line.
//!
//! [`link`] is the line, [`show`] writes what comes back for people or as JSON; the longer commands have modules of their
//! own.

mod console;
mod link;
mod metrics;
mod show;
#[cfg(test)]
mod tests;
mod top;

use crate::emulator::key_file;
use crate::failure::{Failure, OK, Outcome};
use crate::manifest::{self, Machine, parse_seconds};
use crate::pack;
use crate::workspace::Workspace;
use bulkhead_control::line::CHUNK;
use bulkhead_control::mac::{self, Hash, Key};
use bulkhead_control::screen::Rows;
use bulkhead_control::{Action, Events, Guest, Operation, Refusal, Response, State, Stats};
use clap::{Args, Subcommand};
use console::Form;
use link::Reply;
pub use link::{Link, Patience};
use serde_json::json;
use show::Show;
use std::fs::File;
use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often new events are asked for.
const POLL: Duration = Duration::from_millis(200);

/// Arguments of `hv ctl`.
#[derive(Args, Debug, Clone)]
#[command(arg_required_else_help = false)]
pub struct CtlArgs {
    #[command(subcommand)]
    command: Command,
    /// The control line: a Unix socket, or the device of a serial port. `hv run --control` offers it at build/control.
    #[arg(long, global = true, value_name = "PATH")]
    line: Option<PathBuf>,
    /// The manifest with the line's key; without it and --key-file, the key is in LINE.key.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "key_file")]
    manifest: Option<PathBuf>,
    /// A file with the line's key: 64 hexadecimal digits.
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Write JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug, Clone)]
enum Command {
    /// The guests, and what each does.
    List,
    /// Make a guest as a manifest has it; its images go over the line. It is stopped.
    Create {
        /// The manifest.
        file: PathBuf,
        /// The guest's name in it, if it has several.
        guest: Option<String>,
        /// Call it so.
        #[arg(long)]
        name: Option<String>,
        /// Stop it so long after each start, like 90s.
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        lease: Option<u64>,
    },
    /// Forget a stopped guest, and free its memory.
    Destroy(Name),
    /// Let a stopped guest run.
    Start(Name),
    /// Ask a guest to switch itself off: press its power button.
    Stop {
        #[command(flatten)]
        name: Name,
        /// Wait for its end so long, like 30s; status 1 if it has not ended then.
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        wait: Option<u64>,
    },
    /// Let a guest run no further.
    Pause(Name),
    /// Let a paused guest run on.
    Resume(Name),
    /// Start a guest anew.
    Reset(Name),
    /// Switch a guest off at once.
    Kill(Name),
    /// Give a guest an NMI.
    Inject(Name),
    /// What the guests have used, or how often one left, and why.
    Stats {
        /// The guest whose exits to show.
        guest: Option<String>,
        /// Again and again.
        #[arg(long)]
        watch: bool,
        /// Seconds in between.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        interval: f64,
    },
    /// What happened.
    Events {
        /// Wait for what happens next.
        #[arg(long)]
        follow: bool,
        /// From this sequence number on.
        #[arg(long, value_name = "N", default_value_t = 0)]
        from: u64,
    },
    /// Connect to a guest's console; on a terminal, Ctrl-] q leaves it. With --json, each piece of output is a line.
    Console {
        /// The guest's name, or its number.
        guest: String,
        /// Show what it has written from this byte on, counted from its first start; all that is kept if it is not said.
        #[arg(long, value_name = "OFFSET")]
        from: Option<u64>,
        /// Show nothing that a terminal obeys, and the guest's name before each row.
        #[arg(long, conflicts_with = "json")]
        plain: bool,
    },
    /// What the guests use, again and again, on the whole terminal; with --json, as `stats` writes it.
    Top,
    /// Serve what the guests use to Prometheus.
    Metrics {
        /// Where to listen.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9477")]
        listen: SocketAddr,
    },
    /// Walk all page tables, and compare them with the frame table; status 1 if there is a violation.
    Audit,
    /// Who has which memory.
    Memmap,
    /// What this hypervisor is, and what it runs on.
    Version,
}

/// A guest by name or number.
#[derive(Args, Debug, Clone)]
struct Name {
    /// The guest's name, or its number.
    guest: String,
}

fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || "write a number of seconds from 0.1 to 3600".to_owned();
    text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds)).ok_or_else(wrong)
}

/// Carries the command out; the exit status. With --json what went wrong is JSON, too.
pub fn ctl(args: &CtlArgs) -> Outcome<u8> {
    carry_out(args).or_else(|failure| {
        if !args.json || failure.message.is_empty() {
            return Err(failure);
        }
        eprintln!("{}", show::failure(&failure));
        Ok(failure.status)
    })
}

fn carry_out(args: &CtlArgs) -> Outcome<u8> {
    let line = match &args.line {
        Some(line) => line.clone(),
        None => default_line(&Workspace::find()?)?,
    };
    let mut link = Link::new(&line, key(args, &line)?, Patience::default());
    if args.json {
        link.say = Box::new(|word| eprintln!("{}", json!({ "waiting": word })));
    }
    run(args, link, &mut std::io::stdout())
}

/// Where the line is unless it is said.
pub fn default_line(workspace: &Workspace) -> Outcome<PathBuf> {
    Ok(workspace.build("")?.join("control"))
}

/// 32 bytes that nobody can guess.
pub fn random() -> Outcome<Key> {
    let mut bytes = Key::default();
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(|e| Failure::machine(format!("/dev/urandom: {e}")))
}

fn key(args: &CtlArgs, line: &Path) -> Outcome<Key> {
    if let Some(path) = &args.manifest {
        return manifest::read(path)?.control.ok_or_else(|| {
            Failure::usage(format!("{} has no control line", path.display()))
                .hint("add control = { key = \"…\" } to it, with 64 hexadecimal digits")
        });
    }
    let beside = key_file(line);
    let path = args.key_file.as_ref().unwrap_or(&beside);
    let text = crate::files::read_text(path).map_err(|failure| {
        failure.hint("give the machine's --manifest or a --key-file; `hv run --control` makes one beside the line")
    })?;
    mac::key(text.trim()).ok_or_else(|| {
        Failure::usage(format!("{} has no key in it", path.display())).hint("write 64 hexadecimal digits into it")
    })
}

fn run(args: &CtlArgs, mut own: Link, out: &mut dyn Write) -> Outcome<u8> {
    let mut show = Show::new(args.json, out);
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    show.columns = size.ok().map(|size| size.ws_col).filter(|columns| *columns != 0);
    let link = &mut own;
    match &args.command {
        Command::List => show.guests(&guests(link)?)?,
        Command::Create { file, guest, name, lease } => {
            let mut alone = alone(manifest::read(file)?, guest.as_deref())?;
            for (guest, zone) in alone.guests.iter_mut().zip(&mut alone.zones) {
                guest.lease = lease.unwrap_or(guest.lease);
                let Some(name) = name else { continue };
                // One without a zone is a zone of its own, whatever it is called.
                if zone.name == guest.name {
                    zone.name.clone_from(name);
                }
                guest.name.clone_from(name);
            }
            create(link, &mut show, &alone)?;
        }
        Command::Destroy(name) => act(link, &mut show, name, Action::Destroy)?,
        Command::Start(name) => act(link, &mut show, name, Action::Start)?,
        Command::Stop { name, wait } => {
            act(link, &mut show, name, Action::Stop)?;
            wait.map_or(Ok(()), |seconds| wait_for_end(link, &name.guest, Duration::from_secs(seconds)))?;
        }
        Command::Pause(name) => act(link, &mut show, name, Action::Pause)?,
        Command::Resume(name) => act(link, &mut show, name, Action::Resume)?,
        Command::Reset(name) => act(link, &mut show, name, Action::Reset)?,
        Command::Kill(name) => act(link, &mut show, name, Action::Kill)?,
        Command::Inject(name) => act(link, &mut show, name, Action::Nmi)?,
        Command::Stats { guest: Some(guest), watch, interval } => {
            while {
                show.exits(&one(link, &Operation::Exits(guest), guest)?.response()?)?;
                *watch
            } {
                link.rest(Duration::from_secs_f64(*interval));
            }
        }
        Command::Stats { guest: None, watch, interval } => {
            while {
                show.stats(&stats(link)?)?;
                *watch
            } {
                link.rest(Duration::from_secs_f64(*interval));
            }
        }
        Command::Events { follow, from } => events(link, &mut show, *from, *follow)?,
        Command::Console { guest, from, plain } => {
            let form = match (args.json, plain) {
                (true, _) => Form::Json,
                (false, true) => Form::Plain(Rows::new()),
                (false, false) => Form::Bytes,
            };
            console::attach(link, guest, *from, form, show.out)?;
        }
        Command::Top if args.json => loop {
            show.stats(&stats(link)?)?;
            link.rest(top::INTERVAL);
        },
        Command::Top => top::top(own)?,
        Command::Metrics { listen } => metrics::serve(link, &mut show, *listen)?,
        Command::Audit => {
            let reply = one(link, &Operation::Audit, "audit")?;
            let response = reply.response()?;
            show.response(&response)?;
            if !matches!(response, Response::Audit { violations: 0, .. }) {
                return Ok(crate::failure::FAILED);
            }
        }
        Command::Memmap => {
            pages(|from| match one(link, &Operation::Memory(from), "memmap")?.response()? {
                Response::Memory(page) => {
                    page.items.iter().try_for_each(|range| show.memory(range))?;
                    Ok(page.next)
                }
                other => Err(strange(&other)),
            })?;
        }
        Command::Version => show.response(&one(link, &Operation::Version, "version")?.response()?)?,
    }
    Ok(OK)
}

/// Asks for pages until there is none left.
pub fn pages(mut ask: impl FnMut(u16) -> Outcome<Option<u16>>) -> Outcome<()> {
    let mut from = 0;
    while let Some(next) = ask(from)? {
        if next <= from {
            return Err(Failure::failed("the hypervisor's pages do not end").hint("use the `hv` that it came with"));
        }
        from = next;
    }
    Ok(())
}

fn strange(response: &Response<'_>) -> Failure {
    Failure::failed(format!("the hypervisor's answer does not fit: {response:?}"))
        .hint("use the `hv` that it came with")
}

/// Asks for `operation` on behalf of `what`; a refusal is a failure.
pub fn one(link: &mut Link, operation: &Operation<'_>, what: &str) -> Outcome<Reply> {
    let reply = link.call(operation)?;
    if let Response::Refused(refusal) = reply.response()? {
        return Err(refused(what, refusal));
    }
    Ok(reply)
}

fn refused(what: &str, refusal: Refusal) -> Failure {
    let text = refusal.to_string();
    match text.split_once(": ") {
        Some((message, hint)) => Failure::failed(format!("{what}: {message}")).hint(hint),
        None => Failure::failed(format!("{what}: {text}")),
    }
}

fn act(link: &mut Link, show: &mut Show<'_>, name: &Name, action: Action) -> Outcome<()> {
    let operation = Operation::Act { guest: &name.guest, action };
    show.response(&one(link, &operation, &name.guest)?.response()?)
}

/// Waits until a guest has ended.
fn wait_for_end(link: &mut Link, guest: &str, time: Duration) -> Outcome<()> {
    let end = Instant::now() + time;
    let number = guest.parse().ok();
    while guests(link)?.iter().any(|one| {
        let named = one.name == guest || number == Some(one.id);
        named && !matches!(one.state, State::Stopped | State::Failed)
    }) {
        if Instant::now() >= end {
            let message = format!("{guest}: it has not ended after {} s", time.as_secs());
            return Err(Failure::failed(message).hint("`kill` ends it at once"));
        }
        link.rest(POLL);
    }
    Ok(())
}

/// All guests.
pub fn guests(link: &mut Link) -> Outcome<Vec<Guest>> {
    let mut all = Vec::new();
    pages(|from| match one(link, &Operation::List(from), "list")?.response()? {
        Response::Guests(page) => {
            all.extend(page.items);
            Ok(page.next)
        }
        other => Err(strange(&other)),
    })?;
    Ok(all)
}

/// The use of all guests: pages in one.
pub struct AllStats {
    /// The moment, and the machine's own ticks: those of all pages.
    pub whole: Stats,
    /// All guests.
    pub guests: Vec<bulkhead_control::Usage>,
}

pub fn stats(link: &mut Link) -> Outcome<AllStats> {
    let mut all = AllStats { whole: Stats::default(), guests: Vec::new() };
    pages(|from| match one(link, &Operation::Stats(from), "stats")?.response()? {
        Response::Stats(mut stats) => {
            let page = std::mem::take(&mut stats.guests);
            all.guests.extend(page.items);
            all.whole = stats;
            Ok(page.next)
        }
        other => Err(strange(&other)),
    })?;
    Ok(all)
}

/// Shows events from number `next` on, and waits for more.
fn events(link: &mut Link, show: &mut Show<'_>, mut next: u64, follow: bool) -> Outcome<()> {
    let mut boot = None;
    loop {
        let reply = one(link, &Operation::Events(next), "events")?;
        let Response::Events(Events { first, end, items }) = reply.response()? else {
            return Err(strange(&reply.response()?));
        };
        // Those before `next` were another one's. One that comes late may ask for more than there is.
        if boot.replace(link.boot).is_some_and(|before| before != link.boot) || end < next {
            show.note("restarted", &format!("the machine was started anew: it has had {end} events"), end)?;
            next = 0;
            continue;
        }
        if first > next {
            show.note("lost", &format!("{} earlier events are gone", first - next), first - next)?;
        }
        next = first;
        for event in &items {
            show.event(next, event)?;
            next += 1;
        }
        if next >= end {
            if !follow {
                return Ok(());
            }
            link.rest(POLL);
        }
    }
}

/// The machine that has the guest `name` of `machine` alone; the only one, if no name is said.
fn alone(machine: Machine, name: Option<&str>) -> Outcome<Machine> {
    let names: Vec<&str> = machine.guests.iter().map(|guest| guest.name.as_str()).collect();
    let index = match name {
        None if names.len() == 1 => Some(0),
        None => None,
        Some(name) => names.iter().position(|other| *other == name),
    };
    let Some(guest) = index.and_then(|index| machine.guests.get(index)) else {
        let message = name.map_or("say which guest".to_owned(), |name| format!("the manifest has no guest {name}"));
        return Err(Failure::usage(message).hint(format!("it has {}", names.join(", "))));
    };
    let zone = machine.zones.get(usize::from(guest.zone)).cloned();
    let guests = vec![manifest::Guest { zone: 0, ..guest.clone() }];
    Ok(Machine { zones: zone.into_iter().collect(), guests, control: None, ..machine })
}

/// Sends the only guest of `machine` as a pack.
fn create(link: &mut Link, show: &mut Show<'_>, machine: &Machine) -> Outcome<()> {
    let name = machine.guests.first().map_or("", |guest| &guest.name);
    send_pack(link, show, &pack::pack(&Workspace::find()?, machine)?, name)
}

fn send_pack(link: &mut Link, show: &mut Show<'_>, pack: &[u8], name: &str) -> Outcome<()> {
    let _progress = crate::progress::Progress::start(format!("sending {} KiB", pack.len() >> 10));
    show.response(&upload(link, pack, name)?.response()?)
}

/// Has the machine make the guest of a pack; what it answered.
pub fn upload(link: &mut Link, pack: &[u8], name: &str) -> Outcome<Reply> {
    let mut hash = Hash::default();
    hash.update(pack);
    let announce = Operation::Create { bytes: pack.len() as u64, sha256: hash.finish() };
    let mut operation = announce;
    loop {
        let reply = one(link, &operation, name)?;
        let Response::Send(offset) = reply.response()? else { return Err(strange(&reply.response()?)) };
        let rest = usize::try_from(offset).ok().and_then(|offset| pack.get(offset..)).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        // What a request costs besides is about so many bytes.
        let zeros = rest.iter().take(1 << 16).take_while(|byte| **byte == 0).count();
        let end = rest.windows(64).position(|bytes| bytes.iter().all(|byte| *byte == 0)).unwrap_or(rest.len());
        operation = match u32::try_from(zeros) {
            Ok(count @ 64..) => Operation::Zeros { offset, count },
            _ => Operation::Chunk { offset, bytes: rest.get(..end.clamp(1, CHUNK)).unwrap_or(rest) },
        };
    }
    one(link, &Operation::Commit, name)
}
