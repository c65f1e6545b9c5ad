//! The machine's processors: started, lined up, stopped for a moment.
//!
//! The first starts the others one by one by INIT and start-up interrupts (SDM vol. 3A 9.4.4 "MP Initialization Example");
//! each sets itself up in the idle compartment and waits until all guests are made. One that does not come, or is not like
//! the first, is said and left alone.

use crate::backend::Virtualization;
use crate::dispatch::{sched_cpu, serve};
use crate::log;
use crate::machine::{CPUS, FACTS, FRAMES, Facts, ONLINE, this_cpu};
use crate::start::{IDLE_SPACE, refuse};
use bulkhead_core::frames::{Owner, Part};
use bulkhead_hw::startup::{FirstPage, lead_to};
use bulkhead_hw::{apic, barrier, cpu, descriptors, legacy, xstate};
use bulkhead_types::Frame;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;

/// Tries a second: a processor that does not show up within one is left alone.
const PATIENCE_SECONDS: u64 = 1;

/// Number that the processor being started gets; it takes the word back when it is set up, or can not be.
static COMING: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = usize::MAX;
/// A processor that is being started asks for the first one's time-stamp counter by a zero here, and gets it here.
static CLOCK: AtomicU64 = AtomicU64::new(u64::MAX);
/// Times that it asks: the shortest answer tells best.
const ASKED: usize = 8;
/// All guests are made.
static RELEASED: AtomicBool = AtomicBool::new(false);

/// Sets the first processor up, starts the others, and frees what start-up left behind.
pub fn start(facts: &Facts) {
    if let Err(error) = give_pages(facts) {
        refuse(error);
    }
    if let Err(why) = set_up(facts, 0) {
        refuse(why);
    }
    legacy::probe();
    if !legacy::is_heard() {
        log!("log no interrupt says that a byte has come in: the serial lines are looked at without rest");
    }
    ONLINE.store(1, Ordering::Relaxed);
    let mut missing = false;
    for id in facts.processors.iter().skip(1) {
        missing |= !facts.first_page.is_some_and(|page| start_one(facts, *id, page));
    }
    let count = ONLINE.load(Ordering::Relaxed);
    log!("log {count} of {} processors", facts.processors.len());
    // A late one would go astray in what is freed.
    if !missing {
        free_leftovers(facts);
    }
}

/// A page for each processor, mapped in the idle compartment.
fn give_pages(facts: &Facts) -> Result<(), bulkhead_hw::compartment::BuildError> {
    let (Some(idle), Some(frames)) = (&mut *IDLE_SPACE.lock(), FRAMES.get()) else { return Ok(()) };
    for (cpu, id) in CPUS.iter().zip(&facts.processors) {
        let [page] = idle.add_control_pages(&mut frames.lock())?;
        *cpu.page.lock() = Some(page);
        cpu.apic.store(*id, Ordering::Relaxed);
    }
    Ok(())
}

fn free_leftovers(facts: &Facts) {
    let Some(frames) = FRAMES.get() else { return };
    let mut frames = frames.lock();
    for (first, count) in &facts.leftovers {
        let boot = (0..*count).all(|index| frames.owner(Frame::new(first + index)) == Owner::Hypervisor(Part::Boot));
        let freed = boot.then(|| frames.mark(Frame::new(*first), *count, Owner::Free));
        debug_assert!(freed.is_some());
    }
}

/// Starts the processor whose local APIC is number `id`; whether it came.
fn start_one(facts: &Facts, id: u32, page: FirstPage) -> bool {
    let number = ONLINE.load(Ordering::Relaxed);
    let Some(root) = IDLE_SPACE.lock().as_ref().map(bulkhead_hw::compartment::Compartment::root) else { return false };
    let second = facts.tsc.as_hertz();
    COMING.store(number, Ordering::Release);
    lead_to(root, number, secondary);
    apic::reset(id);
    wait(second / 100, || false);
    for _ in 0..2 {
        apic::start(id, page.vector());
        let came = || COMING.load(Ordering::Acquire) == NOBODY;
        if wait(second / 5000, came) {
            break;
        }
    }
    if !wait(second * PATIENCE_SECONDS, || COMING.load(Ordering::Acquire) == NOBODY) {
        apic::reset(id);
        log!("log processor {id} does not start, and is not used");
        return false;
    }
    ONLINE.load(Ordering::Relaxed) > number
}

