//! Guest memory as seen by everything that serves a guest.

use crate::{Gpa, Width};

/// A guest named memory that it does not have; the access had no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryError {
    /// First byte that was asked for.
    pub gpa: Gpa,
    /// How many bytes.
    pub bytes: usize,
}

/// The RAM of one guest, as bytes that may change at any time.
///
/// No reference into guest memory is ever handed out: whoever needs a value copies it once, and checks the copy.
/// An access that is not wholly inside RAM is refused as a whole.
pub trait GuestMemory {
    /// Copies `into.len()` bytes from `gpa`.
    ///
    /// # Errors
    /// [`MemoryError`] if any byte is outside the guest's RAM.
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `from` to `gpa`.
    ///
    /// # Errors
    /// [`MemoryError`] if any byte is outside the guest's RAM; nothing is written then.
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError>;

    /// Sets `bytes` bytes from `gpa` on to zero.
    ///
    /// # Errors
    /// [`MemoryError`] if any byte is outside the guest's RAM; nothing is written then.
    fn zero(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MemoryError>;

    /// Reads a little-endian 32-bit value in one access.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u32(&self, gpa: Gpa) -> Result<u32, MemoryError> {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Replaces the little-endian value of `width` at `gpa`, aligned or not, by `new` if it still is `old`; says whether.
    /// Bits above the width are ignored.
    ///
    /// Memory that several processors share does it as one locked operation; this body serves memory that has one user.
    ///
    /// # Errors
    /// As [`GuestMemory::write`].
    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryError> {
        let mut bytes = [0; 8];
        self.read(gpa, bytes.get_mut(..width.bytes()).unwrap_or_default())?;
        let same = u64::from_le_bytes(bytes) == old & width.mask();
        if same {
            self.write(gpa, new.to_le_bytes().get(..width.bytes()).unwrap_or_default())?;
        }
        Ok(same)
    }

    /// Reads a little-endian 64-bit value in one access.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u64(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
