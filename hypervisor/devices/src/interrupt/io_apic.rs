//! I/O APIC: 24 inputs, each with an entry that says which message it sends.
//!
//! Intel 82093AA data sheet (290566-001); the version and the EOI register are those of its successors in the I/O
//! controller hubs (ICH9 data sheet 316972-004, 13.5 "Advanced Programmable Interrupt Controller (APIC)").
//!
//! Emulated: all registers, edge and level inputs with the remote IRR, directed and broadcast end of interrupt, the
//! delivery modes fixed, lowest priority, NMI, INIT, and ExtINT on input 0, where the PICs' output is.
//! Not emulated: polarity (stored; an input is given as active or not, whatever its voltage), SMI (this machine has no
//! system-management mode), delivery status (reads as idle: a message arrives at once or not at all). A level-triggered
//! message that nobody accepts is tried again when something changes; an edge that nobody accepts is lost.
//!
//! | A guest tries | What happens |
//! |---|---|
//! | to make a level input fire without end | one message until its EOI: at most one for each of the guest's own EOIs |
//! | level-triggered NMI, INIT or ExtINT | sent as edge |
//! | an illegal vector | the local APIC refuses it and records the error |
//! | registers that are not there, odd widths | reads as zero, writes do nothing |

use super::message::{DeliveryMode, Destination, Message};
use crate::layout::IO_APIC_INPUTS;
use bulkhead_types::Width;

/// Number of inputs.
const INPUTS: usize = IO_APIC_INPUTS as usize;
/// Version 0x20 (with EOI register), and the highest input's number.
const VERSION: u32 = 0x20 | (IO_APIC_INPUTS as u32 - 1) << 16;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const LOGICAL: u32 = 1 << 11;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask.
const WRITABLE: u32 = 0x7FF | LOGICAL | 1 << 13 | LEVEL | MASKED;

/// A redirection entry, without its read-only bits.
#[derive(Clone, Copy, Debug)]
struct Entry {
    low: u32,
    destination: u8,
}

impl Entry {
    const RESET: Self = Self { low: MASKED, destination: 0 };

    const fn mode(self) -> DeliveryMode {
        DeliveryMode::from_register(self.low)
    }

    const fn is_masked(self) -> bool {
        self.low & MASKED != 0
    }

    const fn is_level(self) -> bool {
        self.low & LEVEL != 0 && self.mode().has_vector()
    }

    const fn vector(self) -> u8 {
        let [vector, ..] = self.low.to_le_bytes();
        vector
    }

    fn destination(self) -> Destination {
        Destination::from_byte(self.destination, self.low & LOGICAL != 0)
    }

    fn message(self) -> Message {
        Message { destination: self.destination(), mode: self.mode(), vector: self.vector(), level: self.is_level() }
    }
}

/// The I/O APIC. Whoever calls it takes its messages: `send` says whether one was accepted.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u8,
    entries: [Entry; INPUTS],
    /// Inputs that are active.
    active: u32,
    /// Inputs whose message was accepted and not yet ended.
    remote_irr: u32,
}

impl IoApic {
    /// As after reset: everything masked.
    #[must_use]
    pub const fn new() -> Self {
        Self { select: 0, id: 0, entries: [Entry::RESET; INPUTS], active: 0, remote_irr: 0 }
    }

    /// Sets `input` active or not; inputs that are not there do nothing.
    pub(super) fn set_input(&mut self, input: u8, active: bool, send: &mut impl FnMut(Message) -> bool) {
        let Some(&entry) = self.entries.get(usize::from(input)) else { return };
        let bit = 1 << input;
        let was = self.active & bit != 0;
        if !active {
            self.active &= !bit;
        } else if !was {
            self.active |= bit;
            if entry.is_level() {
                self.send_level(input, entry, send);
            } else if !entry.is_masked() && entry.mode() != DeliveryMode::ExtInt {
                // Nobody may have accepted it: an edge is lost then.
                let _ = send(entry.message());
            }
        }
    }

