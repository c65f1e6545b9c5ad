//! The interrupt system of a guest's machine: PICs, I/O APIC, local APIC, and the wires between them.
//!
//! ```text
//! ISA line n ──┬─> PICs ──INTR──┬─> LINT0 of the local APIC ──> processor
//!              │                └─> I/O APIC input 0 (ExtINT)
//!              └─> I/O APIC input n (line 0: input 2) ──messages──> local APIC
//! GSI 16..24 ────> I/O APIC input
//! ```
//!
//! The PICs' interrupts reach the processor while INTR is high and a way is open: the local APIC disabled by
//! IA32_APIC_BASE, LINT0 unmasked as ExtINT, or I/O APIC input 0 unmasked as ExtINT. The vector is asked for at the
//! moment the processor takes the interrupt.
//!
//! Everything here is plain data, driven by register accesses and the count of the guest's time-stamp counter; work per
//! call is bounded by the number of inputs.

mod io_apic;
mod lapic;
mod message;
mod pic;
#[cfg(test)]
mod tests;

pub use io_apic::IoApic;
pub use lapic::LocalApic;
pub use message::{DeliveryMode, Destination, Message};
pub use pic::PicPair;

use crate::layout::{IO_APIC_INPUTS, PIT_GSI, PIT_LINE};
use bulkhead_arch::msr;
use bulkhead_types::{Frequency, Gpa, Ticks, Width};
use lapic::Effect;

/// The access to a model-specific register is refused: #GP(0) for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidMsr;

/// The interrupt controllers of a machine with one processor.
#[derive(Clone, Debug)]
pub struct InterruptSystem {
    /// The pair of 8259A. Drive it through this system, which passes its output on.
    pub pics: PicPair,
    /// The I/O APIC.
    pub io_apic: IoApic,
    /// The processor's local APIC.
    pub lapic: LocalApic,
}

impl InterruptSystem {
    /// As firmware leaves them to a system: see [`PicPair::new`] and [`LocalApic::firmware_state`]. The local APIC's timer
    /// counts the time-stamp counter, whose rate is `tsc`.
    #[must_use]
    pub const fn new(tsc: Frequency) -> Self {
        Self { pics: PicPair::new(), io_apic: IoApic::new(), lapic: LocalApic::firmware_state(tsc) }
    }

    /// Sets an ISA line (0 to 15) or global system interrupt (16 to 23) active or not. Others do nothing, and nothing is
    /// wired to line 2, the PICs' cascade.
    pub fn set_line(&mut self, line: u8, level: bool) {
        let input = match line {
            PIT_LINE => PIT_GSI,
            PIT_GSI | IO_APIC_INPUTS.. => return,
            _ => line,
        };
        self.io_apic.set_input(input, level, &mut |message| self.lapic.receive(message));
        if line < 16 {
            self.pics.set_line(line, level);
            self.connect_pics();
        }
    }

    /// Reads a byte from one of [`PicPair::PORTS`].
    pub fn pic_read(&mut self, port: u16) -> u8 {
        let value = self.pics.read(port);
        self.connect_pics();
        value
    }

    /// Writes a byte to one of [`PicPair::PORTS`].
    pub fn pic_write(&mut self, port: u16, value: u8) {
        self.pics.write(port, value);
        self.connect_pics();
    }

    /// The PICs' INTR output to where it is wired.
    fn connect_pics(&mut self) {
        let intr = self.pics.intr();
        self.lapic.set_lint0(intr);
        self.io_apic.set_input(0, intr, &mut |message| self.lapic.receive(message));
    }

    /// Reads `width` at `offset` of the I/O APIC's page.
    pub fn io_apic_read(&mut self, offset: u64, width: Width) -> u64 {
        self.io_apic.read(offset, width)
    }

    /// Writes `value` of `width` at `offset` of the I/O APIC's page.
    pub fn io_apic_write(&mut self, offset: u64, width: Width, value: u64) {
        self.io_apic.write(offset, width, value, &mut |message| self.lapic.receive(message));
    }

    /// Reads `width` at `offset` of the page at [`Self::lapic_base`].
    pub fn lapic_mmio_read(&mut self, offset: u64, width: Width, now: Ticks) -> u64 {
        self.lapic.read_page(offset, width, now)
    }

