//! The guest's general registers while the host runs, laid out for the entry stub.
//!
//! The stub needs no pointer to them at an exit: HOST_RSP is the end of [`Frame::gprs`], so that it stores the guest's
//! registers with fifteen PUSHes. Interrupts are off then, and NMI, #DF and #MC have stacks of their own (IST), so that
//! nothing else is pushed there.

use bulkhead_arch::Gpr;

/// General registers by slot, and the host's stack pointer behind them. The entry stub knows this layout.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// In the order of [`Gpr`], without RSP, which the VMCS holds.
    gprs: [u64; 15],
    /// The host's RSP while the guest runs.
    host_rsp: u64,
}

const _: () = assert!(size_of::<Frame>() == 128 && core::mem::offset_of!(Frame, host_rsp) == 120);

impl Frame {
    /// All registers zero.
    pub const ZERO: Self = Self { gprs: [0; 15], host_rsp: 0 };

    /// The slot of a register; `None` for RSP.
    const fn slot(gpr: Gpr) -> Option<usize> {
        match gpr {
            Gpr::Rsp => None,
            _ if gpr.number() < Gpr::Rsp.number() => Some(gpr.number()),
            _ => Some(gpr.number() - 1),
        }
    }

    /// A register; `None` for RSP.
    #[inline]
    #[must_use]
    pub fn get(&self, gpr: Gpr) -> Option<u64> {
        Self::slot(gpr).and_then(|slot| self.gprs.get(slot).copied())
    }

    /// The place of a register; `None` for RSP.
    #[inline]
    pub fn get_mut(&mut self, gpr: Gpr) -> Option<&mut u64> {
        Self::slot(gpr).and_then(|slot| self.gprs.get_mut(slot))
    }

    /// The value of HOST_RSP that leads the exit stub to this frame.
    #[inline]
    #[must_use]
    pub fn host_rsp(&self) -> u64 {
        (&raw const self.host_rsp).addr() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Frame;
    use bulkhead_arch::Gpr;

    #[test]
    fn every_register_but_rsp_has_a_slot_of_its_own() {
        let mut frame = Frame::ZERO;
        for gpr in Gpr::ALL {
            if let Some(place) = frame.get_mut(gpr) {
                assert_eq!(*place, 0);
                *place = gpr.number() as u64 + 100;
            }
        }
        assert_eq!(frame.get(Gpr::Rsp), None);
        assert_eq!(frame.get(Gpr::Rax), Some(100));
        assert_eq!(frame.get(Gpr::R15), Some(115));
        assert_eq!(frame.gprs.iter().filter(|value| **value != 0).count(), 15);
    }
}