    /// Sends again what level-triggered inputs still have to say: after a change that could let them be accepted.
    pub(super) fn send_pending(&mut self, send: &mut impl FnMut(Message) -> bool) {
        self.send_all(self.active & !self.remote_irr, send);
    }

    /// Ends the interrupt `vector`: level-triggered inputs that are still active send it again.
    pub(super) fn end_of_interrupt(&mut self, vector: u8, send: &mut impl FnMut(Message) -> bool) {
        let mut ended = 0;
        for (input, entry) in self.entries.iter().enumerate() {
            if entry.vector() == vector {
                ended |= 1 << input;
            }
        }
        ended &= self.remote_irr;
        self.remote_irr &= !ended;
        self.send_all(ended & self.active, send);
    }

    /// To whom the PICs' interrupts go, if input 0 passes them on.
    #[must_use]
    pub(super) fn ext_int(&self) -> Option<Destination> {
        let entry = self.entries.first()?;
        (!entry.is_masked() && entry.mode() == DeliveryMode::ExtInt).then(|| entry.destination())
    }

    /// Reads `width` at `offset` of the register page.
    #[must_use]
    pub(super) fn read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.read_register(),
            _ => 0,
        };
        u64::from(value) & width.mask()
    }

    /// Writes `value` of `width` at `offset` of the register page. Registers are written by their low 32 bits.
    pub(super) fn write(&mut self, offset: u64, width: Width, value: u64, send: &mut impl FnMut(Message) -> bool) {
        let [b0, b1, b2, b3, ..] = (value & width.mask()).to_le_bytes();
        match offset {
            SELECT => self.select = b0,
            WINDOW if width >= Width::Dword => self.write_register(u32::from_le_bytes([b0, b1, b2, b3]), send),
            EOI => self.end_of_interrupt(b0, send),
            _ => {}
        }
    }

    /// Which entry the selected register belongs to, and whether it is the high half.
    fn selected(&self) -> Option<(u8, bool)> {
        let number = self.select.checked_sub(0x10)?;
        Some((number / 2, number % 2 == 1))
    }

    fn read_register(&self) -> u32 {
        if let Some((input, high)) = self.selected() {
            let Some(entry) = self.entries.get(usize::from(input)) else { return 0 };
            let remote = if self.remote_irr & 1 << input != 0 { REMOTE_IRR } else { 0 };
            return if high { u32::from(entry.destination) << 24 } else { entry.low | remote };
        }
        match self.select {
            // Identification, arbitration.
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32, send: &mut impl FnMut(Message) -> bool) {
        let [.., top] = value.to_le_bytes();
        let Some((input, high)) = self.selected() else {
            if self.select == 0 {
                self.id = top & 0x0F;
            }
            return;
        };
        let Some(entry) = self.entries.get_mut(usize::from(input)) else { return };
        if high {
            entry.destination = top;
        } else {
            entry.low = value & WRITABLE;
        }
        let entry = *entry;
        if !entry.is_level() {
            // Systems without the EOI register end an interrupt by making its input edge-triggered and back.
            self.remote_irr &= !(1 << input);
        }
        self.send_level(input, entry, send);
    }

    fn send_all(&mut self, inputs: u32, send: &mut impl FnMut(Message) -> bool) {
        if inputs == 0 {
            return;
        }
        for input in 0..IO_APIC_INPUTS {
            if inputs & 1 << input != 0
                && let Some(&entry) = self.entries.get(usize::from(input))
            {
                self.send_level(input, entry, send);
            }
        }
    }

    /// Sends the message of a level-triggered input, if it is due.
    fn send_level(&mut self, input: u8, entry: Entry, send: &mut impl FnMut(Message) -> bool) {
        let bit = 1 << input;
        let due = entry.is_level() && !entry.is_masked() && self.active & !self.remote_irr & bit != 0;
        if due && send(entry.message()) {
            self.remote_irr |= bit;
        }
    }
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}
