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
