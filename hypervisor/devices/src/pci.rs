//! PCI configuration space: mechanism #1 and a host bridge.
//!
//! PCI Local Bus Specification 3.0, sections 3.2.2.3.2 "Software Generation of Configuration Transactions" and 6.1
//! "Configuration Space Organization".
//!
//! Emulated: the address register at 0xCF8 (32-bit accesses only), the data window at 0xCFC, and one function, the host
//! bridge at 00:00.0, whose header is read-only. Every other function is absent and reads as ones.
//!
//! Not emulated: mechanism #2, the memory-mapped window of PCI Express, special cycles.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | write configuration space | nothing: no register of the bridge can be written |

use crate::bits::low_u32;
use bulkhead_types::Width;

const ENABLE: u32 = 1 << 31;
/// Bits of the address register that stay as written: enable, bus, device, function, register.
const ADDRESS_MASK: u32 = 0x80FF_FFFC;

/// The host bridge's first registers: device 0D57H of vendor 8086H, a virtual machine's bridge, class 06.00.00, type 0.
const HOST_BRIDGE: [u32; 3] = [0x0D57_8086, 0x0000_0000, 0x0600_0000];

/// The configuration address register.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pci {
    address: u32,
}

impl Pci {
    /// After reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { address: 0 }
    }

    /// Reads port 0xCF8, 32 bits.
    #[must_use]
    pub const fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes port 0xCF8, 32 bits.
    pub const fn write_address(&mut self, value: u32) {
        self.address = value & ADDRESS_MASK;
    }

    /// Reads `width` at port 0xCFC + `offset` (0 to 3).
    #[must_use]
    pub fn read_data(&self, offset: u8, width: Width) -> u32 {
        low_u32(u64::from(self.register()) >> (u32::from(offset & 3) * 8) & width.mask())
    }

    /// The 32-bit register that is addressed.
    fn register(&self) -> u32 {
        if self.address & ENABLE == 0 || self.address & 0x00FF_FF00 != 0 {
            return u32::MAX;
        }
        let index = usize::try_from(self.address >> 2 & 0x3F).unwrap_or(usize::MAX);
        HOST_BRIDGE.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Pci;
    use bulkhead_types::Width;

    fn read(pci: &mut Pci, device: u32, register: u32, width: Width) -> u32 {
        pci.write_address(1 << 31 | device << 11 | register & !3);
        pci.read_data(u8::try_from(register & 3).unwrap(), width)
    }

    #[test]
    fn host_bridge_header() {
        let mut pci = Pci::new();
        assert_eq!(read(&mut pci, 0, 0, Width::Dword), 0x0D57_8086);
        assert_eq!(read(&mut pci, 0, 2, Width::Word), 0x0D57);
        assert_eq!(read(&mut pci, 0, 0x0A, Width::Word), 0x0600, "class: host bridge");
        assert_eq!(read(&mut pci, 0, 0x0E, Width::Byte), 0, "one function, type 0");
        assert_eq!(read(&mut pci, 0, 0x10, Width::Dword), 0, "no memory or ports");
        assert_eq!(read(&mut pci, 0, 0xFC, Width::Dword), 0);
    }

    #[test]
    fn absent_functions_read_as_ones() {
        let mut pci = Pci::new();
        for device in 1..0x2000 {
            assert_eq!(read(&mut pci, device, 0, Width::Dword), u32::MAX);
        }
        pci.write_address(0);
        assert_eq!(pci.read_data(0, Width::Word), 0xFFFF, "not enabled");
    }

    #[test]
    fn address_register_reads_back() {
        let mut pci = Pci::new();
        pci.write_address(0x8000_0000);
        assert_eq!(pci.read_address(), 0x8000_0000, "how Linux finds mechanism #1");
        pci.write_address(u32::MAX);
        assert_eq!(pci.read_address(), 0x80FF_FFFC);
    }
}
