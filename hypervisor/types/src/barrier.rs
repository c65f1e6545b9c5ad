//! The processor is shared memory too: what can be done between guests of different zones.

use core::fmt;
use serde::{Deserialize, Serialize};

/// A set of barriers against what a processor remembers of one guest and shows another by its timing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Barriers {
    /// Forget what branches were predicted by (IBPB).
    pub ibpb: bool,
    /// Empty the first-level data cache.
    pub l1d: bool,
    /// Overwrite load ports, fill and store buffers (VERW).
    pub verw: bool,
    /// Let no load pass an older store while a guest runs (SSBD).
    pub ssbd: bool,
}

impl Barriers {
    /// All of them.
    pub const ALL: Self = Self { ibpb: true, l1d: true, verw: true, ssbd: true };

    /// Those in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            ibpb: self.ibpb || other.ibpb,
            l1d: self.l1d || other.l1d,
            verw: self.verw || other.verw,
            ssbd: self.ssbd || other.ssbd,
        }
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            ibpb: self.ibpb && other.ibpb,
            l1d: self.l1d && other.l1d,
            verw: self.verw && other.verw,
            ssbd: self.ssbd && other.ssbd,
        }
    }
}

impl fmt::Display for Barriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [(self.ibpb, "ibpb"), (self.l1d, "l1d"), (self.verw, "verw"), (self.ssbd, "ssbd")];
        let mut separator = "";
        for (_, name) in all.iter().filter(|(there, _)| *there) {
            write!(f, "{separator}{name}")?;
            separator = "+";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}
