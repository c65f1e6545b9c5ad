//! What comes of an operation.

use crate::line::Refused;
use crate::mac::Key;
use crate::upload::Wrong;
use crate::{Operation, Source};
use bulkhead_types::manifest::MAX_NAME;
use core::fmt;
use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

/// Most items of a page.
pub const PAGE: usize = 8;
/// A guest's or zone's name.
pub type Name = String<MAX_NAME>;

/// The machine that operations are done to.
pub trait Machine {
    /// Does it. The response may borrow from the machine, and is used before the next operation.
    fn perform(&mut self, operation: &Operation<'_>, by: Source) -> Response<'_>;
}

/// What comes of an operation. The operation says which of these it can be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is no heap; one response is there at a time")]
pub enum Response<'a> {
    /// It is done.
    Done,
    /// There was nothing to do: it is so already.
    Unchanged,
    /// It can not be done.
    Refused(Refusal),
    /// Name and version of the hypervisor, and on what it runs.
    Version {
        /// Like `0.1.0`.
        version: &'a str,
        /// The processor's extension that it uses.
        backend: &'a str,
        /// Processors.
        cpus: u16,
        /// Ticks in a second.
        hertz: u64,
    },
    /// To [`Operation::List`].
    Guests(Page<Guest>),
    /// To [`Operation::Create`] and [`Operation::Chunk`]: send from this offset on.
    Send(u64),
    /// To [`Operation::Commit`]: the guest's number.
    Created(u16),
    /// To [`Operation::Stats`].
    Stats(Stats),
    /// To [`Operation::Exits`].
    #[serde(borrow)]
    Exits(Exits<'a>),
    /// To [`Operation::Events`].
    Events(Events),
    /// To [`Operation::Read`].
    Output {
        /// Where `bytes` begin: beyond what was asked for if earlier ones are gone, and before it if that is not written yet,
        /// which is when the guest is another one of the same name.
        at: u64,
        /// At most [`CHUNK`](crate::line::CHUNK) bytes.
        bytes: &'a [u8],
    },
    /// To [`Operation::Write`]: so many bytes were taken.
    Taken(u16),
    /// To [`Operation::Memory`].
    Memory(Page<Memory>),
    /// To [`Operation::Audit`].
    Audit {
        /// Page tables that were walked.
        tables: u64,
        /// Frames that were compared.
        frames: u64,
        /// Breaches that were found; the log names them.
        violations: u64,
    },
    /// To [`Action::Stop`](crate::Action::Stop): the guest has heard it, and takes its time; an event tells its end.
    Asked,
}

/// Some of a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items, in order.
    pub items: Vec<T, PAGE>,
    /// Where the next page begins, if there is one.
    pub next: Option<u16>,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next: None }
    }
}

/// A guest, as lists show it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Guest {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: Name,
    /// Its zone's name.
    pub zone: Name,
    /// What it does.
    pub state: State,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// RAM in bytes.
    pub memory: u64,
    /// SHA-256 of its images, if it was worked out.
    pub origin: Option<Key>,
    /// Who made it.
    pub creator: Source,
    /// When it was started last.
    pub started: Option<Moment>,
    /// Seconds until it is stopped; those that each start gives it, if it does not run.
    pub lease: Option<u64>,
}

/// What a guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum State {
    Running,
    Paused,
    Stopping,
    Stopped,
    Failed,
}

/// A moment: the processor's count, and the clock on the wall.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Ticks of the time-stamp counter since the machine was switched on.
    pub ticks: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// What guests have used up to a moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// The moment.
    pub at: Moment,
    /// Ticks of all processors since the guests' time is counted. Those below, and what the guests of all pages used, are as
    /// many.
    pub total: u64,
    /// Of it, ticks that no guest had, and nobody used.
    pub idle: u64,
    /// Of it, ticks that the hypervisor used for no guest.
    pub own: u64,
    /// Of it, ticks that guests used that are destroyed.
    pub gone: u64,
    /// The guests.
    pub guests: Page<Usage>,
}

/// What one guest has used since it was made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: Name,
    /// Ticks that its virtual CPUs ran, with what the hypervisor did for them.
    pub used: u64,
    /// Ticks that they were ready and another ran.
    pub stolen: u64,
    /// Ticks that they waited for an interrupt.
    pub waiting: u64,
    /// Exits.
    pub exits: u64,
    /// Bytes of memory that it owns, RAM and all else.
    pub memory: u64,
    /// Bytes that it wrote to its devices.
    pub written: u64,
    /// Bytes that it read from them.
    pub read: u64,
}

/// Exits of a guest by reason: name, count, ticks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Exits<'a>(#[serde(borrow)] pub Vec<(&'a str, u64, u64), 32>);

/// A range of physical memory with one owner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Address of its first byte.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// Whose it is, and what for.
    pub owner: String<48>,
}

