//! The local APIC of one processor, in xAPIC and x2APIC mode.
//!
//! SDM vol. 3A chapter 11 "Advanced Programmable Interrupt Controller (APIC)": 11.4.3 "Enabling or Disabling the Local
//! APIC", 11.5 "Handling Local Interrupts", 11.6 "Issuing Interprocessor Interrupts", 11.8 "Handling Interrupts",
//! 11.12 "Extended XAPIC (x2APIC)".
//!
//! States (IA32_APIC_BASE): disabled, xAPIC, x2APIC; what leads from one to another is in 11.12.5 "x2APIC State
//! Transitions", all else is #GP. Going to disabled resets the registers.
//!
//! Emulated: all registers, the timer (see `timer`), priorities, errors, interprocessor interrupts, suppression of EOI
//! broadcasts, INIT and start-up of the processor. The id is the vCPU's number; number 0 is the bootstrap processor.
//! Version 0x14, highest LVT entry 5 (no CMCI).
//! Not emulated: APR and RRD (not in processors since the Pentium 4), level-triggered LINT0 (taken as edge), remote IRR of
//! LINT0, delivery status (always idle), thermal and performance interrupts (the entries are there; nothing raises
//! them), SMI. Messages to processors that are not there vanish. The id is read-only. INIT to the bootstrap processor is
//! a reset of the machine, as there is no firmware to start from.
//!
//! A processor may keep TPR, ISR and IRR by itself while the local APIC is in x2APIC mode ([`LocalApic::is_lent`]). Here ISR
//! is empty and TPR 0 then, so in lowest-priority mode it counts as idle, and IRR holds what has come since the processor was
//! given the last of it. It gives nothing back: out of x2APIC mode there is only a reset.
//!
//! A vector is taken at once when it is asked for, so the spurious vector is never delivered.
//!
//! | A guest tries | What happens |
//! |---|---|
//! | registers that are not there | xAPIC: illegal-address error; x2APIC: #GP |
//! | an error interrupt that is itself an error | one more bit in the error register, no recursion |
//! | interrupts to itself without end | each takes a write of its own; the IRR holds one of each vector |
//! | a timer of one tick | see `timer`: at most 20,000 interrupts a second without a write |
//! | to move the registers over RAM | RAM stays where it is, the registers are not reachable |
//! | INIT and start-up without end, to any processor | flags, see [`LocalApic::take_init`] and [`LocalApic::take_startup`] |

mod registers;
mod timer;
mod vectors;

use super::InvalidMsr;
use super::message::{DeliveryMode, Destination, Message};
use bulkhead_types::{Frequency, Gpa, Ticks, VcpuId};
use registers::Lvt;
use timer::{Mode, Timer};
use vectors::VectorSet;

/// What a processor that keeps TPR, ISR and IRR by itself is told; bit `n` of the vectors is vector `n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    /// Vectors that have been requested.
    pub vectors: [u64; 4],
    /// Vectors that came level-triggered: their end is to be told.
    pub level: [u64; 4],
    /// Whether the local APIC accepts interrupts, the processor's own to itself included.
    pub accepts: bool,
}

/// What a register write asks of the rest of the interrupt system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    None,
    /// A level-triggered interrupt ended.
    EndOfInterrupt(u8),
    /// An interprocessor interrupt.
    Send(Message),
    /// It may accept now what it did not before.
    Reconfigured,
}

/// Bits of IA32_APIC_BASE.
mod base {
    pub(super) const BSP: u64 = 1 << 8;
    pub(super) const X2APIC: u64 = 1 << 10;
    pub(super) const ENABLE: u64 = 1 << 11;
    /// The address; 52 is the most address bits a processor can have.
    pub(super) const ADDRESS: u64 = (1 << 52) - (1 << 12);
}

/// Bits of the LVT entries.
const MASKED: u32 = 1 << 16;

/// Bits of the spurious-interrupt vector register.
const SVR_ENABLE: u32 = 1 << 8;
const SVR_SUPPRESS_BROADCAST: u32 = 1 << 12;

