//! The idle compartment: makes the guests, gives them their turns, waits when there is nothing to do.
//!
//! Every processor executes this, each on a stack of its own. A turn is a switch to the guest's compartment and back. With
//! one processor a guest's registers stay in it when the turn is over, and leave it only when another guest's turn has come
//! ([`Command::Park`]): a guest alone never pays for a switch. With several they leave it with the turn, since any
//! processor may give the next one.

use crate::audit;
use crate::console;
use crate::guest;
use crate::log;
use crate::machine::{Command, FACTS, FRAMES, Facts, NO_ZONE, ONLINE, SLOTS, State, slot, this_cpu};
use crate::processors::{self, quiet};
use crate::start::IDLE_SPACE;
use bulkhead_hw::compartment::{Compartment, Needs};
use bulkhead_hw::{apic, barrier, cpu, serial};
use bulkhead_types::manifest::Guest;
use bulkhead_types::{Barriers, GuestId, PAGE_SIZE};
use core::sync::atomic::{AtomicU64, Ordering};

/// Slices and looks at the console in a second.
const SLICES_PER_SECOND: u64 = 100;
/// Slices that a guest can owe at most: no exit takes longer, but its making, and an emulator's own pauses, may.
const MOST_DEBT: u64 = 8;

/// Times that a CPU went from one zone to another.
pub static CROSSINGS: AtomicU64 = AtomicU64::new(0);

/// What the first processor executes in the idle compartment.
pub extern "C" fn main() -> ! {
    let Some(facts) = FACTS.get() else { cpu::stop() };
    processors::start(facts);
    if let Some(idle) = &mut *IDLE_SPACE.lock() {
        for (id, guest) in (1..).map(GuestId::new).zip(&facts.manifest.guests) {
            create(facts, idle, id, guest);
        }
    }
    processors::release();
    serve(facts)
}

/// Makes a guest's compartment; the guest itself is made in there, at its first turn.
fn create(facts: &Facts, idle: &mut Compartment, id: GuestId, guest: &Guest) {
    let (Some(slot), Some(frames)) = (slot(id), FRAMES.get()) else { return };
    let images = guest.modules.iter().map(|module| module.image).chain([guest.kernel]);
    let images = images.map(|image| image.bytes.next_multiple_of(PAGE_SIZE)).sum();
    let needs =
        Needs { memory: guest.memory, lazy: guest.lazy, images, stacks: 1, processors: ONLINE.load(Ordering::Relaxed) };
    match idle.build_for(id, &mut frames.lock(), &facts.shared, &needs, (facts.program)(&facts.capabilities)) {
        Ok(made) => {
            slot.context.set(&made, 0);
            guest::hand_over(id, made);
            slot.set_state(State::Ready);
        }
        Err(error) => {
            log!("event guest {id} {} ended killed no compartment: {error}", guest.name);
            slot.set_state(State::Failed);
        }
    }
}

/// Gives turns until all guests have ended.
pub fn serve(facts: &Facts) -> ! {
    let count = facts.manifest.guests.len();
    let slice = facts.tsc.as_hertz() / SLICES_PER_SECOND;
    let mut last = 0;
    loop {
        // What came while a guest ran ended its turn or waits until here.
        cpu::take_interrupts();
        processors::rest();
        let now = cpu::tsc();
        wake(now);
        if let Some(index) = next_ready(last, count) {
            last = index;
            let id = GuestId::new(u16::try_from(index + 1).unwrap_or(0));
            turn(facts, id, now, slice);
            // The audit after the last one's end is the one below.
            let left = SLOTS.iter().any(|slot| slot.state().goes_on());
            if facts.manifest.audit && left && SLOTS.get(index).is_some_and(|slot| !slot.state().goes_on()) {
                audit(facts);
            }
        } else if cpu::number() == 0 && !SLOTS.iter().any(|slot| slot.state().goes_on()) {
            audit(facts);
            log!("event machine done");
            serial::Serial::again().flush();
            cpu::stop()
        } else {
            wait(now, slice);
        }
    }
}

/// Audits everything, while no guest runs.
fn audit(facts: &Facts) {
    quiet(|| {
        if let Some(idle) = &*IDLE_SPACE.lock() {
            audit::audit_all(facts, idle);
        }
    });
}

/// The next guest after `last` that can run, in turn. It is this processor's to run then.
fn next_ready(last: usize, count: usize) -> Option<usize> {
    (last + 1..count)
        .chain(0..=last.min(count.saturating_sub(1)))
        .find(|index| SLOTS.get(*index).is_some_and(|slot| slot.change(State::Ready, State::Running)))
}

/// Lets those run whose time has come, and the one that input came for, which the first processor looks for.
fn wake(now: u64) {
    for slot in &SLOTS {
        if slot.state() == State::Waiting && slot.wake.load(Ordering::Relaxed) <= now {
            slot.change(State::Waiting, State::Ready);
        }
    }
    if cpu::number() != 0 {
        return;
    }
    let Some(id) = console::input_for() else { return };
    match slot(id) {
        Some(slot) if slot.state().goes_on() => {
            slot.change(State::Waiting, State::Ready);
        }
        _ => console::drop_input(),
    }
}

fn turn(facts: &Facts, id: GuestId, now: u64, slice: u64) {
    let Some(slot) = slot(id) else { return };
    // An exit near a turn's end is served to its own end, however long that takes: the next turns are the shorter for it.
    let debt = slot.debt.load(Ordering::Relaxed);
    if debt >= slice {
        slot.debt.store(debt - slice, Ordering::Relaxed);
        slot.set_state(State::Ready);
        return;
    }
    park_unless(id);
    enter_zone(facts, id);
    let until = now.saturating_add(slice - debt);
    slot.wake.store(until, Ordering::Relaxed);
    slot.enter(id, Command::Run);
    slot.debt.store(cpu::tsc().saturating_sub(until).min(slice * MOST_DEBT), Ordering::Relaxed);
    slot.end_turn();
}

/// Puts the barriers between the guest that runs next and what ran before, unless that was of the same zone.
fn enter_zone(facts: &Facts, id: GuestId) {
    let guests = &facts.manifest.guests;
    let zone = usize::from(id.number()).checked_sub(1).and_then(|index| guests.get(index)).map_or(NO_ZONE, |g| g.zone);
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

/// Waits until the first guest wants to run again, or it is time to look at the console.
fn wait(now: u64, slice: u64) {
    let waiting = SLOTS.iter().filter(|slot| slot.state() == State::Waiting);
    let first = waiting.map(|slot| slot.wake.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX);
    let until = first.min(now.saturating_add(slice));
    if apic::has_timer() {
        apic::set_deadline(until);
        cpu::halt_until_interrupt();
    } else {
        while cpu::tsc() < until {
            core::hint::spin_loop();
        }
    }
}
