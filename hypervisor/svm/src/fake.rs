//! A processor made of a script, for tests on the host.

use crate::fields::Field;
use crate::vmcb::{Processor, Vmcb};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use std::collections::VecDeque;
use std::vec::Vec;

/// A processor whose exits are scripted.
#[derive(Debug, Default)]
pub struct FakeProcessor {
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
}

impl Processor for FakeProcessor {
    fn save_host(&mut self, _: &Region) {}

    fn enter(&mut self, _: &mut Frame, vmcb: &mut Vmcb, _: &Region) {
        self.seen.push(self.watch.iter().map(|&field| vmcb.get(field)).collect());
        for (field, value) in self.script.pop_front().unwrap_or_default() {
            vmcb.set(field, value);
        }
    }

    fn take_interrupts(&mut self) {
        self.taken += 1;
    }

    fn tsc(&self) -> u64 {
        self.tsc
    }

    fn interrupt_by(&mut self, deadline: u64) {
        self.deadlines.push(deadline);
    }

    fn switched_msr(&self, _: usize) -> u64 {
        0
    }

    fn set_switched_msr(&mut self, _: usize, _: u64) {}
}

/// A page of its own for a test.
#[must_use]
pub fn region(number: u64) -> Region {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let page = std::boxed::Box::leak(std::boxed::Box::new(Page([0; 4096])));
    // SAFETY: the page is leaked, so it is this value's alone for good; no processor uses it.
    #[expect(clippy::expect_used, reason = "both addresses are multiples of a page")]
    unsafe {
        Region::new(&raw mut page.0, bulkhead_types::Hpa::new(number << 12)).expect("aligned")
    }
}

/// A VMCB for a test.
#[must_use]
pub fn vmcb() -> Vmcb {
    Vmcb::new(region(1))
}
