//! Events to and from EVENTINJ and EXITINTINFO.
//!
//! The event of an instruction (INT n, INT3, INTO) is neither recorded nor injected: when its delivery was interrupted RIP
//! is still at the instruction, which is executed again. That needs no next RIP, which not every processor has.
//! APM vol. 2 15.20 "Event Injection", 15.7.2 "Intercepts During IDT Interrupt Delivery".

use bulkhead_arch::Vector;
use bulkhead_core::{Event, injection};

/// The information is valid.
pub(crate) const VALID: u64 = injection::VALID as u64;

/// Encodes `event`; 0 for an instruction's. An exception gets an error code exactly where the processor would push one.
#[must_use]
pub fn encode(event: Event, protected_mode: bool) -> u64 {
    let injection = injection::encode(event, protected_mode);
    match injection.length {
        Some(_) => 0,
        None => u64::from(injection.info) | u64::from(injection.error.unwrap_or(0)) << 32,
    }
}

/// Whether `injection`, a value of EVENTINJ, delivers an interrupt.
#[must_use]
pub fn is_interrupt(injection: u64) -> bool {
    matches!(decode(injection), Some(Event::Interrupt(_)))
}

/// Decodes EXITINTINFO; `None` if nothing was interrupted that has to be delivered again.
#[must_use]
pub fn decode(info: u64) -> Option<Event> {
    let [a, b, c, d, e, f, g, h] = info.to_le_bytes();
    let event = injection::decode(u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), 0)?;
    match event {
        Event::Exception { vector: Vector::BP | Vector::OF, .. } => None,
        Event::Interrupt(_) | Event::Nmi | Event::Exception { .. } => Some(event),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode, is_interrupt};
    use bulkhead_arch::Vector;
    use bulkhead_core::Event;

    #[test]
    fn an_interrupted_event_is_injected_again_as_it_was() {
        for event in [Event::Interrupt(0x30), Event::Nmi, Event::GP, Event::UD, Event::fault(Vector::PF, 7)] {
            assert_eq!(decode(encode(event, true)), Some(event));
        }
        assert_eq!(decode(0x30), None, "not valid");
        assert!(is_interrupt(0x8000_0030) && !is_interrupt(0x30) && !is_interrupt(0x8000_0202));
    }

    #[test]
    fn real_mode_pushes_no_error_code() {
        assert_eq!(encode(Event::fault(Vector::GP, 5), true), 5 << 32 | 0x8000_0B0D);
        assert_eq!(encode(Event::fault(Vector::GP, 5), false), 0x8000_030D);
    }

    #[test]
    fn instructions_are_executed_again() {
        assert_eq!(decode(0x8000_0480), None, "INT 80H");
        assert_eq!(decode(0x8000_0303), None, "INT3");
        assert_eq!(encode(Event::SoftwareInterrupt { vector: 0x80, length: 2 }, true), 0);
    }
}