/// Bits of the error status register. SDM vol. 3A 11.5.3 "Error Handling".
mod error {
    pub(super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(super) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// The local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: VcpuId,
    /// IA32_APIC_BASE.
    base: u64,
    task_priority: u8,
    logical_id: u32,
    destination_format: u32,
    spurious: u32,
    in_service: VectorSet,
    /// The vectors that came level-triggered.
    trigger_mode: VectorSet,
    requested: VectorSet,
    /// ESR as it reads.
    error_status: u32,
    /// Errors since it was last written.
    errors: u32,
    command: u64,
    lvt: Lvt,
    timer: Timer,
    /// Input LINT0: the PICs' INTR output.
    lint0: bool,
    /// NMIs that wait, two at most: see [`LocalApic::merge_nmis`].
    nmis: u8,
    init: bool,
    /// The processor waits for a start-up message, whatever else comes.
    parked: bool,
    /// The start-up message that has come: its vector.
    startup: Option<u8>,
    /// Whether a requested vector is above the processor priority; kept at hand.
    deliverable: bool,
    /// The processor keeps TPR, ISR and IRR.
    lent: bool,
}

impl LocalApic {
    /// As after power-up: enabled in xAPIC mode, but disabled by the spurious-interrupt vector register. All but the
    /// bootstrap processor wait to be started (SDM vol. 3A 9.4 "Multiple-Processor (MP) Initialization").
    #[must_use]
    pub const fn new(tsc: Frequency, id: VcpuId) -> Self {
        let parked = id.number() != VcpuId::BOOT.number();
        let bootstrap = if parked { 0 } else { base::BSP };
        Self {
            id,
            base: crate::layout::LOCAL_APIC.as_u64() | base::ENABLE | bootstrap,
            task_priority: 0,
            logical_id: 0,
            destination_format: u32::MAX,
            spurious: 0xFF,
            in_service: VectorSet::EMPTY,
            trigger_mode: VectorSet::EMPTY,
            requested: VectorSet::EMPTY,
            error_status: 0,
            errors: 0,
            command: 0,
            lvt: Lvt::RESET,
            timer: Timer::new(tsc),
            lint0: false,
            nmis: 0,
            init: false,
            parked,
            startup: None,
            deliverable: false,
            lent: false,
        }
    }

    /// That of the bootstrap processor as firmware leaves it to a system: virtual-wire mode, in which it passes the PICs' interrupts (LINT0) and NMI
    /// (LINT1) on.
    #[must_use]
    pub const fn firmware_state(tsc: Frequency) -> Self {
        let mut lapic = Self::new(tsc, VcpuId::BOOT);
        lapic.spurious = SVR_ENABLE | 0x0F;
        lapic.lvt.lint0 = 7 << 8;
        lapic.lvt.lint1 = 4 << 8;
        lapic
    }

    /// Whether IA32_APIC_BASE enables it. CPUID leaf 1 shows it (EDX bit 9).
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    /// Whether it is in x2APIC mode.
    #[must_use]
    pub const fn is_x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// Where the register page of xAPIC mode lies; `None` in other modes.
    #[must_use]
    pub const fn page(&self) -> Option<Gpa> {
        if self.is_enabled() && !self.is_x2apic() { Some(Gpa::new(self.base & base::ADDRESS)) } else { None }
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. SDM vol. 3A 11.12.5 "x2APIC State Transitions".
    ///
    /// # Errors
    /// A reserved bit, or a change of mode that is not allowed.
    pub(super) fn set_base(&mut self, value: u64) -> Result<(), InvalidMsr> {
        let mode = |base: u64| (base & base::ENABLE != 0, base & base::X2APIC != 0);
        let reserved = !(base::ADDRESS | base::ENABLE | base::X2APIC | base::BSP);
        let allowed = match (mode(self.base), mode(value)) {
            // Not a mode.
            (_, (false, true)) => false,
            // From x2APIC only to itself and to disabled, to x2APIC only from itself and from xAPIC.
            ((true, true), (enabled, x2apic)) => enabled == x2apic,
            ((false, _), (true, true)) => false,
            _ => true,
        };
        if value & reserved != 0 || !allowed {
            return Err(InvalidMsr);
        }
        self.base = value;
        if !self.is_enabled() {
            self.reset();
        }
        Ok(())
    }

    /// Everything but the id, IA32_APIC_BASE, the input and what the processor already has.
    fn reset(&mut self) {
        let Self { id, base, lint0, nmis, init, parked, startup, .. } = *self;
        let timer = self.timer.after_reset();
        // The timer knows the clock's rate and keeps it; what `new` makes of the one here is not used.
        let reset = Self::new(Frequency::hertz(1), id);
        *self = Self { timer, base, lint0, nmis, init, parked, startup, ..reset };
    }

    const fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.spurious & SVR_ENABLE != 0
    }

    /// Whether an interrupt can be acknowledged now.
    #[must_use]
    pub const fn has_interrupt(&self) -> bool {
        self.deliverable
    }

