//! Guest MSRs that the processor does not switch at entry and exit.
//!
//! The host uses none of them, so that they are exchanged only when another guest's vCPU is made active.

/// Access to these MSRs of the processor, or of a test's.
pub trait Msrs {
    /// RDMSR of one of the MSRs that a [`Switched`] names as present.
    fn switched_msr(&self, msr: u32) -> u64;

    /// WRMSR of one of the MSRs that a [`Switched`] names as present.
    fn set_switched_msr(&mut self, msr: u32, value: u64);
}

/// A guest's values of such MSRs while they are not in the processor.
#[derive(Clone, Copy, Debug)]
pub struct Switched<const N: usize> {
    msrs: [u32; N],
    present: [bool; N],
    values: [u64; N],
}

impl<const N: usize> Switched<N> {
    /// Zeros for those of `msrs` that are `present`; the others are left alone.
    #[must_use]
    pub const fn new(msrs: [u32; N], present: [bool; N]) -> Self {
        Self { msrs, present, values: [0; N] }
    }

    /// Whether this MSR is among them, and present.
    #[must_use]
    pub fn has(&self, msr: u32) -> bool {
        self.msrs.iter().zip(self.present).any(|(&known, present)| present && known == msr)
    }

    /// Loads the guest's values into the processor.
    pub fn load(&self, processor: &mut impl Msrs) {
        let values = self.msrs.iter().zip(self.present).zip(self.values).filter(|((_, present), _)| *present);
        values.for_each(|((&msr, _), value)| processor.set_switched_msr(msr, value));
    }

    /// Saves what the processor holds.
    pub fn save(&mut self, processor: &impl Msrs) {
        let values = self.msrs.iter().zip(self.present).zip(&mut self.values).filter(|((_, present), _)| *present);
        values.for_each(|((&msr, _), value)| *value = processor.switched_msr(msr));
    }
}
