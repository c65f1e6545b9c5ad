//! The interrupt system of a guest's machine: PICs, I/O APIC, local APICs, and the wires between them.
//!
//! ```text
//! ISA line n ──┬─> PICs ──INTR──┬─> LINT0 of each local APIC ──> its processor
//!              │                └─> I/O APIC input 0 (ExtINT)
//!              └─> I/O APIC input n (line 0: input 2) ──messages──> local APICs <──messages──> each other
//! GSI 16..24 ────> I/O APIC input
//! ```
//!
//! The PICs' interrupts reach a processor while INTR is high and a way is open: its local APIC disabled by
//! IA32_APIC_BASE, LINT0 unmasked as ExtINT, or I/O APIC input 0 unmasked as ExtINT. The vector is asked for at the
//! moment a processor takes the interrupt; if several can, the first one has it.
//!
//! What a processor has received while another one was acting is told by [`InterruptSystem::take_attention`].
//!
//! Everything here is plain data, driven by register accesses and the count of the guest's time-stamp counter; work per
//! call is bounded by the number of inputs.

mod io_apic;
mod lapic;
mod lapics;
mod message;
mod pic;
#[cfg(test)]
mod tests;

pub use io_apic::IoApic;
pub use lapic::{LocalApic, Requests};
pub use message::{DeliveryMode, Destination, Message};
pub use pic::PicPair;

use crate::layout::{IO_APIC_INPUTS, PIT_GSI, PIT_LINE};
use bulkhead_arch::msr;
use bulkhead_types::{Frequency, Gpa, Ticks, VcpuId, Width};
use lapic::Effect;
use lapics::LocalApics;

/// The access to a model-specific register is refused: #GP(0) for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidMsr;

/// The interrupt controllers of a machine.
#[derive(Clone, Debug)]
pub struct InterruptSystem {
    /// The pair of 8259A. Drive it through this system, which passes its output on.
    pics: PicPair,
    io_apic: IoApic,
    lapics: LocalApics,
}

impl InterruptSystem {
    /// As firmware leaves those of a machine with `cpus` processors to a system: see [`PicPair::new`] and
    /// [`LocalApic::firmware_state`]. The timers of the local APICs count the time-stamp counter, whose rate is `tsc`.
    #[must_use]
    pub fn new(cpus: u8, tsc: Frequency) -> Self {
        Self { pics: PicPair::new(), io_apic: IoApic::new(), lapics: LocalApics::new(cpus, tsc) }
    }

    /// The local APIC of a processor.
    #[must_use]
    pub const fn lapic(&self, of: VcpuId) -> &LocalApic {
        self.lapics.of(of)
    }

    /// Which processors have received something since this was last asked, a set of [`VcpuId::bit`]; they may have seen
    /// to it since. What a processor's own registers bring about for itself is not in it.
    pub const fn take_attention(&mut self) -> u32 {
        self.lapics.take_attention()
    }

    /// Sets an ISA line (0 to 15) or global system interrupt (16 to 23) active or not. Others do nothing, and nothing is
    /// wired to line 2, the PICs' cascade.
    pub fn set_line(&mut self, line: u8, level: bool) {
        let input = match line {
            PIT_LINE => PIT_GSI,
            PIT_GSI | IO_APIC_INPUTS.. => return,
            _ => line,
        };
        self.io_apic.set_input(input, level, &mut |message| self.lapics.send(None, message));
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
        self.lapics.set_lint0(intr);
        self.io_apic.set_input(0, intr, &mut |message| self.lapics.send(None, message));
        self.call_for_pics();
    }

    /// Tells those that the I/O APIC lets take the PICs' interrupt.
    fn call_for_pics(&mut self) {
        if self.pics.intr()
            && let Some(to) = self.io_apic.ext_int()
        {
            VcpuId::in_set(self.lapics.receivers(None, DeliveryMode::Fixed, to)).for_each(|id| self.lapics.call(id));
        }
    }

    /// Reads `width` at `offset` of the I/O APIC's page.
    pub fn io_apic_read(&mut self, offset: u64, width: Width) -> u64 {
        self.io_apic.read(offset, width)
    }

    /// Writes `value` of `width` at `offset` of the I/O APIC's page.
    pub fn io_apic_write(&mut self, offset: u64, width: Width, value: u64) {
        self.io_apic.write(offset, width, value, &mut |message| self.lapics.send(None, message));
        self.call_for_pics();
    }

    /// Processor `by` reads `width` at `offset` of the page at [`Self::lapic_base`].
    pub fn lapic_mmio_read(&mut self, by: VcpuId, offset: u64, width: Width, now: Ticks) -> u64 {
        self.lapics.of_mut(by).read_page(offset, width, now)
    }

    /// Processor `by` writes `value` of `width` at `offset` of the page at [`Self::lapic_base`].
    pub fn lapic_mmio_write(&mut self, by: VcpuId, offset: u64, width: Width, value: u64, now: Ticks) {
        let effect = self.lapics.of_mut(by).write_page(offset, width, value, now);
        self.apply(by, effect);
    }

    /// Processor `by` reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (0x800 to 0x8FF).
    ///
    /// # Errors
    /// Any other; a register that is not there in the present mode; one that can only be written.
    pub fn msr_read(&mut self, by: VcpuId, index: u32, now: Ticks) -> Result<u64, InvalidMsr> {
        let lapic = self.lapics.of_mut(by);
        match index {
            msr::APIC_BASE => Ok(lapic.base()),
            msr::TSC_DEADLINE => Ok(lapic.read_deadline(now)),
            _ => lapic.read_msr(x2apic_register(index)?, now),
        }
    }

