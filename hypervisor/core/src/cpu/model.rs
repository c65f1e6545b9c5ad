//! Every order in which interrupts come, are delivered, interrupted and held back, through the real run loop.
//!
//! The machine with its local APIC and [`VirtualCpu::run`] are the real ones. Around them is a processor that knows the
//! interrupt flag, both shadows, the blocking of NMIs, windows, and deliveries that fault on memory not yet there; what
//! its guest does at each entry is any of [`Doing`]. Two interrupts of different priority and an NMI come at any time.
//!
//! All of it is done twice: with a processor that has each interrupt injected, and with one that keeps the local APIC's IRR
//! and ISR and delivers from them ([`Vcpu::lend`]).
//!
//! The properties, all of them checked at each step:
//!
//! 1. No interrupt is delivered while RFLAGS.IF is clear, and none in a shadow.
//! 2. No NMI is delivered in a shadow, or while one is being handled.
//! 3. Nothing is delivered that was not sent, and nothing more often than it was sent (as often as the request register,
//!    in which equal ones merge, could take it; of NMIs two wait, or one while another is handled).
//! 4. Nothing is lost: from every state, a guest that goes on with interrupts on gets all that was sent. In particular an
//!    event whose delivery was interrupted comes again. Only a guest that halted with interrupts off, or in a handler of higher priority
//!    (an NMI's, for another NMI), may wait for ever.
//! 5. What waits has its window, or is with a processor that keeps it: a guest never runs so that it could take an event and
//!    nobody would know.
//! 6. A halt ends with an event that comes, and with nothing else.
//!
//! States are the same if processor, run loop and interrupt system are; to get to one, what led there is done again.

extern crate std;

use super::VirtualCpu;
use crate::backend::{BackendError, Interruptibility, Register, Vcpu, Windows};
use crate::event::Event;
use crate::exit::{Exit, NestedFault};
use crate::guest::{Guest, Limits, Yield};
use crate::host::{CpuidResult, Host};
use crate::search::{Counterexample, Model, explore};
use bulkhead_arch::{Gpr, Rflags, Segment, SegmentName, msr};
use bulkhead_devices::interrupt::Requests;
use bulkhead_devices::machine::MachineConfig;
use bulkhead_types::{Frequency, Gpa, GuestMemory, MemoryError, VcpuId};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::format;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::println;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;

/// End of a turn, by the host's clock.
const UNTIL: u64 = 1000;
/// The interrupts.
const VECTORS: [u8; 2] = [0x41, 0x61];
/// How often each may come, and the NMI: so that equal interrupts merge, and so that NMIs do.
const MOST: [[u8; 3]; 2] = [[2, 1, 2], [0, 1, 3]];
const NMI: usize = 2;

const SPURIOUS: u32 = 0x80F;
const EOI: u32 = 0x80B;
const REQUESTS: u32 = 0x820;
const COMMAND: u32 = 0x830;
const SELF_IPI: u32 = 0x83F;

/// What the guest does when it is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    Nop,
    Sti,
    Cli,
    MovSs,
    /// Ends the interrupt if it is one, and returns from the handler it is in.
    Return,
    Halt,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    doing: Doing,
    /// What is injected faults on its way.
    faults: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// The interrupt with this number is sent, or the NMI.
    Send(usize),
    /// A turn of one entry.
    Turn(Entry),
    /// A turn of two entries, no time between them.
    Two(Entry, Entry),
}

/// A way in which the seam is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// What was interrupted is not told, and so not injected again.
    ForgetsInterrupted,
    /// Shadows are not told.
    HidesShadows,
    /// The blocking of NMIs is not told.
    HidesNmiBlocking,
    /// RFLAGS.IF is told as set.
    HidesFlag,
    /// An injected event stays for the next entry.
    InjectsTwice,
    /// No windows are opened.
    OpensNoWindows,
    /// What the processor is to keep is dropped.
    DropsRequests,
    /// What the processor keeps is not told.
    HidesRequests,
}

const WAYS: [Way; 8] = [
    Way::ForgetsInterrupted,
    Way::HidesShadows,
    Way::HidesNmiBlocking,
    Way::HidesFlag,
    Way::InjectsTwice,
    Way::OpensNoWindows,
    Way::DropsRequests,
    Way::HidesRequests,
];

/// A processor's IRR and ISR: of each of [`VECTORS`].
#[derive(Debug)]
struct Kept {
    requested: [bool; NMI],
    in_service: [bool; NMI],
}

