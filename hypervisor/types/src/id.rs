//! Who a thing belongs to.

use core::fmt;

/// Most processors of the machine that are used.
pub const MAX_CPUS: usize = 64;

/// A guest by its number in the manifest, from 1; 0 is the hypervisor itself (the idle compartment).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct GuestId(u16);

impl GuestId {
    /// The hypervisor's own, idle, compartment.
    pub const IDLE: Self = Self(0);

    /// The guest with this number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
