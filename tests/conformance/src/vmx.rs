//! Between the VT-x backend and its processor: what the processor is told at each entry.

use crate::bench::{Entries, Entry};
use bulkhead_core::BackendError;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use bulkhead_vmx::fields as field;
use bulkhead_vmx::host::HostState;
use bulkhead_vmx::vmcs::{Entered, Processor, VmcsAccess};

const VALID: u64 = 1 << 31;
const WITH_ERROR: u64 = 1 << 11;
const ANY_SHADOW: u64 = 3;
const PENDING_STEP: u64 = 1 << 14;
const INTERRUPT_WINDOW: u64 = 1 << 2;

/// A processor, and what it was told.
#[derive(Debug)]
pub struct Recorder<P> {
    /// The processor.
    pub processor: P,
    /// The entries so far.
    pub entries: Entries,
    /// The processor's timer counts every so many bits of the time-stamp counter.
    pub timer_shift: u32,
    flushed: bool,
}

impl<P: Processor> Recorder<P> {
    /// Notes entries of `processor`, whose timer has this shift, in `entries`.
    pub const fn new(processor: P, timer_shift: u32, entries: Entries) -> Self {
        Self { processor, entries, timer_shift, flushed: false }
    }

    fn note(&mut self) {
        let get = |encoding| self.processor.read(encoding).unwrap_or(0);
        let info = get(field::ENTRY_INTERRUPTION.encoding());
        let error = || u32::try_from(get(field::ENTRY_ERROR_CODE.encoding())).unwrap_or(u32::MAX);
        let event = (info & VALID != 0).then(|| {
            let kind = u32::try_from(info >> 8 & 7).unwrap_or(0);
            (kind, u8::try_from(info & 0xFF).unwrap_or(0), (info & WITH_ERROR != 0).then(error))
        });
        let entry = Entry {
            rip: get(field::GUEST_RIP.encoding()),
            event,
            step: get(field::PENDING_DEBUG.encoding()) & PENDING_STEP != 0,
            shadow: get(field::INTERRUPTIBILITY.encoding()) & ANY_SHADOW != 0,
            flushed: self.flushed,
            interrupt_window: get(field::PRIMARY_CONTROLS.encoding()) & INTERRUPT_WINDOW != 0,
            tsc_offset: get(field::TSC_OFFSET.encoding()),
            timer: get(field::TIMER_VALUE.encoding()) << self.timer_shift,
        };
        self.flushed = false;
        self.entries.borrow_mut().push(entry);
    }
}

impl<P: Processor> VmcsAccess for Recorder<P> {
    fn read(&self, encoding: u32) -> Result<u64, BackendError> {
        self.processor.read(encoding)
    }
    fn read_known(&self, encoding: u32) -> u64 {
        self.processor.read_known(encoding)
    }
    fn write(&mut self, encoding: u32, value: u64) -> Result<(), BackendError> {
        self.processor.write(encoding, value)
    }
}

impl<P: Processor> Processor for Recorder<P> {
    fn number(&self) -> usize {
        self.processor.number()
    }
    fn clear(&mut self, vmcs: &Region) -> Result<(), BackendError> {
        self.processor.clear(vmcs)
    }
    fn load(&mut self, vmcs: &Region) -> Result<(), BackendError> {
        self.processor.load(vmcs)
    }
    fn enter(&mut self, frame: &mut Frame, launched: bool) -> Entered {
        self.note();
        self.processor.enter(frame, launched)
    }
    fn invalidate_nested(&mut self, ept_pointer: u64) -> Result<(), BackendError> {
        self.flushed = true;
        self.processor.invalidate_nested(ept_pointer)
    }
    fn invalidate_vpid(&mut self, vpid: u16, single: bool) -> Result<(), BackendError> {
        self.processor.invalidate_vpid(vpid, single)
    }
    fn host_state(&self) -> HostState {
        self.processor.host_state()
    }
    fn cr2(&self) -> u64 {
        self.processor.cr2()
    }
    fn set_cr2(&mut self, value: u64) {
        self.processor.set_cr2(value);
    }
    fn dr6(&self) -> u64 {
        self.processor.dr6()
    }
    fn set_dr6(&mut self, value: u64) {
        self.processor.set_dr6(value);
    }
    fn deliver_nmi(&mut self) {
        self.processor.deliver_nmi();
    }
    fn msrs(&mut self) -> &mut dyn Msrs {
        self.processor.msrs()
    }
}
