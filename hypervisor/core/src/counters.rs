//! How often a guest left, why, and how long it was served for that.

use crate::exit::Exit;

macro_rules! kinds {
    ($($(#[$attribute:meta])? $name:ident $text:literal: $pattern:pat),* $(,)?) => {
        /// Kinds of exits, as they are counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum Kind { $($(#[$attribute])? $name),* }

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
    #[default]
    Host "host": Exit::Host | Exit::MachineCheck,
    Timer "timer": Exit::Timer,
    Window "window": Exit::InterruptWindow | Exit::NmiWindow,
    Eoi "eoi": Exit::EndOfInterrupt { .. },
    Exception "exception": Exit::Exception { .. },
    Cpuid "cpuid": Exit::Cpuid,
    Halt "halt": Exit::Halt,
    Hypercall "hypercall": Exit::Hypercall,
    Port "port": Exit::Io(_),
    Msr "msr": Exit::ReadMsr | Exit::WriteMsr | Exit::RegisterWritten { .. },
    Control "control": Exit::WriteCr { .. } | Exit::ReadCr { .. } | Exit::Lmsw { .. } | Exit::Xsetbv,
    Cache "cache": Exit::CacheFlush,
    Undefined "undefined": Exit::Undefined,
    Nested "nested": Exit::Nested(_),
    Other "other": Exit::TripleFault | Exit::TaskSwitch | Exit::Unexpected { .. },
}

/// Counts by kind, and of what was refused. They add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    exits: [u64; Kind::ALL.len()],
    /// Ticks from the exit to the next entry. Between turns they are nobody's; those before the first entry are the host's.
    ticks: [u64; Kind::ALL.len()],
    /// What is served, and up to when that was counted.
    kind: Kind,
    since: u64,
    /// Accesses to model-specific registers that this machine does not have.
    pub unknown_msr: u64,
    /// Instructions carried out by the emulator.
    pub emulated: u64,
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        let others = other.exits.iter().chain(&other.ticks);
        for (sum, more) in self.exits.iter_mut().chain(&mut self.ticks).zip(others) {
            *sum = sum.wrapping_add(*more);
        }
        self.unknown_msr = self.unknown_msr.wrapping_add(other.unknown_msr);
        self.emulated = self.emulated.wrapping_add(other.emulated);
    }
}

impl Counters {
    /// Counts an exit, which was at this time.
    #[inline]
    pub fn count(&mut self, exit: &Exit, at: u64) {
        (self.kind, self.since) = (Kind::of(exit), at);
        if let Some(count) = self.exits.get_mut(self.kind as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// The exit has been served up to now.
    #[inline]
    pub fn serve(&mut self, now: u64) {
        if let Some(ticks) = self.ticks.get_mut(self.kind as usize) {
            *ticks = ticks.wrapping_add(now.wrapping_sub(self.since));
        }
        self.since = now;
    }

    /// A turn begins now, which goes on with the exit that the last one ended with.
    #[inline]
    pub const fn begin(&mut self, now: u64) {
        self.since = now;
    }

    /// Kinds with the ticks that they took, those that are not zero.
    pub fn ticks(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        named(&self.ticks)
    }

    /// The counts of all kinds, in the order of [`Kind::ALL`].
    #[must_use]
    pub const fn all(&self) -> &[u64; Kind::ALL.len()] {
        &self.exits
    }

    /// The ticks of all kinds, in the same order.
    #[must_use]
    pub const fn all_ticks(&self) -> &[u64; Kind::ALL.len()] {
        &self.ticks
    }

    /// Kinds with their counts, those that are not zero.
    pub fn exits(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        named(&self.exits)
    }
}

fn named(counts: &[u64]) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    Kind::ALL.iter().zip(counts).filter(|(_, count)| **count != 0).map(|((_, name), count)| (*name, *count))
}
