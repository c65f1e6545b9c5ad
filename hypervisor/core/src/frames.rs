//! The frame table: who owns each 4-KiB frame of the machine's memory.
//!
//! ```text
//!             mark                allocate             scrub
//!   firmware ------> free, dirty ---------> owned, dirty ----> owned
//!                     ^                                     |
//!                     +-------------------------------------+ release
//! ```
//!
//! A frame has one owner, and what an earlier owner left is gone before a guest can see it: a guest's frames are handed
//! out as [`Frames`], which can not be copied and say in their type what they are for; only [`Scrubbed`] frames, and only
//! RAM, can be mapped into nested tables (see [`HostSpace`] and [`NestedSpace`]).
//!
//! The table is shared by all compartments: it holds owners, nothing of what guests keep in their memory.

#[cfg(test)]
mod model;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod token;

pub use space::{HostSpace, NestedSpace, SpaceError};
pub(crate) use state::Mark;
pub use state::{FrameState, Owner, Part, Use};
pub use token::{Clean, Frames, Image, Kind, Ram, Scrubbed, State, Tables};

use bulkhead_types::manifest::MAX_GUESTS;
use bulkhead_types::{Frame, GuestId};
use core::fmt;

/// Why the frame table refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// There is no run of so many free frames of that alignment.
    NoMemory {
        /// Frames asked for.
        count: u64,
    },
    /// The range is not part of the table.
    OutOfRange(Frame),
    /// The frame belongs to someone else than it should.
    Owned {
        /// The frame.
        frame: Frame,
        /// Whose it is.
        owner: Owner,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { count } => write!(f, "no {count} free frames in a row: give the guests less memory"),
            Self::OutOfRange(frame) => write!(f, "the frame table does not reach to frame {frame}"),
            Self::Owned { frame, owner } => write!(f, "frame {frame} belongs to {owner}"),
        }
    }
}

/// A stretch of frames with the same owner and the same cleanness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub start: Frame,
    /// How many.
    pub count: u64,
    /// Whose they are.
    pub owner: Owner,
    /// They may hold what an earlier owner left.
    pub dirty: bool,
}

/// The owners of frames 0 to n - 1.
#[derive(Debug)]
pub struct FrameTable<'a> {
    states: &'a mut [FrameState],
    /// Where the next search begins: just behind the last allocation.
    next: usize,
    /// How many frames each guest owns, by its number.
    owned: [u64; MAX_GUESTS + 1],
}

impl<'a> FrameTable<'a> {
    /// A table in `states`, one for each frame from physical address 0 on; none of the frames is memory until
    /// [`FrameTable::mark`] says so.
    #[must_use]
    pub fn new(states: &'a mut [FrameState]) -> Self {
        states.fill(FrameState::new(Owner::Absent, true));
        Self { states, next: 0, owned: [0; _] }
    }

