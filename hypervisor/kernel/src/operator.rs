//! The operator's two ways to the machine: the monitor on the console, and the control line on COM2.
//!
//! Both live on the first processor's stack in the idle compartment, with the line's key, so that no guest's compartment
//! can name them. What an operator asks of a guest that runs is an order in its slot, which the guest's own compartment
//! obeys at its next turn.

use crate::create::Pending;
use crate::entries::Entry;
use crate::lives::{self, EVENTS, LIVES, Whole};
use crate::lost::Lost;
use crate::machine::{Account, FRAMES, Facts, ONLINE, Order, SLOTS, Slot, State, slot};
use crate::parcel::{self, Piece};
use crate::tally::{self, Trace};
use crate::{audit, console, dispatch};
use bulkhead_control::debt::{Debt, PART};
use bulkhead_control::line::{Line, Step};
use bulkhead_control::monitor::{ESCAPE, Monitor};
use bulkhead_control::{
    Action, EventKind, Guest, Machine, Memory, Moment, Name, Operation, PAGE, Page, Refusal, Response, Source, Stats,
    Usage, mac::Key,
};
use bulkhead_core::frames::{FrameTable, Owner};
use bulkhead_hw::serial::Serial;
use bulkhead_hw::{cpu, legacy};
use bulkhead_types::{Frame, Frequency, GuestId, PAGE_SIZE};
use core::sync::atomic::Ordering;
use spin::Mutex;

/// The key on its way from start-up.
pub static KEY: Mutex<Option<Key>> = Mutex::new(None);

/// Longest that one look at the line takes, in parts of a second: a frame of the longest kind comes whole.
const LOOK: u64 = 20;
/// So long without a byte is the end of what comes, in parts of a second: a client that asks page by page, or sends images,
/// is heard at once.
const PAUSE: u64 = 200;
/// Seconds without a client, after which it is an event that one has proved the key.
const QUIET: u64 = 60;
/// Between two looks for a byte that is not there yet, in parts of a second.
const REST: u64 = 30_000;
/// A byte of a frame that proves the key may take so long, in parts of a second; at 115200 baud it is 11,520.
const BYTE: u64 = 1000;

/// The monitor's way to the terminal: what it writes of a row is shown when the row ends, or when it has done what it was
/// asked.
#[derive(Default)]
struct Screen(heapless::String<256>);

impl Screen {
    fn send(&mut self) {
        if !self.0.is_empty() {
            console::show(&self.0);
            self.0.clear();
        }
    }
}

impl core::fmt::Write for Screen {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for char in text.chars() {
            if self.0.push(char).is_err() {
                self.send();
                // There is room now.
                let _ = self.0.push(char);
            }
            if char == '\n' {
                self.send();
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.send();
    }
}

/// The operator's end on the first processor.
pub struct Operator {
    line: Option<End>,
    monitor: Monitor,
    upload: Pending,
    trace: Trace,
    lost: Lost,
    /// Of a guest's console, on its way to the line.
    piece: Piece,
    /// What is told page by page.
    whole: Whole,
    /// When to look at leases, traces and lost output again.
    next: u64,
}

impl Operator {
    /// The monitor, and the control line if there is a key for it.
    pub fn new(facts: &Facts) -> Self {
        // At this time it is started once.
        let boot = (u128::from(facts.epoch) << 64 | u128::from(cpu::tsc())).to_le_bytes();
        let line = KEY.lock().replace([0; 32]).map(|key| Line::new(key, boot, facts.tsc.as_hertz()));
        let line = line.map(|line| End { line, serial: Serial::second(), debt: Debt::new(), proved: None });
        let (upload, trace, lost, piece) = (Pending::default(), Trace::new(), Lost::new(), Piece::new());
        Self { line, monitor: Monitor::new(None), upload, trace, lost, piece, whole: Whole::NONE, next: 0 }
    }

    /// Whether somebody can start guests that have ended.
    pub const fn has_line(&self) -> bool {
        self.line.is_some()
    }