impl Kept {
    /// The one that is delivered next.
    fn next(&self) -> Option<usize> {
        let above = |number: &usize| self.in_service.iter().rposition(|&on| on).is_none_or(|other| *number > other);
        self.requested.iter().rposition(|&on| on).filter(above)
    }
}

/// A handler that the guest is in.
#[derive(Debug)]
struct Handler {
    /// Of this one of [`VECTORS`], or of an NMI.
    number: usize,
    /// RFLAGS.IF on its stack.
    flag: bool,
}

#[derive(Debug)]
struct Processor {
    way: Option<Way>,
    flag: bool,
    blocked: Interruptibility,
    handlers: Vec<Handler>,
    windows: Windows,
    injected: Option<Event>,
    interrupted: Option<Event>,
    /// Whether it can keep interrupts; what it keeps.
    keeps: bool,
    kept: Option<Kept>,
    /// It executed HLT, and was not entered since.
    halted: bool,
    /// What was sent and has not come, of each.
    owed: [u8; 3],
    wrong: Option<&'static str>,
    entries: VecDeque<Entry>,
    clock: Rc<Cell<u64>>,
}

impl Processor {
    fn shadow(&self) -> bool {
        self.blocked.sti || self.blocked.mov_ss
    }

    /// Whether a guest that has halted waits for ever, by its own doing: with interrupts off, or in the handler of an
    /// interrupt of higher priority, or of an NMI.
    fn sleeps(&self) -> bool {
        (self.owed[NMI] == 0 || self.blocked.nmi) && !(self.flag && self.waits())
    }

    /// Whether an interrupt waits that is above all that are being handled.
    fn waits(&self) -> bool {
        let in_service = self.handlers.iter().map(|handler| handler.number).filter(|&number| number != NMI).max();
        (0..NMI).any(|number| self.owed[number] > 0 && in_service.is_none_or(|other| number > other))
    }

    fn demand(&mut self, holds: bool, property: &'static str) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(property);
        }
    }

    /// The event comes to the guest's handler.
    fn arrive(&mut self, event: Event) {
        let nmi = event == Event::Nmi;
        self.demand(!self.shadow(), "an event in a shadow");
        self.demand(!nmi || !self.blocked.nmi, "an NMI while one is being handled");
        self.demand(nmi || self.flag, "an interrupt with interrupts off");
        let number = VECTORS.iter().position(|&vector| event == Event::Interrupt(vector)).unwrap_or(NMI);
        self.demand(nmi || number != NMI, "an event that nobody sends");
        self.demand(self.owed[number] > 0, "more events than were sent");
        self.owed[number] = self.owed[number].saturating_sub(1);
        self.handlers.push(Handler { number, flag: self.flag });
        (self.flag, self.blocked.nmi) = (false, self.blocked.nmi || nmi);
    }

    fn execute(&mut self, doing: Doing) -> Exit {
        let goes_on = if self.entries.is_empty() { Exit::Timer } else { Exit::Cpuid };
        if doing == Doing::Halt {
            self.halted = true;
            return Exit::Halt;
        }
        (self.blocked.sti, self.blocked.mov_ss) = (false, false);
        match doing {
            Doing::Sti => (self.blocked.sti, self.flag) = (!self.flag, true),
            Doing::Cli => self.flag = false,
            Doing::MovSs => self.blocked.mov_ss = true,
            Doing::Return => {
                let Some(handler) = self.handlers.pop() else { return goes_on };
                (self.flag, self.blocked.nmi) = (handler.flag, false);
                match &mut self.kept {
                    _ if handler.number == NMI => {}
                    Some(kept) => kept.in_service[handler.number] = false,
                    None => return Exit::WriteMsr,
                }
            }
            Doing::Nop | Doing::Halt => {}
        }
        goes_on
    }
}

