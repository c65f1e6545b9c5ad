//! Why a command failed: a message, what to do next, and the exit status.

use crate::style;
use std::fmt;

/// The guest ended well.
pub const OK: u8 = 0;
/// A guest reported failure or died, or a test failed.
pub const FAILED: u8 = 1;
/// The manifest, a file or the arguments are wrong.
pub const USAGE: u8 = 2;
/// This machine can not run it.
pub const MACHINE: u8 = 3;
/// Nobody reads the output any more: what a shell shows when SIGPIPE (13) ends a program, 128 + 13.
pub const UNREAD: u8 = 141;
/// Time-out.
pub const TIMEOUT: u8 = 124;

/// A failure to report and exit with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit status, one of this module's constants.
    pub status: u8,
    /// What went wrong, without a full stop.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// A result that fails with a [`Failure`].
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure of the command itself or of what it ran.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { status: FAILED, message: message.into(), hint: None }
    }

    /// A wrong argument, file or manifest.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { status: USAGE, ..Self::failed(message) }
    }

    /// Something that this machine has not.
    pub fn machine(message: impl Into<String>) -> Self {
        Self { status: MACHINE, ..Self::failed(message) }
    }

    /// Standard output can not be written to. That nobody reads it any more is not said.
    pub fn unwritten(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self { status: UNREAD, ..Self::failed("") },
            _ => Self::failed(format!("can not write: {error}")),
        }
    }

    /// The same, with what to do next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same, printed as one line, unless it shows a place in a file.
    #[must_use]
    pub fn in_one_line(self) -> Self {
        if self.message.contains('\n') {
            return self;
        }
        Self { status: self.status, message: self.to_string(), hint: None }
    }

    /// Prints it to standard error.
    pub fn print(&self) {
        if self.message.is_empty() {
            return;
        }
        eprint!("{}: {}", style::error("hv"), self.message);
        eprintln!();
        if let Some(hint) = &self.hint {
            eprintln!("  {} {hint}", style::hint("→"));
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}
