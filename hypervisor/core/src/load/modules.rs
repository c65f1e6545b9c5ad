//! Boot modules of the multiboot and PVH protocols: whole pages behind the kernel.

use super::LoadModule;
use super::bytes::length;
use super::error::LoadError;
use super::space::Space;
use super::write::{fill, string_bytes};
use bulkhead_types::GuestMemory;
use bulkhead_types::manifest::MAX_MODULES;

/// A module in guest memory.
#[derive(Clone, Copy, Default)]
pub(super) struct Module<'a> {
    /// Guest-physical address of its first byte, page-aligned.
    pub(super) start: u32,
    /// First byte behind it.
    pub(super) end: u32,
    pub(super) cmdline: &'a str,
}

impl Module<'_> {
    pub(super) const fn bytes(&self) -> u32 {
        self.end.saturating_sub(self.start)
    }
}

/// All modules of a guest.
pub(super) struct Modules<'a> {
    list: [Module<'a>; MAX_MODULES],
    count: u8,
}

impl<'a> Modules<'a> {
    /// Copies the modules behind the kernel, which has been claimed.
    pub(super) fn load(
        modules: &[LoadModule<'a>],
        space: &mut Space,
        memory: &mut impl GuestMemory,
    ) -> Result<Self, LoadError> {
        let mut loaded = Self { list: [Module::default(); MAX_MODULES], count: 0 };
        for module in modules {
            let too_many = LoadError::TooMany { what: "modules", most: MAX_MODULES as u64 };
            let slot = loaded.list.get_mut(usize::from(loaded.count)).ok_or(too_many)?;
            let bytes = length(module.bytes);
            let start = space.place_module(loaded.count, bytes)?;
            fill(memory, u64::from(start), module.bytes, bytes)?;
            // It was placed below 4 GiB.
            let end = start.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
            *slot = Module { start, end, cmdline: module.cmdline };
            loaded.count = loaded.count.saturating_add(1);
        }
        Ok(loaded)
    }

    pub(super) fn count(&self) -> u32 {
        u32::from(self.count)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Module<'a>> {
        self.list.iter().take(usize::from(self.count))
    }

    /// Bytes of all command lines with their final zeros.
    pub(super) fn string_bytes(&self) -> u64 {
        self.iter().fold(0, |sum, module| sum.saturating_add(string_bytes(module.cmdline)))
    }
}
