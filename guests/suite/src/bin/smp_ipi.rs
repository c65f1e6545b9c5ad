//! Interrupts between processors: each way to send one, none lost and none doubled.
//!
//! SDM vol. 3A 11.6 "Issuing Interprocessor Interrupts", 11.8.4 "Interrupt Acceptance for Fixed Interrupts", 11.12.9 "ICR
//! Operation in x2APIC Mode"; 9.4 "Multiple-Processor (MP) Initialization". The others halt with interrupts open between two
//! pieces of work, so that each interrupt has to wake its processor.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_rt::{apic, check, check_eq, cpu, println, scenario, skip, smp, time, trap, word_value};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

scenario!(main);

const VECTOR: u8 = 0x60;
const PING: u8 = 0x61;
const ASSERT: u32 = 1 << 14;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;

/// Most time that an interrupt takes, and time in which one that should not be there would come.
const LONG: u64 = 5_000_000;
const SHORT: u64 = 20_000;

static GOT: [AtomicU32; smp::MOST] = [const { AtomicU32::new(0) }; smp::MOST];
static NMIS: [AtomicU32; smp::MOST] = [const { AtomicU32::new(0) }; smp::MOST];

fn main() {
    check_eq!(smp::start(), word_value("vcpus").unwrap_or(1) as usize, "all processors come up");
    trap::on(VECTOR, |_| {
        GOT[smp::number()].fetch_add(1, Ordering::SeqCst);
        apic::end_of_interrupt();
    });
    trap::on(2, nmi);
    trap::on(0x62, |_| apic::end_of_interrupt());
    trap::on(PING, ping);
    ways("xAPIC");
    if smp::count() > 1 {
        storm("xAPIC");
        initialize();
    } else {
        skip!("storm, INIT and start-up: there is one processor");
    }
    let switched = smp::all(|_| _ = apic::enter_x2apic());
    if !apic::x2apic() {
        skip!("x2APIC mode");
        return;
    }
    check!(switched, "all switch to x2APIC mode");
    ways("x2APIC");
    if smp::count() > 1 {
        closed();
        storm("x2APIC");
        initialize();
    }
}

/// An interrupt that waits for RFLAGS.IF, while others come for the processor without pause. The flag is cleared, the interrupt
/// sent and waited for without anything that a hypervisor has to see.
fn closed() {
    let before = || GOT[0].load(Ordering::SeqCst);
    STOP.store(false, Ordering::SeqCst);
    smp::run_on(1, |_| {
        while !STOP.load(Ordering::SeqCst) {
            apic::send_to(smp::apic_id(0), ASSERT | 0x62);
            (0..4000).for_each(|_| cpu::pause());
        }
    });
    let mut early = 0_u32;
    for _ in 0..50 {
        cpu::enable_interrupts();
        let _ = cpu::cpuid(0x8000_0000, 0);
        cpu::disable_interrupts();
        let first = before();
        let _ = cpu::wrmsr(0x83F, VECTOR.into());
        (0..8000).for_each(|_| cpu::pause());
        early += u32::from(before() != first);
    }
    STOP.store(true, Ordering::SeqCst);
    check!(smp::join(LONG), "a processor sends without pause");
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    check_eq!(early, 0, "none comes while interrupts are off");
}

/// Takes interrupts until `condition` holds or the time is over; whether it held.
fn taking(microseconds: u64, condition: impl FnMut() -> bool) -> bool {
    cpu::enable_interrupts();
    let held = time::wait_until(microseconds, condition);
    cpu::disable_interrupts();
    held
}

fn counts(of: &[AtomicU32; smp::MOST]) -> [u32; smp::MOST] {
    core::array::from_fn(|number| of[number].load(Ordering::SeqCst))
}

/// Sends `command` and checks that exactly the processors in `set`, a bit each, get it once.
fn reaches(mode: &str, what: &str, of: &[AtomicU32; smp::MOST], to: u32, command: u32, set: u32) {
    let before = counts(of);
    let expected: [u32; smp::MOST] = core::array::from_fn(|number| before[number] + (set >> number & 1));
    apic::send_to(to, command);
    taking(LONG, || counts(of) == expected);
    taking(SHORT, || false);
    check_eq!(counts(of), expected, "{mode}: {what}");
}

/// The logical destination of processor `number` alone.
fn logical(number: usize) -> u32 {
    if apic::x2apic() {
        let id = smp::apic_id(number);
        (id >> 4) << 16 | 1 << (id & 15)
    } else {
        1 << number
    }
}

