//! Address spaces of one guest: they take that guest's frames and no others.
//!
//! What is of the wrong kind does not type-check (only RAM goes into nested tables, and only scrubbed); what is another
//! guest's is refused.
//!
//! ```
//! # use bulkhead_core::frames::{NestedSpace, Ram, Scrubbed};
//! # use bulkhead_paging::{Format, Size, Tables};
//! # use bulkhead_types::Gpa;
//! fn gives<F: Format>(nested: &NestedSpace<F>, tables: &mut impl Tables, ram: Scrubbed<'_, Ram>) {
//!     let _ = nested.map(tables, Gpa::new(0), ram, Size::Page4K);
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use bulkhead_core::frames::{NestedSpace, Scrubbed, State};
//! # use bulkhead_paging::{Format, Size, Tables};
//! # use bulkhead_types::Gpa;
//! fn gives_away<F: Format>(nested: &NestedSpace<F>, tables: &mut impl Tables, state: Scrubbed<'_, State>) {
//!     let _ = nested.map(tables, Gpa::new(0), state, Size::Page4K); // expected `Ram`, found `State`
//! }
//! ```

use super::{Frames, Kind, Ram, Scrubbed, Tables};
use bulkhead_paging::{self as paging, Access, Format, Host, Mapping, Memory, PagingError, Size};
use bulkhead_types::{Gpa, GuestId, Hpa, Hva, PAGE_SIZE};
use core::fmt;
use core::marker::PhantomData;

/// Why frames were not mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceError {
    /// They are of another guest than the tables.
    Foreign {
        /// Whose tables.
        tables: GuestId,
        /// Whose frames.
        frames: GuestId,
    },
    /// The tables could not be changed so.
    Paging(PagingError),
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { tables, frames } => write!(f, "frames of guest {frames} into tables of guest {tables}"),
            Self::Paging(error) => error.fmt(f),
        }
    }
}

impl From<PagingError> for SpaceError {
    fn from(error: PagingError) -> Self {
        Self::Paging(error)
    }
}

/// The host address space of one guest's compartment.
#[derive(Debug)]
pub struct HostSpace {
    owner: GuestId,
    root: Hpa,
}

impl HostSpace {
    /// The address space whose root is the first of `frames`.
    #[must_use]
    pub fn new(frames: &Frames<Tables>) -> Self {
        Self { owner: frames.owner(), root: frames.start().start() }
    }

    /// Address of the root: the value of CR3.
    #[must_use]
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Maps `frames` at `at`, as their kind says they may be used.
    ///
    /// # Errors
    /// See [`SpaceError`].
    pub fn map<K: Kind>(
        &self,
        tables: &mut impl paging::Tables,
        at: Hva,
        frames: &Frames<K>,
        largest: Size,
    ) -> Result<(), SpaceError> {
        self.map_part(tables, at, frames, (0, frames.count()), largest)
    }

    /// As [`HostSpace::map`], of some of the frames: the index of the first, and how many.
    ///
    /// # Errors
    /// See [`SpaceError`]; they must be part of `frames`.
    pub fn map_part<K: Kind>(
        &self,
        tables: &mut impl paging::Tables,
        at: Hva,
        frames: &Frames<K>,
        (first, count): (u64, u64),
        largest: Size,
    ) -> Result<(), SpaceError> {
        same(self.owner, frames.owner())?;
        if first.checked_add(count).is_none_or(|end| end > frames.count()) {
            return Err(PagingError::OutOfRange.into());
        }
        let mapping = Mapping {
            from: at.as_u64(),
            to: frames.start().add(first).start(),
            bytes: count * PAGE_SIZE,
            access: K::ACCESS,
            memory: Memory::WriteBack,
            largest,
        };
        Ok(paging::map::<Host>(tables, self.root, mapping)?)
    }
}

/// The nested tables of one guest, in the processor's format.
#[derive(Debug)]
pub struct NestedSpace<F> {
    owner: GuestId,
    root: Hpa,
    format: PhantomData<F>,
}

impl<F: Format> NestedSpace<F> {
    /// The tables whose root is the frame with index `first` of `frames`; `None` if there is no such frame.
    #[must_use]
    pub fn new(frames: &Frames<Tables>, first: u64) -> Option<Self> {
        let root = frames.start().add(first).start();
        (first < frames.count()).then_some(Self { owner: frames.owner(), root, format: PhantomData })
    }

    /// Address of the root.
    #[must_use]
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Maps RAM at `at`, for the guest to use in any way.
    ///
    /// # Errors
    /// See [`SpaceError`].
    pub fn map(
        &self,
        tables: &mut impl paging::Tables,
        at: Gpa,
        ram: Scrubbed<'_, Ram>,
        largest: Size,
    ) -> Result<(), SpaceError> {
        same(self.owner, ram.owner())?;
        let mapping = Mapping {
            from: at.as_u64(),
            to: ram.start().start(),
            bytes: ram.bytes(),
            access: Access::ALL,
            memory: Memory::WriteBack,
            largest,
        };
        Ok(paging::map::<F>(tables, self.root, mapping)?)
    }
}

fn same(tables: GuestId, frames: GuestId) -> Result<(), SpaceError> {
    if tables == frames { Ok(()) } else { Err(SpaceError::Foreign { tables, frames }) }
}
