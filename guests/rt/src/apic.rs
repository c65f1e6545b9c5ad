//! The local APIC, in xAPIC mode (memory) and x2APIC mode (registers). SDM vol. 3A chapter 11 "APIC".

use crate::cpu;
use crate::memory::Region;

/// Spurious vector that [`enable`] sets.
pub const SPURIOUS: u8 = 0xFF;
/// Register numbers, as offsets divided by 16 (so an x2APIC register is 0x800 plus this).
pub mod register {
    #![expect(missing_docs, reason = "the manual's names")]
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SPURIOUS: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ERROR: u32 = 0x28;
    pub const COMMAND: u32 = 0x30;
    pub const COMMAND_HIGH: u32 = 0x31;
    pub const TIMER: u32 = 0x32;
    pub const LINT0: u32 = 0x35;
    pub const LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3E;
}
use register::{COMMAND, COMMAND_HIGH, EOI, IRR, ISR, SPURIOUS as SPURIOUS_VECTOR};

/// Command: not yet accepted by the destination (xAPIC).
const PENDING: u32 = 1 << 12;
const BASE_MSR: u32 = 0x1B;
const X2APIC_MSR: u32 = 0x800;
/// The deadline register.
pub const DEADLINE_MSR: u32 = 0x6E0;

// SAFETY: the registers of the local APIC lie here from reset on, below 4 GiB and so mapped; no RAM is there.
const REGISTERS: Region = unsafe { Region::new(0xFEE0_0000, 4096) };

/// Whether x2APIC mode is on.
#[must_use]
pub fn x2apic() -> bool {
    cpu::rdmsr(BASE_MSR).is_ok_and(|base| base & 1 << 10 != 0)
}

/// Switches to x2APIC mode, if the processor has it; whether it did.
pub fn enter_x2apic() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 21 != 0
        && cpu::rdmsr(BASE_MSR).is_ok_and(|base| cpu::wrmsr(BASE_MSR, base | 1 << 10).is_ok())
}

/// Reads register `number`.
#[must_use]
pub fn read(number: u32) -> u32 {
    if x2apic() {
        #[expect(clippy::cast_possible_truncation, reason = "registers but the command have 32 bits")]
        cpu::rdmsr(X2APIC_MSR + number).map_or(u32::MAX, |value| value as u32)
    } else {
        REGISTERS.read32(number as usize * 16)
    }
}

/// Writes register `number`.
pub fn write(number: u32, value: u32) {
    if x2apic() {
        let _ = cpu::wrmsr(X2APIC_MSR + number, u64::from(value));
    } else {
        REGISTERS.write32(number as usize * 16, value);
    }
}

/// Software-enables the local APIC.
pub fn enable() {
    write(SPURIOUS_VECTOR, 0x100 | u32::from(SPURIOUS));
}

/// End of interrupt.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Sends `command` (low half of the interrupt command register) with destination 0.
pub fn send(command: u32) {
    if !x2apic() {
        write(COMMAND_HIGH, 0);
    }
    write(COMMAND, command);
}

/// Sends `command` (low half of the interrupt command register) to the destination `to`. An interrupt handler that sends, too,
/// must not come in between.
pub fn send_to(to: u32, command: u32) {
    if x2apic() {
        let _ = cpu::wrmsr(X2APIC_MSR + COMMAND, u64::from(to) << 32 | u64::from(command));
        return;
    }
    write(COMMAND_HIGH, to << 24);
    write(COMMAND, command);
    while read(COMMAND) & PENDING != 0 {}
}

/// Sends this processor the interrupt `vector` (destination shorthand "self").
pub fn send_self(vector: u8) {
    send(0x4_4000 | u32::from(vector));
}

fn bit(first: u32, vector: u8) -> bool {
    read(first + u32::from(vector / 32)) & 1 << (vector % 32) != 0
}

/// Whether `vector` is requested.
#[must_use]
pub fn requested(vector: u8) -> bool {
    bit(IRR, vector)
}

/// Whether `vector` is in service.
#[must_use]
pub fn in_service(vector: u8) -> bool {
    bit(ISR, vector)
}
