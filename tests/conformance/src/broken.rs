//! Backends that are broken on purpose, in one way each.

use bulkhead_arch::{Gpr, Segment, SegmentName};
use bulkhead_core::{BackendError, Event, Exit, Interruptibility, Register, Vcpu, Windows};
use core::fmt;

/// A way to break a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The instruction pointer goes one byte too far.
    NextRip,
    /// Nothing is injected.
    LostInjection,
    /// An event whose delivery was interrupted is forgotten.
    LostDelivery,
    /// Translations stay after something was unmapped.
    StaleTranslations,
    /// A write that faults looks like a read.
    NestedError,
    /// A fault of the processor's own walk looks like one of the instruction's operand.
    NestedWalk,
    /// An interrupt is delivered in a shadow: none is reported.
    Shadow,
    /// An interrupt is delivered in a shadow: one that is set has no effect.
    ShadowLost,
    /// An NMI seems never to be in service.
    NmiInService,
    /// The window is not asked for.
    Window,
    /// The turn ends too late.
    Timer,
    /// The time-stamp counter is the host's.
    TscOffset,
    /// A register that a control register is written from is another one.
    Source,
    /// A segment loses its unusable bit.
    Unusable,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NextRip,
        Self::LostInjection,
        Self::LostDelivery,
        Self::StaleTranslations,
        Self::NestedError,
        Self::NestedWalk,
        Self::Shadow,
        Self::ShadowLost,
        Self::NmiInService,
        Self::Window,
        Self::Timer,
        Self::TscOffset,
        Self::Source,
        Self::Unusable,
    ];
}

/// A vCPU, broken in this way, or whole.
#[derive(Debug)]
pub struct Broken<V> {
    /// The whole one.
    pub inner: V,
    way: Option<Way>,
}

impl<V> Broken<V> {
    /// Breaks `inner`, if asked to.
    pub const fn new(inner: V, way: Option<Way>) -> Self {
        Self { inner, way }
    }

    fn is(&self, way: Way) -> bool {
        self.way == Some(way)
    }
}

type Done = Result<(), BackendError>;

impl<V: Vcpu> Vcpu for Broken<V> {
    fn activate(&mut self) -> Done {
        self.inner.activate()
    }
    fn deactivate(&mut self) -> Done {
        self.inner.deactivate()
    }
    fn run(&mut self) -> Result<Exit, BackendError> {
        let mut exit = self.inner.run()?;
        match &mut exit {
            Exit::Nested(fault) if self.is(Way::NestedError) => fault.write = false,
            Exit::Nested(fault) if self.is(Way::NestedWalk) => fault.table_walk = false,
            Exit::WriteCr { from, .. } if self.is(Way::Source) => *from = Gpr::Rax,
            _ => {}
        }
        Ok(exit)
    }
    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        self.inner.gpr(gpr)
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Done {
        self.inner.set_gpr(gpr, value)
    }
    fn read(&self, register: Register) -> Result<u64, BackendError> {
        self.inner.read(register)
    }
    fn write(&mut self, register: Register, value: u64) -> Done {
        self.inner.write(register, value)
    }
    fn caches_pdptes(&self) -> bool {
        self.inner.caches_pdptes()
    }
    fn segment(&self, name: SegmentName) -> Result<Segment, BackendError> {
        let mut segment = self.inner.segment(name)?;
        if self.is(Way::Unusable) {
            segment.attributes &= !Segment::UNUSABLE;
        }
        Ok(segment)
    }
    fn set_segment(&mut self, name: SegmentName, value: Segment) -> Done {
        self.inner.set_segment(name, value)
    }
    fn privilege(&self) -> Result<u8, BackendError> {
        self.inner.privilege()
    }
    fn skip_instruction(&mut self) -> Done {
        self.inner.skip_instruction()?;
        if self.is(Way::NextRip) { self.inner.skip_bytes(1) } else { Ok(()) }
    }
    fn skip_bytes(&mut self, length: u8) -> Done {
        self.inner.skip_bytes(if self.is(Way::NextRip) { length + 1 } else { length })
    }
    fn inject(&mut self, event: Event) -> Done {
        if self.is(Way::LostInjection) { Ok(()) } else { self.inner.inject(event) }
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        self.inner.take_interrupted().filter(|_| !self.is(Way::LostDelivery))
    }
    fn interruptibility(&self) -> Result<Interruptibility, BackendError> {
        let mut blocked = self.inner.interruptibility()?;
        if self.is(Way::Shadow) {
            (blocked.sti, blocked.mov_ss) = (false, false);
        }
        blocked.nmi &= !self.is(Way::NmiInService);
        Ok(blocked)
    }
    fn set_interruptibility(&mut self, value: Interruptibility) -> Done {
        let lost = Interruptibility { sti: false, mov_ss: false, ..value };
        self.inner.set_interruptibility(if self.is(Way::ShadowLost) { lost } else { value })
    }
    fn request_windows(&mut self, windows: Windows) -> Done {
        if self.is(Way::Window) { Ok(()) } else { self.inner.request_windows(windows) }
    }
    fn flush_nested(&mut self) {
        if !self.is(Way::StaleTranslations) {
            self.inner.flush_nested();
        }
    }
    fn set_tsc_offset(&mut self, offset: u64) -> Done {
        if self.is(Way::TscOffset) { Ok(()) } else { self.inner.set_tsc_offset(offset) }
    }
    fn set_timer(&mut self, ticks: u64) -> Done {
        self.inner.set_timer(if self.is(Way::Timer) { ticks * 64 } else { ticks })
    }
    fn allow_msr(&mut self, index: u32, write: bool) {
        self.inner.allow_msr(index, write);
    }
    fn explain_entry_failure(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.explain_entry_failure(out)
    }
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.dump(out)
    }
}
