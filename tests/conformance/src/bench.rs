//! A vCPU on a processor, and what a rule and its bench tell each other, in words of no vendor.

use crate::broken::Broken;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_arch::{Gpr, Rflags};
use bulkhead_core::{BackendError, Event, Exit, Vcpu};
use bulkhead_types::Width;
use core::cell::RefCell;

/// An instruction that stops a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Instruction {
    Cpuid,
    Halt,
    Hypercall,
    ReadMsr,
    WriteMsr,
    Xsetbv,
    WriteBackCaches,
    /// MONITOR: one that this machine does not have.
    Monitor,
    /// MOV to CR4 that policy has to see.
    WriteCr4(Gpr),
    /// MOV to CR8, in 64-bit code.
    WriteCr8(Gpr),
    /// MOV from CR8, in 64-bit code.
    ReadCr8(Gpr),
    /// IN or OUT with DX.
    Port {
        port: u16,
        width: Width,
        write: bool,
    },
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happens {
    /// The guest comes to this instruction, which has so many bytes with its prefixes.
    Instruction(Instruction, u8),
    /// The guest executes STI with interrupts off, and then comes to this instruction.
    InShadow(Instruction, u8),
    /// The nested tables do not allow an access; perhaps while this event, which was injected, is being delivered.
    Nested {
        /// The access.
        fault: Fault,
        /// The event.
        delivering: Option<Event>,
    },
    /// #DB with these bits of DR6: breakpoints 0 to 3, bit 14 for a single step.
    Debug(u64),
    /// The guest can take an interrupt, as was asked: at once, or behind a NOP if it is in a shadow.
    InterruptWindow,
    /// The third fault in a row.
    TripleFault,
    /// A task switch.
    TaskSwitch,
    /// The end of the time that was set.
    Timer,
    /// Another interrupt of the host's.
    Host,
    /// The processor refuses the guest's state.
    Refused {
        /// It leaves the state as it is, so that it can be looked at.
        kept: bool,
    },
    /// The guest reads a byte of [`crate::guest::SPARE`], and halts if it can.
    Touch,
    /// The guest reads its time-stamp counter to EDX and EAX, and halts.
    Count,
    /// The handler that the guest is in since the last run returns; an NMI window was asked for.
    Return,
}

/// What an access wanted, and what was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Guest-physical address; without paging below 4 GiB.
    pub gpa: u64,
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub execute: bool,
    /// It is the processor's own access to the guest's page tables: `gpa` is in one of [`crate::guest::OUTER_TABLES`].
    pub walk: bool,
    /// Something is mapped there, which does not allow a write (or if it fetches, that).
    pub present: bool,
}

/// An event to be delivered: its type as both manuals number it, vector, error code.
pub type Seen = (u32, u8, Option<u32>);

/// What the processor was told at an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where the guest goes on.
    pub rip: u64,
    /// The event to be delivered.
    pub event: Option<Seen>,
    /// A single step is due before the next instruction.
    pub step: bool,
    /// Interrupts are held back for one instruction.
    pub shadow: bool,
    /// Translations of the nested tables were forgotten since the last entry.
    pub flushed: bool,
    /// It stops when it can take an interrupt.
    pub interrupt_window: bool,
    /// What the guest's counter is ahead.
    pub tsc_offset: u64,
    /// Ticks until the timer.
    pub timer: u64,
}

/// Entries, noted by a backend's recorder ([`crate::vmx::Recorder`], [`crate::svm::Recorder`]) for the bench.
pub type Entries = Rc<RefCell<Vec<Entry>>>;
/// What the backend says of a run.
pub type Came = Result<Exit, BackendError>;

/// An event that has come to the guest's handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Its vector.
    pub vector: u8,
    /// The error code on the handler's stack.
    pub error: Option<u32>,
    /// The return address on the handler's stack.
    pub rip: u64,
    /// The interrupt and trap flags on the handler's stack.
    pub flags: Rflags,
}

impl Arrival {
    /// The flags that are compared.
    pub const FLAGS: Rflags = Rflags::IF.union(Rflags::TF);
}

/// Why a rule was not kept, or could not be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// What was wrong.
    Wrong(String),
    /// Why what the rule needs can not be made to happen on this processor.
    CanNot(&'static str),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Wrong(format!("the backend says {error:?}"))
    }
}

/// A backend on a processor.
pub trait Bench {
    /// Its vCPU.
    type Vcpu: Vcpu;

    /// A vCPU as after reset, the only one; what was before is gone.
    ///
    /// # Errors
    /// If it can not be made.
    fn vcpu(&mut self) -> Result<Self::Vcpu, Failure>;

    /// Runs it once, so that this happens: as the guest's registers are now, from RIP on.
    ///
    /// # Errors
    /// If it can not be made to happen here. What the backend says is the result itself.
    fn run(&mut self, vcpu: &mut Broken<Self::Vcpu>, happens: Happens) -> Result<Came, Failure>;

    /// What the processor was told at the first entry of the last run, if there was one.
    fn told(&self) -> Option<Entry>;

    /// The event that came to the guest in the last run, if one did.
    fn arrived(&self) -> Option<Arrival>;

    /// Takes the page [`crate::guest::SPARE`] from the guest, or gives it back. Nothing is flushed.
    ///
    /// # Errors
    /// If the nested tables can not be changed.
    fn give_spare(&mut self, given: bool) -> Result<(), Failure>;

    /// The host's time-stamp counter.
    fn count(&self) -> u64;
}
