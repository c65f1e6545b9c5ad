//! Interrupt messages: what I/O APIC and local APICs send to local APICs.
//!
//! A sender says what and to whom; who that is, only the receivers know: a message is offered to each.
//!
//! SDM vol. 3A 11.6.1 "Interrupt Command Register (ICR)", 11.6.2 "Determining IPI Destination".

/// What a message does to its receiver: bits 8 to 10 of a redirection entry, of the ICR and of most LVT entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    /// The interrupt of the vector.
    Fixed,
    /// The same, for one of the addressed processors.
    LowestPriority,
    /// System-management interrupt. This machine has no system-management mode: ignored.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset of the processor, which then waits to be started.
    Init,
    /// Start of a processor that waits for it. Others ignore it.
    Startup,
    /// The vector comes from the PICs.
    ExtInt,
    /// No meaning: ignored.
    Reserved,
}

impl DeliveryMode {
    /// The mode in bits 8 to 10 of `register`.
    #[must_use]
    pub const fn from_register(register: u32) -> Self {
        match (register >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }

    /// Whether the vector is the message's own.
    #[must_use]
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// To whom a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The local APIC with this id; [`Destination::BROADCAST`] means all.
    Physical(u32),
    /// The local APICs that find themselves in this set; [`Destination::BROADCAST`] means all.
    Logical(u32),
    /// The sender.
    Own,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

impl Destination {
    /// The id that means all.
    pub const BROADCAST: u32 = u32::MAX;

    /// The destination in the eight bits that redirection entries and the ICR of xAPIC mode have; 0xFF means all.
    #[must_use]
    pub fn from_byte(destination: u8, logical: bool) -> Self {
        let wide = if destination == u8::MAX { Self::BROADCAST } else { u32::from(destination) };
        if logical { Self::Logical(wide) } else { Self::Physical(wide) }
    }
}

/// One message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// To whom.
    pub destination: Destination,
    /// What.
    pub mode: DeliveryMode,
    /// Which interrupt, where the mode has a vector.
    pub vector: u8,
    /// Level-triggered: the end of this interrupt is broadcast to the I/O APIC.
    pub level: bool,
}