impl Vcpu for Processor {
    fn run(&mut self) -> Result<Exit, BackendError> {
        let Some(Entry { doing, faults }) = self.entries.pop_front() else {
            // It came for an exit of its own making: the turn is over.
            self.clock.set(UNTIL);
            return Ok(Exit::Timer);
        };
        if self.entries.is_empty() {
            self.clock.set(UNTIL);
        }
        let kept = self.flag && self.kept.as_ref().is_some_and(|kept| kept.next().is_some());
        let halted = mem::take(&mut self.halted);
        self.demand(!halted || self.injected.is_some() || kept, "a halt ends for nothing");
        if let Some(event) = self.injected {
            if self.way != Some(Way::InjectsTwice) {
                self.injected = None;
            }
            if faults {
                self.interrupted = Some(event);
                return Ok(Exit::Nested(FAULT));
            }
            self.arrive(event);
        }
        let known = |kept: &Kept| (0..NMI).all(|number| self.owed[number] == 0 || kept.requested[number]);
        let known = self.windows.interrupt || self.kept.as_ref().is_some_and(known);
        self.demand(known || !self.waits(), "an interrupt waits without a window");
        self.demand(self.windows.nmi || self.owed[NMI] == 0, "an NMI waits without a window");
        if self.windows.nmi && self.blocked == Interruptibility::default() {
            return Ok(Exit::NmiWindow);
        }
        if self.windows.interrupt && self.flag && !self.shadow() {
            return Ok(Exit::InterruptWindow);
        }
        let open = self.flag && !self.shadow();
        if let Some(kept) = self.kept.as_mut().filter(|_| open)
            && let Some(number) = kept.next()
        {
            (kept.requested[number], kept.in_service[number]) = (false, true);
            let event = Event::Interrupt(VECTORS[number]);
            if faults {
                self.interrupted = Some(event);
                return Ok(Exit::Nested(FAULT));
            }
            self.arrive(event);
        }
        Ok(self.execute(doing))
    }

    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        // The one register that is ever written.
        Ok(if gpr == Gpr::Rcx { EOI.into() } else { 0 })
    }

    fn read(&self, register: Register) -> Result<u64, BackendError> {
        let flag = self.flag || self.way == Some(Way::HidesFlag);
        Ok(if register == Register::Rflags && flag { Rflags::IF.bits() } else { 0 })
    }

    fn skip_instruction(&mut self) -> Result<(), BackendError> {
        (self.blocked.sti, self.blocked.mov_ss) = (false, false);
        Ok(())
    }

    fn inject(&mut self, event: Event) -> Result<(), BackendError> {
        self.injected = Some(event);
        Ok(())
    }

    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take().filter(|_| self.way != Some(Way::ForgetsInterrupted))
    }

    fn interruptibility(&self) -> Result<Interruptibility, BackendError> {
        Ok(match self.way {
            Some(Way::HidesShadows) => Interruptibility { nmi: self.blocked.nmi, ..Interruptibility::default() },
            Some(Way::HidesNmiBlocking) => Interruptibility { nmi: false, ..self.blocked },
            _ => self.blocked,
        })
    }

    fn request_windows(&mut self, windows: Windows) -> Result<(), BackendError> {
        if self.way != Some(Way::OpensNoWindows) {
            self.windows = windows;
        }
        Ok(())
    }

    fn delivers_interrupts(&self) -> bool {
        self.keeps
    }

    fn lend(&mut self, register: &dyn Fn(u8) -> u32) -> Result<(), BackendError> {
        let bits = |first: u8| VECTORS.map(|vector| register(first + vector / 32) >> (vector % 32) & 1 != 0);
        self.kept = Some(Kept { requested: [false; NMI], in_service: bits(0x10) });
        Ok(())
    }

    fn request(&mut self, requests: &Requests) -> Result<(), BackendError> {
        let kept = self.kept.as_mut().filter(|_| self.way != Some(Way::DropsRequests));
        for (vector, on) in VECTORS.into_iter().zip(kept.into_iter().flat_map(|kept| &mut kept.requested)) {
            *on |= requests.vectors[usize::from(vector / 64)] >> (vector % 64) & 1 != 0;
        }
        Ok(())
    }

    fn has_interrupt(&self) -> bool {
        self.way != Some(Way::HidesRequests) && self.kept.as_ref().is_some_and(|kept| kept.next().is_some())
    }

    fn activate(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn deactivate(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn set_gpr(&mut self, _: Gpr, _: u64) -> Result<(), BackendError> {
        Ok(())
    }
    fn write(&mut self, _: Register, _: u64) -> Result<(), BackendError> {
        Ok(())
    }
    fn segment(&self, _: SegmentName) -> Result<Segment, BackendError> {
        Ok(Segment { selector: 0, base: 0, limit: 0, attributes: 0 })
    }
    fn set_segment(&mut self, _: SegmentName, _: Segment) -> Result<(), BackendError> {
        Ok(())
    }
    fn privilege(&self) -> Result<u8, BackendError> {
        Ok(0)
    }
    fn skip_bytes(&mut self, _: u8) -> Result<(), BackendError> {
        self.skip_instruction()
    }
    fn set_interruptibility(&mut self, value: Interruptibility) -> Result<(), BackendError> {
        self.blocked = value;
        Ok(())
    }
    fn flush_nested(&mut self) {}
    fn set_tsc_offset(&mut self, _: u64) -> Result<(), BackendError> {
        Ok(())
    }
    fn set_timer(&mut self, _: u64) -> Result<(), BackendError> {
        Ok(())
    }
    fn allow_msr(&mut self, _: u32, _: bool) {}
    fn explain_entry_failure(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
    fn dump(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

/// On RAM that is there from then on.
const FAULT: NestedFault = NestedFault {
    gpa: Gpa::new(0x1000),
    gva: None,
    write: true,
    execute: false,
    table_walk: false,
    present: false,
    malformed: false,
};

#[derive(Debug)]
struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { gpa, bytes: into.len() })
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { gpa, bytes: from.len() })
    }
    fn zero(&mut self, gpa: Gpa, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError { gpa, bytes: 0 })
    }
}

