//! Addresses of the four spaces, and host frames.

use core::fmt;

/// Bits of an offset within a 4-KiB page.
pub const PAGE_BITS: u32 = 12;
/// Bytes of a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_BITS;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this value; any value is allowed, its use is what is checked.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The value in bytes from the start of the space.
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// This address and `bytes` more, or `None` past the end of the space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// This address and `bytes` more, modulo 2^64, as the processor adds.
            #[must_use]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// Offset within its 4-KiB page, in bytes.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// The largest multiple of `align` (a power of two) not above this address.
            #[must_use]
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align.wrapping_sub(1)))
            }

            /// Whether this address is a multiple of `align` (a power of two).
            #[must_use]
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & align.wrapping_sub(1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// Guest-physical address: what a guest's own page tables yield.
    Gpa
}
address! {
    /// Guest-virtual (linear) address.
    Gva
}
address! {
    /// Host-physical address: what the machine's memory answers to.
    Hpa
}
address! {
    /// Host-virtual address, meaningful in one host address space only.
    Hva
}

/// A 4-KiB frame of host-physical memory, by number (address / 4096).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    /// The frame with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame that holds `address`.
    #[must_use]
    pub const fn containing(address: Hpa) -> Self {
        Self(address.as_u64() >> PAGE_BITS)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Address of its first byte.
    #[must_use]
    pub const fn start(self) -> Hpa {
        Hpa::new(self.0 << PAGE_BITS)
    }

    /// The frame `count` further on.
    #[must_use]
    pub const fn add(self, count: u64) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:#x})", self.0)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.start())
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, Gpa, Hpa};

    #[test]
    fn addition_is_checked() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa::new(1).checked_add(2), Some(Gpa::new(3)));
    }

    #[test]
    fn alignment() {
        assert_eq!(Gpa::new(0x1fff).align_down(0x1000), Gpa::new(0x1000));
        assert!(Gpa::new(0x20_0000).is_aligned(0x20_0000));
        assert_eq!(Gpa::new(0x1234).page_offset(), 0x234);
    }

    #[test]
    fn frame_of_an_address() {
        assert_eq!(Frame::containing(Hpa::new(0x1fff)).start(), Hpa::new(0x1000));
    }
}
