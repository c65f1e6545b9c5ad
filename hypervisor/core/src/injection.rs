//! How a processor writes an event down, to deliver it and when its delivery was interrupted.
//!
//! All processors with hardware virtualization have the same 32 bits for it, with an error code beside them. What only one
//! of them has, its backend leaves out. SDM vol. 3C 25.8.3 "VM-Entry Controls for Event Injection", table 25-18; 25.9.3
//! "Information for VM Exits That Occur During Event Delivery"; APM vol. 2 15.20 "Event Injection", 15.7.2 "Intercepts
//! During IDT Interrupt Delivery".

use crate::event::Event;
use bulkhead_arch::Vector;

/// The information is valid.
pub const VALID: u32 = 1 << 31;
/// An error code goes with it.
pub const WITH_ERROR: u32 = 1 << 11;
/// Bits of the event type.
pub const TYPE: u32 = 7 << 8;

/// External interrupt.
pub const EXTERNAL_INTERRUPT: u32 = 0 << 8;
/// Non-maskable interrupt.
pub const NMI: u32 = 2 << 8;
/// Hardware exception.
pub const HARDWARE_EXCEPTION: u32 = 3 << 8;
/// INT n.
pub const SOFTWARE_INTERRUPT: u32 = 4 << 8;
/// INT1.
pub const PRIVILEGED_EXCEPTION: u32 = 5 << 8;
/// INT3 or INTO.
pub const SOFTWARE_EXCEPTION: u32 = 6 << 8;

/// What an injection writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injection {
    /// The 32 bits.
    pub info: u32,
    /// The error code, if one is pushed.
    pub error: Option<u32>,
    /// Bytes of the instruction, for the events of instructions.
    pub length: Option<u32>,
}

/// Encodes `event`. An exception gets an error code exactly where the processor would push one, whatever the caller
/// gave: in protected mode, for the vectors that have one.
#[must_use]
pub fn encode(event: Event, protected_mode: bool) -> Injection {
    let plain = |kind: u32, vector: u8| Injection { info: VALID | kind | u32::from(vector), error: None, length: None };
    let sized = |kind, vector, length: u8| Injection { length: Some(length.into()), ..plain(kind, vector) };
    match event {
        Event::Interrupt(vector) => plain(EXTERNAL_INTERRUPT, vector),
        Event::Nmi => plain(NMI, Vector::NMI.0),
        Event::Exception { vector, error } => {
            let injection = plain(HARDWARE_EXCEPTION, vector.0);
            if protected_mode && vector.has_error_code() {
                Injection { info: injection.info | WITH_ERROR, error: Some(error.unwrap_or(0)), ..injection }
            } else {
                injection
            }
        }
        Event::SoftwareInterrupt { vector, length } => sized(SOFTWARE_INTERRUPT, vector, length),
        Event::SoftwareException { vector, length } => sized(SOFTWARE_EXCEPTION, vector.0, length),
        Event::PrivilegedException { vector, length } => sized(PRIVILEGED_EXCEPTION, vector.0, length),
    }
}

/// Decodes what an exit tells of an event; `None` if it is not valid. `error` and `length` count only for events that have
/// them.
#[must_use]
pub fn decode(info: u32, error: u32, length: u32) -> Option<Event> {
    if info & VALID == 0 {
        return None;
    }
    let [number, ..] = info.to_le_bytes();
    let vector = Vector(number);
    let length = u8::try_from(length & 0xF).unwrap_or(0);
    match info & TYPE {
        EXTERNAL_INTERRUPT => Some(Event::Interrupt(number)),
        NMI => Some(Event::Nmi),
        HARDWARE_EXCEPTION => Some(Event::Exception { vector, error: (info & WITH_ERROR != 0).then_some(error) }),
        SOFTWARE_INTERRUPT => Some(Event::SoftwareInterrupt { vector: number, length }),
        PRIVILEGED_EXCEPTION => Some(Event::PrivilegedException { vector, length }),
        SOFTWARE_EXCEPTION => Some(Event::SoftwareException { vector, length }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{VALID, WITH_ERROR, decode, encode};
    use crate::event::Event;
    use bulkhead_arch::Vector;
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

    /// Events as a processor can be interrupted in them.
    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<u8>().prop_map(Event::Interrupt),
            Just(Event::Nmi),
            (0..32_u8, any::<u32>()).prop_map(|(number, error)| {
                let vector = Vector(number);
                Event::Exception { vector, error: vector.has_error_code().then_some(error) }
            }),
            (any::<u8>(), 1..16_u8).prop_map(|(vector, length)| Event::SoftwareInterrupt { vector, length }),
            (1..16_u8).prop_map(|length| Event::SoftwareException { vector: Vector::BP, length }),
            (1..16_u8).prop_map(|length| Event::PrivilegedException { vector: Vector::DB, length }),
        ]
    }

    proptest! {
        #[test]
        fn an_interrupted_event_is_injected_again_as_it_was(event in events()) {
            let injection = encode(event, true);
            let back = decode(injection.info, injection.error.unwrap_or(0), injection.length.unwrap_or(0));
            assert_eq!(back, Some(event));
        }

        /// SDM vol. 3C 27.2.1.3: bits 30:12 are reserved; an error code goes with the right vectors only.
        #[test]
        fn an_injection_passes_the_checks_of_the_entry(event in events(), protected in any::<bool>()) {
            let injection = encode(event, protected);
            assert_eq!(injection.info & 0x7FFF_F000, 0);
            assert_eq!(injection.info & WITH_ERROR != 0, injection.error.is_some());
            assert!(protected || injection.error.is_none());
        }

        #[test]
        fn nothing_panics(info in any::<u32>(), error in any::<u32>(), length in any::<u32>()) {
            assert_eq!(decode(info & !VALID, error, length), None);
            let _ = decode(info, error, length);
        }
    }

    #[test]
    fn real_mode_pushes_no_error_code() {
        assert_eq!(encode(Event::GP, true).info, 0x8000_0B0D);
        assert_eq!(encode(Event::GP, true).error, Some(0));
        assert_eq!(encode(Event::GP, false).info, 0x8000_030D);
        assert_eq!(encode(Event::GP, false).error, None);
    }

    #[test]
    fn an_error_code_goes_where_the_processor_pushes_one() {
        assert_eq!(encode(Event::exception(Vector::PF), true).error, Some(0));
        assert_eq!(encode(Event::fault(Vector::UD, 5), true).error, None);
    }
}
