//! Says whose console loses bytes, once in a while, however much that is.
//!
//! A guest that writes more than the line takes loses some of it; one that does not read, some of what is typed.

use crate::lives;
use crate::log;
use crate::machine::{Facts, SLOTS};
use bulkhead_control::EventKind;
use bulkhead_types::GuestId;
use bulkhead_types::manifest::MAX_GUESTS;
use core::sync::atomic::{AtomicU64, Ordering};

/// Seconds from one line about a guest to the next one.
const SILENCE: u64 = 10;

/// What was said: of what each guest wrote, and of what was typed at it.
pub struct Lost([[Told; 2]; MAX_GUESTS]);

#[derive(Clone, Copy)]
struct Told {
    bytes: u64,
    /// Count of the time-stamp counter from which on more can be said.
    next: u64,
}

impl Lost {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self([[Told { bytes: 0, next: 0 }; 2]; MAX_GUESTS])
    }

    /// Says what is new, at this count of the time-stamp counter.
    pub fn look(&mut self, facts: &Facts, now: u64) {
        let next = now.saturating_add(facts.tsc.as_hertz().saturating_mul(SILENCE));
        for ((id, slot), [written, typed]) in (1..).map(GuestId::new).zip(&SLOTS).zip(&mut self.0) {
            if let Some(new) = written.more(&slot.lost, now, next) {
                log!("log guest {id} console: {new} bytes lost, written while its transmitter was busy");
                lives::event(facts, id, EventKind::ConsoleLost(new));
            }
            if let Some(new) = typed.more(&slot.dropped, now, next) {
                log!("log guest {id} console: {new} bytes dropped, typed while it did not read");
            }
        }
    }
}

impl Told {
    /// What is to be said now, and then not before `next`.
    fn more(&mut self, bytes: &AtomicU64, now: u64, next: u64) -> Option<u64> {
        let bytes = bytes.load(Ordering::Relaxed);
        // One that was made anew begins at 0.
        let new = bytes.checked_sub(self.bytes).unwrap_or(bytes);
        if new == 0 || now < self.next {
            return None;
        }
        *self = Self { bytes, next };
        Some(new)
    }
}
