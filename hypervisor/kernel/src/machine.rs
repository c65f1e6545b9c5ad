//! What the whole machine has in common: no guest's content is here.

use crate::backend::Virtualization;
use crate::dispatch::Schedule;
use crate::entries::{self, Entry};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_control::Ending;
use bulkhead_core::barrier::Present;
use bulkhead_core::frames::FrameTable;
use bulkhead_core::host::{CpuidResult, Host};
use bulkhead_hw::compartment::Context;
use bulkhead_hw::region::Region;
use bulkhead_hw::startup::{FirstPage, Shared};
use bulkhead_types::manifest::{MAX_GUESTS, Manifest};
use bulkhead_types::{Frequency, GuestId, Hpa, MAX_CPUS};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::{Mutex, Once};

/// What a guest's compartment executes, on a processor with this extension.
pub type Program = fn(&Virtualization) -> extern "C" fn() -> !;

/// What start-up found.
pub struct Facts {
    /// The machine to run; its guests are in [`entries`].
    pub manifest: Manifest,
    /// The shared part.
    pub shared: Shared,
    /// What the processor can do.
    pub capabilities: Virtualization,
    /// What the processor has against leaks between zones.
    pub barriers: Present,
    /// What the guests' compartments execute.
    pub program: Program,
    /// Who runs where. Its lock is taken between turns, and when guests are made and ended.
    pub scheduler: Mutex<Schedule>,
    /// Rate of the time-stamp counter.
    pub tsc: Frequency,
    /// Seconds since 1970 at count 0 of the time-stamp counter.
    pub epoch: u64,
    /// Numbers of the processors' local APICs; this one's first.
    pub processors: Vec<u32>,
    /// Where the others begin, if there is a page for it.
    pub first_page: Option<FirstPage>,
    /// Ranges of frames that start-up used and nobody needs now: first frame and count.
    pub leftovers: Vec<(u64, u64)>,
    /// Physical page of the local APIC, where it is mapped.
    pub local_apic: Option<Hpa>,
}

impl Facts {
    /// A guest as it is described.
    pub fn guest(&self, id: GuestId) -> Option<Arc<Entry>> {
        entries::get(id)
    }

    /// All guests.
    pub fn guests(&self) -> impl Iterator<Item = GuestId> + use<> {
        entries::all()
    }
}

/// Set once, by start-up.
pub static FACTS: Once<Facts> = Once::new();
/// Who owns which frame. Taken while compartments are made and audited, never on the way of an exit.
pub static FRAMES: Once<Mutex<FrameTable<'static>>> = Once::new();
/// The guests, by number less one.
pub static SLOTS: [Slot; MAX_GUESTS] = [const { Slot::empty() }; MAX_GUESTS];
/// The processors, by number.
pub static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::empty() }; MAX_CPUS];
/// Processors that give turns.
pub static ONLINE: AtomicUsize = AtomicUsize::new(0);

/// A processor.
pub struct Cpu {
    /// Where its execution in the idle compartment was left.
    pub idle: Context,
    /// The number of its local APIC.
    pub apic: AtomicU32,
    /// The guest whose registers are in it, 0 for none.
    pub loaded: AtomicU16,
    /// The guest whose compartment it has entered, 0 for none.
    pub current: AtomicU16,
    /// The zone of the guest that ran last, or [`NO_ZONE`].
    pub zone: AtomicU16,
    /// The page that it needs for guests, on its way to it.
    pub page: Mutex<Option<Region>>,
}

/// No zone at all.
pub const NO_ZONE: u16 = u16::MAX;

impl Cpu {
    const fn empty() -> Self {
        Self {
            idle: Context::empty(),
            apic: AtomicU32::new(0),
            loaded: AtomicU16::new(0),
            current: AtomicU16::new(0),
            zone: AtomicU16::new(NO_ZONE),
            page: Mutex::new(None),
        }
    }
}

/// This processor.
pub fn this_cpu() -> &'static Cpu {
    let [first, ..] = &CPUS;
    CPUS.get(bulkhead_hw::cpu::number()).unwrap_or(first)
}

/// What a compartment is entered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Command {
    /// Run the guest until [`Slot::wake`].
    Run = 0,
    /// Take the guest's registers out of the CPU.
    Park = 1,
    /// Check all tables of the compartment.
    Audit = 2,
}

/// Whether a guest can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// There is no such guest.
    Absent = 0,
    /// It runs, or can run: the scheduler knows.
    Ready = 1,
    /// It can when the time has come, or input.
    Waiting = 2,
    /// It ended well.
    Ended = 3,
    /// It ended badly.
    Failed = 4,
}

impl State {
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Ready,
            2 => Self::Waiting,
            3 => Self::Ended,
            4 => Self::Failed,
            _ => Self::Absent,
        }
    }

    /// It is to have further turns.
    pub const fn goes_on(self) -> bool {
        matches!(self, Self::Ready | Self::Waiting)
    }
}

