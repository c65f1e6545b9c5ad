//! The idle compartment: gives the guests their turns, waits when there is nothing to do.
//!
//! Every processor executes this, each on a stack of its own. Who runs where and for how long, the scheduler says; it is
//! asked under one lock, between turns, and never while an exit is served. A turn is a switch to the guest's compartment and back. With
//! one processor a guest's registers stay in it when the turn is over, and leave it only when another guest's turn has come
//! ([`Command::Park`]): a guest alone never pays for a switch. With several they leave it with the turn, since any
//! processor may give the next one.
//!
//! No wake-up is lost: a guest's state becomes [`State::Waiting`] when the scheduler knows that it is blocked, and whoever
//! changes it back, which only one can, wakes it there. The processor that it ran on last keeps its time.

use crate::audit;
use crate::console;
use crate::lives;
use crate::log;
use crate::machine::{CPUS, Command, FACTS, Facts, NO_ZONE, Order, SLOTS, Slot, State, slot, this_cpu};
use crate::operator::{Operator, all_ended};
use crate::processors::{self, quiet};
use crate::start::IDLE_SPACE;
use bulkhead_control::{EventKind, Source};
use bulkhead_hw::{apic, barrier, cpu, serial};
use bulkhead_sched::{Cpu, Outcome, Scheduler, TaskId};
use bulkhead_types::manifest::MAX_GUESTS;
use bulkhead_types::{Barriers, Frequency, GuestId, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// Slices in a second; as often the first processor looks at the console.
const SLICES_PER_SECOND: u64 = 100;

/// Slices that a processor goes without a look at what others want of it, if they could not kick it.
const LONGEST: u64 = 10;

/// Times that a CPU went from one zone to another.
pub static CROSSINGS: AtomicU64 = AtomicU64::new(0);
/// Who runs where.
pub type Schedule = Scheduler<MAX_GUESTS, MAX_CPUS>;

/// The scheduler of a machine whose counter runs at this rate.
pub fn schedule(tsc: Frequency) -> Mutex<Schedule> {
    Mutex::new(Scheduler::new(tsc.as_hertz() / SLICES_PER_SECOND))
}

/// What the first processor executes in the idle compartment.
pub extern "C" fn main() -> ! {
    let Some(facts) = FACTS.get() else { cpu::stop() };
    processors::start(facts);
    for id in facts.guests() {
        lives::create(facts, id, Source::Manifest);
    }
    processors::release();
    serve(facts)
}

/// A processor of the scheduler's.
pub fn sched_cpu(number: usize) -> Cpu {
    Cpu(u16::try_from(number).unwrap_or(0))
}

/// The guest's vCPU, as the scheduler knows it.
pub fn task(id: GuestId) -> TaskId {
    TaskId(id.number().wrapping_sub(1))
}

/// Gives turns until all guests have ended.
pub fn serve(facts: &Facts) -> ! {
    let me = cpu::number();
    let slice = facts.tsc.as_hertz() / SLICES_PER_SECOND;
    let mut operator = (me == 0).then(|| Operator::new(facts));
    loop {
        // What came while a guest ran ended its turn or waits until here.
        cpu::take_interrupts();
        processors::rest();
        wake(facts, cpu::tsc());
        if let Some(operator) = &mut operator {
            operator.look(facts);
        }
        let now = cpu::tsc();
        let decision = facts.scheduler.lock().pick(sched_cpu(me), now);
        kick(decision.kick);
        // Those that this processor wakes; the console, which the first one looks at; a kick that did not come through.
        let look = now.saturating_add(if me == 0 { slice } else { LONGEST * slice });
        let until = decision.until.min(first_wake(me)).min(look);
        match decision.task {
            Some(TaskId(index)) => turn(facts, GuestId::new(index.wrapping_add(1)), me, until),
            None if operator.as_ref().is_some_and(|operator| !operator.has_line()) && all_ended() => finish(facts),
            None => wait(until),
        }
    }
}

/// Ends the machine: all guests have ended.
fn finish(facts: &Facts) -> ! {
    audit(facts);
    lives::report(facts);
    log!("event machine done");
    serial::Serial::again().flush();
    cpu::stop()
}

/// Keeps a guest off all processors, or no more.
pub fn hold(facts: &Facts, id: GuestId, hold: bool) {
    let mut scheduler = facts.scheduler.lock();
    let now = cpu::tsc();
    let which = if hold { scheduler.pause(task(id), now) } else { scheduler.resume(task(id), now) };
    drop(scheduler);
    kick(which);
}

/// Audits everything, while no guest runs.
pub fn audit(facts: &Facts) {
    quiet(|| {
        if let Some(idle) = &*IDLE_SPACE.lock() {
            audit::audit_all(facts, idle);
        }
    });
}

/// Makes another processor ask the scheduler again.
pub fn kick(which: Option<Cpu>) {
    if let Some(Cpu(number)) = which
        && usize::from(number) != cpu::number()
        && let Some(other) = CPUS.get(usize::from(number))
    {
        apic::kick(other.apic.load(Ordering::Relaxed));
    }
}

/// Lets a guest run that waits.
pub fn wake_one(facts: &Facts, id: GuestId, slot: &Slot) {
    if slot.change(State::Waiting, State::Ready) {
        let which = facts.scheduler.lock().wake(task(id), cpu::tsc());
        kick(which);
    }
}

/// Lets those run whose time has come, and the one that input came for, which the first processor looks for.
fn wake(facts: &Facts, now: u64) {
    let me = cpu::number();
    for (id, slot) in (1..).map(GuestId::new).zip(&SLOTS) {
        if slot.is_due(me) <= now {
            wake_one(facts, id, slot);
        }
    }
    if me != 0 {
        return;
    }
    let Some(id) = console::input_for() else { return };
    match slot(id) {
        Some(slot) if slot.state() == State::Waiting => wake_one(facts, id, slot),
        // It looks at its turn's begin.
        Some(slot) if slot.state() == State::Ready => kick(Some(sched_cpu(slot.cpu.load(Ordering::Relaxed)))),
        _ => console::drop_input(),
    }
}

/// When the first guest wants to run again that processor `me` is to wake.
fn first_wake(me: usize) -> u64 {
    SLOTS.iter().map(|slot| slot.is_due(me)).min().unwrap_or(u64::MAX)
}

fn turn(facts: &Facts, id: GuestId, me: usize, until: u64) {
    let Some(slot) = slot(id) else { return };
    park_unless(id);
    enter_zone(facts, id);
    slot.cpu.store(me, Ordering::Relaxed);
    slot.wake.store(until, Ordering::Relaxed);
    slot.enter(id, Command::Run);
    let (next, now) = (slot.next(), cpu::tsc());
    let outcome = match next {
        State::Ready => Outcome::Ready,
        State::Waiting => Outcome::Blocked,
        _ => return over(facts, id, slot, next),
    };
    facts.scheduler.lock().yielded(sched_cpu(me), now, outcome);
    slot.set_state(next);
}

/// The guest has ended.
fn over(facts: &Facts, id: GuestId, slot: &Slot, how: State) {
    lives::ended(facts, id);
    slot.give(Order::None);
    slot.paused.store(false, Ordering::Relaxed);
    lives::event(facts, id, EventKind::Ended(*slot.ending.lock()));
    slot.set_state(how);
    // The audit after the last one's end is that at the machine's.
    if facts.manifest.audit && SLOTS.iter().any(|slot| slot.state().goes_on()) {
        audit(facts);
    }
    lives::restart(facts, id);
}

/// Puts the barriers between the guest that runs next and what ran before, unless that was of the same zone.
fn enter_zone(facts: &Facts, id: GuestId) {
    let zone = facts.guest(id).map_or(NO_ZONE, |guest| guest.zone);
    let left = this_cpu().zone.swap(zone, Ordering::Relaxed);
    if left == zone {
        return;
    }
    CROSSINGS.fetch_add(1, Ordering::Relaxed);
    // What has no zone is guarded as one that wants everything.
    let wants = |zone: u16| facts.manifest.zones.get(usize::from(zone)).map_or(Barriers::ALL, |zone| zone.barriers);
    #[expect(unsafe_code, reason = "here what start-up found meets the instructions")]
    // SAFETY: start-up probed a CPU that has the same (`processors::start`).
    unsafe {
        barrier::obey(facts.barriers.between(wants(left), wants(zone)));
    }
}

/// Makes this processor's next turn one of another zone than what ran before it.
pub fn leave_zone() {
    this_cpu().zone.store(NO_ZONE, Ordering::Relaxed);
}

/// Takes the registers of whoever has them in the CPU out of it, unless that is `id`.
pub fn park_unless(id: GuestId) {
    let loaded = this_cpu().loaded.load(Ordering::Relaxed);
    if loaded != 0 && loaded != id.number() {
        let loaded = GuestId::new(loaded);
        if let Some(slot) = slot(loaded) {
            slot.enter(loaded, Command::Park);
        }
    }
}

/// Waits until there may be something to do.
fn wait(until: u64) {
    if apic::has_timer() {
        apic::set_deadline(if until == u64::MAX { 0 } else { until });
        cpu::halt_until_interrupt();
    } else {
        while cpu::tsc() < until {
            core::hint::spin_loop();
        }
    }
}
