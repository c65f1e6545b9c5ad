//! The lives of guests: made, ended, made anew; where their time went.

use crate::dispatch::{kick, sched_cpu, task};
use crate::entries;
use crate::guest;
use crate::log;
use crate::machine::{FRAMES, Facts, ONLINE, State, slot};
use crate::operator::moment;
use crate::start::IDLE_SPACE;
use crate::tally;
use bulkhead_control::bucket::Rate;
use bulkhead_control::event::Ring;
use bulkhead_control::{Ending, EventKind, Refusal, Source};
use bulkhead_core::frames::Owner;
use bulkhead_hw::compartment::Needs;
use bulkhead_hw::cpu;
use bulkhead_sched::{CpuSet, Outcome, Params, Reservation};
use bulkhead_types::manifest::{CpuTime, Guest};
use bulkhead_types::{Frequency, GuestId, PAGE_SIZE};
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

/// Held by whoever makes or destroys a guest that has ended.
static LIVES: Mutex<()> = Mutex::new(());

/// Makes a guest's compartment, and lets it run; the guest itself is made in there, at its first turn.
pub fn create(facts: &Facts, id: GuestId, by: Source) {
    let (Some(slot), Some(frames), Some(guest)) = (slot(id), FRAMES.get(), facts.guest(id)) else { return };
    let images = guest.modules.iter().map(|module| module.image).chain([guest.kernel]);
    let images = images.map(|image| image.bytes.next_multiple_of(PAGE_SIZE)).sum();
    let needs =
        Needs { memory: guest.memory, lazy: guest.lazy, images, stacks: 1, processors: ONLINE.load(Ordering::Relaxed) };
    let program = (facts.program)(&facts.capabilities);
    let mut idle = IDLE_SPACE.lock();
    let Some(idle) = &mut *idle else { return };
    let made = match idle.build_for(id, &mut frames.lock(), &facts.shared, &needs, program) {
        Ok(made) => made,
        Err(error) => {
            log!("event guest {id} {} ended killed no compartment: {error}", guest.name);
            frames.lock().reclaim(id);
            return slot.set_state(State::Failed);
        }
    };
    slot.context.set(&made, 0);
    guest::hand_over(id, made);
    let mut scheduler = facts.scheduler.lock();
    let now = cpu::tsc();
    if let Err(error) = scheduler.add(task(id), params(facts, id, &guest), now) {
        drop(scheduler);
        log!("event guest {id} {} ended killed not scheduled: {error}", guest.name);
        return slot.set_state(State::Failed);
    }
    slot.started.store(now, Ordering::Relaxed);
    let lease = (guest.lease != 0).then(|| facts.tsc.as_hertz().saturating_mul(guest.lease));
    slot.until.store(lease.map_or(u64::MAX, |lease| now.saturating_add(lease)), Ordering::Relaxed);
    event(facts, id, EventKind::Started(by));
    slot.set_state(State::Ready);
    let which = scheduler.wake(task(id), now);
    drop(scheduler);
    kick(which);
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
        group: task(id).0,
    }
}

/// A guest's turn, on this processor, was its last: says where its time went.
pub fn ended(facts: &Facts, id: GuestId) {
    let mut scheduler = facts.scheduler.lock();
    let now = cpu::tsc();
    let usage = scheduler.usage(task(id), now);
    scheduler.yielded(sched_cpu(cpu::number()), now, Outcome::Gone);
    drop(scheduler);
    if let Some(usage) = usage {
        log!("log guest {id} ticks: ran {} waited {} slept {}", usage.ran, usage.waiting, usage.blocked);
    }
}

/// Takes all that a guest had back; it has ended, and nobody enters its compartment any more.
fn destroy(facts: &Facts, id: GuestId) {
    let (Some(slot), Some(frames), Some(guest)) = (slot(id), FRAMES.get(), facts.guest(id)) else { return };
    slot.context.clear();
    let count = frames.lock().reclaim(id);
    slot.set_state(State::Absent);
    // One that was never started had nothing.
    if count != 0 {
        log!("event guest {id} {} destroyed frames={count}", guest.name);
    }
    tally::clear(id);
    for count in [&slot.started, &slot.exits, &slot.written, &slot.read] {
        count.store(0, Ordering::Relaxed);
    }
}

/// Makes a guest anew that has ended, if it is to be.
pub fn restart(facts: &Facts, id: GuestId) {
    let (Some(slot), Some(guest)) = (slot(id), facts.guest(id)) else { return };
    let _one = LIVES.lock();
    // An operator may have been faster.
    if slot.state().goes_on() || slot.state() == State::Absent {
        return;
    }
    // What an operator, or its lease, has stopped stays so.
    let stopped = *slot.ending.lock() == Ending::Stopped;
    if slot.again.swap(false, Ordering::Relaxed)
        || !stopped && slot.restarts.fetch_add(1, Ordering::Relaxed) < guest.restarts
    {
        destroy(facts, id);
        create(facts, id, Source::Manifest);
    }
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
        State::Ready | State::Waiting => return Err(Refusal::Is(bulkhead_control::State::Running)),
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
        State::Ready | State::Waiting => return Err(Refusal::Is(bulkhead_control::State::Running)),
    }
    event(facts, id, EventKind::Destroyed(by));
    slot.restarts.store(0, Ordering::Relaxed);
    if let (Some(_), Some((first, count)), Some(frames)) = (entries::remove(id), entry.frames, FRAMES.get())
        && let Err(error) = frames.lock().mark(first, count, Owner::Free)
    {
        log!("event guest {id} images lost: {error}");
    }
    Ok(())
}

/// Writes down what happened.
pub fn event(facts: &Facts, id: GuestId, kind: EventKind) {
    let Some(events) = EVENTS.get() else { return };
    let guest = facts.guest(id);
    let name = guest.as_ref().map_or("", |guest| &guest.name);
    let at = moment(facts, cpu::tsc());
    let mut events = events.lock();
    // What a guest, or a client, can bring about often.
    if matches!(kind, EventKind::Ended(_) | EventKind::Started(Source::Manifest) | EventKind::Session) {
        events.push_limited(at, id.number(), name, kind);
    } else {
        events.push(at, id.number(), name, kind);
    }
}

/// Where the processors' time went, and how much memory is free.
pub fn report(facts: &Facts) {
    for number in 0..ONLINE.load(Ordering::Relaxed) {
        let usage = facts.scheduler.lock().cpu_usage(sched_cpu(number), cpu::tsc());
        if let Some(usage) = usage {
            log!("log processor {number} ticks: ran {} idle {}", usage.ran, usage.idle);
        }
    }
    if let Some(frames) = FRAMES.get() {
        let free = frames.lock().free();
        log!("log {free} frames are free");
    }
}
