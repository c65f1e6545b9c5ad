//! How often each guest left, and why: told while it runs, and written to the log for those that are traced.
//!
//! Each vCPU's own counts lie in its guest's compartment; at the end of a turn they are put here, numbers and nothing else.

use crate::console;
use crate::entries;
use crate::machine::{Account, Slot, slot};
use crate::task::Task;
use bulkhead_core::counters::{Counters, Kind};
use bulkhead_hw::cpu;
use bulkhead_types::manifest::MAX_GUESTS;
use bulkhead_types::{GuestId, MAX_TASKS};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};

const KINDS: usize = Kind::ALL.len();

/// A guest's exits by kind, and the ticks that they took.
pub type Exits = [(u64, u64); KINDS];
/// No exits.
pub const NONE: Exits = [(0, 0); KINDS];

/// Exits of a vCPU by kind, and the ticks that they took.
struct Tally {
    counts: [AtomicU64; KINDS],
    ticks: [AtomicU64; KINDS],
}

static TALLIES: [Tally; MAX_TASKS] =
    [const { Tally { counts: [const { AtomicU64::new(0) }; KINDS], ticks: [const { AtomicU64::new(0) }; KINDS] } };
        MAX_TASKS];

/// Puts a vCPU's counts where all can see them.
pub fn publish(task: &Task, counters: &Counters) {
    let Some(Tally { counts, ticks }) = TALLIES.get(usize::from(task.id().0)) else { return };
    for (values, now) in [(counts, counters.all()), (ticks, counters.all_ticks())] {
        values.iter().zip(now).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
    }
}

/// A guest's exits in all its lives: those that are over, and those of its vCPUs together.
pub fn sums(slot: &Slot, past: &Account) -> Exits {
    let mut sums = past.exits;
    for task in slot.tasks() {
        let Some(Tally { counts, ticks }) = TALLIES.get(usize::from(task.id().0)) else { continue };
        for (sum, (count, ticks)) in sums.iter_mut().zip(counts.iter().zip(ticks)) {
            sum.0 = sum.0.saturating_add(count.load(Ordering::Relaxed));
            sum.1 = sum.1.saturating_add(ticks.load(Ordering::Relaxed));
        }
    }
    sums
}

/// A guest's exits up to now.
fn exits_of(id: GuestId) -> Exits {
    slot(id).map_or(NONE, |slot| sums(slot, &slot.past.lock()))
}

/// A guest's counts by reason with their ticks, if one of the two is not zero.
pub fn exits(id: GuestId) -> bulkhead_control::Exits<'static> {
    let named = Kind::ALL.iter().zip(exits_of(id)).filter(|(_, exits)| *exits != (0, 0));
    // There are fewer kinds than there is room.
    bulkhead_control::Exits(named.take(32).map(|((_, name), (count, ticks))| (*name, count, ticks)).collect())
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
        if let Some(last) = self.last.get_mut(usize::from(id.number()).wrapping_sub(1)) {
            *last = exits_of(id).map(|(count, _)| count);
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
        for (id, last) in (1..).map(GuestId::new).zip(&mut self.last) {
            if self.traced >> (id.number() - 1) & 1 == 0 || entries::get(id).is_none() {
                continue;
            }
            let mut log = console::Log::open();
            // The log takes everything.
            let _ = write!(log, "log guest {id} trace:");
            for (((now, _), last), (_, name)) in exits_of(id).into_iter().zip(last).zip(Kind::ALL) {
                let new = now.saturating_sub(core::mem::replace(last, now));
                if new != 0 {
                    let _ = write!(log, " {name} {new}");
                }
            }
            let _ = log.write_str("\n");
        }
    }
}
