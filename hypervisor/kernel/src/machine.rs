//! What the whole machine has in common: no guest's content is here.

use crate::backend::Virtualization;
use alloc::vec::Vec;
use bulkhead_core::barrier::Present;
use bulkhead_core::frames::FrameTable;
use bulkhead_core::host::{CpuidResult, Host};
use bulkhead_hw::compartment::Context;
use bulkhead_hw::startup::Shared;
use bulkhead_types::manifest::{Guest, MAX_GUESTS, Manifest};
use bulkhead_types::{Frequency, GuestId, Hpa};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use spin::{Mutex, Once};

/// What a guest's compartment executes, on a processor with this extension.
pub type Program = fn(&Virtualization) -> extern "C" fn() -> !;

/// What start-up found.
pub struct Facts {
    /// The machine to run.
    pub manifest: Manifest,
    /// First byte of the pack: images are at offsets from here.
    pub pack: Hpa,
    /// The shared part.
    pub shared: Shared,
    /// What the processor can do.
    pub capabilities: Virtualization,
    /// What the processor has against leaks between zones.
    pub barriers: Present,
    /// What the guests' compartments execute.
    pub program: Program,
    /// Rate of the time-stamp counter.
    pub tsc: Frequency,
    /// Seconds since 1970 at count 0 of the time-stamp counter.
    pub epoch: u64,
    /// Ranges of frames that start-up used and nobody needs now: first frame and count.
    pub leftovers: Vec<(u64, u64)>,
    /// Physical page of the local APIC, where it is mapped.
    pub local_apic: Option<Hpa>,
}

impl Facts {
    /// A guest as the manifest has it.
    pub fn guest(&self, id: GuestId) -> Option<&Guest> {
        self.manifest.guests.get(usize::from(id.number()).checked_sub(1)?)
    }
}

/// Set once, by start-up.
pub static FACTS: Once<Facts> = Once::new();
/// Who owns which frame. Taken while compartments are made and audited, never on the way of an exit.
pub static FRAMES: Once<Mutex<FrameTable<'static>>> = Once::new();
/// Where the idle compartment was left.
pub static IDLE: Context = Context::empty();
/// The guests, by number less one.
pub static SLOTS: [Slot; MAX_GUESTS] = [const { Slot::empty() }; MAX_GUESTS];
/// The guest whose registers are in the CPU, 0 for none.
pub static LOADED: AtomicU16 = AtomicU16::new(0);
/// The guest whose compartment is entered, and why.
pub static CURRENT: AtomicU16 = AtomicU16::new(0);

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
    /// It can run.
    Ready = 1,
    /// It can when the time has come, or input.
    Waiting = 2,
    /// It ended well.
    Ended = 3,
    /// It ended badly.
    Failed = 4,
}

/// A guest as the dispatcher sees it.
pub struct Slot {
    /// Where its compartment was left.
    pub context: Context,
    state: AtomicU8,
    command: AtomicU8,
    /// Host's time-stamp count: end of the turn when it is entered, when to wake it when it is left.
    pub wake: AtomicU64,
    /// Ticks that it was in the CPU beyond the end of its last turn.
    pub debt: AtomicU64,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            context: Context::empty(),
            state: AtomicU8::new(State::Absent as u8),
            command: AtomicU8::new(Command::Run as u8),
            wake: AtomicU64::new(0),
            debt: AtomicU64::new(0),
        }
    }

    /// Whether it can run.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            1 => State::Ready,
            2 => State::Waiting,
            3 => State::Ended,
            4 => State::Failed,
            _ => State::Absent,
        }
    }

    /// Sets whether it can run.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What it is entered for.
    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Relaxed) {
            1 => Command::Park,
            2 => Command::Audit,
            _ => Command::Run,
        }
    }

    /// Enters its compartment from the idle one; returns when it comes back.
    pub fn enter(&self, id: GuestId, command: Command) {
        self.command.store(command as u8, Ordering::Relaxed);
        CURRENT.store(id.number(), Ordering::Relaxed);
        IDLE.switch(&self.context);
        CURRENT.store(0, Ordering::Relaxed);
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