    /// Writes `value` of `width` at `offset` of the page at [`Self::lapic_base`].
    pub fn lapic_mmio_write(&mut self, offset: u64, width: Width, value: u64, now: Ticks) {
        let effect = self.lapic.write_page(offset, width, value, now);
        self.apply(effect);
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (0x800 to 0x8FF).
    ///
    /// # Errors
    /// Any other; a register that is not there in the present mode; one that can only be written.
    pub fn msr_read(&mut self, index: u32, now: Ticks) -> Result<u64, InvalidMsr> {
        match index {
            msr::APIC_BASE => Ok(self.lapic.base()),
            msr::TSC_DEADLINE => Ok(self.lapic.read_deadline(now)),
            _ => self.lapic.read_msr(x2apic_register(index)?, now),
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (0x800 to 0x8FF).
    ///
    /// # Errors
    /// Any other; a register that is not there in the present mode; one that can only be read; a reserved bit; a change
    /// of mode that is not allowed.
    pub fn msr_write(&mut self, index: u32, value: u64, now: Ticks) -> Result<(), InvalidMsr> {
        let effect = match index {
            msr::APIC_BASE => {
                self.lapic.set_base(value)?;
                Effect::Reconfigured
            }
            msr::TSC_DEADLINE => {
                self.lapic.write_deadline(value, now);
                Effect::None
            }
            _ => self.lapic.write_msr(x2apic_register(index)?, value, now)?,
        };
        self.apply(effect);
        Ok(())
    }

    fn apply(&mut self, effect: Effect) {
        let send = &mut |message| self.lapic.receive(message);
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => self.io_apic.end_of_interrupt(vector, send),
            Effect::Reconfigured => self.io_apic.send_pending(send),
            Effect::Send(message) => {
                // Nobody may have accepted it: it vanishes then.
                let _ = send(message);
            }
        }
    }

    /// Lets time-driven interrupts happen that are due at `now`. Bounded work, however late.
    pub fn advance(&mut self, now: Ticks) {
        self.lapic.advance(now);
    }

    /// When [`Self::advance`] must be called next.
    #[must_use]
    pub const fn deadline(&self) -> Option<Ticks> {
        self.lapic.deadline()
    }

    /// Whether an interrupt would be delivered now if RFLAGS.IF allowed it.
    #[must_use]
    pub fn has_interrupt(&self) -> bool {
        self.lapic.has_interrupt() || self.pics.intr() && self.pics_reach_processor()
    }

    fn pics_reach_processor(&self) -> bool {
        self.lapic.passes_ext_int() || self.io_apic.ext_int().is_some_and(|to| self.lapic.accepts_ext_int(to))
    }

    /// The processor takes an interrupt: its vector, now in service; `None` if there is none. The PICs' go first.
    pub fn acknowledge(&mut self) -> Option<u8> {
        if self.pics.intr() && self.pics_reach_processor() {
            let vector = self.pics.acknowledge();
            self.connect_pics();
            return Some(vector);
        }
        self.lapic.acknowledge()
    }

    /// Whether an NMI waits.
    #[must_use]
    pub const fn nmi_pending(&self) -> bool {
        self.lapic.nmi_pending()
    }

    /// Sends the processor an NMI, as the button for it on a board does.
    pub const fn raise_nmi(&mut self) {
        self.lapic.raise_nmi();
    }

    /// Takes the NMI that waits, if one does.
    pub const fn take_nmi(&mut self) -> bool {
        self.lapic.take_nmi()
    }

    /// Whether the processor was sent an INIT since this was last asked: a reset, as there is no firmware to start from.
    pub const fn take_init(&mut self) -> bool {
        self.lapic.take_init()
    }

    /// CR8.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.lapic.cr8()
    }

    /// Writes the low four bits of CR8.
    pub fn set_cr8(&mut self, value: u8) {
        self.lapic.set_cr8(value);
    }

    /// Where the local APIC's page lies; `None` in x2APIC mode or if it is disabled.
    #[must_use]
    pub const fn lapic_base(&self) -> Option<Gpa> {
        self.lapic.page()
    }
}

/// The register among the x2APIC MSRs.
fn x2apic_register(index: u32) -> Result<u8, InvalidMsr> {
    index.checked_sub(msr::X2APIC_BASE).and_then(|n| u8::try_from(n).ok()).ok_or(InvalidMsr)
}
