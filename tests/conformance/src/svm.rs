//! Between the SVM backend and its processor: what the processor is told at each entry.

use crate::bench::{Entries, Entry};
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use bulkhead_svm::fields as field;
use bulkhead_svm::vmcb::{Processor, Vmcb};

const VALID: u64 = 1 << 31;
const WITH_ERROR: u64 = 1 << 11;
const TRAP_FLAG: u64 = 1 << 8;
const SHADOW: u64 = 1;
const VIRTUAL_INTERRUPT: u64 = 1 << 8;
const INTERCEPT_VIRTUAL_INTERRUPT: u64 = 1 << 4;

/// A processor, and what it was told.
#[derive(Debug)]
pub struct Recorder<P> {
    /// The processor.
    pub processor: P,
    /// The entries so far.
    pub entries: Entries,
    /// Ticks until the timer, as it was set last.
    timer: u64,
}

impl<P: Processor> Recorder<P> {
    /// Notes entries of `processor` in `entries`.
    pub const fn new(processor: P, entries: Entries) -> Self {
        Self { processor, entries, timer: 0 }
    }

    fn note(&self, vmcb: &Vmcb) {
        let info = vmcb.get(field::EVENT_INJECTION);
        let event = (info & VALID != 0).then(|| {
            let error = (info & WITH_ERROR != 0).then(|| u32::try_from(info >> 32).unwrap_or(u32::MAX));
            (u32::try_from(info >> 8 & 7).unwrap_or(0), u8::try_from(info & 0xFF).unwrap_or(0), error)
        });
        let entry = Entry {
            rip: vmcb.get(field::RIP),
            event,
            step: vmcb.get(field::RFLAGS) & TRAP_FLAG != 0 && event == Some((3, 1, None)),
            shadow: vmcb.get(field::INTERRUPT_STATE) & SHADOW != 0,
            flushed: vmcb.get(field::TLB_CONTROL) != 0,
            interrupt_window: vmcb.get(field::INTERRUPT_CONTROL) & VIRTUAL_INTERRUPT != 0
                && vmcb.get(field::INTERCEPT_MISC) & INTERCEPT_VIRTUAL_INTERRUPT != 0,
            tsc_offset: vmcb.get(field::TSC_OFFSET),
            timer: self.timer,
        };
        self.entries.borrow_mut().push(entry);
    }
}

impl<P: Processor> Processor for Recorder<P> {
    fn number(&self) -> usize {
        self.processor.number()
    }
    fn save_host(&mut self, host: &Region) {
        self.processor.save_host(host);
    }
    fn enter(&mut self, frame: &mut Frame, vmcb: &mut Vmcb, host: &Region) {
        self.note(vmcb);
        self.processor.enter(frame, vmcb, host);
    }
    fn take_interrupts(&mut self) -> bool {
        self.processor.take_interrupts()
    }
    fn interrupt_self(&mut self) {
        self.processor.interrupt_self();
    }
    fn tsc(&self) -> u64 {
        self.processor.tsc()
    }
    fn interrupt_by(&mut self, deadline: u64) {
        self.timer = deadline.saturating_sub(self.processor.tsc());
        self.processor.interrupt_by(deadline);
    }
    fn msrs(&mut self) -> &mut dyn Msrs {
        self.processor.msrs()
    }
}