fn ways(mode: &str) {
    let everyone = (1 << smp::count()) - 1;
    smp::all(|me| {
        if !apic::x2apic() {
            apic::write(apic::register::DFR, u32::MAX);
            apic::write(apic::register::LDR, 1 << (24 + me));
        }
    });
    for number in 0..smp::count() {
        let command = ASSERT | u32::from(VECTOR);
        let id = smp::apic_id(number);
        reaches(mode, "fixed, physical", &GOT, id, command, 1 << number);
        reaches(mode, "fixed, logical", &GOT, logical(number), LOGICAL | command, 1 << number);
        reaches(mode, "lowest priority to one", &GOT, logical(number), LOGICAL | LOWEST | command, 1 << number);
        if number != 0 {
            reaches(mode, "NMI", &NMIS, id, ASSERT | NMI, 1 << number);
        }
    }
    let every = (0..smp::count()).map(logical).fold(0, |all, one| all | one);
    let fixed = ASSERT | u32::from(VECTOR);
    reaches(mode, "to a logical set", &GOT, every, LOGICAL | fixed, everyone);
    reaches(mode, "to itself", &GOT, 0, SELF | fixed, 1);
    reaches(mode, "to all", &GOT, 0, ALL | fixed, everyone);
    reaches(mode, "to all but itself", &GOT, 0, OTHERS | fixed, everyone & !1);
    reaches(mode, "NMI to all but itself", &NMIS, 0, OTHERS | ASSERT | NMI, everyone & !1);
    let broadcast = if apic::x2apic() { u32::MAX } else { 0xFF };
    reaches(mode, "to the physical broadcast id", &GOT, broadcast, fixed, everyone);
    reaches(mode, "to nobody", &GOT, 0x77, fixed, 0);
    lowest_of(mode, every);
    burst(mode);
    if smp::count() > 1 {
        nmis(mode);
    }
}

/// Lowest priority: exactly one of all has it.
fn lowest_of(mode: &str, every: u32) {
    let total = || counts(&GOT).iter().sum::<u32>();
    let mut wrong = 0;
    for _ in 0..50 {
        let before = total();
        apic::send_to(every, LOGICAL | LOWEST | ASSERT | u32::from(VECTOR));
        taking(LONG, || total() != before);
        wrong += u32::from(total() != before + 1);
    }
    taking(SHORT, || false);
    check_eq!(wrong, 0, "{mode}: lowest priority reaches one");
}

/// Many without waiting: they may merge, since a processor holds two of a vector, but none is lost for good or doubled.
fn burst(mode: &str) {
    const SENT: u32 = 500;
    let before = counts(&GOT);
    for _ in 0..SENT {
        apic::send(OTHERS | ASSERT | u32::from(VECTOR));
    }
    taking(SHORT, || false);
    let after = counts(&GOT);
    let right = |number: usize| (1..=SENT).contains(&(after[number] - before[number]));
    check!((1..smp::count()).all(right), "{mode}: a burst comes, and no more than was sent");
}

/// NMIs that the next NMI's handler sends to its own processor, and whether it halts with interrupts open.
static ECHO: AtomicU32 = AtomicU32::new(0);
static HALT: AtomicBool = AtomicBool::new(false);
static WOKEN: AtomicBool = AtomicBool::new(false);

fn nmi(_: &mut trap::Frame) {
    let me = smp::number();
    NMIS[me].fetch_add(1, Ordering::SeqCst);
    (0..ECHO.swap(0, Ordering::SeqCst)).for_each(|_| apic::send_to(smp::apic_id(me), ASSERT | NMI));
    if HALT.swap(false, Ordering::SeqCst) {
        cpu::wait_for_interrupt();
        WOKEN.store(true, Ordering::SeqCst);
    }
}

/// Beside an NMI that is handled one more waits, and only an IRET lets it in. SDM vol. 3A 6.7.1 "Handling Multiple NMIs".
fn nmis(mode: &str) {
    let send = |command| apic::send_to(smp::apic_id(1), ASSERT | command);
    let got = || NMIS[1].load(Ordering::SeqCst);
    let first = got();
    // The processor executes, or is about to: it takes the first one at once. Once it takes an interrupt the handler of the
    // second is over: what came to that would be one.
    let taken = || GOT[1].load(Ordering::SeqCst);
    let both = (1..=100).take_while(|round| {
        let before = taken();
        (0..2).for_each(|_| send(NMI));
        let came = time::wait_until(LONG, || got() - first == 2 * round);
        send(VECTOR.into());
        came && time::wait_until(LONG, || taken() != before)
    });
    check_eq!(both.count(), 100, "{mode}: of two NMIs none is lost");
    let first = got();
    ECHO.store(10, Ordering::SeqCst);
    send(NMI);
    time::wait_until(LONG, || got() - first == 2);
    time::delay(SHORT);
    check_eq!(got() - first, 2, "{mode}: those that come to an NMI's handler are one");
    let first = got();
    WOKEN.store(false, Ordering::SeqCst);
    HALT.store(true, Ordering::SeqCst);
    send(NMI);
    time::wait_until(LONG, || got() - first == 1);
    send(NMI);
    time::delay(SHORT);
    let woken = WOKEN.load(Ordering::SeqCst);
    check_eq!((got() - first, woken), (1, false), "{mode}: an NMI does not end a halt in an NMI's handler");
    send(VECTOR.into());
    let woken = time::wait_until(LONG, || WOKEN.load(Ordering::SeqCst));
    check!(woken, "{mode}: an interrupt does");
    time::wait_until(LONG, || got() - first == 2);
    check_eq!(got() - first, 2, "{mode}: its IRET lets the NMI in");
}

