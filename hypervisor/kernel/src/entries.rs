//! The guests by number: those of the manifest, and those that were made over the control line.
//!
//! A guest of the manifest keeps its number for good, so that it can be started again when it was destroyed. One that was
//! made over the line has the first number that is free, and leaves it when it is destroyed. Nothing is a guest that has
//! no entry here.

use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_control::Source;
use bulkhead_types::manifest::{Guest, MAX_GUESTS};
use bulkhead_types::{Frame, GuestId, Hpa};
use core::ops::Deref;
use spin::Mutex;

/// A guest, and where it is from.
pub struct Entry {
    /// What it is to be.
    pub guest: Guest,
    /// Who brought it.
    pub creator: Source,
    /// First byte of its pack: its images are at offsets from here.
    pub pack: Hpa,
    /// Its pack's frames (the first, and how many), if they are free when it is destroyed.
    pub frames: Option<(Frame, u64)>,
}

impl Deref for Entry {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

static ENTRIES: [Mutex<Option<Arc<Entry>>>; MAX_GUESTS] = [const { Mutex::new(None) }; MAX_GUESTS];

/// Enters the guests of the manifest, whose pack begins at `pack`; called once, by start-up.
pub fn fill(guests: Vec<Guest>, pack: Hpa) {
    for guest in guests {
        add(|_| Entry { guest, creator: Source::Manifest, pack, frames: None });
    }
}

/// Enters a guest at the first free number, unless all are taken.
pub fn add(entry: impl FnOnce(GuestId) -> Entry) -> Option<GuestId> {
    for (id, place) in (1..).map(GuestId::new).zip(&ENTRIES) {
        let mut place = place.lock();
        if place.is_none() {
            *place = Some(Arc::new(entry(id)));
            return Some(id);
        }
    }
    None
}

/// The guest with this number.
pub fn get(id: GuestId) -> Option<Arc<Entry>> {
    ENTRIES.get(usize::from(id.number()).checked_sub(1)?)?.lock().clone()
}

/// The numbers of all guests.
pub fn all() -> impl Iterator<Item = GuestId> {
    (1..).map(GuestId::new).zip(&ENTRIES).filter(|(_, place)| place.lock().is_some()).map(|(id, _)| id)
}

/// Forgets a guest, if it was made over the line; its number is free.
pub fn remove(id: GuestId) -> Option<Arc<Entry>> {
    let mut place = ENTRIES.get(usize::from(id.number()).checked_sub(1)?)?.lock();
    if place.as_ref()?.creator == Source::Manifest { None } else { place.take() }
}
