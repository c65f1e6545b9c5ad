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

/// Most vCPUs that all guests can have together.
pub const MAX_TASKS: usize = 128;

/// Most vCPUs that a guest can have.
pub const MAX_VCPUS: usize = VcpuId::MOST as usize;

/// A vCPU of a guest by its number from 0, which is below [`MAX_VCPUS`]. It is also the id of its local APIC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct VcpuId(u8);

impl VcpuId {
    /// The one that a guest starts with: its bootstrap processor.
    pub const BOOT: Self = Self(0);

    /// How many a guest can have, see [`MAX_VCPUS`].
    pub const MOST: u8 = 8;

    /// The vCPU with this number, if a guest can have it.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::MOST { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its bit in a set of vCPUs.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self.0
    }

    /// The first `count` vCPUs.
    pub fn all(count: u8) -> impl Iterator<Item = Self> {
        (0..count).map_while(Self::new)
    }

    /// Those of `set`, in which each has its [`VcpuId::bit`].
    pub fn in_set(set: u32) -> impl Iterator<Item = Self> {
        (0..).map_while(Self::new).filter(move |id| set & id.bit() != 0)
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
