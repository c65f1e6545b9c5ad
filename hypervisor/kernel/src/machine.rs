//! What the whole machine has in common: no guest's content is here.

use crate::backend::Virtualization;
use crate::dispatch::Schedule;
use crate::entries::{self, Entry};
use crate::tally::{self, Exits};
use crate::task::{TASKS, Task};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_control::{Ending, Name, Source};
use bulkhead_core::barrier::Present;
use bulkhead_core::frames::FrameTable;
use bulkhead_core::host::{CpuidResult, Host};
use bulkhead_hw::compartment::Context;
use bulkhead_hw::region::Region;
use bulkhead_hw::startup::{FirstPage, Shared};
use bulkhead_sched::Usage;
use bulkhead_types::manifest::{MAX_GUESTS, Manifest};
use bulkhead_types::{Frequency, GuestId, Hpa, MAX_CPUS, MAX_TASKS, MAX_VCPUS, VcpuId};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::mutex::TicketMutex;
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
    pub scheduler: &'static TicketMutex<Schedule>,
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
    /// Count of the time-stamp counter since which it is accounted.
    pub since: AtomicU64,
    /// Times that it had nothing to do, and halted.
    pub halts: AtomicU64,
    /// The task whose registers are in it, plus 1; 0 for none.
    pub loaded: AtomicU16,
    /// The task whose execution it has entered, plus 1; 0 for none.
    pub current: AtomicU16,
    /// Tasks that it is to wake, each a bit: what its guests found for them.
    pub wakes: [AtomicU64; MAX_TASKS.div_ceil(64)],
    /// It is to ask the scheduler whether its turn goes on.
    pub asked: AtomicBool,
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
            since: AtomicU64::new(0),
            halts: AtomicU64::new(0),
            loaded: AtomicU16::new(0),
            current: AtomicU16::new(0),
            wakes: [const { AtomicU64::new(0) }; MAX_TASKS.div_ceil(64)],
            asked: AtomicBool::new(false),
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

/// Whether there is a guest, and how it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// There is no such guest.
    Absent = 0,
    /// It runs, or can run, or waits.
    Alive = 1,
    /// It ended well.
    Ended = 2,
    /// It ended badly.
    Failed = 3,
    /// It ended, and the processor that it ran on last is about to make it anew.
    Remade = 4,
}

impl State {
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Alive,
            2 => Self::Ended,
            3 => Self::Failed,
            4 => Self::Remade,
            _ => Self::Absent,
        }
    }
}

/// A guest as the dispatcher sees it. Its vCPUs are [`crate::task::TASKS`].
pub struct Slot {
    state: AtomicU8,
    /// Numbers of its vCPUs' tasks, plus 1; 0 for none.
    tasks: [AtomicU16; MAX_VCPUS],
    /// vCPUs that have not ended.
    pub left: AtomicU8,
    /// Times that it was made anew.
    pub restarts: AtomicU16,
    order: AtomicU8,
    /// Who wanted its last reset.
    pub reset_by: Mutex<Source>,
    /// An operator keeps it off all processors.
    pub paused: AtomicBool,
    /// It has heard its power button.
    pub asked: AtomicBool,
    /// Count of the time-stamp counter when it was made.
    pub started: AtomicU64,
    /// Count at which its lease is over; never, if that is the highest.
    pub until: AtomicU64,
    /// Its zone.
    pub zone: AtomicU16,
    /// Its name.
    pub name: Mutex<Name>,
    /// Bytes that it wrote to its console.
    pub written: AtomicU64,
    /// Bytes that it wrote there in its lives before this one.
    pub before: AtomicU64,
    /// Bytes that it read from there.
    pub read: AtomicU64,
    /// Bytes that it wrote there in vain: its transmitter was busy.
    pub lost: AtomicU64,
    /// Bytes typed at it that were dropped, since it read none.
    pub dropped: AtomicU64,
    /// How it ended, when it has.
    pub ending: Mutex<Ending>,
    /// Where the time of its vCPUs that have ended went, in this life.
    pub spent: Mutex<Usage>,
    /// What it used in its lives before this one. Held while a life becomes one of them.
    pub past: Mutex<Account>,
}

