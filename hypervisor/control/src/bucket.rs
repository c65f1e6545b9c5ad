//! A rate limit: a bucket of tokens that fills with time.

/// So many at once, and so many a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens of a full bucket.
    pub burst: u32,
    /// Ticks in which one token comes back; at least 1.
    pub ticks: u64,
}

/// The bucket. Its [`Rate`] is told with each use, since it is known only at run time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Tokens that are gone.
    gone: u32,
    /// Moment up to which the bucket has filled.
    filled: u64,
    held: u64,
    /// When it was told last how many were held back, or the first of them was.
    told: u64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn new() -> Self {
        Self { gone: 0, filled: 0, held: 0, told: 0 }
    }

    /// Takes a token; if there is none, what it was for is held back, and counted.
    pub fn take(&mut self, now: u64, rate: Rate) -> bool {
        let ticks = rate.ticks.max(1);
        let come = now.saturating_sub(self.filled) / ticks;
        self.gone = u32::try_from(come).map_or(0, |come| self.gone.saturating_sub(come));
        self.filled = if self.gone == 0 { now } else { self.filled.saturating_add(come.saturating_mul(ticks)) };
        let free = self.gone < rate.burst;
        if free {
            self.gone += 1;
        } else {
            if self.held == 0 {
                self.told = now;
            }
            self.held = self.held.saturating_add(1);
        }
        free
    }

    /// How many were held back since this was told last; at most once in the time in which the bucket fills.
    pub fn held_back(&mut self, now: u64, rate: Rate) -> Option<u64> {
        let full = rate.ticks.saturating_mul(rate.burst.into());
        (self.held != 0 && now.saturating_sub(self.told) >= full).then(|| core::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::{Bucket, Rate};
    use proptest::prelude::{prop_assert, proptest};

    #[test]
    fn a_flood_gets_the_burst_and_then_the_rate() {
        let rate = Rate { burst: 10, ticks: 100 };
        let mut bucket = Bucket::new();
        let passed = (1_000_000..1_002_000).filter(|now| bucket.take(*now, rate)).count();
        assert!((29..=30).contains(&passed), "{passed}");
        assert_eq!(bucket.held_back(1_000_500, rate), None);
        assert_eq!(bucket.held_back(1_002_100, rate), Some(2000 - passed as u64));
        assert_eq!(bucket.held_back(1_009_200, rate), None);
    }

    proptest! {
        #[test]
        fn no_interval_has_more_than_its_share(steps in proptest::collection::vec(0..400_u64, 1..200)) {
            let rate = Rate { burst: 5, ticks: 100 };
            let (mut bucket, mut now, mut passed) = (Bucket::new(), 0, std::vec::Vec::new());
            for step in steps {
                now += step;
                if bucket.take(now, rate) {
                    passed.push(now);
                }
            }
            for (index, from) in passed.iter().enumerate() {
                for (more, to) in passed[index..].iter().enumerate() {
                    prop_assert!(more as u64 <= 5 + (to - from) / 100, "{more} from {from} to {to}");
                }
            }
        }
    }

    extern crate std;
}