    /// Processor `by` writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (0x800 to 0x8FF).
    ///
    /// # Errors
    /// Any other; a register that is not there in the present mode; one that can only be read; a reserved bit; a change
    /// of mode that is not allowed.
    pub fn msr_write(&mut self, by: VcpuId, index: u32, value: u64, now: Ticks) -> Result<(), InvalidMsr> {
        let lapic = self.lapics.of_mut(by);
        let effect = match index {
            msr::APIC_BASE => {
                lapic.set_base(value)?;
                Effect::Reconfigured
            }
            msr::TSC_DEADLINE => {
                lapic.write_deadline(value, now);
                Effect::None
            }
            _ => lapic.write_msr(x2apic_register(index)?, value, now)?,
        };
        self.apply(by, effect);
        Ok(())
    }

    fn apply(&mut self, by: VcpuId, effect: Effect) {
        let from_inputs = &mut |message| self.lapics.send(None, message);
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => self.io_apic.end_of_interrupt(vector, from_inputs),
            Effect::Reconfigured => self.io_apic.send_pending(from_inputs),
            Effect::Send(message) => {
                // Nobody may have accepted it: it vanishes then.
                let _ = self.lapics.send(Some(by), message);
            }
        }
    }

    /// Lets time-driven interrupts of processor `of` happen that are due at `now`. Bounded work, however late.
    pub fn advance(&mut self, of: VcpuId, now: Ticks) {
        self.lapics.of_mut(of).advance(now);
    }

    /// When [`Self::advance`] must be called next for processor `of`.
    #[must_use]
    pub const fn deadline(&self, of: VcpuId) -> Option<Ticks> {
        self.lapics.of(of).deadline()
    }

    /// Whether an interrupt would be delivered to processor `to` now if RFLAGS.IF allowed it.
    #[must_use]
    pub fn has_interrupt(&self, to: VcpuId) -> bool {
        let lapic = self.lapics.of(to);
        !lapic.is_parked() && (lapic.has_interrupt() || self.pics.intr() && self.pics_reach(to))
    }

    fn pics_reach(&self, to: VcpuId) -> bool {
        let passed_on = |destination| {
            let lapic = self.lapics.of(to);
            lapic.accepts(DeliveryMode::Fixed) && lapic.is_addressed(destination, None)
        };
        self.lapics.of(to).passes_ext_int() || self.io_apic.ext_int().is_some_and(passed_on)
    }

    /// Processor `by` takes an interrupt: its vector, now in service; `None` if there is none. The PICs' go first.
    pub fn acknowledge(&mut self, by: VcpuId) -> Option<u8> {
        if self.lapics.of(by).is_parked() {
            return None;
        }
        if self.pics.intr() && self.pics_reach(by) {
            let vector = self.pics.acknowledge();
            self.connect_pics();
            return Some(vector);
        }
        self.lapics.of_mut(by).acknowledge()
    }

    /// Processor `by` keeps TPR, ISR and IRR of its local APIC from now on, see [`LocalApic::is_lent`]; it has read them.
    pub fn lend(&mut self, by: VcpuId) {
        self.lapics.of_mut(by).lend();
    }

    /// What processor `by`, which keeps them, has received since this was last asked.
    pub fn take_requests(&mut self, by: VcpuId) -> Requests {
        self.lapics.of_mut(by).take_requests()
    }

    /// An interrupt that processor `by` kept by itself has ended.
    pub fn end_of_interrupt(&mut self, by: VcpuId, vector: u8) {
        if self.lapics.of(by).broadcasts(vector) {
            self.apply(by, Effect::EndOfInterrupt(vector));
        }
    }

    /// Whether an NMI waits for processor `to`.
    #[must_use]
    pub const fn nmi_pending(&self, to: VcpuId) -> bool {
        let lapic = self.lapics.of(to);
        lapic.nmi_pending() && !lapic.is_parked()
    }

    /// Sends the first processor an NMI, as the button for it on a board does.
    pub fn raise_nmi(&mut self) {
        self.lapics.of_mut(VcpuId::BOOT).raise_nmi();
    }

    /// Processor `by` takes an NMI that waits, if one does.
    pub fn take_nmi(&mut self, by: VcpuId) -> bool {
        self.nmi_pending(by) && self.lapics.of_mut(by).take_nmi()
    }

    /// Processor `by` is being interrupted by an NMI, or handles one: see [`LocalApic::merge_nmis`].
    pub fn merge_nmis(&mut self, by: VcpuId) {
        self.lapics.of_mut(by).merge_nmis();
    }

    /// Whether processor `by` was sent an INIT since this was last asked, see [`LocalApic::take_init`].
    pub fn take_init(&mut self, by: VcpuId) -> bool {
        self.lapics.of_mut(by).take_init()
    }

    /// The vector of the start-up message that processor `by` has waited for.
    pub fn take_startup(&mut self, by: VcpuId) -> Option<u8> {
        self.lapics.of_mut(by).take_startup()
    }

    /// CR8 of a processor.
    #[must_use]
    pub const fn cr8(&self, of: VcpuId) -> u8 {
        self.lapics.of(of).cr8()
    }

    /// Writes the low four bits of CR8.
    pub fn set_cr8(&mut self, of: VcpuId, value: u8) {
        self.lapics.of_mut(of).set_cr8(value);
    }

    /// Where a processor's local APIC's page lies; `None` in x2APIC mode or if it is disabled.
    #[must_use]
    pub const fn lapic_base(&self, of: VcpuId) -> Option<Gpa> {
        self.lapics.of(of).page()
    }
}

/// The register among the x2APIC MSRs.
fn x2apic_register(index: u32) -> Result<u8, InvalidMsr> {
    index.checked_sub(msr::X2APIC_BASE).and_then(|n| u8::try_from(n).ok()).ok_or(InvalidMsr)
}