    /// When it is to look again, unless a byte comes in: not before `soon`, and then, if something is on its way.
    pub fn next_look(&self, soon: u64) -> u64 {
        let line = self.line.as_ref().is_none_or(|end| !end.serial.has_input());
        if line && legacy::is_heard() && console::is_quiet() { self.next.max(soon) } else { soon }
    }

    /// Stops those whose lease is over; takes what has come from the console for the monitor, and from the line.
    pub fn look(&mut self, facts: &Facts) {
        let (now, second) = (cpu::tsc(), facts.tsc.as_hertz());
        if now >= self.next {
            self.next = now.saturating_add(second);
            leases(facts, now);
            self.trace.look(second);
            self.lost.look(facts, now);
            lives::left_out(facts);
        }
        let mut host = Host(facts, &mut self.upload, &mut self.trace, &mut self.piece, &mut self.whole);
        if let Some(guest) = console::escaped() {
            self.monitor.set_focus(Some(guest));
            self.monitor.key(ESCAPE, &mut host, &mut Screen::default());
        }
        while let Some(byte) = console::monitor_input() {
            let literal = self.monitor.key(byte, &mut host, &mut Screen::default()).is_some();
            if let Some(guest) = self.monitor.focus() {
                // What is typed from now on is taken in the guest's own compartment.
                console::focus(guest, literal);
                self.monitor.set_focus(None);
            }
        }
        if console::prompt_is_due() {
            self.monitor.show(&mut Screen::default());
        }
        if let Some(end) = &mut self.line {
            end.look(&mut host, second);
        }
        host.1.look(facts, cpu::tsc());
    }
}

/// The hypervisor's end of the control line.
struct End {
    line: Line,
    serial: Serial,
    debt: Debt,
    /// When a client proved the key last.
    proved: Option<u64>,
}

impl End {
    fn look(&mut self, host: &mut Host<'_>, second: u64) {
        let now = cpu::tsc();
        if self.debt.pay(now) > second * PART / LOOK {
            return;
        }
        self.take(host, second);
        if let Some(refused) = self.line.report(now, second) {
            lives::event(host.0, GuestId::IDLE, EventKind::Refused(refused));
        }
    }

    /// Takes what has come, and what comes at once behind it.
    fn take(&mut self, host: &mut Host<'_>, second: u64) {
        let mut now = cpu::tsc();
        let end = now.saturating_add(second / LOOK);
        let mut until = now;
        while now < end {
            let byte = self.serial.receive();
            now = cpu::tsc();
            let Some(byte) = byte else {
                if now >= until {
                    break;
                }
                // An emulator needs its own time to bring the next bytes.
                let next = now.saturating_add(second / REST);
                while cpu::tsc() < next {
                    core::hint::spin_loop();
                }
                continue;
            };
            until = now.saturating_add(second / PAUSE);
            self.debt.byte(byte, now);
            let (answer, proved) = match self.line.receive(byte, now) {
                Step::Nothing => {
                    if byte == 0 {
                        self.debt.ended();
                    }
                    continue;
                }
                Step::Send(bytes) => (bytes, false),
                Step::Welcome(bytes) => {
                    // Who watches hangs up and comes again all the time.
                    let before = self.proved.replace(now);
                    if before.is_none_or(|before| now.saturating_sub(before) / second.max(1) >= QUIET) {
                        lives::event(host.0, GuestId::IDLE, EventKind::Session);
                    }
                    (bytes, true)
                }
                Step::Request(operation) => {
                    let response = host.perform(&operation, Source::Line);
                    (self.line.respond(&response), true)
                }
            };
            // Who does not take it asks again.
            let _ = answer.iter().all(|byte| self.serial.send(*byte));
            now = cpu::tsc();
            if proved {
                self.debt.proved(now, second / BYTE, second / PAUSE);
            } else {
                self.debt.answered(now, second / BYTE, second / PAUSE);
            }
        }
        self.debt.listen(now);
    }
}

/// Stops the guests whose lease is over.
fn leases(facts: &Facts, now: u64) {
    let _one = LIVES.lock();
    for (id, slot) in (1..).map(GuestId::new).zip(&SLOTS) {
        let until = slot.until.load(Ordering::Relaxed);
        if until <= now && slot.is_alive() {
            slot.until.store(u64::MAX, Ordering::Relaxed);
            lives::event(facts, id, EventKind::LeaseOver);
            order(facts, slot, Order::Kill);
        }
    }
}

/// The machine, as operations see it.
struct Host<'a>(&'a Facts, &'a mut Pending, &'a mut Trace, &'a mut Piece, &'a mut Whole);

