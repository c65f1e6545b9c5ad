//! Guest time: a count of time-stamp-counter ticks.
//!
//! Every clock a guest can read is computed from the one count of its time-stamp counter, so that no two of its clocks
//! can drift apart. A device is handed the present count with each access and says at which count it wants to act next.

use core::fmt;
use core::num::NonZeroU64;

/// A guest's time-stamp-counter value: ticks since its machine was switched on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Ticks(u64);

impl Ticks {
    /// The moment the machine was switched on.
    pub const ZERO: Self = Self(0);

    /// The moment at this count.
    #[must_use]
    pub const fn new(count: u64) -> Self {
        Self(count)
    }

    /// The count.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// `ticks` later; stays at the end of time rather than wrap.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }

    /// Ticks from `earlier` to here; 0 if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Ticks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A clock's rate in hertz; never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Frequency(NonZeroU64);

impl Frequency {
    /// A rate of `hertz`, at least 1.
    #[must_use]
    pub const fn hertz(hertz: u64) -> Self {
        Self(match NonZeroU64::new(hertz) {
            Some(hertz) => hertz,
            None => NonZeroU64::MIN,
        })
    }

    /// In hertz.
    #[must_use]
    pub const fn as_hertz(self) -> u64 {
        self.0.get()
    }

    /// How often a clock of rate `other` has ticked when this clock has ticked `count` times, rounded down.
    #[must_use]
    pub const fn convert(self, count: u64, other: Self) -> u64 {
        // Whole seconds and the rest apart: no 128-bit division, and exact.
        let seconds = count / self.as_hertz();
        let rest = count % self.as_hertz();
        seconds.saturating_mul(other.as_hertz()).saturating_add(mul_div(rest, other.as_hertz(), self.0))
    }

    /// The first count of this clock at which a clock of rate `other` has ticked `count` times.
    #[must_use]
    pub const fn count_at(self, count: u64, other: Self) -> u64 {
        let down = other.convert(count, self);
        if self.convert(down, other) < count { down.saturating_add(1) } else { down }
    }
}

/// a * b / c without overflow for a < c.
const fn mul_div(a: u64, b: u64, c: NonZeroU64) -> u64 {
    let c = c.get();
    match a.checked_mul(b) {
        Some(product) => product / c,
        #[expect(clippy::cast_possible_truncation, reason = "a < c, so the quotient is below b")]
        None => (a as u128 * b as u128 / c as u128) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::Frequency;

    #[test]
    fn conversion_is_exact_over_a_year() {
        let tsc = Frequency::hertz(3_000_000_001);
        let pit = Frequency::hertz(1_193_182);
        let year = 365 * 86_400;
        assert_eq!(tsc.convert(tsc.as_hertz() * year, pit), pit.as_hertz() * year);
        for ticks in [0, 1, 2, 999, 1_193_181, 1_193_182, 40_000_000_000] {
            let at = tsc.count_at(ticks, pit);
            assert_eq!(tsc.convert(at, pit), ticks);
            assert!(at == 0 || tsc.convert(at - 1, pit) < ticks);
        }
    }
}