/// What a guest used in some of its lives.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// Where its time went.
    pub usage: Usage,
    /// Exits.
    pub exits: Exits,
    /// Bytes that it wrote to its console, and read from there.
    pub bytes: [u64; 2],
    /// What those with its number ran before it was made.
    pub others: u64,
}

impl Account {
    /// None.
    pub const NONE: Self = Self { usage: Usage::ZERO, exits: tally::NONE, bytes: [0; 2], others: 0 };
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
    /// It is to get an NMI.
    Nmi = 3,
}

impl Order {
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Kill,
            2 => Self::Reset,
            3 => Self::Nmi,
            _ => Self::None,
        }
    }
}

impl Slot {
    const fn empty() -> Self {
        Self {
            state: AtomicU8::new(State::Absent as u8),
            tasks: [const { AtomicU16::new(0) }; MAX_VCPUS],
            left: AtomicU8::new(0),
            restarts: AtomicU16::new(0),
            order: AtomicU8::new(Order::None as u8),
            reset_by: Mutex::new(Source::Manifest),
            paused: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            started: AtomicU64::new(0),
            until: AtomicU64::new(u64::MAX),
            zone: AtomicU16::new(NO_ZONE),
            name: Mutex::new(Name::new()),
            written: AtomicU64::new(0),
            before: AtomicU64::new(0),
            read: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            ending: Mutex::new(Ending::Failed),
            spent: Mutex::new(Usage::ZERO),
            past: Mutex::new(Account::NONE),
        }
    }

    /// The task of one of its vCPUs.
    pub fn task(&self, vcpu: VcpuId) -> Option<&'static Task> {
        let number = self.tasks.get(vcpu.index())?.load(Ordering::Relaxed);
        TASKS.get(usize::from(number).checked_sub(1)?)
    }

    /// The tasks of its vCPUs.
    pub fn tasks(&self) -> impl Iterator<Item = &'static Task> + '_ {
        VcpuId::all(VcpuId::MOST).map_while(|vcpu| self.task(vcpu))
    }

    /// Makes this task one of its vCPU's, or none.
    pub fn set_task(&self, vcpu: VcpuId, task: Option<&Task>) {
        if let Some(place) = self.tasks.get(vcpu.index()) {
            place.store(task.map_or(0, |task| task.id().0 + 1), Ordering::Relaxed);
        }
    }

    /// Notes that it ended by the test exit.
    pub fn exit_by_test(&self, value: u32) {
        *self.ending.lock() = Ending::TestExit(value);
    }

    /// Has its first vCPU end it, as if an operator wanted it.
    pub fn order_end(&self) {
        self.give(Order::Kill);
        self.task(VcpuId::BOOT).map(Task::kick);
    }

    /// Bytes that it wrote to its console, and read from there, in this life.
    pub fn bytes(&self) -> [u64; 2] {
        [&self.written, &self.read].map(|count| count.load(Ordering::Relaxed))
    }

    /// What an operator wants of it, and it has not done.
    pub fn order(&self) -> Order {
        Order::of(self.order.load(Ordering::Acquire))
    }

    /// The same, and no more from now on.
    pub fn take_order(&self) -> Order {
        Order::of(self.order.swap(Order::None as u8, Ordering::AcqRel))
    }

    /// Gives it an order, in place of an earlier one; but an NMI does not take the place of its end. Whether it has it.
    pub fn give(&self, order: Order) -> bool {
        if order == Order::Nmi {
            return self.order.compare_exchange(0, order as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        }
        self.order.store(order as u8, Ordering::Release);
        true
    }

    /// It has carried out an order, and goes on, unless it was given another one.
    pub fn obeyed(&self, order: Order) {
        let none = Order::None as u8;
        // Another order stays.
        let _ = self.order.compare_exchange(order as u8, none, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// How it is.
    pub fn state(&self) -> State {
        State::of(self.state.load(Ordering::Acquire))
    }

    /// It is to have further turns.
    pub fn is_alive(&self) -> bool {
        matches!(self.state(), State::Alive | State::Remade)
    }

    /// Sets how it is.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
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
    fn waited(&self) -> u64 {
        0
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
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
    fn populate(&mut self, _: bulkhead_types::Gpa) -> bool {
        false
    }
    fn kick(&mut self, _: bulkhead_types::VcpuId) -> bool {
        false
    }
}