/// A guest as the dispatcher sees it.
pub struct Slot {
    /// Where its compartment was left.
    pub context: Context,
    state: AtomicU8,
    next: AtomicU8,
    command: AtomicU8,
    /// Host's time-stamp count: end of the turn when it is entered, when to wake it when it is left.
    pub wake: AtomicU64,
    /// Number of the processor that it ran on last, which wakes it.
    pub cpu: AtomicUsize,
    /// Times that it was made anew.
    pub restarts: AtomicU16,
    order: AtomicU8,
    /// An operator keeps it off all processors.
    pub paused: AtomicBool,
    /// It is to be made anew when it has ended.
    pub again: AtomicBool,
    /// Count of the time-stamp counter when it was made.
    pub started: AtomicU64,
    /// Count at which its lease is over; never, if that is the highest.
    pub until: AtomicU64,
    /// Exits, up to its last turn's end.
    pub exits: AtomicU64,
    /// Bytes that it wrote to its console.
    pub written: AtomicU64,
    /// Bytes that it read from there.
    pub read: AtomicU64,
    /// How it ended, when it has.
    pub ending: Mutex<Ending>,
}

/// What an operator wants of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Order {
    /// Nothing.
    None = 0,
    /// It is to end.
    Kill = 1,
    /// It is to end, and to be made anew.
    Reset = 2,
    /// Its registers are to be written to the log.
    Dump = 3,
    /// It is to get an NMI.
    Nmi = 4,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            context: Context::empty(),
            state: AtomicU8::new(State::Absent as u8),
            next: AtomicU8::new(State::Ready as u8),
            command: AtomicU8::new(Command::Run as u8),
            wake: AtomicU64::new(0),
            cpu: AtomicUsize::new(0),
            restarts: AtomicU16::new(0),
            order: AtomicU8::new(Order::None as u8),
            paused: AtomicBool::new(false),
            again: AtomicBool::new(false),
            started: AtomicU64::new(0),
            until: AtomicU64::new(u64::MAX),
            exits: AtomicU64::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            ending: Mutex::new(Ending::Failed),
        }
    }

    /// What an operator wants of it, and it has not done.
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            1 => Order::Kill,
            2 => Order::Reset,
            3 => Order::Dump,
            4 => Order::Nmi,
            _ => Order::None,
        }
    }

    /// Gives it an order, in place of an earlier one.
    pub fn give(&self, order: Order) {
        self.order.store(order as u8, Ordering::Release);
    }

    /// It has carried out an order, and goes on, unless it was given another one.
    pub fn obeyed(&self, order: Order) {
        let none = Order::None as u8;
        // Another order stays.
        let _ = self.order.compare_exchange(order as u8, none, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether it can run.
    pub fn state(&self) -> State {
        State::of(self.state.load(Ordering::Relaxed))
    }

    /// What it becomes once its turn is over and its compartment left. Before that no other processor may enter it.
    pub fn become_next(&self, state: State) {
        self.next.store(state as u8, Ordering::Relaxed);
    }

    /// What its last turn made of it.
    pub fn next(&self) -> State {
        State::of(self.next.load(Ordering::Relaxed))
    }

    /// Sets whether it can run.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Goes from `from` to `to`; whether it was this processor that did it. What the guest's last turn left in memory is
    /// there to be seen.
    pub fn change(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// When processor `number` has to wake it; never, if it does not wait or another one does.
    pub fn is_due(&self, number: usize) -> u64 {
        let mine = self.state() == State::Waiting && self.cpu.load(Ordering::Relaxed) == number;
        if mine { self.wake.load(Ordering::Relaxed) } else { u64::MAX }
    }

    /// What it is entered for.
    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Relaxed) {
            1 => Command::Park,
            2 => Command::Audit,
            _ => Command::Run,
        }
    }

    /// Enters its compartment from the idle one; returns when it comes back. To be called by the one processor that gives it
    /// its turn, or while no other gives turns.
    pub fn enter(&self, id: GuestId, command: Command) {
        let cpu = this_cpu();
        self.command.store(command as u8, Ordering::Relaxed);
        cpu.current.store(id.number(), Ordering::Relaxed);
        cpu.idle.switch(&self.context);
        cpu.current.store(0, Ordering::Relaxed);
    }

    /// Leaves its compartment for the idle one; returns when it is entered again.
    pub fn leave(&self) {
        self.context.switch(&this_cpu().idle);
    }
}

/// The slot of a guest.
pub fn slot(id: GuestId) -> Option<&'static Slot> {
    SLOTS.get(usize::from(id.number()).checked_sub(1)?)
}

/// The processor's CPUID, without the instructions that it does not let guests have.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    const INVPCID: u32 = 1 << 10;
    const RDTSCP: u32 = 1 << 27;
    let result = bulkhead_hw::cpu::cpuid(leaf, subleaf);
    let mut result = CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx };
    let allows = |allowed: fn(&Virtualization) -> bool| FACTS.get().is_some_and(|facts| allowed(&facts.capabilities));
    match leaf {
        7 if !allows(Virtualization::invpcid) => result.ebx &= !INVPCID,
        0x8000_0001 if !allows(Virtualization::rdtscp) => result.edx &= !RDTSCP,
        _ => {}
    }
    result
}

/// A host that can be asked, but runs no guest: for what is found once.
pub struct Asking;

impl Host for Asking {
    fn tsc(&self) -> u64 {
        bulkhead_hw::cpu::tsc()
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
    }
    fn console(&mut self, _: u8) {}
    fn console_input(&mut self) -> Option<u8> {
        None
    }
    fn machine_check(&mut self) {}
    fn set_xcr0(&mut self, _: u64) {}
    fn populate(&mut self, _: bulkhead_types::Gpa) -> bool {
        false
    }
}
