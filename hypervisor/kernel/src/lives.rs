//! The lives of guests: made, ended, made anew; where their time went.

use crate::console::Log;
use crate::dispatch::{call, hold, sched_cpu};
use crate::entries;
use crate::guest;
use crate::log;
use crate::machine::{Account, CPUS, FRAMES, Facts, NO_ZONE, ONLINE, Order, Slot, State, slot};
use crate::operator::moment;
use crate::start::IDLE_SPACE;
use crate::tally;
use crate::task::{self, Task};
use bulkhead_control::bucket::Rate;
use bulkhead_control::event::Ring;
use bulkhead_control::{Ending, EventKind, Name, Refusal, Source};
use bulkhead_core::frames::Owner;
use bulkhead_hw::compartment::{BuildError, Compartment, Needs};
use bulkhead_hw::cpu;
use bulkhead_sched::{AddError, CpuSet, CpuUsage, Outcome, Params, Reservation, Usage};
use bulkhead_types::manifest::{CpuTime, Guest, MAX_GUESTS};
use bulkhead_types::{Frequency, GuestId, MAX_TASKS, PAGE_SIZE, VcpuId};
use core::fmt::{self, Write as _};
use core::sync::atomic::Ordering;
use spin::{Mutex, Once};

/// Events that a guest may bring about at once; then one a second.
const EVENTS_AT_ONCE: u32 = 16;
/// What happened last.
pub static EVENTS: Once<Mutex<Ring>> = Once::new();

/// Makes room for events; called at start-up.
pub fn prepare(tsc: Frequency) {
    let rate = Rate { burst: EVENTS_AT_ONCE, ticks: tsc.as_hertz() };
    EVENTS.call_once(|| Mutex::new(Ring::new(rate)));
}

/// Held by whoever gives a guest an order, says whether it has ended for good, makes it or destroys it: an order comes before
/// its end or behind it, and is obeyed, kept, or refused.
pub static LIVES: Mutex<()> = Mutex::new(());

/// Makes a guest's compartment, and lets it run; the guest itself is made in there, at its first turn.
pub fn create(facts: &Facts, id: GuestId, by: Source) {
    let (Some(slot), Some(guest)) = (slot(id), facts.guest(id)) else { return };
    let made = compartment(facts, id, &guest).and_then(|made| tasks(facts, id, slot, &guest, &made).map(|()| made));
    match made {
        Ok(made) => guest::hand_over(id, made),
        Err(error) => {
            log!("event guest {id} {} ended killed {error}", guest.name);
            dissolve(facts, id, slot);
            return failed(facts, id, slot);
        }
    }
    slot.left.store(u8::try_from(guest.vcpus).unwrap_or(1), Ordering::Relaxed);
    slot.zone.store(guest.zone, Ordering::Relaxed);
    *slot.name.lock() = Name::try_from(guest.name.as_str()).unwrap_or_default();
    let now = cpu::tsc();
    slot.started.store(now, Ordering::Relaxed);
    let lease = (guest.lease != 0).then(|| facts.tsc.as_hertz().saturating_mul(guest.lease));
    slot.until.store(lease.map_or(u64::MAX, |lease| now.saturating_add(lease)), Ordering::Relaxed);
    *slot.ending.lock() = Ending::Failed;
    slot.asked.store(false, Ordering::Relaxed);
    event(facts, id, EventKind::Started(by));
    slot.set_state(State::Alive);
    // All is there: from now on others wake them, which do not wait for this processor.
    slot.tasks().for_each(|task| task.set_state(task::State::Waiting));
    // An operator may have wanted that while it was made.
    if slot.paused.load(Ordering::Relaxed) {
        hold(facts, slot, true);
    }
    call(slot);
}

/// A guest does not come to life.
fn failed(facts: &Facts, id: GuestId, slot: &Slot) {
    facts.scheduler.lock().retire(group(id));
    slot.set_state(State::Failed);
    event(facts, id, EventKind::Ended(Ending::Failed));
}

/// Why a guest does not come to life.
enum CreateError {
    Build(BuildError),
    Schedule(AddError),
    Tasks,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(error) => write!(f, "no compartment: {error}"),
            Self::Schedule(error) => write!(f, "not scheduled: {error}"),
            Self::Tasks => write!(f, "not scheduled: the machine has {MAX_TASKS} vCPUs already"),
        }
    }
}

