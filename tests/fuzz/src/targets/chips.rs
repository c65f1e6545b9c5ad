//! The small chips, each against a model of a few lines.

use crate::Feed;
use bulkhead_devices::fw_cfg::FwCfg;
use bulkhead_devices::i8042::KeyboardController;
use bulkhead_devices::pci::Pci;
use bulkhead_devices::reset::ResetControl;
use bulkhead_devices::test_device::TestDevice;

/// The keyboard controller.
pub fn keyboard(data: &[u8]) {
    const FULL: u8 = 1;
    let mut feed = Feed::new(data);
    let mut chip = KeyboardController::new();
    let mut command = None;
    while !feed.is_empty() {
        match feed.u8() & 3 {
            0 => assert_eq!(chip.read_status(), chip.read_status(), "reading the status changes nothing"),
            1 => {
                let was_full = chip.read_status() & FULL != 0;
                let value = chip.read_data();
                assert!(was_full || value == 0, "data {value:#x} out of nothing");
                assert_eq!(chip.read_status() & FULL, 0, "a byte is read once");
            }
            2 => {
                let value = feed.u8();
                assert_eq!(chip.write_command(value), value >= 0xF0 && value & 1 == 0, "command {value:#x}");
                command = Some(value);
            }
            _ => {
                let value = feed.u8();
                let resets = chip.write_data(value);
                assert_eq!(resets, command.take() == Some(0xD1) && value & 1 == 0, "data {value:#x}");
            }
        }
    }
}

/// Reset control and port A.
pub fn reset(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut chip = ResetControl::new();
    let (mut kind, mut port_a) = (0, 0);
    while !feed.is_empty() {
        let value = feed.u8();
        if feed.flag() {
            assert_eq!(chip.write(value), value & 4 != 0);
            kind = value & 2;
        } else {
            assert_eq!(chip.write_port_a(value), value & !port_a & 1 != 0);
            port_a = value;
        }
        assert_eq!(chip.read() & 2, kind);
        assert_eq!(chip.read_port_a(), port_a | 2, "A20 is open");
    }
}

/// The selector and data of fw_cfg.
pub fn fw_cfg(data: &[u8]) {
    let mut feed = Feed::new(data);
    let (memory, cpus) = (feed.u64(), feed.u16());
    let mut chip = FwCfg::new(memory, cpus);
    let (mut selected, mut offset) = (None, 0_usize);
    while !feed.is_empty() {
        if feed.flag() {
            let item = if feed.flag() { u16::from(feed.u8()) & 0x1F } else { feed.u16() };
            chip.select(item);
            (selected, offset) = (Some(item), 0);
        }
        for _ in 0..feed.u8() & 15 {
            let content = match selected {
                Some(0) => b"QEMU".to_vec(),
                Some(1) => vec![1],
                Some(3) => memory.to_le_bytes().to_vec(),
                Some(5 | 0x0F) => cpus.to_le_bytes().to_vec(),
                Some(_) => vec![],
                None => break,
            };
            assert_eq!(chip.read(), content.get(offset).copied().unwrap_or(0), "item {selected:x?} at {offset}");
            offset += 1;
        }
    }
}

/// PCI configuration.
pub fn pci(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut chip = Pci::new();
    let mut address = 0_u32;
    while !feed.is_empty() {
        if feed.flag() {
            let value = if feed.flag() { feed.u32() } else { 1 << 31 | u32::from(feed.u8()) };
            chip.write_address(value);
            address = value & 0x80FF_FFFC;
            assert_eq!(chip.read_address(), address);
        }
        let (offset, width) = (feed.u8() & 3, feed.port_width());
        let bridge = address & 0xFFFF_FF00 == 1 << 31;
        let register = match address & 0xFF {
            _ if !bridge => u32::MAX,
            0 => 0x0D57_8086,
            8 => 0x0600_0000,
            _ => 0,
        };
        let want = u64::from(register) >> (8 * u32::from(offset)) & width.mask();
        assert_eq!(u64::from(chip.read_data(offset, width)), want, "{address:#x} + {offset}, {width:?}");
    }
}

/// The test device.
pub fn test_device(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut chip = TestDevice::new();
    let (mut memory, mut reads, mut writes, mut last, mut line) = ([0_u8; 256], 0_u32, 0_u32, 0_u32, false);
    while !feed.is_empty() {
        let width = feed.width();
        let offset = match feed.u8() & 7 {
            0 => 0x400,
            1 => 0x404,
            2 => 0x408,
            3 => 0x800,
            4 => u64::from(feed.u16()) & 0xFFF,
            _ => u64::from(feed.u8()),
        };
        let start = usize::try_from(offset).ok().filter(|&at| at < memory.len());
        let mut access = |write: u32| last = offset as u32 | (width.bytes() as u32) << 8 | write << 16;
        if feed.flag() {
            let value = feed.u64();
            chip.write(offset, width, value);
            match (offset, start) {
                (0x400, _) => (reads, writes) = (0, 0),
                (0x800, _) => line = value & 1 != 0,
                (_, Some(start)) => {
                    access(1);
                    writes += 1;
                    for (to, from) in memory[start..].iter_mut().zip(&value.to_le_bytes()[..width.bytes()]) {
                        *to = *from;
                    }
                }
                _ => {}
            }
        } else {
            let value = chip.read(offset, width);
            let want = match (offset, start) {
                (0x400, _) => u64::from(reads),
                (0x404, _) => u64::from(writes),
                (0x408, _) => u64::from(last),
                (0x800, _) => u64::from(line),
                (_, Some(start)) => {
                    access(0);
                    reads += 1;
                    let byte = |index| u64::from(memory.get(start + index).copied().unwrap_or(0)) << (8 * index);
                    (0..width.bytes()).map(byte).sum()
                }
                _ => 0,
            };
            assert_eq!(value, want & width.mask(), "{offset:#x}, {width:?}");
        }
        assert_eq!(chip.line(), line);
    }
}