/// Waits for `ticks`, or until `over`; whether it is.
fn wait(ticks: u64, over: impl Fn() -> bool) -> bool {
    let start = cpu::tsc();
    loop {
        if CLOCK.load(Ordering::Acquire) == 0 {
            CLOCK.store(cpu::tsc(), Ordering::Release);
        }
        if over() {
            return true;
        }
        if cpu::tsc().wrapping_sub(start) > ticks {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// What the other processors execute in the idle compartment.
extern "C" fn secondary() -> ! {
    let number = COMING.load(Ordering::Acquire);
    let (Some(facts), Some(cpu)) = (FACTS.get(), CPUS.get(number)) else { cpu::stop() };
    line_up();
    match set_up(facts, number) {
        Ok(()) => {
            cpu.apic.store(apic::id(), Ordering::Relaxed);
            ONLINE.store(number + 1, Ordering::Relaxed);
            COMING.store(NOBODY, Ordering::Release);
        }
        Err(why) => {
            log!("log processor {} is not used: {why}", apic::id());
            COMING.store(NOBODY, Ordering::Release);
            cpu::stop();
        }
    }
    while !RELEASED.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    serve(facts)
}

/// Makes this processor's time-stamp counter that of the first, as near as one can tell: what is less than the way there and
/// back, can not be told.
fn line_up() {
    // Setting it takes a time, too.
    for _ in 0..2 {
        let (behind, way) = distance();
        if behind.wrapping_add(way / 2) <= way {
            return;
        }
        cpu::set_tsc(cpu::tsc().wrapping_add(behind));
    }
}

/// How many ticks this processor's counter is behind the first one's (modulo 2^64), and how many the question and its answer
/// took.
fn distance() -> (u64, u64) {
    let ask = || {
        let asked = cpu::tsc();
        CLOCK.store(0, Ordering::Release);
        let theirs = loop {
            match CLOCK.load(Ordering::Acquire) {
                // The first one waits for this one, or has given it up and resets it.
                0 => core::hint::spin_loop(),
                theirs => break theirs,
            }
        };
        let way = cpu::tsc().wrapping_sub(asked);
        (theirs.wrapping_sub(asked.wrapping_add(way / 2)), way)
    };
    (0..ASKED).map(|_| ask()).min_by_key(|(_, way)| *way).unwrap_or((0, u64::MAX))
}

/// Sets this processor up.
fn set_up(facts: &Facts, number: usize) -> Result<(), &'static str> {
    descriptors::load(number);
    apic::enable(facts.local_apic.is_some(), facts.tsc);
    xstate::enable();
    if number != 0 {
        let same = Virtualization::probe().is_ok_and(|mine| mine == facts.capabilities);
        if !same || barrier::probe() != facts.barriers {
            return Err("it is not like the first one");
        }
    }
    let page = CPUS.get(number).and_then(|cpu| cpu.page.lock().take()).ok_or("it has no page for guests")?;
    facts.capabilities.enable(page).map_err(|_| "its virtualization can not be switched on")?;
    let mut scheduler = facts.scheduler.lock();
    let now = cpu::tsc();
    scheduler.online(sched_cpu(number), cpu::core(), now);
    this_cpu().since.store(now, Ordering::Relaxed);
    Ok(())
}

/// Lets all processors give turns.
pub fn release() {
    RELEASED.store(true, Ordering::Release);
}

/// Held by the processor that wants the others to rest.
static QUIET: Mutex<()> = Mutex::new(());
/// The others are to rest.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Processors that rest.
static RESTING: AtomicUsize = AtomicUsize::new(0);

/// Rests as long as another processor wants it. In the idle compartment, between turns.
pub fn rest() {
    // One that is still counted while the next one wants rest finds that out before it goes on.
    while is_wanted() {
        RESTING.fetch_add(1, Ordering::SeqCst);
        while is_wanted() {
            core::hint::spin_loop();
        }
        RESTING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether this processor is to rest.
pub fn is_wanted() -> bool {
    WANTED.load(Ordering::SeqCst)
}

/// How many processors give turns beside this one.
pub fn others() -> usize {
    ONLINE.load(Ordering::Relaxed).saturating_sub(1)
}

/// Does `act` while all other processors rest in the idle compartment. One that does not come there is said, each second: no
/// guest can keep it from it, so that it stands still or the hypervisor is wrong.
pub fn quiet<R>(facts: &Facts, act: impl FnOnce() -> R) -> R {
    let _one = loop {
        match QUIET.try_lock() {
            Some(guard) => break guard,
            None => rest(),
        }
    };
    let others = others();
    WANTED.store(true, Ordering::SeqCst);
    let me = cpu::number();
    for (number, other) in CPUS.iter().take(others + 1).enumerate() {
        if number != me {
            apic::kick(other.apic.load(Ordering::Relaxed));
        }
    }
    let second = facts.tsc.as_hertz();
    while !wait(second, || RESTING.load(Ordering::SeqCst) == others) {
        let missing = others.saturating_sub(RESTING.load(Ordering::SeqCst));
        log!("event processor stopped: {missing} of {others} do not answer");
    }
    let result = act();
    WANTED.store(false, Ordering::SeqCst);
    result
}