fn compartment(facts: &Facts, id: GuestId, guest: &Guest) -> Result<Compartment, CreateError> {
    let images = guest.modules.iter().map(|module| module.image).chain([guest.kernel]);
    let images = images.map(|image| image.bytes.next_multiple_of(PAGE_SIZE)).sum();
    let (stacks, processors) = (guest.vcpus.into(), ONLINE.load(Ordering::Relaxed));
    let needs = Needs { memory: guest.memory, lazy: guest.lazy, images, stacks, processors };
    let program = (facts.program)(&facts.capabilities);
    let (Some(frames), Some(idle)) = (FRAMES.get(), &mut *IDLE_SPACE.lock()) else { return Err(CreateError::Tasks) };
    idle.build_for(id, &mut frames.lock(), &facts.shared, &needs, program).map_err(CreateError::Build)
}

/// Makes a task for each vCPU.
fn tasks(facts: &Facts, id: GuestId, slot: &Slot, guest: &Guest, made: &Compartment) -> Result<(), CreateError> {
    let params = params(facts, id, guest);
    for vcpu in VcpuId::all(u8::try_from(guest.vcpus).unwrap_or(1)) {
        let task = Task::take(id, vcpu).ok_or(CreateError::Tasks)?;
        slot.set_task(vcpu, Some(task));
        task.context.set(made, vcpu.index());
        facts.scheduler.lock().add(task.id(), params, cpu::tsc()).map_err(CreateError::Schedule)?;
    }
    Ok(())
}

/// Takes back tasks and frames of a guest whose compartment nobody enters any more; how many frames. What it used is one of
/// its past lives' from then on.
fn dissolve(facts: &Facts, id: GuestId, slot: &Slot) -> u64 {
    let mut past = slot.past.lock();
    *past = account(facts, slot, &past);
    *slot.spent.lock() = Usage::ZERO;
    for vcpu in VcpuId::all(VcpuId::MOST) {
        if let Some(task) = slot.task(vcpu) {
            facts.scheduler.lock().remove(task.id(), cpu::tsc());
            slot.set_task(vcpu, None);
            task.give_back();
        }
    }
    slot.before.fetch_add(slot.written.load(Ordering::Relaxed), Ordering::Relaxed);
    for count in [&slot.started, &slot.written, &slot.read, &slot.lost, &slot.dropped] {
        count.store(0, Ordering::Relaxed);
    }
    drop(past);
    FRAMES.get().map_or(0, |frames| frames.lock().reclaim(id))
}

fn params(facts: &Facts, id: GuestId, guest: &Guest) -> Params {
    let CpuTime { share, cap, burst, period, budget, cpus } = guest.cpu;
    let ticks = |microseconds: u64| {
        let ticks = u128::from(microseconds) * u128::from(facts.tsc.as_hertz()) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    };
    Params {
        share,
        cap: (cap != 0).then_some(cap),
        burst: ticks(burst),
        reservation: (period != 0).then(|| Reservation { period: ticks(period).max(1), budget: ticks(budget).max(1) }),
        cpus: if cpus == 0 { CpuSet::ALL } else { CpuSet(cpus) },
        zone: guest.zone,
        group: group(id),
    }
}

/// The guest, as the scheduler knows it.
pub fn group(id: GuestId) -> u16 {
    id.number().wrapping_sub(1)
}

/// A vCPU's turn, on this processor, was its last.
pub fn vcpu_ended(facts: &Facts, slot: &Slot, task: &Task) {
    let mut scheduler = facts.scheduler.lock();
    let now = cpu::tsc();
    // Who adds up finds it in one of the two.
    *slot.spent.lock() += scheduler.usage(task.id(), now).unwrap_or_default();
    scheduler.yielded(sched_cpu(cpu::number()), now, Outcome::Gone);
    drop(scheduler);
    task.set_state(task::State::Absent);
}

/// A guest's last vCPU has ended: says where its time went. On whose behalf it is to be made anew, if it is.
pub fn ended(facts: &Facts, id: GuestId, slot: &Slot) -> Option<Source> {
    let Usage { ran, waiting, blocked, .. } = *slot.spent.lock();
    log!("log guest {id} ticks: ran {ran} waited {waiting} slept {blocked}");
    let _one = LIVES.lock();
    let ending = *slot.ending.lock();
    let well = matches!(ending, Ending::PowerOff | Ending::Reset | Ending::TestExit(0) | Ending::Stopped);
    let restarts = facts.guest(id).map_or(0, |guest| guest.restarts);
    // What an operator, or its lease, has stopped stays so; what was asked to stop, too. The last order counts, whether it has
    // ended by it or before.
    let asked = slot.asked.load(Ordering::Relaxed) && ending == Ending::PowerOff;
    let order = slot.take_order();
    let stopped = asked || order == Order::Kill || ending == Ending::Stopped;
    let by = match order {
        Order::Reset => Some(*slot.reset_by.lock()),
        _ if stopped || slot.restarts.fetch_add(1, Ordering::Relaxed) >= restarts => None,
        _ => Some(Source::Manifest),
    };
    let again = by.is_some();
    tell(facts, id, EventKind::Ended(ending), by == Some(Source::Manifest));
    if !again {
        facts.scheduler.lock().retire(group(id));
    }
    // One that is paused in the turn in which it ends stays so when it is made anew.
    slot.paused.fetch_and(again, Ordering::Relaxed);
    slot.set_state(match (again, well) {
        (true, _) => State::Remade,
        (false, true) => State::Ended,
        (false, false) => State::Failed,
    });
    by
}

