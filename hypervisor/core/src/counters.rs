//! How often a guest left, and why.

use crate::exit::Exit;

macro_rules! kinds {
    ($($name:ident $text:literal: $pattern:pat),* $(,)?) => {
        /// Kinds of exits, as they are counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum Kind { $($name),* }

        impl Kind {
            /// All kinds, with the names they are reported by.
            pub const ALL: &[(Self, &str)] = &[$((Self::$name, $text)),*];

            /// The kind of `exit`.
            #[must_use]
            pub const fn of(exit: &Exit) -> Self {
                match exit { $($pattern => Self::$name),* }
            }
        }
    };
}

kinds! {
    Host "host": Exit::Host | Exit::MachineCheck,
    Timer "timer": Exit::Timer,
    Window "window": Exit::InterruptWindow | Exit::NmiWindow,
    Exception "exception": Exit::Exception { .. },
    Cpuid "cpuid": Exit::Cpuid,
    Halt "halt": Exit::Halt,
    Hypercall "hypercall": Exit::Hypercall,
    Port "port": Exit::Io(_),
    Msr "msr": Exit::ReadMsr | Exit::WriteMsr,
    Control "control": Exit::WriteCr { .. } | Exit::ReadCr { .. } | Exit::Lmsw { .. } | Exit::Xsetbv,
    Cache "cache": Exit::CacheFlush,
    Undefined "undefined": Exit::Undefined,
    Nested "nested": Exit::Nested(_),
    Other "other": Exit::TripleFault | Exit::TaskSwitch | Exit::Unexpected { .. },
}

/// Counts by kind, and of what was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    exits: [u64; Kind::ALL.len()],
    /// Accesses to model-specific registers that this machine does not have.
    pub unknown_msr: u64,
    /// Instructions carried out by the emulator.
    pub emulated: u64,
}

impl Counters {
    /// Counts an exit.
    pub fn count(&mut self, exit: &Exit) {
        if let Some(count) = self.exits.get_mut(Kind::of(exit) as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// All exits.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.exits.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// The counts of all kinds, in the order of [`Kind::ALL`].
    #[must_use]
    pub const fn all(&self) -> &[u64] {
        &self.exits
    }

    /// Kinds with their counts, those that are not zero.
    pub fn exits(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Kind::ALL.iter().zip(self.exits).filter(|(_, count)| *count != 0).map(|((_, name), count)| (*name, count))
    }
}