/// Turns that are left of each processor's ping-pong, and its partner.
static LEFT: [AtomicU32; smp::MOST] = [const { AtomicU32::new(0) }; smp::MOST];
static TURNS: [AtomicU32; smp::MOST] = [const { AtomicU32::new(0) }; smp::MOST];

fn ping(_: &mut trap::Frame) {
    let me = smp::number();
    TURNS[me].fetch_add(1, Ordering::SeqCst);
    if LEFT[me].load(Ordering::SeqCst) > 0 {
        LEFT[me].fetch_sub(1, Ordering::SeqCst);
        apic::send_to(smp::apic_id(me ^ 1), ASSERT | u32::from(PING));
    }
    apic::end_of_interrupt();
}

/// Each pair of processors sends one interrupt to and fro, all pairs at once.
fn storm(mode: &str) {
    const EACH: u32 = 2000;
    let pairs = smp::count() / 2;
    for number in 0..pairs * 2 {
        TURNS[number].store(0, Ordering::SeqCst);
        LEFT[number].store(EACH - u32::from(number % 2 == 0), Ordering::SeqCst);
    }
    // The first sends without having received; the last one is received and not answered.
    for pair in 0..pairs {
        apic::send_to(smp::apic_id(2 * pair + 1), ASSERT | u32::from(PING));
    }
    let received = |number: usize| TURNS[number].load(Ordering::SeqCst);
    taking(60_000_000, || (0..pairs * 2).all(|number| received(number) == EACH));
    taking(SHORT, || false);
    for number in 0..pairs * 2 {
        check_eq!(received(number), EACH, "{mode}: processor {number} has received each of the storm");
    }
    println!("{} interrupts to and fro", EACH as usize * pairs * 2);
}

static BEATS: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// INIT stops a running processor at once, start-up begins it anew, and a second start-up is ignored.
fn initialize() {
    STOP.store(false, Ordering::SeqCst);
    smp::run_on(1, |_| {
        while !STOP.load(Ordering::SeqCst) {
            BEATS.fetch_add(1, Ordering::SeqCst);
            cpu::pause();
        }
    });
    let beats = || BEATS.load(Ordering::SeqCst);
    let first = beats();
    check!(time::wait_until(LONG, || beats() > first), "a processor runs");
    let starts = smp::starts(1);
    apic::send_to(smp::apic_id(1), smp::INIT);
    // It may be in the middle of an instruction, and on another processor of the host.
    time::delay(100_000);
    let stopped = beats();
    time::delay(100_000);
    check_eq!(beats(), stopped, "INIT stops it");
    // An NMI might be kept until it has started, when it can not be taken yet.
    apic::send_to(smp::apic_id(1), ASSERT | u32::from(VECTOR));
    time::delay(SHORT);
    check_eq!((smp::starts(1), beats()), (starts, stopped), "an interrupt does not wake it");
    check!(smp::restart(1), "a start-up interrupt begins it anew");
    check_eq!(beats(), stopped, "it has forgotten what it did");
    let starts = smp::starts(1);
    apic::send_to(smp::apic_id(1), smp::STARTUP | (smp::TRAMPOLINE as u32 >> 12));
    apic::send_to(smp::apic_id(1), smp::STARTUP | 0x12);
    time::delay(SHORT);
    check_eq!(smp::starts(1), starts, "a running processor ignores start-up interrupts");
    smp::run_on(1, |_| _ = BEATS.fetch_add(1, Ordering::SeqCst));
    check!(smp::join(LONG), "it works again");
    trap::on(1, |_| {});
    smp::run_on(1, step_into_init);
    time::delay(SHORT);
    check!(smp::restart(1), "INIT forgets a single step");
    trap::off(1);
}

/// Sends INIT to its own processor, with a single step due behind that.
fn step_into_init(me: usize) {
    // SAFETY: sets RFLAGS.TF, which the handler of #DB keeps, on a stack without a red zone.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    apic::send_to(smp::apic_id(me), smp::INIT);
    loop {
        cpu::pause();
    }
}
