//! Events that are injected into a guest.

use bulkhead_arch::Vector;

/// What can be delivered through a guest's interrupt descriptor table at the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// External interrupt with this vector.
    Interrupt(u8),
    /// Non-maskable interrupt.
    Nmi,
    /// Hardware exception.
    Exception {
        /// Its vector.
        vector: Vector,
        /// Its error code, where it has one.
        error: Option<u32>,
    },
    /// INT n that was being delivered when an exit came.
    SoftwareInterrupt {
        /// Its vector.
        vector: u8,
        /// Bytes of the instruction.
        length: u8,
    },
    /// INT3 or INTO that was being delivered when an exit came.
    SoftwareException {
        /// Its vector.
        vector: Vector,
        /// Bytes of the instruction.
        length: u8,
    },
    /// INT1 that was being delivered when an exit came.
    PrivilegedException {
        /// Its vector.
        vector: Vector,
        /// Bytes of the instruction.
        length: u8,
    },
}

impl Event {
    /// A hardware exception without error code.
    #[must_use]
    pub const fn exception(vector: Vector) -> Self {
        Self::Exception { vector, error: None }
    }

    /// A hardware exception with error code.
    #[must_use]
    pub const fn fault(vector: Vector, error: u32) -> Self {
        Self::Exception { vector, error: Some(error) }
    }

    /// #GP(0), the answer to most of what is not allowed.
    pub const GP: Self = Self::fault(Vector::GP, 0);
    /// #UD.
    pub const UD: Self = Self::exception(Vector::UD);
}

/// What comes of an exception that happens while an event is being delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Combined {
    /// This is delivered.
    Deliver(Event),
    /// The guest shuts down.
    TripleFault,
}

impl Event {
    /// The exception `second` that came up while this event was being delivered.
    ///
    /// SDM vol. 3A 6.15 "Exception and Interrupt Reference", "Interrupt 8 - Double Fault Exception", table 6-5
    /// "Conditions for Generating a Double Fault".
    #[must_use]
    pub fn followed_by(self, second: Vector, event: Self) -> Combined {
        let Self::Exception { vector: first, .. } = self else {
            return Combined::Deliver(event);
        };
        let serious = second.is_contributory() || second == Vector::PF;
        if first == Vector::DF && serious {
            return Combined::TripleFault;
        }
        let double = first.is_contributory() && second.is_contributory() || first == Vector::PF && serious;
        if double { Combined::Deliver(Self::fault(Vector::DF, 0)) } else { Combined::Deliver(event) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Combined, Event};
    use bulkhead_arch::Vector;

    #[test]
    fn double_and_triple_faults() {
        let page_fault = Event::fault(Vector::PF, 2);
        let double = Combined::Deliver(Event::fault(Vector::DF, 0));
        assert_eq!(Event::GP.followed_by(Vector::GP, Event::GP), double);
        assert_eq!(page_fault.followed_by(Vector::PF, page_fault), double);
        assert_eq!(page_fault.followed_by(Vector::GP, Event::GP), double);
        assert_eq!(Event::GP.followed_by(Vector::PF, page_fault), Combined::Deliver(page_fault));
        assert_eq!(Event::fault(Vector::DF, 0).followed_by(Vector::PF, page_fault), Combined::TripleFault);
        assert_eq!(Event::Interrupt(32).followed_by(Vector::GP, Event::GP), Combined::Deliver(Event::GP));
        assert_eq!(Event::exception(Vector::DB).followed_by(Vector::GP, Event::GP), Combined::Deliver(Event::GP));
    }
}
