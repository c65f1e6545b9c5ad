//! The lives of guests: made, ended, made anew; where their time went.

use crate::dispatch::{call, sched_cpu};
use crate::guest;
use crate::log;
use crate::machine::{FRAMES, Facts, ONLINE, Order, Slot, State, slot};
use crate::operator::moment;
use crate::start::IDLE_SPACE;
use crate::task::{self, Task};
use bulkhead_control::bucket::Rate;
use bulkhead_control::event::Ring;
use bulkhead_control::{Ending, EventKind, Refusal, Source};
use bulkhead_hw::compartment::{BuildError, Compartment, Needs};
use bulkhead_hw::cpu;
use bulkhead_sched::{AddError, CpuSet, Outcome, Params, Reservation, Usage};
use bulkhead_types::manifest::{CpuTime, Guest};
use bulkhead_types::{Frequency, GuestId, MAX_TASKS, PAGE_SIZE, VcpuId};
use core::fmt;
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
    let (Some(slot), Some(guest)) = (slot(id), facts.guest(id)) else { return };
    let made = compartment(facts, id, guest).and_then(|made| tasks(facts, id, slot, guest, &made).map(|()| made));
    match made {
        Ok(made) => guest::hand_over(id, made),
        Err(error) => {
            log!("event guest {id} {} ended killed {error}", guest.name);
            dissolve(facts, id, slot);
            return slot.set_state(State::Failed);
        }
    }
    slot.left.store(u8::try_from(guest.vcpus).unwrap_or(1), Ordering::Relaxed);
    slot.started.store(cpu::tsc(), Ordering::Relaxed);
    (*slot.ending.lock(), *slot.spent.lock()) = (Ending::Failed, Usage::ZERO);
    event(facts, id, EventKind::Started(by));
    slot.set_state(State::Alive);
    call(facts, slot);
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

/// Makes a task for each vCPU, which waits.
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

/// Takes back tasks and frames of a guest whose compartment nobody enters any more; how many frames.
fn dissolve(facts: &Facts, id: GuestId, slot: &Slot) -> u64 {
    for vcpu in VcpuId::all(VcpuId::MOST) {
        if let Some(task) = slot.task(vcpu) {
            facts.scheduler.lock().remove(task.id(), cpu::tsc());
            slot.set_task(vcpu, None);
            task.give_back();
        }
    }
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
        group: id.number().wrapping_sub(1),
    }
}

/// A vCPU's turn, on this processor, was its last.
pub fn vcpu_ended(facts: &Facts, slot: &Slot, task: &Task) {
    let mut scheduler = facts.scheduler.lock();
    let now = cpu::tsc();
    let usage = scheduler.usage(task.id(), now);
    scheduler.yielded(sched_cpu(cpu::number()), now, Outcome::Gone);
    drop(scheduler);
    *slot.spent.lock() += usage.unwrap_or_default();
    task.set_state(task::State::Absent);
}

/// A guest's last vCPU has ended: says where its time went.
pub fn ended(facts: &Facts, id: GuestId, slot: &Slot) {
    let Usage { ran, waiting, blocked, .. } = *slot.spent.lock();
    log!("log guest {id} ticks: ran {ran} waited {waiting} slept {blocked}");
    slot.give(Order::None);
    slot.paused.store(false, Ordering::Relaxed);
    let ending = *slot.ending.lock();
    event(facts, id, EventKind::Ended(ending));
    let well = matches!(ending, Ending::PowerOff | Ending::Reset | Ending::TestExit(0) | Ending::Stopped);
    slot.set_state(if well { State::Ended } else { State::Failed });
}

/// Where the time of all of a guest's vCPUs went, up to now.
pub fn usage(facts: &Facts, slot: &Slot) -> Usage {
    let mut sum = *slot.spent.lock();
    for task in slot.tasks() {
        sum += facts.scheduler.lock().usage(task.id(), cpu::tsc()).unwrap_or_default();
    }
    sum
}

/// Takes all that a guest had back; it has ended, and nobody enters its compartment any more.
fn destroy(facts: &Facts, id: GuestId) {
    let (Some(slot), Some(guest)) = (slot(id), facts.guest(id)) else { return };
    let count = dissolve(facts, id, slot);
    slot.set_state(State::Absent);
    log!("event guest {id} {} destroyed frames={count}", guest.name);
}

/// Makes a guest anew that has ended, if it is to be.
pub fn restart(facts: &Facts, id: GuestId) {
    let (Some(slot), Some(guest)) = (slot(id), facts.guest(id)) else { return };
    let _one = LIVES.lock();
    // An operator may have been faster.
    if matches!(slot.state(), State::Alive | State::Absent) {
        return;
    }
    if slot.again.swap(false, Ordering::Relaxed) || slot.restarts.fetch_add(1, Ordering::Relaxed) < guest.restarts {
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
        State::Alive => return Err(Refusal::Is(bulkhead_control::State::Running)),
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
    match slot.state() {
        State::Absent => return Err(Refusal::NoGuest),
        State::Ended | State::Failed => destroy(facts, id),
        State::Alive => return Err(Refusal::Is(bulkhead_control::State::Running)),
    }
    event(facts, id, EventKind::Destroyed(by));
    Ok(())
}

/// Writes down what happened.
pub fn event(facts: &Facts, id: GuestId, kind: EventKind) {
    let Some(events) = EVENTS.get() else { return };
    let name = facts.guest(id).map_or("", |guest| &guest.name);
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
