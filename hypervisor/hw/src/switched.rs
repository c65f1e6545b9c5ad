//! Guest MSRs that the processor does not switch at entry and exit.
//!
//! The host uses none of them, so that they are exchanged only when another guest's vCPU is made active.

use crate::cpu;

/// Access to these MSRs of the processor, or of a test's.
pub trait Msrs {
    /// RDMSR of one of the MSRs that a [`Switched`] names as present.
    fn switched_msr(&self, msr: u32) -> u64;

    /// WRMSR of one of the MSRs that a [`Switched`] names as present.
    fn set_switched_msr(&mut self, msr: u32, value: u64);
}

/// The MSRs of the processor that runs this code.
#[derive(Debug)]
pub struct ProcessorMsrs(());

impl ProcessorMsrs {
    /// The processor's.
    ///
    /// # Safety
    /// In ring 0; whoever holds it uses it for a [`Switched`] only, of MSRs that the processor has and the host does not
    /// use.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Msrs for ProcessorMsrs {
    fn switched_msr(&self, msr: u32) -> u64 {
        // SAFETY: the register is there (`new`).
        unsafe { cpu::read_msr(msr) }
    }

    fn set_switched_msr(&mut self, msr: u32, value: u64) {
        // SAFETY: the register is there, and the host does not use it (`new`); the value is 0 or what the processor had
        // accepted there from the guest.
        unsafe { cpu::write_msr(msr, value) }
    }
}

/// A guest's values of such MSRs while they are not in the processor.
#[derive(Clone, Copy, Debug)]
pub struct Switched<const N: usize> {
    msrs: [u32; N],
    present: [bool; N],
    values: [u64; N],
    loaded: bool,
}

impl<const N: usize> Switched<N> {
    /// Zeros for those of `msrs` that are `present`; the others are left alone.
    #[must_use]
    pub const fn new(msrs: [u32; N], present: [bool; N]) -> Self {
        Self { msrs, present, values: [0; N], loaded: false }
    }

    /// Whether this MSR is among them, and present.
    #[must_use]
    pub fn has(&self, msr: u32) -> bool {
        self.msrs.iter().zip(self.present).any(|(&known, present)| present && known == msr)
    }

    /// Whether the guest's values are in the processor.
    #[inline]
    #[must_use]
    pub const fn is_loaded(&self) -> bool {
        self.loaded
    }

    fn values(&mut self) -> impl Iterator<Item = (u32, &mut u64)> {
        let present =
            self.msrs.into_iter().zip(self.present).zip(&mut self.values).filter(|((_, present), _)| *present);
        present.map(|((msr, _), value)| (msr, value))
    }

    /// Loads the guest's values into the processor; false if they are there already.
    pub fn load(&mut self, processor: &mut dyn Msrs) -> bool {
        let due = !self.loaded;
        if due {
            self.values().for_each(|(msr, value)| processor.set_switched_msr(msr, *value));
            self.loaded = true;
        }
        due
    }

    /// Takes the guest's values out of the processor; false if they are not there.
    pub fn save(&mut self, processor: &dyn Msrs) -> bool {
        let due = self.loaded;
        if due {
            self.values().for_each(|(msr, value)| *value = processor.switched_msr(msr));
            self.loaded = false;
        }
        due
    }
}
