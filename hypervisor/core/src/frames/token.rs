//! The right to use frames, as a value that only its holder has.

use super::{FrameError, FrameTable, Owner, Use};
use bulkhead_paging::Access;
use bulkhead_types::{Frame, GuestId, PAGE_SIZE};
use core::marker::PhantomData;
use spin::Mutex;

mod sealed {
    pub trait Sealed {}
}

/// What frames are for, as a type.
pub trait Kind: sealed::Sealed {
    /// The same as a value.
    const USE: Use;
    /// How the hypervisor itself may use them.
    const ACCESS: Access;
}

macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $access:expr) => {
        $(#[$doc])*
        #[derive(Debug, PartialEq, Eq)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl Kind for $name {
            const USE: Use = Use::$name;
            const ACCESS: Access = $access;
        }
    };
}

kind! {
    /// A guest's memory, see [`Use::Ram`].
    Ram, Access::READ_WRITE
}
kind! {
    /// Page tables, see [`Use::Tables`].
    Tables, Access::READ_WRITE
}
kind! {
    /// The hypervisor's records of a guest, see [`Use::State`].
    State, Access::READ_WRITE
}
kind! {
    /// A guest's images, see [`Use::Image`].
    Image, Access::READ
}

/// Frames in a row that belong to one guest. There is one such value for each frame that a guest owns; it comes from
/// [`FrameTable::allocate`] and goes to [`FrameTable::release`]. If it is dropped, the frames stay the guest's.
///
/// ```compile_fail,E0382
/// # use bulkhead_core::frames::{FrameTable, Frames, Ram};
/// fn released_twice(table: &mut FrameTable<'_>, ram: Frames<Ram>) {
///     let _ = table.release(ram);
///     let _ = table.release(ram); // use of moved value
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "frames that are not released stay their guest's"]
pub struct Frames<K> {
    owner: GuestId,
    start: Frame,
    count: u64,
    kind: PhantomData<K>,
}

impl<K: Kind> Frames<K> {
    pub(super) const fn new(owner: GuestId, start: Frame, count: u64) -> Self {
        Self { owner, start, count, kind: PhantomData }
    }

    /// Whose they are.
    #[must_use]
    pub const fn owner(&self) -> GuestId {
        self.owner
    }

    /// The first.
    #[must_use]
    pub const fn start(&self) -> Frame {
        self.start
    }

    /// How many; never zero.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Their size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(PAGE_SIZE)
    }

    /// Makes sure that `count` of them, from the one with index `first` on, hold nothing of an earlier owner: `zero` fills
    /// a frame with zeros, and is called for those alone that are dirty.
    ///
    /// # Errors
    /// [`FrameError::OutOfRange`] if they are not part of these frames, [`FrameError::Owned`] if the table does not agree.
    pub fn scrub(
        &self,
        table: &mut FrameTable<'_>,
        first: u64,
        count: u64,
        mut zero: impl FnMut(Frame),
    ) -> Result<Scrubbed<'_, K>, FrameError> {
        let start = self.start.add(first);
        if count == 0 || first.checked_add(count).is_none_or(|end| end > self.count) {
            return Err(FrameError::OutOfRange(start));
        }
        for (state, frame) in table.range(start, count)?.iter_mut().zip(start.number()..) {
            let (owner, frame) = (state.owner(), Frame::new(frame));
            if owner != Owner::Guest(self.owner, K::USE) {
                return Err(FrameError::Owned { frame, owner });
            }
            if state.is_dirty() {
                zero(frame);
                state.set_clean();
            }
        }
        Ok(Scrubbed { frames: self, start, count })
    }
}

/// Some of a guest's frames, known to hold nothing of an earlier owner.
#[derive(Debug)]
pub struct Scrubbed<'a, K> {
    frames: &'a Frames<K>,
    start: Frame,
    count: u64,
}

impl<K: Kind> Scrubbed<'_, K> {
    /// Whose they are.
    #[must_use]
    pub const fn owner(&self) -> GuestId {
        self.frames.owner
    }

    /// The first.
    #[must_use]
    pub const fn start(&self) -> Frame {
        self.start
    }

    /// Their size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(PAGE_SIZE)
    }
}

/// A guest's frames, all of which are known to hold nothing of an earlier owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Clean<K>(pub(super) Frames<K>);

/// Frames that are made clean at a time: 256 KiB.
const PIECE: u64 = 64;

impl<K: Kind> Frames<K> {
    /// Makes sure that all of them are clean, for good: see [`Frames::scrub`]. They may be many: the table is free while a piece
    /// of them is zeroed, and `between` is called after each.
    ///
    /// # Errors
    /// [`FrameError::Owned`] if the table does not agree.
    pub fn into_clean(
        self,
        table: &Mutex<FrameTable<'_>>,
        mut zero: impl FnMut(Frame),
        mut between: impl FnMut(),
    ) -> Result<Clean<K>, FrameError> {
        let mut first = 0;
        while first < self.count {
            let count = PIECE.min(self.count - first);
            let frames = (0..count).map(|index| (1_u64 << index, self.start.add(first + index)));
            let locked = table.lock();
            let dirty = frames.clone().filter(|(_, frame)| locked.is_dirty(*frame)).fold(0, |set, (bit, _)| set | bit);
            drop(locked);
            // Nobody else has them, says the token: they stay as dirty as they are.
            frames.filter(|(bit, _)| dirty & bit != 0).for_each(|(_, frame)| zero(frame));
            self.scrub(&mut table.lock(), first, count, |_| ())?;
            between();
            first += count;
        }
        Ok(Clean(self))
    }
}

impl<K: Kind> Clean<K> {
    /// `count` of them from the one with index `first` on; `None` if they are not so many.
    #[must_use]
    pub fn part(&self, first: u64, count: u64) -> Option<Scrubbed<'_, K>> {
        let inside = count != 0 && first.checked_add(count).is_some_and(|end| end <= self.0.count);
        inside.then(|| Scrubbed { frames: &self.0, start: self.0.start.add(first), count })
    }

    /// The frames.
    pub const fn frames(&self) -> &Frames<K> {
        &self.0
    }
}
