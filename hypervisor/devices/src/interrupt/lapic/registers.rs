//! The register file of the local APIC: the xAPIC page and the x2APIC MSRs.
//!
//! Both modes number the registers alike: offset / 16 in the page, index - 0x800 among the MSRs.
//! SDM vol. 3A 11.4.1 "The Local APIC Block Diagram", table 11-1 "Local APIC Register Address Map"; 11.12.1.2 "x2APIC
//! Register Address Space", table 11-6 "Local APIC Register Address Map Supported by x2APIC".

use super::{Effect, LocalApic, MASKED, Mode, SVR_ENABLE, SVR_SUPPRESS_BROADCAST, error};
use crate::bits::low_u32;
use crate::interrupt::InvalidMsr;
use crate::interrupt::message::{DeliveryMode, Destination, Message};
use bulkhead_types::{Ticks, Width};

const ID: u8 = 0x02;
const VERSION: u8 = 0x03;
const TASK_PRIORITY: u8 = 0x08;
const PROCESSOR_PRIORITY: u8 = 0x0A;
const EOI: u8 = 0x0B;
const LOGICAL_ID: u8 = 0x0D;
const DESTINATION_FORMAT: u8 = 0x0E;
const SPURIOUS: u8 = 0x0F;
const ERROR_STATUS: u8 = 0x28;
const COMMAND: u8 = 0x30;
const COMMAND_HIGH: u8 = 0x31;
const LVT_TIMER: u8 = 0x32;
const LVT_THERMAL: u8 = 0x33;
const LVT_PERFORMANCE: u8 = 0x34;
const LVT_LINT0: u8 = 0x35;
const LVT_LINT1: u8 = 0x36;
const LVT_ERROR: u8 = 0x37;
const INITIAL_COUNT: u8 = 0x38;
const CURRENT_COUNT: u8 = 0x39;
const DIVIDE: u8 = 0x3E;
const SELF_IPI: u8 = 0x3F;

/// What the version register says: integrated local APIC, highest LVT entry 5, EOI broadcasts can be suppressed.
const VERSION_VALUE: u32 = 0x14 | 5 << 16 | 1 << 24;

/// Bits that can be written. Vector, focus check (stored only), enable, suppression of EOI broadcasts.
const SPURIOUS_BITS: u32 = 0xFF | SVR_ENABLE | 1 << 9 | SVR_SUPPRESS_BROADCAST;
/// Vector, delivery mode, destination mode, level, trigger mode, shorthand.
const COMMAND_BITS: u32 = 0x000C_CFFF;
const DIVIDE_BITS: u32 = 0x0B;
/// Read-only bits of LVT entries: delivery status, remote IRR.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// Bits of an LVT entry that are not reserved. SDM vol. 3A figure 11-8 "Local Vector Table (LVT)".
const fn lvt_bits(register: u8) -> u32 {
    let vector_status_mask = 0xFF | 1 << 12 | MASKED;
    match register {
        LVT_TIMER => vector_status_mask | 3 << 17,
        LVT_THERMAL | LVT_PERFORMANCE => vector_status_mask | 7 << 8,
        LVT_LINT0 | LVT_LINT1 => vector_status_mask | 7 << 8 | 7 << 13,
        _ => vector_status_mask,
    }
}

/// The local vector table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lvt {
    pub(super) timer: u32,
    pub(super) thermal: u32,
    pub(super) performance: u32,
    pub(super) lint0: u32,
    pub(super) lint1: u32,
    pub(super) error: u32,
}

impl Lvt {
    pub(super) const RESET: Self =
        Self { timer: MASKED, thermal: MASKED, performance: MASKED, lint0: MASKED, lint1: MASKED, error: MASKED };

    pub(super) const fn mask_all(&mut self) {
        self.timer |= MASKED;
        self.thermal |= MASKED;
        self.performance |= MASKED;
        self.lint0 |= MASKED;
        self.lint1 |= MASKED;
        self.error |= MASKED;
    }
}

impl LocalApic {
    /// Reads `width` at `offset` of the xAPIC page at the time `now`. Outside of xAPIC mode there is no page: ones.
    ///
    /// A register is the first four of its sixteen bytes, the others read as zero.
    pub(in crate::interrupt) fn read_page(&mut self, offset: u64, width: Width, now: Ticks) -> u64 {
        let (Ok(register), Some(_)) = (u8::try_from(offset >> 4), self.page()) else { return width.mask() };
        self.advance(now);
        let value = self.read(register, now).unwrap_or_else(|| {
            self.record(error::ILLEGAL_REGISTER);
            0
        });
        let shift = 8 * (offset & 0xF);
        if shift < 32 { (u64::from(value) >> shift) & width.mask() } else { 0 }
    }

