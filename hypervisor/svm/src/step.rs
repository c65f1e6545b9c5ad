//! One instruction stepped over: the IRET that ends an NMI's handling, behind which NMIs are let in again.
//!
//! RFLAGS.TF is on for one entry, and nobody sees it: IRET pushes nothing, and the flags that it loads are the guest's
//! own. Every exit takes TF back. All exceptions exit meanwhile, so that an IRET that faults is told first, and the flags
//! that its handler finds on the stack are without it. APM vol. 2 15.9 "Instruction Intercepts", IRET; 13.1.4 "Single
//! Stepping".

use crate::vmcb::Vmcb;
use crate::{exit, fields as field, setup};
use bulkhead_arch::Rflags;

/// DR6: a single step was done.
pub(crate) const SINGLE_STEP: u64 = 1 << 14;
/// DR6: breakpoints that were met.
const MET: u64 = 0xF;
/// All exceptions but vector 2, which is none.
const ALL: u64 = 0xFFFF_FFFB;

/// What the guest had before the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// It was stepping itself.
    trap: bool,
    status: u64,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The instruction was not completed.
    Not,
    /// It was.
    Done,
    /// It was, and there is a #DB for the guest.
    Debug,
}

impl Step {
    /// Makes the next entry the step.
    pub(crate) fn begin(vmcb: &mut Vmcb) -> Self {
        let (flags, status) = (vmcb.get(field::RFLAGS), vmcb.get(field::DR6));
        vmcb.set(field::RFLAGS, flags | Rflags::TF.bits());
        vmcb.set(field::DR6, status & !(SINGLE_STEP | MET));
        vmcb.set(field::INTERCEPT_EXCEPTIONS, ALL);
        Self { trap: flags & Rflags::TF.bits() != 0, status }
    }

    /// Takes the step's traces out of `vmcb` after the exit.
    pub(crate) fn end(self, vmcb: &mut Vmcb) -> Outcome {
        vmcb.set(field::INTERCEPT_EXCEPTIONS, setup::EXCEPTIONS);
        let debug = vmcb.get(field::EXIT_CODE) == exit::DEBUG;
        let status = vmcb.get(field::DR6);
        let done = debug && status & SINGLE_STEP != 0;
        // A single step is the guest's if it asked for it; what else was met is the guest's anyway.
        let step = if self.trap { status & SINGLE_STEP } else { 0 };
        let causes = step | status & MET;
        let status = if debug && causes != 0 { self.status & !MET | causes } else { self.status };
        vmcb.set(field::DR6, status);
        if !done && !self.trap {
            let flags = vmcb.get(field::RFLAGS);
            vmcb.set(field::RFLAGS, flags & !Rflags::TF.bits());
        }
        match (done, causes != 0) {
            (false, _) => Outcome::Not,
            (true, false) => Outcome::Done,
            (true, true) => Outcome::Debug,
        }
    }
}
