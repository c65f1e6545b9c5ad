//! The guest's physical address map and port map: every fixed address of the guest's machine.
//!
//! ```text
//! 0000_0000  RAM: zero page, boot tables (see the loaders of the core)
//! 000A_0000  hole: display memory, nothing there (reads as ones)
//! 000C_0000  RAM: option ROM area
//! 000E_0000  RAM, reserved in the memory map: ACPI tables; RSDP at 000E_0000
//! 0010_0000  RAM up to 3 GiB
//! C000_0000  hole: PCI
//! FEC0_0000  I/O APIC
//! FED8_0000  test device, where the manifest allows it
//! FEE0_0000  local APIC
//! 1_0000_0000 the rest of the RAM
//! ```

use bulkhead_types::Gpa;

/// End of the RAM below the display memory.
pub const LOW_RAM_END: Gpa = Gpa::new(0xA_0000);
/// Start of RAM behind the display memory.
pub const HIGH_RAM_START: Gpa = Gpa::new(0xC_0000);
/// Start of the area for firmware tables.
pub const FIRMWARE: Gpa = Gpa::new(0xE_0000);
/// End of the area for firmware tables.
pub const FIRMWARE_END: Gpa = Gpa::new(0x10_0000);
/// The ACPI root pointer.
pub const RSDP: Gpa = FIRMWARE;
/// Start of the hole below 4 GiB: RAM that would reach into it goes on at [`RAM_ABOVE_4G`].
pub const HOLE: Gpa = Gpa::new(0xC000_0000);
/// Where RAM goes on.
pub const RAM_ABOVE_4G: Gpa = Gpa::new(0x1_0000_0000);
/// Registers of the I/O APIC (one page).
pub const IO_APIC: Gpa = Gpa::new(0xFEC0_0000);
/// Registers of the test device (one page).
pub const TEST_DEVICE: Gpa = Gpa::new(0xFED8_0000);
/// Registers of the local APIC (one page).
pub const LOCAL_APIC: Gpa = Gpa::new(0xFEE0_0000);

/// Inputs of the I/O APIC.
pub const IO_APIC_INPUTS: u8 = 24;
/// I/O APIC input, and PIC line, of COM1.
pub const COM1_LINE: u8 = 4;
/// PIC line of the PIT's channel 0.
pub const PIT_LINE: u8 = 0;
/// I/O APIC input of the PIT's channel 0 (the MADT overrides ISA line 0 to it).
pub const PIT_GSI: u8 = 2;
/// Line of the real-time clock.
pub const RTC_LINE: u8 = 8;
/// I/O APIC input of the test device.
pub const TEST_DEVICE_LINE: u8 = 16;
/// Line of the ACPI system control interrupt (level, active high: the MADT says so).
pub const SCI_LINE: u8 = 9;

/// First port of COM1.
pub const COM1: u16 = 0x3F8;
/// First port of the ACPI power-management block: PM1a event (4), PM1a control (2) at +4, PM timer (4) at +8.
pub const ACPI_PM: u16 = 0x600;
/// Ports of that block.
pub const ACPI_PM_PORTS: u16 = 16;
/// Configuration address of PCI, 32 bits; data at the next four ports.
pub const PCI_CONFIG: u16 = 0xCF8;
/// Index of the real-time clock; data at the next port.
pub const RTC: u16 = 0x70;
/// Reset control register.
pub const RESET_CONTROL: u16 = 0xCF9;
/// fw_cfg selector; data at the next port.
pub const FW_CFG: u16 = 0x510;
/// Test exit (`isa-debug-exit`).
pub const TEST_EXIT: u16 = 0xF4;

/// A stretch of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRange {
    /// First byte, page-aligned.
    pub start: Gpa,
    /// Length in bytes, page-aligned.
    pub bytes: u64,
}

/// The stretches of RAM of a guest with `memory` bytes (page-aligned): low, high below 4 GiB, and above 4 GiB (which may
/// be empty). The hole at the display memory is part of `memory`: RAM counts as if it lay there.
#[must_use]
pub const fn ram_ranges(memory: u64) -> [RamRange; 3] {
    let below = if memory < HOLE.as_u64() { memory } else { HOLE.as_u64() };
    let low = if below < LOW_RAM_END.as_u64() { below } else { LOW_RAM_END.as_u64() };
    [
        RamRange { start: Gpa::new(0), bytes: low },
        RamRange { start: HIGH_RAM_START, bytes: below.saturating_sub(HIGH_RAM_START.as_u64()) },
        RamRange { start: RAM_ABOVE_4G, bytes: memory - below },
    ]
}