    /// Writes `value` at `offset` of the xAPIC page at the time `now`. Registers take aligned writes of at least 32 bits
    /// and use the first 32 of them; all others do nothing.
    pub(in crate::interrupt) fn write_page(&mut self, offset: u64, width: Width, value: u64, now: Ticks) -> Effect {
        let (Ok(register), Some(_)) = (u8::try_from(offset >> 4), self.page()) else { return Effect::None };
        if offset & 0xF != 0 || width < Width::Dword {
            return Effect::None;
        }
        self.advance(now);
        let value = low_u32(value);
        match register {
            LOGICAL_ID => {
                self.logical_id = value & 0xFF00_0000;
                Effect::Reconfigured
            }
            DESTINATION_FORMAT => {
                self.destination_format = value | 0x0FFF_FFFF;
                Effect::Reconfigured
            }
            COMMAND => self.write_command(u64::from(value & COMMAND_BITS) | self.command & !0xFFFF_FFFF),
            COMMAND_HIGH => {
                self.command = self.command & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32;
                Effect::None
            }
            SELF_IPI => {
                self.record(error::ILLEGAL_REGISTER);
                Effect::None
            }
            _ if self.read(register, now).is_none() => {
                self.record(error::ILLEGAL_REGISTER);
                Effect::None
            }
            _ => self.write(register, value, now),
        }
    }

    /// Reads the x2APIC register with MSR index 0x800 + `register` at the time `now`.
    ///
    /// # Errors
    /// Not in x2APIC mode, no such register, or one that can only be written.
    pub(in crate::interrupt) fn read_msr(&mut self, register: u8, now: Ticks) -> Result<u64, InvalidMsr> {
        if !self.is_x2apic() {
            return Err(InvalidMsr);
        }
        self.advance(now);
        match register {
            EOI | DESTINATION_FORMAT | COMMAND_HIGH => Err(InvalidMsr),
            COMMAND => Ok(self.command),
            _ => self.read(register, now).map(u64::from).ok_or(InvalidMsr),
        }
    }

    /// Writes the x2APIC register with MSR index 0x800 + `register` at the time `now`.
    ///
    /// # Errors
    /// Not in x2APIC mode, no such register, one that can only be read, or a reserved bit.
    pub(in crate::interrupt) fn write_msr(
        &mut self,
        register: u8,
        value: u64,
        now: Ticks,
    ) -> Result<Effect, InvalidMsr> {
        let allowed = match register {
            TASK_PRIORITY | SELF_IPI => 0xFF,
            EOI | ERROR_STATUS => 0,
            SPURIOUS => u64::from(SPURIOUS_BITS),
            COMMAND => u64::from(COMMAND_BITS) | !0xFFFF_FFFF,
            LVT_TIMER..=LVT_ERROR => u64::from(lvt_bits(register)),
            INITIAL_COUNT => 0xFFFF_FFFF,
            DIVIDE => u64::from(DIVIDE_BITS),
            _ => return Err(InvalidMsr),
        };
        if !self.is_x2apic() || value & !allowed != 0 {
            return Err(InvalidMsr);
        }
        self.advance(now);
        Ok(match register {
            COMMAND => self.write_command(value),
            // Like the ICR with the self shorthand, but it leaves no trace there.
            SELF_IPI => self.send(Destination::Own, low_u32(value)),
            _ => self.write(register, low_u32(value), now),
        })
    }

    /// LDR. In x2APIC mode it follows from the id: 16 to a cluster, a bit for each of them.
    /// SDM vol. 3A 11.12.10.2 "Deriving Logical x2APIC ID from the Local x2APIC ID".
    pub(super) fn read_logical_id(&self) -> u32 {
        let id = u32::from(self.id.number());
        if self.is_x2apic() { id >> 4 << 16 | 1 << (id & 0xF) } else { self.logical_id }
    }

    fn read_id(&self) -> u32 {
        let id = u32::from(self.id.number());
        if self.is_x2apic() { id } else { id << 24 }
    }

    /// The x2APIC register with MSR index 0x800 + `register`, of those that stand still; 0 if there is none.
    #[must_use]
    pub fn register(&self, register: u8) -> u32 {
        self.read(register, Ticks::ZERO).unwrap_or(0)
    }

