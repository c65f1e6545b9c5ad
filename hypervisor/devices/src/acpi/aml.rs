//! The DSDT: the few devices that a system can not find by itself, in AML.
//!
//! ACPI specification 6.5, sections 20.2 "AML Grammar Definition" and 6.4 "Resource Data Types for ACPI".
//!
//! In ASL:
//!
//! ```text
//! Name (\_S5, Package () { 5, 5, 0, 0 })
//! Scope (\_SB) {
//!     Device (PCI0) { _HID PNP0A03; _CRS: bus 0, configuration ports, all other ports, the hole below the I/O APIC }
//!     Device (COM1) { _HID PNP0501; _CRS: ports 0x3F8-0x3FF, IRQ 4 }
//!     Device (RTC)  { _HID PNP0B00; _CRS: ports 0x70-0x71, IRQ 8 }
//! }
//! ```

use crate::bits::{byte, low_u32};
use crate::layout;
use alloc::vec::Vec;

const NAME: u8 = 0x08;
const SCOPE: [u8; 1] = [0x10];
const BUFFER: [u8; 1] = [0x11];
const PACKAGE: [u8; 1] = [0x12];
const DEVICE: [u8; 2] = [0x5B, 0x82];

/// The definition block, without its header, of a machine whose S5 has this sleep type.
pub fn dsdt(sleep_type: u8) -> Vec<u8> {
    let values = [integer(sleep_type.into()), integer(sleep_type.into()), integer(0), integer(0)].concat();
    let sleep = name(b"_S5_", &sized(&PACKAGE, &[[4].as_slice(), &values].concat()));
    let bridge = device(b"PCI0", 0x0A03, &bridge_resources());
    let uart = device(b"COM1", 0x0501, &[io(layout::COM1, 8), irq(layout::COM1_LINE)].concat());
    let clock = device(b"RTC_", 0x0B00, &[io(layout::RTC, 2), irq(layout::RTC_LINE)].concat());
    let system = sized(&SCOPE, &[b"\\_SB_".as_slice(), &bridge, &uart, &clock].concat());
    [sleep, system].concat()
}

fn bridge_resources() -> Vec<u8> {
    let config = layout::PCI_CONFIG;
    let (hole, end) = (low_u32(layout::HOLE.as_u64()), low_u32(layout::IO_APIC.as_u64()));
    [
        // Bus numbers: bus 0 only.
        word_space(2, 0, 0, 0),
        io(config, 8),
        word_space(1, 3, 0, config - 1),
        word_space(1, 3, config + 8, u16::MAX),
        // Memory: read and write, not cacheable.
        dword_space(0, 1, hole, end - 1),
    ]
    .concat()
}

/// An integer constant.
fn integer(value: u32) -> Vec<u8> {
    match value {
        0 | 1 => [byte(value.into(), 0)].to_vec(),
        2..=0xFF => [0x0A, byte(value.into(), 0)].to_vec(),
        0x100..=0xFFFF => [0x0B, byte(value.into(), 0), byte(value.into(), 1)].to_vec(),
        _ => [[0x0C].as_slice(), &value.to_le_bytes()].concat(),
    }
}

/// `opcode`, the length of what follows (up to 4095 bytes, counting itself), and `body`.
fn sized(opcode: &[u8], body: &[u8]) -> Vec<u8> {
    let bytes = body.len() as u64;
    let length = if bytes < 0x3F {
        [byte(bytes + 1, 0)].to_vec()
    } else {
        // The low nibble here, the next eight bits there; bits 6-7 say how many bytes follow.
        let total = bytes + 2;
        [1 << 6 | byte(total, 0) & 0xF, byte(total >> 4, 0)].to_vec()
    };
    [opcode, &length, body].concat()
}

fn name(segment: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [[NAME].as_slice(), segment, value].concat()
}

/// A device with the hardware number PNP`id` and these resource descriptors.
fn device(segment: &[u8; 4], id: u16, resources: &[u8]) -> Vec<u8> {
    // "PNP" in five bits a letter, then the number, the high byte first.
    let [high, low] = id.to_be_bytes();
    let hardware = name(b"_HID", &integer(u32::from_le_bytes([0x41, 0xD0, high, low])));
    let unique = name(b"_UID", &integer(0));
    // The end tag; a sum of zero means that it does not count.
    let resources = [resources, &[0x79, 0]].concat();
    let size = integer(low_u32(resources.len() as u64));
    let current = name(b"_CRS", &sized(&BUFFER, &[size, resources].concat()));
    sized(&DEVICE, &[segment.as_slice(), &hardware, &unique, &current].concat())
}

/// Fixed ports, 16 bits decoded. 6.4.2.5 "I/O Port Descriptor".
fn io(port: u16, ports: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    [0x47, 1, low, high, low, high, 1, ports].to_vec()
}

/// An ISA line: edge, active high. 6.4.2.1 "IRQ Descriptor".
fn irq(line: u8) -> Vec<u8> {
    let [low, high] = (1_u16 << (line & 15)).to_le_bytes();
    [0x22, low, high].to_vec()
}

/// Bounds are fixed, and the bridge passes it on.
const FIXED_PRODUCED: u8 = 0b1100;

/// A range of bus numbers (kind 2) or ports (kind 1). 6.4.3.5.3 "Word Address Space Descriptor".
fn word_space(kind: u8, flags: u8, first: u16, last: u16) -> Vec<u8> {
    let fields = [0, first, last, 0, (last - first).wrapping_add(1)];
    let fields: Vec<u8> = fields.into_iter().flat_map(u16::to_le_bytes).collect();
    [[0x88, 13, 0, kind, FIXED_PRODUCED, flags].as_slice(), &fields].concat()
}

/// A range of memory (kind 0). 6.4.3.5.2 "DWord Address Space Descriptor".
fn dword_space(kind: u8, flags: u8, first: u32, last: u32) -> Vec<u8> {
    let fields = [0, first, last, 0, (last - first).wrapping_add(1)];
    let fields: Vec<u8> = fields.into_iter().flat_map(u32::to_le_bytes).collect();
    [[0x87, 23, 0, kind, FIXED_PRODUCED, flags].as_slice(), &fields].concat()
}
