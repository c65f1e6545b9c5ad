//! How a guest ends.

use crate::backend::BackendError;
use core::fmt;

/// Why a guest does not run any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It switched its machine off.
    PowerOff,
    /// It reset its machine.
    Reset,
    /// It wrote this value to the test exit.
    TestExit(u32),
    /// Three faults in a row.
    TripleFault,
    /// An operator switched it off.
    Stopped,
    /// It did what can not be carried out, or the processor refused to run it.
    Killed(Reason),
}

/// Why a guest was stopped against its will.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The processor refused a primitive.
    Backend(BackendError),
    /// An exit that should not happen.
    Exit {
        /// The backend's raw code.
        reason: u64,
        /// The backend's raw qualification.
        info: u64,
    },
    /// An instruction on a device that the emulator does not know.
    Instruction {
        /// Its first bytes.
        bytes: [u8; 15],
        /// How many of them could be read.
        length: u8,
    },
    /// An event was being delivered through a descriptor table or stack that is no memory.
    Delivery,
    /// A task switch by a task gate or task segment.
    TaskSwitch,
    /// A nested table is malformed: the hypervisor's own fault.
    NestedTables,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power-off"),
            Self::Reset => f.write_str("reset"),
            Self::TestExit(code) => write!(f, "test-exit {code}"),
            Self::TripleFault => f.write_str("triple-fault"),
            Self::Stopped => f.write_str("stopped"),
            Self::Killed(reason) => write!(f, "killed {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(error) => write!(f, "the processor refused {error}"),
            Self::Exit { reason, info } => write!(f, "unexpected exit {reason:#x}, {info:#x}"),
            Self::Instruction { bytes, length } => {
                f.write_str("instruction on a device that is not emulated:")?;
                bytes.iter().take(usize::from(*length)).try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Self::Delivery => f.write_str("event delivery through what is no memory"),
            Self::TaskSwitch => f.write_str("hardware task switch"),
            Self::NestedTables => f.write_str("malformed nested page tables"),
        }
    }
}

impl From<BackendError> for End {
    fn from(error: BackendError) -> Self {
        Self::Killed(Reason::Backend(error))
    }
}
