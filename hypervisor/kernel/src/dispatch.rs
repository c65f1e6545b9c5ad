//! The idle compartment: gives the guests their turns, waits when there is nothing to do.
//!
//! Every processor executes this, each on a stack of its own. Who runs where and for how long, the scheduler says; it is
//! asked under one lock, between turns, and never while an exit is served. A turn is a switch to the guest's compartment and back. With
//! one processor a guest's registers stay in it when the turn is over, and leave it only when another guest's turn has come
//! ([`Command::Park`]): a guest alone never pays for a switch. With several they leave it with the turn, since any
//! processor may give the next one.
//!
//! No wake-up is lost: a task's state becomes [`State::Waiting`] when the scheduler knows that it is blocked, and whoever
//! changes it back, which only one can, wakes it there. The processor that it ran on last keeps its time. How the vCPUs of
//! a guest wake each other: [`crate::task`].

use crate::audit;
use crate::console;
use crate::lives;
use crate::log;
use crate::machine::{CPUS, FACTS, Facts, NO_ZONE, SLOTS, Slot, slot, this_cpu};
use crate::operator::{Operator, all_ended};
use crate::parcel;
use crate::processors::{self, quiet};
use crate::start::IDLE_SPACE;
use crate::task::{self, Command, State, TASKS, Task};
use bulkhead_control::{EventKind, Source};
use bulkhead_hw::{apic, barrier, cpu, legacy, serial, startup};
use bulkhead_sched::{Cpu, Decision, Outcome, Scheduler, TaskId};
use bulkhead_types::{Barriers, Frequency, GuestId, MAX_CPUS, MAX_TASKS, VcpuId};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::mutex::TicketMutex;

/// Slices in a second; as often, or a little less, the first processor looks at the console while guests run.
const SLICES_PER_SECOND: u64 = 100;

/// Slices that a processor goes without a look at what others want of it, if they could not kick it.
const LONGEST: u64 = 10;

/// What is typed for a guest waits so long for its turn, in parts of a second.
const UNTAKEN: u64 = 10;
/// Count of the time-stamp counter when nothing waited, or it was taken.
static TYPED: AtomicU64 = AtomicU64::new(0);

/// Of the time, one part is the most that audits after the ends of guests that come again may take.
const AUDIT_PARTS: u64 = 100;
/// No earlier than this is the next of them.
static NEXT_AUDIT: AtomicU64 = AtomicU64::new(0);

/// Times that a CPU went from one zone to another.
pub static CROSSINGS: AtomicU64 = AtomicU64::new(0);
/// Who runs where.
pub type Schedule = Scheduler<MAX_TASKS, MAX_CPUS>;

/// Where it lies: start-up's stack has no room for it. Processors have it in the order in which they come, so that none waits for
/// more than one decision of each other one, however often those come.
static SCHEDULER: TicketMutex<Schedule> = TicketMutex::new(Scheduler::new(0));

/// The scheduler of a machine whose counter runs at this rate.
pub fn schedule(tsc: Frequency) -> &'static TicketMutex<Schedule> {
    SCHEDULER.lock().set_slice(tsc.as_hertz() / SLICES_PER_SECOND);
    &SCHEDULER
}

