//! The hypervisor's code and constants, from its ELF.

use crate::dump::{DumpError, segments};

/// A part of the image that never changes.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where it is linked, a page boundary.
    pub address: u64,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Whether it is code.
    pub execute: bool,
}

/// The hypervisor as it was built.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its code and its constants.
    pub parts: Vec<Part>,
}

impl Image {
    /// Reads an ELF: all segments in the upper half of the address space that are not writable.
    ///
    /// # Errors
    /// [`DumpError`] if it is no ELF, or has no code there.
    pub fn new(file: &[u8]) -> Result<Self, DumpError> {
        let constant = |flags: u32| flags & 2 == 0;
        let wanted =
            segments(file, 2)?.into_iter().filter(|s| s.kind == 1 && s.address >> 63 == 1 && constant(s.flags));
        let parts: Vec<Part> = wanted
            .map(|s| Part {
                address: s.address,
                bytes: s.of(file).unwrap_or_default().to_vec(),
                execute: s.flags & 1 != 0,
            })
            .collect();
        let sound = parts.iter().all(|p| p.address.is_multiple_of(crate::PAGE));
        if !sound || !parts.iter().any(|p| p.execute && p.bytes.len() >= 4096) {
            return Err(DumpError("it is not the hypervisor: no page of code in the upper half"));
        }
        Ok(Self { parts })
    }

    /// First address of its code, and the first page there.
    pub(crate) fn code(&self) -> Option<(u64, &[u8])> {
        let part = self.parts.iter().find(|p| p.execute)?;
        Some((part.address, part.bytes.get(..4096)?))
    }
}