/// Events in order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Events {
    /// Sequence number of the first one here; those from the one asked for up to here are gone.
    pub first: u64,
    /// Sequence number of the next one that happens.
    pub end: u64,
    /// Some of them.
    pub items: Vec<Event, PAGE>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Moment,
    /// Number of the guest that it is about; 0 for none.
    pub guest: u16,
    /// That guest's name.
    pub name: Name,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EventKind {
    /// A guest was made.
    Created(Source),
    /// It runs.
    Started(Source),
    /// It was asked to switch itself off.
    Stopping(Source),
    /// It runs no further.
    Paused(Source),
    /// It runs on.
    Resumed(Source),
    /// It is to be started anew.
    Reset(Source),
    /// It does not run any more.
    Ended(Ending),
    /// It and its memory are gone.
    Destroyed(Source),
    /// Its lease is over.
    LeaseOver,
    /// It was given an NMI.
    Injected(Source),
    /// So many bytes of its console were lost: it writes on while its transmitter is busy.
    ConsoleLost(u64),
    /// So many events of it were left out: there were too many.
    LeftOut(u64),
    /// A client has proved the key, the first one for a minute: they come and go.
    Session,
    /// The control line refused frames.
    Refused(Refused),
    /// The audit found so many violations.
    Audit(u64),
    /// It is to end at once.
    Killed(Source),
}

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ending {
    /// It switched itself off.
    PowerOff,
    /// It reset itself.
    Reset,
    /// It wrote this to the test exit.
    TestExit(u32),
    /// Three faults in a row.
    TripleFault,
    /// It did what can not be carried out; the log says what.
    Failed,
    /// An operator switched it off.
    Stopped,
}

/// Why an operation can not be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// No guest has this name or number.
    NoGuest,
    /// It is in this state.
    Is(State),
    /// Guests or memory: there is no more room.
    NoRoom,
    /// What was sent is wrong.
    Upload(Wrong),
    /// The pack is not one of one guest that can be made.
    Pack,
    /// A guest, or a zone of the machine, has this name already.
    Taken,
    /// The pack's zone is none of this machine.
    NoZone,
    /// This hypervisor does not know the operation.
    Unknown,
    /// The hypervisor's answer is too long for a frame.
    TooLong,
    /// This hypervisor can not do it.
    Unsupported,
    /// Its system has not enabled its power button.
    Deaf,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGuest => f.write_str("there is no such guest: `list` shows them"),
            Self::Is(State::Running) => f.write_str("it is running: stop it first"),
            Self::Is(State::Paused) => f.write_str("it is paused: resume it first"),
            Self::Is(State::Stopping) => f.write_str("it is stopping: wait, or kill it"),
            Self::Is(state) => write!(f, "it is {state}: start it first"),
            Self::NoRoom => f.write_str("no room for it: destroy another guest, or give it less memory"),
            Self::Upload(wrong) => write!(f, "{wrong}"),
            Self::Pack => {
                f.write_str("not a pack of one guest that can be made: pack it with this hypervisor's own `hv`")
            }
            Self::Taken => {
                f.write_str("another guest, or a zone, has this name: destroy it first, or give another name")
            }
            Self::NoZone => f.write_str("this machine has no such zone: name one of its manifest's"),
            Self::Unknown => f.write_str("this hypervisor does not know it: use the `hv` that it came with"),
            Self::TooLong => f.write_str("the answer does not fit into a frame: this is the hypervisor's fault"),
            Self::Unsupported => f.write_str("this hypervisor can not do that yet"),
            Self::Deaf => f.write_str("it does not listen to its power button: `kill` ends it at once"),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power-off"),
            Self::Reset => f.write_str("reset"),
            Self::TestExit(value) => write!(f, "test-exit {value}"),
            Self::TripleFault => f.write_str("triple-fault"),
            Self::Failed => f.write_str("failed"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created(by) => write!(f, "created by {by}"),
            Self::Started(by) => write!(f, "started by {by}"),
            Self::Stopping(by) => write!(f, "stopping, asked by {by}"),
            Self::Paused(by) => write!(f, "paused by {by}"),
            Self::Resumed(by) => write!(f, "resumed by {by}"),
            Self::Reset(by) => write!(f, "reset by {by}"),
            Self::Ended(how) => write!(f, "ended {how}"),
            Self::Destroyed(by) => write!(f, "destroyed by {by}"),
            Self::LeaseOver => f.write_str("lease over"),
            Self::Injected(by) => write!(f, "nmi injected by {by}"),
            Self::ConsoleLost(bytes) => write!(f, "{bytes} bytes of its console lost: it writes too much"),
            Self::LeftOut(count) => write!(f, "{count} events left out: there were too many"),
            Self::Session => f.write_str("control line: a client has proved the key"),
            Self::Refused(Refused { garbled, unproved, replayed, skipped }) => write!(
                f,
                "control line: refused frames: {garbled} garbled, {unproved} unproved, {replayed} replayed, {skipped} \
                 out of order"
            ),
            Self::Killed(by) => write!(f, "killed by {by}"),
            Self::Audit(violations) => write!(f, "audit: {violations} violations"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.guest {
            0 => write!(f, "{}", self.kind),
            id => write!(f, "guest {id} {}: {}", self.name, self.kind),
        }
    }
}