/// What the first processor executes in the idle compartment.
pub extern "C" fn main() -> ! {
    let Some(facts) = FACTS.get() else { cpu::stop() };
    #[expect(unsafe_code, reason = "only who was entered last knows that start-up is over")]
    // SAFETY: this executes on the first processor's own stack, and the others begin on theirs.
    unsafe {
        startup::wipe_stack();
    }
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

/// Gives turns until all guests have ended.
pub fn serve(facts: &Facts) -> ! {
    let me = cpu::number();
    let slice = facts.tsc.as_hertz() / SLICES_PER_SECOND;
    let (mut next_look, mut minute) = (0, cpu::tsc().saturating_add(60 * facts.tsc.as_hertz()));
    let mut operator = (me == 0).then(|| Operator::new(facts));
    loop {
        // What came while a guest ran ended its turn or waits until here.
        cpu::take_interrupts();
        // What others want of this processor is no fault of the guest whose turn was before.
        let begun = cpu::tsc();
        processors::rest();
        if let Some(operator) = &mut operator
            && begun >= next_look
        {
            take_typed(facts, cpu::tsc());
            operator.look(facts);
            let now = cpu::tsc();
            next_look = now.saturating_add(slice / 2);
            if now >= minute {
                minute = minute.saturating_add(60 * facts.tsc.as_hertz());
                lives::minute(facts);
            }
        }
        let spent = cpu::tsc().wrapping_sub(begun);
        wake(facts, cpu::tsc());
        this_cpu().asked.store(false, Ordering::SeqCst);
        let now = cpu::tsc();
        let mut scheduler = facts.scheduler.lock();
        scheduler.excuse(sched_cpu(me), spent, None, now);
        let decision = scheduler.pick(sched_cpu(me), now);
        drop(scheduler);
        kick(decision.kick);
        // The console, which the first one looks at; a kick that did not come through.
        let look = now.saturating_add(if me == 0 { slice } else { LONGEST * slice });
        match decision.task {
            Some(_) => turn(facts, me, &decision, look, now.saturating_add(slice)),
            None if operator.as_ref().is_some_and(|operator| !operator.has_line()) && all_ended() => finish(facts),
            None => {
                // A kick always ends a halt.
                let look = match &operator {
                    _ if !apic::has_timer() => look,
                    None => u64::MAX,
                    Some(operator) => operator.next_look(next_look),
                };
                wait(decision.until.min(first_wake(me)).min(look));
                facts.scheduler.lock().awake(sched_cpu(me), cpu::tsc());
            }
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
pub fn hold(facts: &Facts, slot: &Slot, hold: bool) {
    for task in slot.tasks() {
        let mut scheduler = facts.scheduler.lock();
        let now = cpu::tsc();
        let which = if hold { scheduler.pause(task.id(), now) } else { scheduler.resume(task.id(), now) };
        drop(scheduler);
        kick(which);
    }
}

/// Audits everything, while no guest runs. What it finds is an event, unless the one before found as much.
pub fn audit(facts: &Facts) {
    quiet(facts, || {
        let Some(idle) = &*IDLE_SPACE.lock() else { return };
        let [.., before] = audit::sums();
        audit::audit_all(facts, idle);
        let [.., violations] = audit::sums();
        if violations != 0 && violations != before {
            lives::event(facts, GuestId::IDLE, EventKind::Audit(violations));
        }
    });
}

/// Writes the registers of a guest's vCPUs to the log, while no guest runs.
pub fn dump(facts: &Facts, slot: &Slot) {
    have(facts, slot.tasks(), Command::Dump);
}

/// Presses a guest's power button, while no guest runs; whether it listens.
pub fn press(facts: &Facts, slot: &Slot) -> bool {
    slot.asked.store(false, Ordering::Relaxed);
    have(facts, slot.task(VcpuId::BOOT), Command::Press);
    call(slot);
    slot.asked.load(Ordering::Relaxed)
}

/// Has vCPUs that have not ended do something, while no guest runs.
fn have(facts: &Facts, tasks: impl IntoIterator<Item = &'static Task>, command: Command) {
    quiet(facts, || {
        park_unless(None);
        tasks.into_iter().filter(|task| task.state() != State::Absent).for_each(|task| task.enter(command));
    });
    // What was read is another zone's.
    leave_zone();
}

/// Makes a processor ask the scheduler again.
pub fn kick(which: Option<Cpu>) {
    if let Some(Cpu(number)) = which
        && let Some(cpu) = CPUS.get(usize::from(number))
    {
        cpu.asked.store(true, Ordering::SeqCst);
        task::interrupt(number.into());
    }
}

/// Lets a vCPU run that waits. That is work for its guest, and not for the one whose turn was before.
fn wake_one(facts: &Facts, task: &Task) {
    let begun = cpu::tsc();
    if task.stop_waiting() {
        let mut scheduler = facts.scheduler.lock();
        let which = scheduler.wake(task.id(), cpu::tsc());
        let now = cpu::tsc();
        scheduler.excuse(sched_cpu(cpu::number()), now.wrapping_sub(begun), Some(task.id()), now);
        drop(scheduler);
        kick(which);
    }
}

/// Has a guest look at what is there for it: its first vCPU. If that waits, this processor wakes it before its next turn.
pub fn call(slot: &Slot) {
    slot.task(VcpuId::BOOT).map(Task::kick);
}

/// Lets those run whose time has come, and whom others of their guests kicked.
fn wake(facts: &Facts, now: u64) {
    let me = cpu::number();
    task::asked().for_each(|task| wake_one(facts, task));
    for task in task::used() {
        if task.is_due(me) <= now {
            wake_one(facts, task);
        }
    }
}

/// Has the guest in front take what was typed. Behind that the operator may want the monitor, so it does not depend on the
/// guest's turns: one that is paused, or gets none for long, is entered for it.
fn take_typed(facts: &Facts, now: u64) {
    let Some(id) = console::input_for() else { return TYPED.store(now, Ordering::Relaxed) };
    let Some(slot) = slot(id).filter(|slot| slot.is_alive()) else { return console::drop_input() };
    call(slot);
    let late = now.saturating_sub(TYPED.load(Ordering::Relaxed)) > facts.tsc.as_hertz() / UNTAKEN;
    if late || slot.paused.load(Ordering::Relaxed) {
        TYPED.store(now, Ordering::Relaxed);
        if !parcel::take_typed(facts, slot) {
            console::drop_input();
        }
    }
}

/// When the first task wants to run again that processor `me` is to wake.
fn first_wake(me: usize) -> u64 {
    task::used().iter().map(|task| task.is_due(me)).min().unwrap_or(u64::MAX)
}

/// When the turn of another task is to end for the first that processor `me` is to wake. Those who would have to wait for its end
/// are not woken before `kept`, when it has had a slice: nobody's sleep takes more of it than turns cost in any case.
fn next_wake(facts: &Facts, me: usize, kept: u64) -> u64 {
    let mut scheduler = None;
    let due = |task: &Task| match task.is_due(me) {
        due if due < kept && !scheduler.get_or_insert_with(|| facts.scheduler.lock()).is_awaited(task.id()) => kept,
        due => due,
    };
    task::used().iter().map(due).min().unwrap_or(u64::MAX)
}

/// Gives a turn: until the scheduler's time, or this processor is to `look` at other things. It may be left and gone on with
/// many times until then, for those that this processor wakes, and for kicks; the scheduler says whether they end it.
fn turn(facts: &Facts, me: usize, decision: &Decision, look: u64, kept: u64) {
    let Some(task) = decision.task.and_then(|TaskId(number)| TASKS.get(usize::from(number))) else { return };
    let Some(id) = task.guest() else { return };
    park_unless(Some(task));
    if !task.claim() {
        return keep_off(facts, id, me);
    }
    enter_zone(facts, id);
    task.waited.store(decision.waited, Ordering::Relaxed);
    apic::forget_deadline();
    let mut end = decision.until.min(look);
    let (next, now) = loop {
        task.until.store(end.min(next_wake(facts, me, kept)), Ordering::Relaxed);
        task.begin(me);
        task.enter(Command::Run);
        let (next, now) = (task.next(), cpu::tsc());
        // One that has kicked others of its guest comes behind them: it waits for them, mostly.
        if next != State::Ready || now >= end || processors::is_wanted() || task::is_asked() {
            break (next, now);
        }
        cpu::take_interrupts();
        wake(facts, now);
        if this_cpu().asked.swap(false, Ordering::SeqCst) {
            let decision = facts.scheduler.lock().goes_on(sched_cpu(me), cpu::tsc());
            let Some(decision) = decision else { break (next, now) };
            kick(decision.kick);
            end = decision.until.min(look);
        }
    };
    if processors::others() != 0 && task.is_owned() {
        log!("event processor {me} kept vCPU {} of guest {id} behind its turn", task.vcpu());
        park_unless(None);
    }
    match next {
        State::Ready | State::Running => {
            // The scheduler may let another processor begin its next turn at once.
            task.set_state(State::Ready);
            facts.scheduler.lock().yielded(sched_cpu(me), now, Outcome::Ready);
        }
        State::Waiting => {
            facts.scheduler.lock().yielded(sched_cpu(me), now, Outcome::Blocked);
            task.set_state(State::Waiting);
            if task.is_kicked() {
                wake_one(facts, task);
            }
        }
        State::Absent => over(facts, id, task),
    }
}

/// Ends a turn that can not begin, since another processor has the vCPU, and keeps its guest off all processors from now on.
fn keep_off(facts: &Facts, id: GuestId, me: usize) {
    facts.scheduler.lock().yielded(sched_cpu(me), cpu::tsc(), Outcome::Ready);
    if let Some(slot) = slot(id) {
        slot.paused.store(true, Ordering::Relaxed);
        hold(facts, slot, true);
    }
}

/// A vCPU has ended; with the last one its guest. What is done about that is charged to it, so that coming anew again and again
/// takes nothing from others; the audit with the time of all processors, which rest for it, but not more than one part in
/// [`AUDIT_PARTS`].
fn over(facts: &Facts, id: GuestId, task: &Task) {
    let Some(slot) = slot(id) else { return };
    lives::vcpu_ended(facts, slot, task);
    if slot.left.fetch_sub(1, Ordering::AcqRel) != 1 {
        return;
    }
    let begun = cpu::tsc();
    let again = lives::ended(facts, id, slot);
    let mut rested = 0;
    let due = again.is_none() || cpu::tsc() >= NEXT_AUDIT.load(Ordering::Relaxed);
    // The audit after the last one's end is that at the machine's.
    if facts.manifest.audit && due && SLOTS.iter().any(Slot::is_alive) {
        let begun = cpu::tsc();
        audit(facts);
        let end = cpu::tsc();
        let took = end.wrapping_sub(begun);
        NEXT_AUDIT.store(end.saturating_add(took.saturating_mul(AUDIT_PARTS)), Ordering::Relaxed);
        rested = took.saturating_mul(processors::others() as u64);
    }
    if let Some(by) = again {
        lives::remake(facts, id, by);
        let now = cpu::tsc();
        let spent = now.wrapping_sub(begun).saturating_add(rested);
        facts.scheduler.lock().charge(lives::group(id), spent, now);
    }
}

/// Puts the barriers between the guest that runs next and what ran before, unless that was of the same zone.
fn enter_zone(facts: &Facts, id: GuestId) {
    let zone = slot(id).map_or(NO_ZONE, |slot| slot.zone.load(Ordering::Relaxed));
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

/// Takes the registers of whoever has them in the CPU out of it, unless that is this task.
pub fn park_unless(task: Option<&Task>) {
    let number = this_cpu().loaded.load(Ordering::Relaxed);
    if let Some(loaded) = task::numbered(number)
        && task.is_none_or(|task| task.id() != loaded.id())
    {
        loaded.enter(Command::Park);
    }
}

/// Waits until there may be something to do.
fn wait(until: u64) {
    this_cpu().halts.fetch_add(1, Ordering::Relaxed);
    if apic::has_timer() {
        apic::set_deadline(if until == u64::MAX { 0 } else { until });
        let first = cpu::number() == 0;
        if first {
            legacy::let_in(true);
        }
        cpu::halt_until_interrupt();
        if first {
            legacy::let_in(false);
        }
    } else {
        while cpu::tsc() < until {
            core::hint::spin_loop();
        }
    }
}