/// What a guest used since it was made, up to now; but not what it ran, which [`whole`] tells of all.
pub fn usage(facts: &Facts, slot: &Slot) -> Account {
    account(facts, slot, &slot.past.lock())
}

/// The same of the lives that are over and the one that is not.
fn account(facts: &Facts, slot: &Slot, past: &Account) -> Account {
    let mut all = Account { exits: tally::sums(slot, past), ..*past };
    all.bytes.iter_mut().zip(slot.bytes()).for_each(|(sum, more)| *sum = sum.saturating_add(more));
    let mut scheduler = facts.scheduler.lock();
    all.usage += *slot.spent.lock();
    for task in slot.tasks() {
        all.usage += scheduler.usage(task.id(), cpu::tsc()).unwrap_or_default();
    }
    all
}

/// Takes all that a guest had back; it has ended, and nobody enters its compartment any more.
fn destroy(facts: &Facts, id: GuestId) {
    let (Some(slot), Some(guest)) = (slot(id), facts.guest(id)) else { return };
    let count = dissolve(facts, id, slot);
    if slot.state() != State::Remade {
        slot.set_state(State::Absent);
    }
    // One that was never started had nothing.
    if count != 0 {
        log!("event guest {id} {} destroyed frames={count}", guest.name);
    }
}

/// Makes a guest anew whose state is [`State::Remade`], which nobody else changes. Its lease goes on.
pub fn remake(facts: &Facts, id: GuestId, by: Source) {
    let _one = LIVES.lock();
    let Some(slot) = slot(id) else { return };
    let until = slot.until.load(Ordering::Relaxed);
    destroy(facts, id);
    create(facts, id, by);
    slot.until.store(until, Ordering::Relaxed);
}

/// Makes a guest, or makes it anew, that an operator wants.
///
/// # Errors
/// If it was made before that, or there is no room.
pub fn start(facts: &Facts, id: GuestId, by: Source) -> Result<(), Refusal> {
    let slot = slot(id).ok_or(Refusal::NoGuest)?;
    let _one = LIVES.lock();
    match slot.state() {
        State::Absent => {}
        State::Ended | State::Failed => destroy(facts, id),
        State::Alive | State::Remade => return Err(Refusal::Is(bulkhead_control::State::Running)),
    }
    // One that came when it had ended was for its former life.
    slot.take_order();
    // Its RAM is taken at its first turn, when only an event can tell: that is so if others take it first, or if it is in
    // pieces too small.
    let wanted = facts.guest(id).map_or(0, |guest| guest.memory / PAGE_SIZE);
    if FRAMES.get().is_none_or(|frames| frames.lock().free() < wanted) {
        failed(facts, id, slot);
        return Err(Refusal::NoRoom);
    }
    create(facts, id, by);
    if slot.state() == State::Failed { Err(Refusal::NoRoom) } else { Ok(()) }
}

/// Takes back all that a guest had that has ended.
///
/// # Errors
/// If it has been made anew.
pub fn forget(facts: &Facts, id: GuestId, by: Source) -> Result<(), Refusal> {
    let slot = slot(id).ok_or(Refusal::NoGuest)?;
    let _one = LIVES.lock();
    let entry = facts.guest(id).ok_or(Refusal::NoGuest)?;
    match slot.state() {
        State::Absent if entry.creator == Source::Manifest => return Err(Refusal::NoGuest),
        State::Absent => {}
        State::Ended | State::Failed => destroy(facts, id),
        State::Alive | State::Remade => return Err(Refusal::Is(bulkhead_control::State::Running)),
    }
    event(facts, id, EventKind::Destroyed(by));
    slot.restarts.store(0, Ordering::Relaxed);
    let others = facts.scheduler.lock().ran(group(id));
    *slot.past.lock() = Account { others, ..Account::NONE };
    let Some(_) = entries::remove(id) else { return Ok(()) };
    // The next one with its number has its zone's number, too.
    let zone = slot.zone.load(Ordering::Relaxed);
    for cpu in &CPUS {
        let _ = cpu.zone.compare_exchange(zone, NO_ZONE, Ordering::Relaxed, Ordering::Relaxed);
    }
    slot.before.store(0, Ordering::Relaxed);
    if let (Some((first, count)), Some(frames)) = (entry.frames, FRAMES.get())
        && let Err(error) = frames.lock().mark(first, count, Owner::Free)
    {
        log!("event guest {id} images lost: {error}");
    }
    Ok(())
}