impl Host<'_> {
    fn find(&self, text: &str) -> Result<(GuestId, &'static Slot), Refusal> {
        let named = |id: &GuestId| self.0.guest(*id).is_some_and(|guest| guest.name == text);
        let number = text.parse().ok().map(GuestId::new);
        let id = self.0.guests().find(named).or(number.filter(|id| self.0.guest(*id).is_some()));
        id.and_then(|id| slot(id).map(|slot| (id, slot))).ok_or(Refusal::NoGuest)
    }

    fn act(&mut self, text: &str, action: Action, by: Source) -> Result<bool, Refusal> {
        let facts = self.0;
        let (id, slot) = self.find(text)?;
        // For the others all processors rest, and one may wait for this before it does.
        let orders = matches!(action, Action::Kill | Action::Reset | Action::Pause | Action::Resume | Action::Nmi);
        let _one = orders.then(|| LIVES.lock());
        let state = shown(slot);
        let event = |kind| lives::event(facts, id, kind);
        match (action, slot.is_alive()) {
            (Action::Start, true) if state == bulkhead_control::State::Running => return Ok(false),
            (Action::Start, false) => lives::start(facts, id, by)?,
            (Action::Kill | Action::Stop, false) => return Ok(false),
            (Action::Kill, true) => {
                event(EventKind::Killed(by));
                order(facts, slot, Order::Kill);
            }
            // One that is to end, or whose lease is over, does not come again by it.
            (Action::Reset, true) if state == bulkhead_control::State::Running => {
                event(EventKind::Reset(by));
                *slot.reset_by.lock() = by;
                order(facts, slot, Order::Reset);
            }
            // It would never end.
            (Action::Pause, true) if state == bulkhead_control::State::Stopping => return Err(Refusal::Is(state)),
            (Action::Pause, true) if slot.paused.swap(true, Ordering::Relaxed) => return Ok(false),
            (Action::Pause, true) => {
                dispatch::hold(facts, slot, true);
                event(EventKind::Paused(by));
            }
            (Action::Resume, true) if !slot.paused.swap(false, Ordering::Relaxed) => return Ok(false),
            (Action::Resume, true) => {
                dispatch::hold(facts, slot, false);
                event(EventKind::Resumed(by));
            }
            (Action::Destroy, false) => lives::forget(facts, id, by)?,
            (Action::Dump, true) => dispatch::dump(facts, slot),
            (Action::Nmi, true) if state == bulkhead_control::State::Running => {
                // Its end, or another one, is on its way.
                if !order(facts, slot, Order::Nmi) {
                    return Ok(false);
                }
                event(EventKind::Injected(by));
            }
            (Action::Trace(on), _) => return Ok(self.2.set(id, on)),
            (Action::Stop, true) if state != bulkhead_control::State::Running => return Err(Refusal::Is(state)),
            (Action::Stop, true) if !dispatch::press(facts, slot) => return Err(Refusal::Deaf),
            (Action::Stop, true) => event(EventKind::Stopping(by)),
            _ => return Err(Refusal::Is(state)),
        }
        Ok(true)
    }

    fn write(&self, text: &str, bytes: &[u8]) -> Result<u16, Refusal> {
        let (_, slot) = self.find(text)?;
        let taken = if slot.is_alive() { parcel::write(self.0, slot, bytes) } else { None };
        let taken = taken.ok_or(Refusal::Is(shown(slot)))?;
        dispatch::call(slot);
        Ok(taken)
    }

    fn page<T>(&self, from: u16, item: impl Fn(GuestId, &Slot, &Entry) -> T) -> Page<T> {
        let mut page = Page::default();
        for id in self.0.guests().filter(|id| id.number() >= from) {
            let (Some(slot), Some(guest)) = (slot(id), self.0.guest(id)) else { continue };
            // Of the manifest, and destroyed: it can be started by its name.
            if slot.state() == State::Absent && guest.creator == Source::Manifest {
                continue;
            }
            if page.items.len() == PAGE {
                page.next = Some(id.number());
                break;
            }
            // There is room.
            let _ = page.items.push(item(id, slot, &guest));
        }
        page
    }

    fn guest(&self, id: GuestId, slot: &Slot, guest: &Entry) -> Guest {
        // What is none of the manifest's is the guest's own.
        let zone = self.0.manifest.zones.get(usize::from(guest.zone)).map_or(&guest.name, |zone| &zone.name);
        let started = slot.started.load(Ordering::Relaxed);
        let left = slot.until.load(Ordering::Relaxed).saturating_sub(cpu::tsc()).div_ceil(self.0.tsc.as_hertz());
        Guest {
            id: id.number(),
            name: name(&guest.name),
            zone: name(zone),
            state: shown(slot),
            vcpus: guest.vcpus,
            memory: guest.memory,
            origin: Some(guest.origin),
            creator: guest.creator,
            started: (started != 0).then(|| moment(self.0, started)),
            lease: (guest.lease != 0).then(|| if slot.is_alive() { left } else { guest.lease }),
        }
    }

    /// All pages are of the first one's moment, so that they add up.
    fn stats(&mut self, from: u16) -> Stats {
        if from == 0 {
            *self.4 = lives::whole(self.0);
        }
        let Whole { at, total, idle, own, ran } = &*self.4;
        let gone = SLOTS.iter().map(|slot| slot.past.lock().others).sum();
        let guests = self.page(from, |id, slot, guest| {
            let Account { usage, exits, bytes: [written, read], others } = lives::usage(self.0, slot);
            let exits = exits.iter().map(|(count, _)| count).sum();
            let memory = FRAMES.get().map_or(0, |frames| frames.lock().owned(id) * PAGE_SIZE);
            let used = ran.get(usize::from(lives::group(id))).map_or(0, |ran| ran.saturating_sub(others));
            let (stolen, waiting) = (usage.waiting, usage.blocked);
            Usage { id: id.number(), name: name(&guest.name), used, stolen, waiting, exits, memory, written, read }
        });
        Stats { at: moment(self.0, *at), total: *total, idle: *idle, own: *own, gone, guests }
    }
}