    /// Frames in the table.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.states.len().try_into().unwrap_or(u64::MAX)
    }

    /// Whether the table has no frames at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Whose `frame` is; beyond the table there is no memory.
    #[must_use]
    pub fn owner(&self, frame: Frame) -> Owner {
        self.state(frame).map_or(Owner::Absent, FrameState::owner)
    }

    /// Whether `frame` may hold what an earlier owner left.
    #[must_use]
    pub fn is_dirty(&self, frame: Frame) -> bool {
        self.state(frame).is_none_or(FrameState::is_dirty)
    }

    /// Says at start-up what `count` frames from `start` on are. Free memory counts as dirty: firmware was there.
    ///
    /// # Errors
    /// [`FrameError::Owned`] if one of them is a guest's, or is to become one's (that is what
    /// [`FrameTable::allocate`] is for); nothing is changed then.
    pub fn mark(&mut self, start: Frame, count: u64, owner: Owner) -> Result<(), FrameError> {
        if matches!(owner, Owner::Guest(..)) {
            return Err(FrameError::Owned { frame: start, owner });
        }
        let states = self.range(start, count)?;
        if let Some((state, frame)) = states.iter().zip(start.number()..).find(|(state, _)| state.is_guests()) {
            return Err(FrameError::Owned { frame: Frame::new(frame), owner: state.owner() });
        }
        states.fill(FrameState::new(owner, true));
        Ok(())
    }

    /// Gives `count` free frames in a row, the first a multiple of `align` (frames, a power of two), to `guest`.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`].
    pub fn allocate<K: Kind>(&mut self, guest: GuestId, count: u64, align: u64) -> Result<Frames<K>, FrameError> {
        let failed = FrameError::NoMemory { count };
        let wanted = usize::try_from(count).map_err(|_| failed)?;
        let align = usize::try_from(align.max(1)).map_err(|_| failed)?;
        let start = self.find(self.next, wanted, align).or_else(|| self.find(0, wanted, align)).ok_or(failed)?;
        for state in self.states.iter_mut().skip(start).take(wanted) {
            *state = FrameState::new(Owner::Guest(guest, K::USE), state.is_dirty());
        }
        self.next = start.saturating_add(wanted);
        self.tally(guest, |owned| owned.saturating_add(count));
        Ok(Frames::new(guest, Frame::new(start.try_into().map_err(|_| failed)?), count))
    }

    /// First of `count` free frames in a row, searched from `from` on; looks at each frame twice at most.
    fn find(&self, from: usize, count: usize, align: usize) -> Option<usize> {
        if count == 0 {
            return None;
        }
        let mut start = from.checked_next_multiple_of(align)?;
        loop {
            let run = self.states.get(start..start.checked_add(count)?)?;
            match run.iter().rposition(|state| !state.is_free()) {
                Some(taken) => start = start.checked_add(taken)?.checked_add(1)?.checked_next_multiple_of(align)?,
                None => return Some(start),
            }
        }
    }

    /// Gives frames that the boot loader filled to `guest`, with what they hold: its images.
    ///
    /// # Errors
    /// [`FrameError::Owned`] if one of them is not [`Part::Boot`]; nothing is changed then.
    pub fn adopt(&mut self, start: Frame, count: u64, guest: GuestId) -> Result<Frames<Image>, FrameError> {
        let boot = Owner::Hypervisor(Part::Boot);
        self.hand_over(start, count, boot, |_| FrameState::new(Owner::Guest(guest, Use::Image), false))?;
        self.tally(guest, |owned| owned.saturating_add(count));
        Ok(Frames::new(guest, start, count))
    }

    /// Takes frames back. They are free, and dirty.
    ///
    /// # Errors
    /// [`FrameError::Owned`] if the table does not agree with the token; the frames stay as they are, and are lost.
    pub fn release<K: Kind>(&mut self, frames: Frames<K>) -> Result<(), FrameError> {
        let owner = Owner::Guest(frames.owner(), K::USE);
        self.hand_over(frames.start(), frames.count(), owner, |_| FrameState::new(Owner::Free, true))?;
        self.tally(frames.owner(), |owned| owned.saturating_sub(frames.count()));
        Ok(())
    }

    /// Takes back all that `guest` has; how many frames that is. Nobody is in its compartment, nor will be, and the tokens of
    /// its frames are gone with it. Its images are the boot loader's again, as they were; the rest is free, and dirty.
    pub fn reclaim(&mut self, guest: GuestId) -> u64 {
        let mut count = 0;
        for state in self.states.iter_mut().filter(|state| state.is_guests()) {
            let owner = match state.owner() {
                _ if guest == GuestId::IDLE => continue,
                Owner::Guest(of, Use::Image) if of == guest => Owner::Hypervisor(Part::Boot),
                Owner::Guest(of, _) if of == guest => Owner::Free,
                _ => continue,
            };
            *state = FrameState::new(owner, true);
            count += 1;
        }
        self.tally(guest, |owned| owned.saturating_sub(count));
        count
    }

    /// Gives frames of the idle compartment, with what they hold, to a guest: the skeleton of its compartment.
    ///
    /// # Errors
    /// [`FrameError::Owned`] if they are a guest's already (what one guest leaves is never another's to see), or if the
    /// table does not agree with the token; the frames stay as they are, and are lost.
    pub fn transfer<K: Kind>(&mut self, frames: Frames<K>, to: GuestId) -> Result<Frames<K>, FrameError> {
        let (start, count) = (frames.start(), frames.count());
        let owner = Owner::Guest(GuestId::IDLE, K::USE);
        let state = |old: &FrameState| FrameState::new(Owner::Guest(to, K::USE), old.is_dirty());
        self.hand_over(start, count, owner, state)?;
        self.tally(GuestId::IDLE, |owned| owned.saturating_sub(count));
        self.tally(to, |owned| owned.saturating_add(count));
        Ok(Frames::new(to, start, count))
    }

    /// Changes what belongs to `from`, or nothing.
    fn hand_over(
        &mut self,
        start: Frame,
        count: u64,
        from: Owner,
        to: impl Fn(&FrameState) -> FrameState,
    ) -> Result<(), FrameError> {
        let states = self.range(start, count)?;
        for (state, frame) in states.iter().zip(start.number()..) {
            if state.owner() != from {
                return Err(FrameError::Owned { frame: Frame::new(frame), owner: state.owner() });
            }
        }
        for state in states {
            *state = to(state);
        }
        Ok(())
    }

    /// How many frames are owned so that `which` holds.
    #[must_use]
    pub fn count(&self, mut which: impl FnMut(Owner) -> bool) -> u64 {
        self.runs().filter(|run| which(run.owner)).map(|run| run.count).sum()
    }

    /// How many frames a guest owns.
    #[must_use]
    pub fn owned(&self, guest: GuestId) -> u64 {
        self.owned.get(usize::from(guest.number())).copied().unwrap_or(0)
    }

    fn tally(&mut self, guest: GuestId, change: impl FnOnce(u64) -> u64) {
        if let Some(owned) = self.owned.get_mut(usize::from(guest.number())) {
            *owned = change(*owned);
        }
    }

    /// How many frames are nobody's.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.states.iter().map(|state| u64::from(state.is_free())).sum()
    }

    /// The whole table, as stretches of equal frames.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut start = 0;
        self.states.chunk_by(|a, b| a.without_marks() == b.without_marks()).filter_map(move |states| {
            let state = states.first()?;
            let count = states.len().try_into().ok()?;
            let run = Run { start: Frame::new(start), count, owner: state.owner(), dirty: state.is_dirty() };
            start += count;
            Some(run)
        })
    }

    /// Forgets what an audit has seen.
    pub(crate) fn clear_marks(&mut self) {
        for state in self.states.iter_mut() {
            *state = state.without_marks();
        }
    }

    /// Notes that an audit has seen `frame`; says whether it had before.
    pub(crate) fn note(&mut self, frame: Frame, mark: Mark) -> bool {
        let state = usize::try_from(frame.number()).ok().and_then(|number| self.states.get_mut(number));
        state.is_some_and(|state| state.note(mark))
    }

    /// Overwrites an entry, for tests of what should never be.
    #[cfg(test)]
    pub(crate) fn set(&mut self, frame: Frame, state: FrameState) {
        self.states[usize::try_from(frame.number()).unwrap()] = state;
    }

    fn state(&self, frame: Frame) -> Option<&FrameState> {
        self.states.get(usize::try_from(frame.number()).ok()?)
    }

    fn range(&mut self, start: Frame, count: u64) -> Result<&mut [FrameState], FrameError> {
        let first = usize::try_from(start.number()).ok();
        let end = start.number().checked_add(count).and_then(|end| usize::try_from(end).ok());
        let last = start.add(count.saturating_sub(1));
        first.zip(end).and_then(|(first, end)| self.states.get_mut(first..end)).ok_or(FrameError::OutOfRange(last))
    }
}