/// Writes down what happened.
pub fn event(facts: &Facts, id: GuestId, kind: EventKind) {
    let often = matches!(kind, EventKind::Started(Source::Manifest) | EventKind::Session | EventKind::ConsoleLost(_));
    tell(facts, id, kind, often);
}

/// Tells of the guests whose events were left out that they were.
pub fn left_out(facts: &Facts) {
    let Some(events) = EVENTS.get() else { return };
    let at = moment(facts, cpu::tsc());
    for id in core::iter::once(GuestId::IDLE).chain(facts.guests()) {
        let guest = facts.guest(id);
        events.lock().tell(at, id.number(), guest.as_ref().map_or("", |guest| &guest.name));
    }
}

/// Writes down what happened, unless it is one of `many`: what a guest, or a client, can bring about often is limited.
fn tell(facts: &Facts, id: GuestId, kind: EventKind, many: bool) {
    let Some(events) = EVENTS.get() else { return };
    let guest = facts.guest(id);
    let name = guest.as_ref().map_or("", |guest| &guest.name);
    let at = moment(facts, cpu::tsc());
    let mut events = events.lock();
    if many {
        events.push_limited(at, id.number(), name, kind);
    } else {
        events.push(at, id.number(), name, kind);
    }
}

/// Where the time of all processors went, up to a moment.
pub struct Whole {
    /// Count of the time-stamp counter.
    pub at: u64,
    /// All ticks.
    pub total: u64,
    /// Those that nobody had.
    pub idle: u64,
    /// The hypervisor's.
    pub own: u64,
    /// What each guest ran, with those that had its number before, and what was charged to it.
    pub ran: [u64; MAX_GUESTS],
}

impl Whole {
    /// None.
    pub const NONE: Self = Self { at: 0, total: 0, idle: 0, own: 0, ran: [0; MAX_GUESTS] };
}

/// Where the time of all processors went up to now.
pub fn whole(facts: &Facts) -> Whole {
    let mut scheduler = facts.scheduler.lock();
    let mut whole = Whole { at: cpu::tsc(), ..Whole::NONE };
    for number in 0..ONLINE.load(Ordering::Relaxed) {
        let CpuUsage { ran, idle, own } = scheduler.cpu_usage(sched_cpu(number), whole.at).unwrap_or_default();
        (whole.idle, whole.own) = (whole.idle + idle, whole.own + own);
        whole.total += ran + idle + own;
    }
    (1..).map(GuestId::new).zip(&mut whole.ran).for_each(|(id, ran)| *ran = scheduler.ran(group(id)));
    whole
}

/// What was written down so far: how often, and up to where.
static TOLD: Mutex<(u64, Whole)> = Mutex::new((0, Whole::NONE));

/// Writes down where the time of all processors went since this was done last.
pub fn minute(facts: &Facts) {
    let (minutes, told) = &mut *TOLD.lock();
    let now = whole(facts);
    let mut log = Log::open();
    let _ = write!(log, "log minute {minutes} ticks: idle {} own {}", now.idle - told.idle, now.own - told.own);
    for (number, (now, before)) in (1..).zip(now.ran.iter().zip(&told.ran)).filter(|(_, (now, before))| now != before) {
        let _ = write!(log, " guest {number} {}", now - before);
    }
    let _ = writeln!(log);
    (*minutes, *told) = (*minutes + 1, now);
}

/// Where the processors' time went, and how much memory is free.
pub fn report(facts: &Facts) {
    minute(facts);
    for (number, processor) in CPUS.iter().enumerate().take(ONLINE.load(Ordering::Relaxed)) {
        let mut scheduler = facts.scheduler.lock();
        let now = cpu::tsc();
        let usage = scheduler.cpu_usage(sched_cpu(number), now);
        drop(scheduler);
        if let Some(CpuUsage { ran, idle, own }) = usage {
            let all = now.saturating_sub(processor.since.load(Ordering::Relaxed));
            log!("log processor {number} ticks: ran {ran} idle {idle} own {own} of {all}");
            log!("log {} times processor {number} had nothing to do", processor.halts.load(Ordering::Relaxed));
        }
    }
    if let Some(frames) = FRAMES.get() {
        let free = frames.lock().free();
        log!("log {free} frames are free");
    }
}
