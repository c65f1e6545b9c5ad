//! The VMCB as memory, and the trait behind which the processor stands.

use crate::fields::{self, Field};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use bulkhead_types::Hpa;

/// A guest's control block.
#[derive(Debug)]
pub struct Vmcb {
    region: Region,
    /// Groups of fields that were written since the last entry.
    dirty: u64,
}

impl Vmcb {
    /// The block in this frame, all zero.
    #[must_use]
    pub fn new(mut region: Region) -> Self {
        region.fill(0);
        Self { region, dirty: fields::GROUPS }
    }

    /// A field's value.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        self.region.load(field.offset, field.bytes)
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
        self.region.store(field.offset, field.bytes, value);
        self.dirty |= field.group;
    }

    /// As the processor writes it, for tests.
    #[cfg(any(test, feature = "fake"))]
    pub fn leave(&mut self, field: Field, value: u64) {
        self.region.store(field.offset, field.bytes, value);
    }

    /// The next entry is on another processor, which knows nothing of it.
    pub const fn forget_clean(&mut self) {
        self.dirty = fields::GROUPS;
    }

    /// Tells the processor what it need not read again at the entry that follows; with `know` false, which it must be at
    /// the first entry and where the processor has no such field, nothing.
    #[inline]
    pub fn declare_clean(&mut self, know: bool) {
        let dirty = core::mem::take(&mut self.dirty);
        let clean = if know { fields::GROUPS & !dirty } else { 0 };
        self.region.store(fields::CLEAN.offset, fields::CLEAN.bytes, clean);
    }

    /// Its physical address.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.region.hpa()
    }
}

/// What a processor with SVM does for one vCPU.
pub trait Processor {
    /// Interrupts itself as soon as it lets interrupts in: right behind the next entry.
    fn interrupt_self(&mut self);

    /// Which of the machine's processors this is.
    fn number(&self) -> usize;

    /// The MSRs that it does not switch at entry and exit.
    fn msrs(&mut self) -> &mut dyn Msrs;

    /// VMSAVE of the host's own state (TR, LDTR, FS, GS and the SYSCALL registers) to `host`.
    fn save_host(&mut self, host: &Region);

    /// Enters the guest of `vmcb` with the registers of `frame`, and comes back with the state of `host`.
    fn enter(&mut self, frame: &mut Frame, vmcb: &mut Vmcb, host: &Region);

    /// Lets the host take the interrupt that caused the last exit. Whether another processor's was among them, if the
    /// last entry was told to [`Processor::interrupt_self`].
    fn take_interrupts(&mut self) -> bool;

    /// The host's time-stamp counter.
    fn tsc(&self) -> u64;

    /// Interrupts the host when its counter reaches `deadline`, or earlier.
    fn interrupt_by(&mut self, deadline: u64);
}
