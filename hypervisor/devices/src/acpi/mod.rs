//! ACPI tables: how a system finds the machine's fixed parts.
//!
//! ACPI specification 6.5, sections 5.2.5 "Root System Description Pointer", 5.2.7 "RSDT", 5.2.8 "XSDT", 5.2.9 "Fixed ACPI
//! Description Table", 5.2.10 "Firmware ACPI Control Structure" and 5.2.12 "Multiple APIC Description Table". The DSDT is
//! in its own module.
//!
//! The tables are built once, before the guest starts, for guest-physical address [`layout::RSDP`]. They say only what is
//! there: fixed hardware with a power button, without SMI and general-purpose events; no 8042 and no VGA.

mod aml;

use crate::bits::low_u32;
use crate::layout;
use crate::machine::MachineConfig;
use crate::pm::SLEEP_TYPE_S5;
use alloc::vec::Vec;
use core::iter::repeat_n;

/// Most bytes that [`tables`] yields, for any configuration: it fits the area for firmware tables.
pub const MAX_BYTES: usize = 0x1000;

const OEM: &[u8; 6] = b"BLKHD ";
const OEM_TABLE: &[u8; 8] = b"BULKHEAD";
const HEADER: usize = 36;

/// The tables' bytes, to be put at [`layout::RSDP`], where the root pointer is.
#[must_use]
pub fn tables(config: &MachineConfig) -> Vec<u8> {
    let mut area = Area { bytes: repeat_n(0, RSDP_BYTES).collect() };
    let facs = area.place(&facs(), 64);
    let dsdt = area.place(&table(b"DSDT", 2, &aml::dsdt(SLEEP_TYPE_S5)), 16);
    let fadt = area.place(&table(b"FACP", 6, &fadt(facs, dsdt)), 16);
    let madt = area.place(&table(b"APIC", 5, &madt(config.cpus)), 16);
    let entries = [fadt, madt];
    let rsdt: Vec<u8> = entries.into_iter().flat_map(u32::to_le_bytes).collect();
    let xsdt: Vec<u8> = entries.into_iter().map(u64::from).flat_map(u64::to_le_bytes).collect();
    let rsdt = area.place(&table(b"RSDT", 1, &rsdt), 16);
    let xsdt = area.place(&table(b"XSDT", 1, &xsdt), 16);
    for (to, from) in area.bytes.iter_mut().zip(rsdp(rsdt, xsdt)) {
        *to = from;
    }
    area.bytes
}

/// The bytes from [`layout::RSDP`] on.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends `table` at a multiple of `align` bytes; its guest-physical address.
    fn place(&mut self, table: &[u8], align: usize) -> u32 {
        let start = self.bytes.len().next_multiple_of(align);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(table);
        low_u32(layout::RSDP.as_u64() + start as u64)
    }
}

/// What makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// A table with its header. 5.2.6 "System Description Table Header".
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(signature);
    out.extend_from_slice(&low_u32((HEADER + body.len()) as u64).to_le_bytes());
    out.extend_from_slice(&[revision, 0]);
    out.extend_from_slice(OEM);
    out.extend_from_slice(OEM_TABLE);
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(b"BLKH");
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(body);
    let sum = checksum(&out);
    if let Some(byte) = out.get_mut(9) {
        *byte = sum;
    }
    out
}

const RSDP_BYTES: usize = 36;

fn rsdp(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(RSDP_BYTES);
    out.extend_from_slice(b"RSD PTR \0");
    out.extend_from_slice(OEM);
    out.push(2);
    out.extend_from_slice(&rsdt.to_le_bytes());
    // The first 20 bytes have a sum of their own, from before there was more.
    let sum = checksum(&out);
    if let Some(byte) = out.get_mut(8) {
        *byte = sum;
    }
    out.extend_from_slice(&36_u32.to_le_bytes());
    out.extend_from_slice(&u64::from(xsdt).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let sum = checksum(&out);
    if let Some(byte) = out.get_mut(32) {
        *byte = sum;
    }
    out
}

/// No lock held, no waking vector, version 2.
fn facs() -> [u8; 64] {
    let mut out = [0; 64];
    let head = b"FACS".iter().copied().chain(64_u32.to_le_bytes());
    for (to, from) in out.iter_mut().zip(head) {
        *to = from;
    }
    out[32] = 2;
    out
}

/// A place in I/O space as a generic address structure. 5.2.3.2 "Generic Address Structure".
fn io_address(port: u16, bits: u8, access: u8) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, bits, 0, access, low, high, 0, 0, 0, 0, 0, 0]
}