    /// Acknowledges the interrupt of highest priority: it is in service now.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        if !self.deliverable {
            return None;
        }
        let vector = self.requested.highest()?;
        self.requested.remove(vector);
        self.in_service.insert(vector);
        self.update();
        Some(vector)
    }

    /// The interrupt of highest priority in service ends. Returns its vector if the I/O APIC must know.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.in_service.highest()?;
        self.in_service.remove(vector);
        self.update();
        self.broadcasts(vector).then_some(vector)
    }

    /// Whether the I/O APIC must know of the end of this interrupt.
    pub(super) fn broadcasts(&self, vector: u8) -> bool {
        self.trigger_mode.contains(vector) && self.spurious & SVR_SUPPRESS_BROADCAST == 0
    }

    /// Whether the processor keeps TPR, ISR and IRR; not any more after a reset.
    #[must_use]
    pub const fn is_lent(&self) -> bool {
        self.lent
    }

    /// The processor keeps TPR and ISR from now on; it has read them. Of IRR it is given all by [`Self::take_requests`].
    pub(super) fn lend(&mut self) {
        (self.lent, self.task_priority, self.in_service) = (true, 0, VectorSet::EMPTY);
        self.update();
    }

    /// What the processor that keeps IRR is to be told.
    pub(super) fn take_requests(&mut self) -> Requests {
        self.deliverable = false;
        let vectors = core::mem::replace(&mut self.requested, VectorSet::EMPTY).bits();
        Requests { vectors, level: self.trigger_mode.bits(), accepts: self.is_software_enabled() }
    }

    /// Processor-priority register. SDM vol. 3A 11.8.3.1 "Task and Processor Priorities".
    pub(super) fn processor_priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0) & 0xF0;
        if self.task_priority & 0xF0 >= in_service { self.task_priority } else { in_service }
    }

    fn update(&mut self) {
        self.deliverable = match self.requested.highest() {
            Some(vector) => vector & 0xF0 > self.processor_priority() & 0xF0,
            None => false,
        };
    }

    /// Task priority, bits 4 to 7: CR8.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// Sets the task priority by the low four bits of CR8.
    pub(super) fn set_cr8(&mut self, value: u8) {
        self.set_task_priority(value << 4);
    }

    fn set_task_priority(&mut self, value: u8) {
        self.task_priority = value;
        self.update();
    }

    /// Whether an NMI waits for the processor.
    #[must_use]
    pub const fn nmi_pending(&self) -> bool {
        self.nmis != 0
    }

    /// An NMI comes.
    pub(super) fn raise_nmi(&mut self) {
        self.nmis = (self.nmis + 1).min(2);
    }

    /// Takes an NMI that waits, if one does.
    pub(super) const fn take_nmi(&mut self) -> bool {
        let pending = self.nmi_pending();
        self.nmis = self.nmis.saturating_sub(1);
        pending
    }

    /// The processor is being interrupted by an NMI, or handles one: beside it one more waits, however many have come.
    /// While it has no turn two wait: the one that it would have taken at once, and one more. SDM vol. 3A 6.7.1 "Handling
    /// Multiple NMIs".
    pub(super) fn merge_nmis(&mut self) {
        self.nmis = self.nmis.min(1);
    }

    /// Whether the processor was sent an INIT since this was last asked. It has to reset its registers; the local APIC has
    /// reset its own, and keeps its mode. The bootstrap processor has no firmware to start again from: for it, that is a
    /// reset of the machine. SDM vol. 3A 11.4.7.3 "Local APIC State After an INIT Reset (Wait-for-SIPI State)", 11.12.5.1.
    pub(super) fn take_init(&mut self) -> bool {
        let init = core::mem::replace(&mut self.init, false);
        if init && self.id != VcpuId::BOOT {
            // It may have written since, by an instruction that it had begun.
            self.reset();
        }
        init
    }

    /// Whether the processor waits for a start-up message and must not execute.
    #[must_use]
    pub const fn is_parked(&self) -> bool {
        self.parked
    }

    /// The vector of the start-up message that the processor waited for: it begins in real mode at vector * 4 KiB.
    pub(super) const fn take_startup(&mut self) -> Option<u8> {
        let startup = self.startup.take();
        if startup.is_some() {
            self.parked = false;
        }
        startup
    }

    /// Whether the processor has something to see to.
    #[must_use]
    pub(super) const fn is_pending(&self) -> bool {
        self.deliverable || self.nmi_pending() || self.init || self.startup.is_some()
    }

    /// Whether it is among those that `destination` names, when `sender` sends: a processor's local APIC, or else the I/O
    /// APIC. SDM vol. 3A 11.6.2 "Determining IPI Destination", 11.12.10 "Determining IPI Destination in x2APIC Mode".
    #[must_use]
    pub(super) fn is_addressed(&self, destination: Destination, sender: Option<VcpuId>) -> bool {
        let own = sender == Some(self.id);
        match destination {
            Destination::All | Destination::Logical(Destination::BROADCAST) => true,
            Destination::Own => own,
            Destination::Others => !own,
            Destination::Physical(id) => id == self.id.number().into() || id == Destination::BROADCAST,
            Destination::Logical(set) if self.is_x2apic() => {
                let (id, cluster) = (self.read_logical_id(), 0xFFFF_0000);
                set & cluster == id & cluster && set & id & !cluster != 0
            }
            Destination::Logical(set) => {
                let id = self.logical_id >> 24;
                // The model is flat for all ones, else clusters; cluster 15 is all of them.
                let flat = self.destination_format >> 28 == 0xF;
                let same_cluster = flat || set >> 4 == 0xF || set >> 4 == id >> 4;
                let members = if flat { 0xFF } else { 0x0F };
                same_cluster && set & id & members != 0
            }
        }
    }

    /// Whether it would accept a message of this mode that addresses it.
    ///
    /// SDM vol. 3A 11.4.7.2 "Local APIC State After It Has Been Software Disabled": then only NMI, INIT and the like.
    pub(super) fn accepts(&self, mode: DeliveryMode) -> bool {
        if mode.has_vector() { self.is_software_enabled() } else { self.is_enabled() }
    }

    /// Does what a message in this mode does, which addresses it and which it [accepts](Self::accepts).
    pub(super) fn deliver(&mut self, mode: DeliveryMode, vector: u8, level: bool) {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.accept(vector, level),
            DeliveryMode::Nmi => self.raise_nmi(),
            DeliveryMode::Init => {
                self.init = true;
                if self.id != VcpuId::BOOT {
                    (self.nmis, self.parked, self.startup) = (0, true, None);
                    self.reset();
                }
            }
            // The first one counts. A processor that does not wait for one ignores it.
            DeliveryMode::Startup if self.parked => self.startup = self.startup.or(Some(vector)),
            DeliveryMode::Startup | DeliveryMode::Smi | DeliveryMode::ExtInt | DeliveryMode::Reserved => {}
        }
    }

    fn accept(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            return self.record(error::RECEIVE_ILLEGAL_VECTOR);
        }
        self.requested.insert(vector);
        if level {
            self.trigger_mode.insert(vector);
        } else {
            self.trigger_mode.remove(vector);
        }
        self.update();
    }

    /// Records an error. The first since the error register was written raises the error interrupt: one that is itself
    /// an error is no longer the first.
    fn record(&mut self, error: u32) {
        let first = self.errors == 0;
        self.errors |= error;
        if first {
            self.raise(self.lvt.error);
        }
    }

    /// Raises the local interrupt of an LVT entry. All are taken as edge-triggered.
    fn raise(&mut self, entry: u32) {
        if entry & MASKED == 0 {
            let [vector, ..] = entry.to_le_bytes();
            self.deliver(DeliveryMode::from_register(entry), vector, false);
        }
    }

    /// Sets LINT0, where the PICs' INTR output is; whether the processor has something to see to by that.
    pub(super) fn set_lint0(&mut self, high: bool) -> bool {
        let rises = high && !self.lint0;
        self.lint0 = high;
        if rises {
            self.raise(self.lvt.lint0);
        }
        rises && (self.is_pending() || self.passes_ext_int())
    }

    /// Whether the PICs' interrupts go through to the processor: by LINT0 as ExtINT, or with the local APIC disabled.
    #[must_use]
    pub(super) const fn passes_ext_int(&self) -> bool {
        let entry = self.lvt.lint0;
        !self.is_enabled() || entry & MASKED == 0 && matches!(DeliveryMode::from_register(entry), DeliveryMode::ExtInt)
    }

    /// Lets the timer catch up.
    pub(super) fn advance(&mut self, now: Ticks) {
        if self.timer.advance(now) {
            self.raise(self.lvt.timer);
        }
    }

    /// When [`Self::advance`] has something to do: the timer's next interrupt.
    #[must_use]
    pub const fn deadline(&self) -> Option<Ticks> {
        if self.lvt.timer & MASKED == 0 { self.timer.expiry() } else { None }
    }

    /// IA32_TSC_DEADLINE at the time `now`.
    pub(super) fn read_deadline(&mut self, now: Ticks) -> u64 {
        self.advance(now);
        self.timer.deadline()
    }

    /// Writes IA32_TSC_DEADLINE at the time `now`; a moment that has passed interrupts at once.
    pub(super) fn write_deadline(&mut self, value: u64, now: Ticks) {
        self.advance(now);
        self.timer.set_deadline(value);
        self.advance(now);
    }
}