fn done(result: Result<bool, Refusal>) -> Response<'static> {
    match result {
        Ok(true) => Response::Done,
        Ok(false) => Response::Unchanged,
        Err(refusal) => Response::Refused(refusal),
    }
}

impl Machine for Host<'_> {
    fn perform(&mut self, operation: &Operation<'_>, by: Source) -> Response<'_> {
        match *operation {
            Operation::Version => Response::Version {
                version: env!("CARGO_PKG_VERSION"),
                backend: self.0.capabilities.name(),
                cpus: u16::try_from(ONLINE.load(Ordering::Relaxed)).unwrap_or(u16::MAX),
                hertz: self.0.tsc.as_hertz(),
            },
            Operation::List(from) => Response::Guests(self.page(from, |id, slot, guest| self.guest(id, slot, guest))),
            Operation::Act { guest, action } => match self.act(guest, action, by) {
                Ok(true) if action == Action::Stop => Response::Asked,
                result => done(result),
            },
            Operation::Stats(from) => Response::Stats(self.stats(from)),
            Operation::Events(from) => {
                Response::Events(EVENTS.get().map_or_else(Default::default, |events| events.lock().read(from)))
            }
            Operation::Memory(from) => Response::Memory(memory(from)),
            Operation::Audit => {
                dispatch::audit(self.0);
                let [tables, frames, violations] = audit::sums();
                Response::Audit { tables, frames, violations }
            }
            Operation::Create { bytes, sha256 } => sent(self.1.announce(bytes, &sha256)),
            Operation::Chunk { offset, bytes } => sent(self.1.take(offset, bytes)),
            Operation::Zeros { offset, count } => sent(self.1.take_zeros(offset, count)),
            Operation::Commit => match self.1.commit(self.0, by) {
                Ok(id) => Response::Created(id.number()),
                Err(refusal) => Response::Refused(refusal),
            },
            Operation::Exits(guest) => match self.find(guest) {
                Ok((id, _)) => Response::Exits(tally::exits(id)),
                Err(refusal) => Response::Refused(refusal),
            },
            Operation::Read { guest, from } => match self.find(guest) {
                Ok((_, slot)) => {
                    let at = parcel::read(self.0, slot, from, self.3);
                    Response::Output { at, bytes: self.3 }
                }
                Err(refusal) => Response::Refused(refusal),
            },
            Operation::Write { guest, bytes } => {
                self.write(guest, bytes).map_or_else(Response::Refused, Response::Taken)
            }
        }
    }
}