/// The fields behind the header, in order; those that are not named are zero.
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    const RESERVED_LATENCY: u16 = 0xFFF;
    // Legacy devices, no VGA, no PCIe ASPM; not: 8042.
    const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2 | 1 << 4;
    // WBINVD works, C1 on all processors, no sleep button and no RTC wake status in fixed hardware, 32-bit timer, reset
    // register. Bit 4 is clear: the power button is fixed hardware.
    const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
    const RESET: u8 = 0x06;
    const CENTURY: u8 = 0x32;
    let (events, control, timer) = (layout::ACPI_PM, layout::ACPI_PM + 4, layout::ACPI_PM + 8);

    let mut out = Vec::with_capacity(276 - HEADER);
    let at = |out: &mut Vec<u8>, offset: usize, field: &[u8]| {
        out.resize(offset - HEADER, 0);
        out.extend_from_slice(field);
    };
    at(&mut out, 36, &facs.to_le_bytes());
    at(&mut out, 40, &dsdt.to_le_bytes());
    at(&mut out, 46, &u16::from(layout::SCI_LINE).to_le_bytes());
    at(&mut out, 56, &u32::from(events).to_le_bytes());
    at(&mut out, 64, &u32::from(control).to_le_bytes());
    at(&mut out, 76, &u32::from(timer).to_le_bytes());
    // Lengths of the event, control and timer blocks; there is no second control block.
    at(&mut out, 88, &[4, 2, 0, 4]);
    // Latencies of C2 and C3, beyond what means that they are there.
    at(&mut out, 96, &RESERVED_LATENCY.to_le_bytes());
    at(&mut out, 98, &RESERVED_LATENCY.to_le_bytes());
    at(&mut out, 108, &[CENTURY]);
    at(&mut out, 109, &BOOT_ARCHITECTURE.to_le_bytes());
    at(&mut out, 112, &FLAGS.to_le_bytes());
    at(&mut out, 116, &io_address(layout::RESET_CONTROL, 8, 1));
    at(&mut out, 128, &[RESET]);
    // Minor version of the specification.
    at(&mut out, 131, &[5]);
    at(&mut out, 140, &u64::from(dsdt).to_le_bytes());
    at(&mut out, 148, &io_address(events, 32, 2));
    at(&mut out, 172, &io_address(control, 16, 2));
    at(&mut out, 208, &io_address(timer, 32, 3));
    at(&mut out, 276, &[]);
    out
}

fn madt(cpus: u8) -> Vec<u8> {
    const PICS: u32 = 1 << 0;
    const ENABLED: u8 = 1;
    const ACTIVE_HIGH_LEVEL: u8 = 0b1101;
    let mut out = Vec::new();
    out.extend_from_slice(&low_u32(layout::LOCAL_APIC.as_u64()).to_le_bytes());
    out.extend_from_slice(&PICS.to_le_bytes());
    for id in 0..cpus {
        out.extend_from_slice(&[0, 8, id, id, ENABLED, 0, 0, 0]);
    }
    out.extend_from_slice(&[1, 12, 0, 0]);
    out.extend_from_slice(&low_u32(layout::IO_APIC.as_u64()).to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    // Interrupt source overrides: ISA line, global system interrupt (4 bytes), flags (2 bytes).
    out.extend_from_slice(&[2, 10, 0, layout::PIT_LINE, layout::PIT_GSI, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&[2, 10, 0, layout::SCI_LINE, layout::SCI_LINE, 0, 0, 0, ACTIVE_HIGH_LEVEL, 0]);
    // NMI comes in at LINT1 of every local APIC.
    out.extend_from_slice(&[4, 6, 0xFF, 0, 0, 1]);
    out
}

#[cfg(test)]
mod tests;