struct Clock(Rc<Cell<u64>>);

impl Host for Clock {
    fn tsc(&self) -> u64 {
        self.0.get()
    }
    fn waited(&self) -> u64 {
        0
    }
    fn cpuid(&self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn console(&mut self, _: u8) -> bool {
        true
    }
    fn console_input(&mut self) -> Option<u8> {
        None
    }
    fn machine_check(&mut self) {}
    fn set_xcr0(&mut self, _: u64) {}
    fn clear_debug_addresses(&mut self) {}
    fn populate(&mut self, _: Gpa) -> bool {
        true
    }
    fn kick(&mut self, _: VcpuId) -> bool {
        false
    }
}

/// The system in one state.
struct System<'g> {
    cpu: VirtualCpu<'g, Processor, NoMemory>,
    clock: Clock,
}

impl System<'_> {
    /// What `f` makes of a new system.
    fn with<R>(way: Option<Way>, keeps: bool, f: impl FnOnce(&mut System<'_>) -> R) -> R {
        let clock = Clock(Rc::new(Cell::new(0)));
        let vcpu = Processor {
            way,
            flag: true,
            blocked: Interruptibility::default(),
            handlers: Vec::new(),
            windows: Windows::default(),
            injected: None,
            interrupted: None,
            keeps,
            kept: None,
            halted: false,
            owed: [0; 3],
            wrong: None,
            entries: VecDeque::new(),
            clock: clock.0.clone(),
        };
        let (tsc, memory) = (Frequency::hertz(1_000_000), 1 << 20);
        let config = MachineConfig { tsc, memory, wall_clock: 0, cpus: 1, test_exit: false, test_device: false };
        let limits = Limits::of(&clock, tsc, memory);
        let guest = Guest::new(&config, limits, 0);
        let cpu = VirtualCpu::new(&guest, VcpuId::BOOT, vcpu, NoMemory).unwrap();
        let mut system = System { cpu, clock };
        for (index, value) in [(msr::APIC_BASE, 0xFEE0_0D00), (SPURIOUS, 0x1FF)] {
            system.cpu.write_msr(index, value, &mut system.clock).unwrap();
        }
        f(&mut system)
    }

    fn send(&mut self, number: usize) {
        let clock = &mut self.clock;
        let (merges, index, value) = match VECTORS.get(number) {
            Some(&vector) => {
                let requests = self.cpu.read_msr(REQUESTS + u32::from(vector / 32), clock).unwrap();
                let kept = self.cpu.vcpu.kept.as_ref().is_some_and(|kept| kept.requested[number]);
                (kept || requests >> (vector % 32) & 1 != 0, SELF_IPI, vector.into())
            }
            None => {
                let most = if self.cpu.vcpu.blocked.nmi { 1 } else { 2 };
                (self.cpu.vcpu.owed[NMI] == most, COMMAND, 4 << 8)
            }
        };
        self.cpu.write_msr(index, value, clock).unwrap();
        self.cpu.vcpu.owed[number] += u8::from(!merges);
    }

    fn turn(&mut self, entries: &[Entry]) -> Result<(), String> {
        self.clock.0.set(0);
        self.cpu.vcpu.entries = entries.iter().copied().collect();
        let over = self.cpu.run(&mut self.clock, UNTIL);
        self.cpu.vcpu.entries.clear();
        match (self.cpu.vcpu.wrong, over) {
            (Some(property), _) => Err(property.to_string()),
            (None, Yield::Ended(end)) => Err(format!("the guest ends: {end}")),
            _ => Ok(()),
        }
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Send(number) => {
                self.send(number);
                Ok(())
            }
            Action::Turn(entry) => self.turn(&[entry]),
            Action::Two(first, second) => self.turn(&[first, second]),
        }
    }

    /// Whether all that was sent comes to a guest that goes on.
    fn drain(&mut self) -> Result<(), String> {
        for doing in [Doing::Return, Doing::Sti, Doing::Nop].into_iter().cycle().take(36) {
            let vcpu = &self.cpu.vcpu;
            if vcpu.owed == [0; 3] || self.cpu.halted && vcpu.sleeps() {
                return Ok(());
            }
            self.turn(&[Entry { doing, faults: false }])?;
        }
        Err(format!("lost: {:?} of {VECTORS:x?} and NMI", self.cpu.vcpu.owed))
    }

    /// All that the future depends on, as a number.
    fn print(&self) -> u64 {
        struct Printer(DefaultHasher);
        impl fmt::Write for Printer {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.write(text.as_bytes());
                Ok(())
            }
        }
        let mut printer = Printer(DefaultHasher::new());
        let VirtualCpu { guest, vcpu, halted, due, windows, flags, .. } = &self.cpu;
        let shared = guest.lock(&self.clock).0;
        let interrupts = shared.machine.interrupts();
        write!(printer, "{vcpu:?}{interrupts:?}{halted}{due:?}{windows:?}{flags:?}").unwrap();
        printer.0.finish()
    }
}

