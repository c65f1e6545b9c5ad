//! The guest's general registers while the host runs, laid out for the entry stub.

use bulkhead_arch::Gpr;

/// General registers by number. The entry stub knows this layout. RAX and RSP are in the VMCB; their places are unused.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Frame([u64; 16]);

const _: () = assert!(size_of::<Frame>() == 128);

impl Frame {
    /// A register; `None` for RAX and RSP.
    #[inline]
    #[must_use]
    pub fn get(&self, gpr: Gpr) -> Option<u64> {
        if in_vmcb(gpr) { None } else { self.0.get(gpr.number()).copied() }
    }

    /// The place of a register; `None` for RAX and RSP.
    #[inline]
    pub fn get_mut(&mut self, gpr: Gpr) -> Option<&mut u64> {
        if in_vmcb(gpr) { None } else { self.0.get_mut(gpr.number()) }
    }
}

const fn in_vmcb(gpr: Gpr) -> bool {
    matches!(gpr, Gpr::Rax | Gpr::Rsp)
}
