//! How often each guest left, and why: told while it runs, and written to the log for those that are traced.
//!
//! Each guest's own counts lie in its compartment; at the end of a turn they are put here, numbers and nothing else.

use crate::console;
use crate::entries;
use bulkhead_control::Exits;
use bulkhead_core::counters::{Counters, Kind};
use bulkhead_hw::cpu;
use bulkhead_types::GuestId;
use bulkhead_types::manifest::MAX_GUESTS;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};

const KINDS: usize = Kind::ALL.len();

static COUNTS: [[AtomicU64; KINDS]; MAX_GUESTS] = [const { [const { AtomicU64::new(0) }; KINDS] }; MAX_GUESTS];

fn counts(id: GuestId) -> Option<&'static [AtomicU64; KINDS]> {
    COUNTS.get(usize::from(id.number()).checked_sub(1)?)
}

/// Puts a guest's counts where all can see them.
pub fn publish(id: GuestId, counters: &Counters) {
    for (to, from) in counts(id).into_iter().flatten().zip(counters.all()) {
        to.store(*from, Ordering::Relaxed);
    }
}

/// Forgets a guest's counts.
pub fn clear(id: GuestId) {
    publish(id, &Counters::default());
}

/// A guest's counts by reason, those that are not zero.
pub fn exits(id: GuestId) -> Exits<'static> {
    let counts = counts(id).into_iter().flatten().map(|count| count.load(Ordering::Relaxed));
    let named = Kind::ALL.iter().zip(counts).filter(|(_, count)| *count != 0);
    // There are fewer kinds than there is room.
    Exits(named.take(32).map(|((_, name), count)| (*name, count, 0)).collect())
}

const _: () = assert!(KINDS <= 32);

/// The guests that are traced: once a second a line of the log says how often each left since the line before.
pub struct Trace {
    traced: u64,
    last: [[u64; KINDS]; MAX_GUESTS],
    told: u64,
}

impl Trace {
    /// None is.
    pub const fn new() -> Self {
        Self { traced: 0, last: [[0; KINDS]; MAX_GUESTS], told: 0 }
    }

    /// Traces a guest, or no more; whether that is new.
    pub fn set(&mut self, id: GuestId, on: bool) -> bool {
        let bit = 1_u64.checked_shl(u32::from(id.number()).wrapping_sub(1)).unwrap_or(0);
        let was = self.traced & bit != 0;
        self.traced = if on { self.traced | bit } else { self.traced & !bit };
        if let (Some(last), Some(counts)) = (self.last.get_mut(usize::from(id.number()).wrapping_sub(1)), counts(id)) {
            *last = core::array::from_fn(|kind| counts.get(kind).map_or(0, |count| count.load(Ordering::Relaxed)));
        }
        was != on
    }

    /// Writes the lines, if a second of so many ticks is over.
    pub fn look(&mut self, second: u64) {
        let now = cpu::tsc();
        if self.traced == 0 || now.saturating_sub(self.told) < second {
            return;
        }
        self.told = now;
        for (id, (counts, last)) in (1..).map(GuestId::new).zip(COUNTS.iter().zip(&mut self.last)) {
            if self.traced >> (id.number() - 1) & 1 == 0 || entries::get(id).is_none() {
                continue;
            }
            let mut log = console::Log::open();
            // The log takes everything.
            let _ = write!(log, "log guest {id} trace:");
            for ((count, last), (_, name)) in counts.iter().zip(last).zip(Kind::ALL) {
                let now = count.load(Ordering::Relaxed);
                let new = now.saturating_sub(core::mem::replace(last, now));
                if new != 0 {
                    let _ = write!(log, " {name} {new}");
                }
            }
            let _ = log.write_str("\n");
        }
    }
}
