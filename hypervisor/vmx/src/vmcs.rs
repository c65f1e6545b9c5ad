//! The two traits behind which the processor stands.
//!
//! Everything of this crate that is not an instruction is written against them, and so runs on the host against
//! [`crate::fake::FakeProcessor`].

use crate::host::HostState;
use bulkhead_core::BackendError;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;

/// Access to the fields of the current VMCS by number; [`crate::fields::Fields`] gives it types.
pub trait VmcsAccess {
    /// The value of the field with this number.
    ///
    /// # Errors
    /// [`BackendError::Field`] if there is no current VMCS or no such field.
    fn read(&self, encoding: u32) -> Result<u64, BackendError>;

    /// The value of a field that has been read or written before, in the VMCS whose guest ran last: that can not fail,
    /// and what can not fail need not be checked at every exit. Any value if it does.
    fn read_known(&self, encoding: u32) -> u64 {
        self.read(encoding).unwrap_or(0)
    }

    /// Sets the field with this number.
    ///
    /// # Errors
    /// [`BackendError::Field`] if there is no current VMCS, no such field, or it is read-only.
    fn write(&mut self, encoding: u32, value: u64) -> Result<(), BackendError>;
}

/// How the processor answered VMLAUNCH or VMRESUME.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// A VM exit came (also one that reports a failed entry, by bit 31 of its reason).
    Exit,
    /// Refused without an error number: no current VMCS.
    FailInvalid,
    /// Refused; the VM-instruction error field holds the number.
    FailValid,
}

/// What a processor in VMX root operation does for one vCPU.
pub trait Processor: VmcsAccess {
    /// Which of the machine's processors this is.
    fn number(&self) -> usize;

    /// The MSRs that it does not switch at entry and exit.
    fn msrs(&mut self) -> &mut dyn Msrs;

    /// VMCLEAR.
    ///
    /// # Errors
    /// [`BackendError::Instruction`].
    fn clear(&mut self, vmcs: &Region) -> Result<(), BackendError>;

    /// VMPTRLD.
    ///
    /// # Errors
    /// [`BackendError::Instruction`].
    fn load(&mut self, vmcs: &Region) -> Result<(), BackendError>;

    /// Enters the guest of the current VMCS with the registers of `frame`, by VMRESUME if `launched`.
    fn enter(&mut self, frame: &mut Frame, launched: bool) -> Entered;

    /// INVEPT of what was cached for this EPT pointer.
    ///
    /// # Errors
    /// [`BackendError::Instruction`].
    fn invalidate_nested(&mut self, ept_pointer: u64) -> Result<(), BackendError>;

    /// INVVPID of what was cached for this VPID, or of all if that is all the processor can.
    ///
    /// # Errors
    /// [`BackendError::Instruction`].
    fn invalidate_vpid(&mut self, vpid: u16, single: bool) -> Result<(), BackendError>;

    /// What the host's half of a VMCS holds if an exit shall lead back to the present state.
    fn host_state(&self) -> HostState;

    /// CR2.
    fn cr2(&self) -> u64;

    /// Sets CR2.
    fn set_cr2(&mut self, value: u64);

    /// DR6.
    fn dr6(&self) -> u64;

    /// Sets DR6.
    fn set_dr6(&mut self, value: u64);

    /// Lets the host handle the non-maskable interrupt that caused the last exit, and take further ones.
    fn deliver_nmi(&mut self);
}
