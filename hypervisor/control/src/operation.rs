//! What can be asked of the machine, by the monitor and over the control line alike.

use crate::mac::Key;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Something to do, or to tell. Guests are named by name, or by number where no name is that number.
///
/// Lists come in pages: ask from 0, then from what the page says, until it says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operation<'a> {
    /// What this hypervisor is.
    Version,
    /// The guests with numbers from this on.
    List(u16),
    /// Do something with a guest.
    Act {
        /// The guest.
        #[serde(borrow)]
        guest: &'a str,
        /// What to do.
        action: Action,
    },
    /// Take a pack with one guest in it (see the manifest's module): as long as this, with this SHA-256. If the same one is
    /// on its way already, it goes on where it was left.
    Create {
        /// Bytes of the pack.
        bytes: u64,
        /// Its hash.
        sha256: Key,
    },
    /// The pack's bytes from this offset on.
    Chunk {
        /// Offset in bytes.
        offset: u64,
        /// At most [`CHUNK`](crate::line::CHUNK) bytes.
        #[serde(borrow)]
        bytes: &'a [u8],
    },
    /// The pack is complete: make its guest. It is stopped.
    Commit,
    /// What guests with numbers from this on have used: up to the moment at which this was last asked from 0 on.
    Stats(u16),
    /// How often a guest left, by reason.
    Exits(&'a str),
    /// Events from this sequence number on.
    Events(u64),
    /// What a guest has written to its console, from this byte on.
    Read {
        /// The guest.
        guest: &'a str,
        /// Bytes since it was first started.
        from: u64,
    },
    /// Input for a guest's console, as far as there is room for it.
    Write {
        /// The guest.
        guest: &'a str,
        /// At most [`CHUNK`](crate::line::CHUNK) bytes.
        bytes: &'a [u8],
    },
    /// Who has which memory.
    Memory(u16),
    /// Walk all page tables and compare them with the frame table.
    Audit,
    /// As a chunk, of so many zeros: packs have many, and lines are slow. Of more than 2^16 the first are taken.
    Zeros {
        /// Offset in bytes.
        offset: u64,
        /// How many.
        count: u32,
    },
}

/// What is done with one guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    /// Let a stopped one run, from its first instruction.
    Start,
    /// Switch it off: as a person at its power button would. It may take its time.
    Stop,
    /// Let it run no further.
    Pause,
    /// Let a paused one run on.
    Resume,
    /// Start it anew.
    Reset,
    /// Switch it off at once.
    Kill,
    /// Forget a stopped one, and free its memory.
    Destroy,
    /// Give its first virtual CPU an NMI.
    Nmi,
    /// Write its registers to the log.
    Dump,
    /// Write its exits to the log, or no more.
    Trace(bool),
}

impl Action {
    /// Its command.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::Kill => "kill",
            Self::Destroy => "destroy",
            Self::Nmi => "inject",
            Self::Dump => "dump",
            Self::Trace(_) => "trace",
        }
    }
}

/// Where an operation, or a guest, comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Source {
    /// The manifest that the machine started with.
    Manifest,
    /// The monitor.
    Monitor,
    /// The control line.
    Line,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Manifest => "manifest",
            Self::Monitor => "monitor",
            Self::Line => "line",
        })
    }
}
