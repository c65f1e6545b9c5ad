//! Firmware configuration: QEMU's fw_cfg, as far as a kernel asks for it.
//!
//! QEMU documentation, "QEMU Firmware Configuration (fw_cfg) Device".
//!
//! Emulated: the selector and the data port; the items signature, interface number (no DMA), RAM size, processor counts,
//! and a file directory without files.
//!
//! Not emulated: writes, DMA, files. An item that is not there, and what is past the end of one, reads as zero.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | read on for ever | zeros |

const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const RAM_SIZE: u16 = 0x03;
const CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0F;

/// The interface.
#[derive(Clone, Copy, Debug)]
pub struct FwCfg {
    memory: u64,
    cpus: u16,
    selected: u16,
    /// Bytes of the item that were read.
    offset: u8,
}

impl FwCfg {
    /// For a machine with `memory` bytes of RAM and `cpus` processors.
    #[must_use]
    pub const fn new(memory: u64, cpus: u16) -> Self {
        Self { memory, cpus, selected: SIGNATURE, offset: 0 }
    }

    /// Chooses an item (16-bit write to the first port).
    pub const fn select(&mut self, item: u16) {
        self.selected = item;
        self.offset = 0;
    }

    /// Reads the next byte of the item (the second port).
    pub fn read(&mut self) -> u8 {
        let item = match self.selected {
            SIGNATURE => u64::from(u32::from_le_bytes(*b"QEMU")),
            ID => 1,
            RAM_SIZE => self.memory,
            CPUS | MAX_CPUS => u64::from(self.cpus),
            _ => 0,
        };
        let byte = item.to_le_bytes().get(usize::from(self.offset)).copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::FwCfg;

    fn item(fw_cfg: &mut FwCfg, item: u16) -> [u8; 10] {
        fw_cfg.select(item);
        core::array::from_fn(|_| fw_cfg.read())
    }

    #[test]
    fn items() {
        let mut fw_cfg = FwCfg::new(0x1_2345_6000, 3);
        assert_eq!(&item(&mut fw_cfg, 0), b"QEMU\0\0\0\0\0\0");
        assert_eq!(item(&mut fw_cfg, 1), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0], "no DMA");
        assert_eq!(item(&mut fw_cfg, 3), [0, 0x60, 0x45, 0x23, 1, 0, 0, 0, 0, 0]);
        assert_eq!(item(&mut fw_cfg, 5)[..2], [3, 0]);
        assert_eq!(item(&mut fw_cfg, 0x0F)[..2], [3, 0]);
        assert_eq!(item(&mut fw_cfg, 0x19), [0; 10], "a directory without files");
        assert_eq!(item(&mut fw_cfg, 0xFFFF), [0; 10]);
    }

    #[test]
    fn past_the_end_is_zero() {
        let mut fw_cfg = FwCfg::new(u64::MAX, 1);
        fw_cfg.select(3);
        let bytes: [u8; 1000] = core::array::from_fn(|_| fw_cfg.read());
        assert_eq!(bytes.iter().filter(|&&byte| byte == 0xFF).count(), 8);
    }
}