fn sent(result: Result<u64, Refusal>) -> Response<'static> {
    result.map_or_else(Response::Refused, Response::Send)
}

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap_or_default()
}

/// The moment at this count of the time-stamp counter.
pub fn moment(facts: &Facts, ticks: u64) -> Moment {
    let ms = facts.tsc.convert(ticks, Frequency::hertz(1000));
    Moment { ticks, unix_ms: facts.epoch.saturating_mul(1000).saturating_add(ms) }
}

fn shown(slot: &Slot) -> bulkhead_control::State {
    match slot.state() {
        _ if slot.is_alive() && matches!(slot.order(), Order::Kill) => bulkhead_control::State::Stopping,
        _ if slot.is_alive() && slot.paused.load(Ordering::Relaxed) => bulkhead_control::State::Paused,
        State::Alive | State::Remade => bulkhead_control::State::Running,
        State::Failed => bulkhead_control::State::Failed,
        State::Absent | State::Ended => bulkhead_control::State::Stopped,
    }
}

/// Ranges of frames with one owner, from the one with this number on.
fn memory(from: u16) -> Page<Memory> {
    let mut page = Page::default();
    let Some(frames) = FRAMES.get() else { return page };
    let frames = frames.lock();
    let mut number = 0_u16;
    let mut start = 0;
    while start < frames.len() {
        let (owner, end) = run(&frames, start);
        if owner != Owner::Absent {
            if number >= from {
                let mut text = heapless::String::new();
                // What does not fit is cut.
                let _ = core::fmt::Write::write_fmt(&mut text, format_args!("{owner}"));
                let range = Memory { start: start * PAGE_SIZE, bytes: (end - start) * PAGE_SIZE, owner: text };
                if page.items.push(range).is_err() {
                    page.next = Some(number);
                    return page;
                }
            }
            number = number.saturating_add(1);
        }
        start = end;
    }
    page
}

/// The owner of frame `start`, and the first frame behind it with another one.
fn run(frames: &FrameTable<'_>, start: u64) -> (Owner, u64) {
    let owner = frames.owner(Frame::new(start));
    let end = (start + 1..frames.len()).find(|frame| frames.owner(Frame::new(*frame)) != owner);
    (owner, end.unwrap_or_else(|| frames.len()))
}

/// Gives a guest an order, and the turn in which it obeys; whether it has it.
fn order(facts: &Facts, slot: &Slot, order: Order) -> bool {
    let given = slot.give(order);
    if slot.paused.swap(false, Ordering::Relaxed) {
        dispatch::hold(facts, slot, false);
    }
    dispatch::call(slot);
    given
}

/// Whether no guest is left that goes on.
pub fn all_ended() -> bool {
    !SLOTS.iter().any(Slot::is_alive)
}
