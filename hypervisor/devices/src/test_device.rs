//! Test device: a page of memory-mapped registers for guests that test the machine itself.
//!
//! Only there if the manifest grants it, at [`crate::layout::TEST_DEVICE`]. All registers are little-endian.
//!
//! | offset | register |
//! |---|---|
//! | 0x000-0x0FF | memory: 256 bytes that read as they were written, in any width and at any alignment |
//! | 0x400 | reads of the memory so far, 32 bits; a write (of anything) to it clears both counts |
//! | 0x404 | writes to the memory so far, 32 bits |
//! | 0x408 | the last access to the memory: bits 0-7 offset, 8-15 bytes, 16 it was a write |
//! | 0x800 | bit 0: level of the interrupt line [`crate::layout::TEST_DEVICE_LINE`] |
//!
//! The counts and the last access tell whether an instruction made the accesses that it should. Reading other offsets gives
//! zero, as does what reaches past a register's end; writes there do nothing.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | access it in any way | it is 256 bytes, three numbers and a line |

use bulkhead_types::Width;

const MEMORY: usize = 256;
const READS: u64 = 0x400;
const WRITES: u64 = 0x404;
const LAST: u64 = 0x408;
const LINE: u64 = 0x800;
const WAS_WRITE: u32 = 1 << 16;

/// The device.
#[derive(Clone, Debug)]
pub struct TestDevice {
    memory: [u8; MEMORY],
    reads: u32,
    writes: u32,
    last: u32,
    line: bool,
}

impl TestDevice {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { memory: [0; MEMORY], reads: 0, writes: 0, last: 0, line: false }
    }

    /// Reads `width` at `offset` of the page.
    pub fn read(&mut self, offset: u64, width: Width) -> u64 {
        let value = match offset {
            READS => u64::from(self.reads),
            WRITES => u64::from(self.writes),
            LAST => u64::from(self.last),
            LINE => u64::from(self.line),
            _ => {
                let Some(start) = self.note(offset, width, 0) else { return 0 };
                self.reads = self.reads.wrapping_add(1);
                let mut bytes = [0; 8];
                for (to, from) in bytes.iter_mut().zip(self.memory.iter().skip(start)) {
                    *to = *from;
                }
                u64::from_le_bytes(bytes)
            }
        };
        value & width.mask()
    }

    /// Writes `value` of `width` at `offset` of the page.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) {
        match offset {
            READS => (self.reads, self.writes) = (0, 0),
            LINE => self.line = value & 1 != 0,
            _ => {
                let Some(start) = self.note(offset, width, WAS_WRITE) else { return };
                self.writes = self.writes.wrapping_add(1);
                let bytes = value.to_le_bytes();
                for (to, from) in self.memory.iter_mut().skip(start).zip(bytes.iter().take(width.bytes())) {
                    *to = *from;
                }
            }
        }
    }

    /// Level of the interrupt line.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.line
    }

    /// Remembers an access, if it is one to the memory; where it begins there.
    fn note(&mut self, offset: u64, width: Width, kind: u32) -> Option<usize> {
        let start = u8::try_from(offset).ok()?;
        let bytes = u32::try_from(width.bytes()).unwrap_or(0);
        self.last = u32::from(start) | bytes << 8 | kind;
        Some(usize::from(start))
    }
}

impl Default for TestDevice {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::TestDevice;
    use bulkhead_types::Width;

    #[test]
    fn memory_in_any_width() {
        let mut device = TestDevice::new();
        device.write(0x10, Width::Qword, 0x8877_6655_4433_2211);
        assert_eq!(device.read(0x11, Width::Byte), 0x22);
        assert_eq!(device.read(0x13, Width::Word), 0x5544);
        assert_eq!(device.read(0x12, Width::Dword), 0x6655_4433);
        device.write(0x11, Width::Byte, 0xFFFF);
        assert_eq!(device.read(0x10, Width::Dword), 0x4433_FF11);
        device.write(0xFE, Width::Dword, 0xAABB_CCDD);
        assert_eq!(device.read(0xFE, Width::Dword), 0xCCDD, "the rest is past the end");
        assert_eq!(device.read(0x100, Width::Dword), 0);
    }

    #[test]
    fn accesses_are_counted() {
        let mut device = TestDevice::new();
        device.write(0x20, Width::Word, 1);
        assert_eq!(device.read(0x408, Width::Dword), 1 << 16 | 2 << 8 | 0x20);
        let _ = device.read(0x30, Width::Qword);
        let _ = device.read(0x31, Width::Byte);
        assert_eq!((device.read(0x400, Width::Dword), device.read(0x404, Width::Dword)), (2, 1));
        assert_eq!(device.read(0x408, Width::Dword), 1 << 8 | 0x31);
        device.write(0x400, Width::Dword, 7);
        assert_eq!((device.read(0x400, Width::Dword), device.read(0x404, Width::Dword)), (0, 0));
    }

    #[test]
    fn interrupt_line() {
        let mut device = TestDevice::new();
        assert!(!device.line());
        device.write(0x800, Width::Byte, 1);
        assert!(device.line());
        assert_eq!(device.read(0x800, Width::Dword), 1);
        device.write(0x800, Width::Dword, 2);
        assert!(!device.line());
    }
}
