//! Says which guests write more to their consoles than the line takes: once in a while, however much that is.

use crate::lives;
use crate::log;
use crate::machine::{Facts, SLOTS};
use bulkhead_control::EventKind;
use bulkhead_types::GuestId;
use bulkhead_types::manifest::MAX_GUESTS;
use core::sync::atomic::Ordering;

/// Seconds from one line about a guest to the next one.
const SILENCE: u64 = 10;

/// What was said.
pub struct Lost([Told; MAX_GUESTS]);

#[derive(Clone, Copy)]
struct Told {
    bytes: u64,
    /// Count of the time-stamp counter from which on more can be said.
    next: u64,
}

impl Lost {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self([Told { bytes: 0, next: 0 }; MAX_GUESTS])
    }

    /// Says what is new, at this count of the time-stamp counter.
    pub fn look(&mut self, facts: &Facts, now: u64) {
        for ((id, slot), told) in (1..).map(GuestId::new).zip(&SLOTS).zip(&mut self.0) {
            let bytes = slot.lost.load(Ordering::Relaxed);
            // One that was made anew begins at 0.
            let new = bytes.checked_sub(told.bytes).unwrap_or(bytes);
            if new == 0 || now < told.next {
                continue;
            }
            *told = Told { bytes, next: now.saturating_add(facts.tsc.as_hertz().saturating_mul(SILENCE)) };
            log!("log guest {id} console: {new} bytes lost, written while its transmitter was busy");
            lives::event(facts, id, EventKind::ConsoleLost(new));
        }
    }
}
