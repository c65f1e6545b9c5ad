//! A processor made of a script, for tests on the host.

use crate::fields::Field;
use crate::vmcb::{Processor, Vmcb};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use std::collections::VecDeque;
use std::vec::Vec;

pub use bulkhead_hw::region::fake as region;

/// A processor whose exits are scripted.
#[derive(Debug, Default)]
pub struct FakeProcessor {
    /// Which processor it is.
    pub number: usize,
    /// Fields that the next entries' exits set.
    pub script: VecDeque<Vec<(Field, u64)>>,
    /// Fields as they were at each entry.
    pub watch: Vec<Field>,
    /// What [`FakeProcessor::watch`] saw.
    pub seen: Vec<Vec<u64>>,
    /// The counter.
    pub tsc: u64,
    /// Deadlines that were set.
    pub deadlines: Vec<u64>,
    /// How often the host took interrupts.
    pub taken: usize,
    /// Another processor's interrupt is among those that it takes.
    pub kicked: bool,
    /// How often it interrupted itself.
    pub interrupted: usize,
}

impl Msrs for FakeProcessor {
    fn switched_msr(&self, _: u32) -> u64 {
        0
    }

    fn set_switched_msr(&mut self, _: u32, _: u64) {}
}

impl Processor for FakeProcessor {
    fn number(&self) -> usize {
        self.number
    }

    fn msrs(&mut self) -> &mut dyn Msrs {
        self
    }

    fn save_host(&mut self, _: &Region) {}

    fn enter(&mut self, _: &mut Frame, vmcb: &mut Vmcb, _: &Region) {
        self.seen.push(self.watch.iter().map(|&field| vmcb.get(field)).collect());
        for (field, value) in self.script.pop_front().unwrap_or_default() {
            vmcb.leave(field, value);
        }
    }

    fn take_interrupts(&mut self) -> bool {
        self.taken += 1;
        self.kicked
    }

    fn interrupt_self(&mut self) {
        self.interrupted += 1;
    }

    fn tsc(&self) -> u64 {
        self.tsc
    }

    fn interrupt_by(&mut self, deadline: u64) {
        self.deadlines.push(deadline);
    }
}

/// A VMCB for a test.
#[must_use]
pub fn vmcb() -> Vmcb {
    Vmcb::new(region(1))
}
