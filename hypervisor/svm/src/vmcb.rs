//! The VMCB as memory, and the trait behind which the processor stands.

use crate::fields::Field;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use bulkhead_types::Hpa;

/// A guest's control block.
#[derive(Debug)]
pub struct Vmcb(Region);

impl Vmcb {
    /// The block in this frame, all zero.
    #[must_use]
    pub fn new(mut region: Region) -> Self {
        region.fill(0);
        Self(region)
    }

    /// A field's value.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        self.0.load(field.offset, field.bytes)
    }

    /// The low half of a field's value.
    #[inline(always)]
    #[must_use]
    pub fn get_low(&self, field: Field) -> u32 {
        let [a, b, c, d, ..] = self.get(field).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Sets a field, to as much of `value` as it holds.
    #[inline(always)]
    pub fn set(&mut self, field: Field, value: u64) {
        self.0.store(field.offset, field.bytes, value);
    }

    /// Its physical address.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.0.hpa()
    }
}

/// What a processor with SVM does for one vCPU.
pub trait Processor {
    /// The MSRs that it does not switch at entry and exit.
    fn msrs(&mut self) -> &mut dyn Msrs;

    /// VMSAVE of the host's own state (TR, LDTR, FS, GS and the SYSCALL registers) to `host`.
    fn save_host(&mut self, host: &Region);

    /// Enters the guest of `vmcb` with the registers of `frame`, and comes back with the state of `host`.
    fn enter(&mut self, frame: &mut Frame, vmcb: &mut Vmcb, host: &Region);

    /// Lets the host take the interrupt that caused the last exit.
    fn take_interrupts(&mut self);

    /// The host's time-stamp counter.
    fn tsc(&self) -> u64;

    /// Interrupts the host when its counter reaches `deadline`, or earlier.
    fn interrupt_by(&mut self, deadline: u64);
}
