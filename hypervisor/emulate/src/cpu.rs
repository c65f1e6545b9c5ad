//! What emulation needs of a virtual processor and of the devices, and how it ends.

use bulkhead_arch::{Gpr, Segment, SegmentName, Vector};
use bulkhead_paging::guest::PagingState;
use bulkhead_types::{Gpa, Gva, Width};

/// The registers of the virtual processor that trapped. Each is asked for only when an instruction needs it.
pub trait Cpu {
    /// Why a register could not be read or written; passed through in [`Stop::Cpu`].
    type Error: Copy;

    /// A general register.
    ///
    /// # Errors
    /// If it can not be had.
    fn gpr(&self, gpr: Gpr) -> Result<u64, Self::Error>;

    /// Sets a general register.
    ///
    /// # Errors
    /// If it can not be had.
    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), Self::Error>;

    /// The instruction pointer, at the instruction that trapped.
    ///
    /// # Errors
    /// If it can not be had.
    fn rip(&self) -> Result<u64, Self::Error>;

    /// Sets the flags; they were read through [`Cpu::paging`].
    ///
    /// # Errors
    /// If it can not be had.
    fn set_rflags(&mut self, value: u64) -> Result<(), Self::Error>;

    /// A segment register with its hidden part.
    ///
    /// # Errors
    /// If it can not be had.
    fn segment(&self, name: SegmentName) -> Result<Segment, Self::Error>;

    /// Control registers, flags and privilege level. Asked for once per instruction.
    ///
    /// # Errors
    /// If they can not be had.
    fn paging(&self) -> Result<PagingState, Self::Error>;
}

/// The devices of the guest.
///
/// An access of one page comes with the instruction's own address and width, aligned or not. Of an operand that crosses
/// a page, the device's part comes in aligned pieces from the lowest address on. Nothing answers: all ones, and writes
/// are dropped.
pub trait Bus {
    /// Reads `width` from the device at `gpa`; bits above the width are ignored.
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64;
    /// Writes `value`, which has no bits above `width`, to the device at `gpa`.
    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64);
    /// Reads a port; never [`Width::Qword`].
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes a port; never [`Width::Qword`].
    fn port_write(&mut self, port: u16, width: Width, value: u32);
}

/// What the processor said about the address that trapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hint {
    /// Linear address.
    pub gva: Gva,
    /// Guest-physical address that it translates to.
    pub gpa: Gpa,
    /// The access was a write, or a read for a write: the guest's tables allow writing there.
    pub write: bool,
}

/// How an instruction came out, if it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// The instruction is complete: go past it.
    Done {
        /// Bytes of the instruction, 1 to 15; 0 where it was not decoded, since the exit said all ([`crate::string_io`]).
        length: u8,
    },
    /// A repeated instruction is under way, or memory changed under the hands: leave RIP, let interrupts in, and let the
    /// guest run the instruction again.
    Again,
}

/// Why an instruction was not carried out. No register has changed, except that a repeated instruction's registers
/// account for the elements that were done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop<E> {
    /// The instruction faults: inject this, RIP stays.
    Exception {
        /// #GP, #SS or #PF.
        vector: Vector,
        /// Error code.
        error: u32,
        /// For #PF, the value for CR2.
        cr2: Option<Gva>,
    },
    /// The instruction is none that can be carried out here. Ends the guest, or #UD.
    Unsupported {
        /// The bytes fetched.
        bytes: [u8; 15],
        /// How many of them are the instruction.
        length: u8,
    },
    /// Code or a page table lies outside the guest's RAM. Ends the guest.
    Unreachable {
        /// Where.
        gpa: Gpa,
    },
    /// The processor refused a register.
    Cpu(E),
}
