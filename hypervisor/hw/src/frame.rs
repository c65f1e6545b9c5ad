//! The guest's general registers while the host runs, and the assembly that moves them.
//!
//! At an exit RSP is the end of [`Frame::gprs`], so that a backend's entry stub stores the guest's registers with fifteen
//! PUSHes and needs no pointer. Nothing else is pushed there: interrupts are off then, and NMI, #DF and #MC have stacks of
//! their own (IST) or are held back.

use bulkhead_arch::Gpr;

/// General registers by slot, and the host's stack pointer behind them. The assembly below knows this layout.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// In the order of [`Gpr`], without RSP, which the processor switches.
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

    /// The stack pointer with which an exit has to come back: the end of the registers.
    #[inline]
    #[must_use]
    pub fn host_rsp(&self) -> u64 {
        (&raw const self.host_rsp).addr() as u64
    }
}

/// Pushes the registers that the C ABI keeps.
#[macro_export]
macro_rules! push_kept {
    () => {
        "push rbx; push rbp; push r12; push r13; push r14; push r15"
    };
}

/// Pops what [`push_kept`] pushed.
#[macro_export]
macro_rules! pop_kept {
    () => {
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx"
    };
}

/// Clears the registers that the C ABI gives up, but RAX: nothing later can be speculated on another's value.
#[macro_export]
macro_rules! clear_given_up {
    () => {
        "xor ecx, ecx; xor edx, edx; xor esi, esi; xor edi, edi; xor r8d, r8d; xor r9d, r9d; xor r10d, r10d; xor r11d, r11d"
    };
}

/// From [`Frame`] at RSP to the registers; RSP is at its end then. Keeps the flags.
#[macro_export]
macro_rules! pop_frame {
    () => {
        "pop rax; pop rcx; pop rdx; pop rbx; pop rbp; pop rsi; pop rdi; \
         pop r8; pop r9; pop r10; pop r11; pop r12; pop r13; pop r14; pop r15"
    };
}

/// From the registers to [`Frame`], of which RSP is the end.
#[macro_export]
macro_rules! push_frame {
    () => {
        "push r15; push r14; push r13; push r12; push r11; push r10; push r9; push r8; \
         push rdi; push rsi; push rbp; push rbx; push rdx; push rcx; push rax"
    };
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