/// What has led to a state, and its print.
#[derive(Clone)]
struct Place {
    way: Vec<Action>,
    sent: [u8; 3],
    print: u64,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        (self.print, self.sent) == (other.print, other.sent)
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.print, self.sent).hash(state);
    }
}

struct Interrupts {
    way: Option<Way>,
    keeps: bool,
    most: [u8; 3],
}

impl Model for Interrupts {
    type State = Place;
    type Action = Action;

    fn first(&self) -> Place {
        Place { way: Vec::new(), sent: [0; 3], print: System::with(self.way, self.keeps, |system| system.print()) }
    }

    fn actions(&self, place: &Place) -> Vec<Action> {
        use Doing::{Cli, Halt, MovSs, Nop, Return, Sti};
        let entry = |doing| Entry { doing, faults: false };
        let faults = Entry { doing: Nop, faults: true };
        let sends = (0..3).filter(|&number| place.sent[number] < self.most[number]).map(Action::Send);
        let turns = [Nop, Sti, Cli, MovSs, Return, Halt].map(|doing| Action::Turn(entry(doing)));
        let others = [Action::Turn(faults), Action::Two(faults, faults), Action::Two(faults, entry(Nop))];
        let pairs = [(Sti, Cli), (Sti, Halt), (Return, Nop)].map(|(a, b)| Action::Two(entry(a), entry(b)));
        sends.chain(turns).chain(others).chain(pairs).collect()
    }

    fn step(&self, place: &Place, action: Action) -> Result<Place, String> {
        let mut after = place.clone();
        after.way.push(action);
        if let Action::Send(number) = action {
            after.sent[number] += 1;
        }
        System::with(self.way, self.keeps, |system| {
            after.way.iter().try_for_each(|&action| system.act(action))?;
            after.print = system.print();
            if after.print == place.print { Ok(()) } else { system.drain() }
        })
        .map_err(|property| format!("{property} (or later, if the guest just goes on)"))?;
        Ok(after)
    }
}

#[test]
fn every_interrupt_comes_once_and_when_it_may() {
    for (most, keeps) in MOST.into_iter().flat_map(|most| [(most, false), (most, true)]) {
        let states = explore(&Interrupts { way: None, keeps, most }).unwrap();
        println!("{states} states, kept by the processor: {keeps}, at most {most:?}");
        assert!(states > 1000, "only {states} states");
    }
}

/// Prints how; `cargo test -- --nocapture` shows it.
#[test]
fn every_wrong_seam_breaks_a_property_of_interrupts() {
    for way in WAYS {
        let keeps = matches!(way, Way::DropsRequests | Way::HidesRequests);
        let model = Interrupts { way: Some(way), keeps, most: MOST[0] };
        let found: Option<Counterexample<Action>> = explore(&model).err();
        println!("{way:?}: {found:?}");
        assert!(found.is_some(), "{way:?} goes unnoticed");
    }
}