    /// The value of a register, `None` if it is reserved. [`Self::advance`] has been called with `now`.
    fn read(&self, register: u8, now: Ticks) -> Option<u32> {
        Some(match register {
            ID => self.read_id(),
            EOI => 0,
            VERSION => VERSION_VALUE,
            TASK_PRIORITY => u32::from(self.task_priority),
            PROCESSOR_PRIORITY => u32::from(self.processor_priority()),
            LOGICAL_ID => self.read_logical_id(),
            DESTINATION_FORMAT => self.destination_format,
            SPURIOUS => self.spurious,
            0x10..=0x17 => self.in_service.register(register),
            0x18..=0x1F => self.trigger_mode.register(register),
            0x20..=0x27 => self.requested.register(register),
            ERROR_STATUS => self.error_status,
            COMMAND => low_u32(self.command),
            COMMAND_HIGH => low_u32(self.command >> 32),
            LVT_TIMER => self.lvt.timer,
            LVT_THERMAL => self.lvt.thermal,
            LVT_PERFORMANCE => self.lvt.performance,
            LVT_LINT0 => self.lvt.lint0,
            LVT_LINT1 => self.lvt.lint1,
            LVT_ERROR => self.lvt.error,
            INITIAL_COUNT => self.timer.initial_count(),
            CURRENT_COUNT => self.timer.current_count(now),
            DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that both modes write alike; does nothing to one that can only be read.
    fn write(&mut self, register: u8, value: u32, now: Ticks) -> Effect {
        match register {
            TASK_PRIORITY => self.set_task_priority(value.to_le_bytes()[0]),
            EOI => return self.end_of_interrupt().map_or(Effect::None, Effect::EndOfInterrupt),
            SPURIOUS => {
                self.spurious = value & SPURIOUS_BITS;
                if !self.is_software_enabled() {
                    self.lvt.mask_all();
                }
                return Effect::Reconfigured;
            }
            ERROR_STATUS => self.error_status = core::mem::take(&mut self.errors),
            LVT_TIMER..=LVT_ERROR => self.write_lvt(register, value, now),
            INITIAL_COUNT => self.timer.set_initial_count(value, now),
            DIVIDE => self.timer.set_divide(value, now),
            _ => {}
        }
        Effect::None
    }

    fn write_lvt(&mut self, register: u8, value: u32, now: Ticks) {
        let mut value = value & lvt_bits(register) & !LVT_READ_ONLY;
        if !self.is_software_enabled() {
            value |= MASKED;
        }
        match register {
            LVT_TIMER => {
                self.lvt.timer = value;
                self.timer.set_mode(Mode::from_lvt(value), now);
            }
            LVT_THERMAL => self.lvt.thermal = value,
            LVT_PERFORMANCE => self.lvt.performance = value,
            LVT_LINT0 => self.lvt.lint0 = value,
            LVT_LINT1 => self.lvt.lint1 = value,
            _ => self.lvt.error = value,
        }
    }

    /// Writes the ICR, which sends. SDM vol. 3A 11.6.1 "Interrupt Command Register (ICR)", figures 11-12 and 11-28.
    fn write_command(&mut self, value: u64) -> Effect {
        self.command = value;
        let (command, destination) = (low_u32(value), low_u32(value >> 32));
        let logical = command & 1 << 11 != 0;
        let destination = match (command >> 18) & 3 {
            1 => Destination::Own,
            2 => Destination::All,
            3 => Destination::Others,
            _ if !self.is_x2apic() => Destination::from_byte(destination.to_be_bytes()[0], logical),
            _ if logical => Destination::Logical(destination),
            _ => Destination::Physical(destination),
        };
        self.send(destination, command)
    }

    fn send(&mut self, destination: Destination, command: u32) -> Effect {
        let (mode, [vector, ..]) = (DeliveryMode::from_register(command), command.to_le_bytes());
        // The INIT level de-assert: for arbitration ids, which no processor since the Pentium 4 has.
        let deassert = mode == DeliveryMode::Init && command & (1 << 15 | 1 << 14) == 1 << 15;
        if deassert {
            return Effect::None;
        }
        if mode.has_vector() && vector < 16 {
            self.record(error::SEND_ILLEGAL_VECTOR);
        }
        Effect::Send(Message { destination, mode, vector, level: false })
    }
}
