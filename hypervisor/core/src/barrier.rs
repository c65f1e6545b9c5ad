//! What a CPU does before it runs a guest of another zone.
//!
//! Between exits of one guest nothing has to be done: its compartment's address space names no other guest's memory, so
//! what could be read by speculation there is the guest's own, or the shared part, which holds no secret. Another zone's
//! guest comes by the dispatcher only, and there this is called.
//!
//! SDM vol. 4 table 2-2: IA32_SPEC_CTRL, IA32_PRED_CMD, IA32_FLUSH_CMD, IA32_ARCH_CAPABILITIES; APM vol. 2 3.2.9
//! "Speculation Control MSRs". VERW: SDM vol. 2C "VERR/VERW"; it overwrites buffers where CPUID says MD_CLEAR.

use crate::host::CpuidResult;
use bulkhead_arch::msr;
use bulkhead_types::Barriers;

const IBRS: u64 = 1 << 0;
const STIBP: u64 = 1 << 1;
const SSBD: u64 = 1 << 2;

/// One thing that a CPU is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// WRMSR.
    Write {
        /// One of [`msr::SPEC_CTRL`], [`msr::PRED_CMD`], [`msr::FLUSH_CMD`].
        index: u32,
        /// The value.
        value: u64,
    },
    /// VERW with a valid selector.
    Verw,
}

/// What a CPU has of all this.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Present {
    /// What can be done between zones.
    pub barriers: Barriers,
    /// IA32_SPEC_CTRL is there.
    control: bool,
    /// What is set in it all the time: a sibling's branches do not steer this thread's, and, where it costs nothing, the
    /// guest's do not steer the host's.
    always: u64,
}

impl Present {
    /// By CPUID (leaf, subleaf) and IA32_ARCH_CAPABILITIES, which is read only where CPUID promises it.
    #[must_use]
    pub fn of(cpuid: impl Fn(u32, u32) -> CpuidResult, capabilities: impl FnOnce() -> u64) -> Self {
        let bit = |word: u32, number: u32| word >> number & 1 != 0;
        let features = if cpuid(0, 0).eax >= 7 { cpuid(7, 0).edx } else { 0 };
        let extended = if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).ebx } else { 0 };
        let stibp = bit(features, 27) || bit(extended, 15);
        let ssbd = bit(features, 31) || bit(extended, 24);
        let ibrs_always = bit(extended, 16) || bit(features, 29) && bit_64(capabilities(), 1);
        let barriers = Barriers {
            ibpb: bit(features, 26) || bit(extended, 12),
            l1d: bit(features, 28),
            verw: bit(features, 10),
            ssbd,
        };
        let always = if stibp { STIBP } else { 0 } | if ibrs_always { IBRS } else { 0 };
        Self { barriers, control: stibp || ssbd || ibrs_always, always }
    }

    /// What to do when the CPU goes from a guest whose zone wants `left` to one of another zone that wants `entered`:
    /// each barrier that one of them wants and the CPU has. SSBD concerns only whom it is set for.
    #[must_use]
    pub fn between(&self, left: Barriers, entered: Barriers) -> [Option<Step>; 4] {
        let wanted = left.or(entered).and(self.barriers);
        let ssbd = if entered.and(self.barriers).ssbd { SSBD } else { 0 };
        let step = |condition: bool, index, value| condition.then_some(Step::Write { index, value });
        [
            step(self.control, msr::SPEC_CTRL, self.always | ssbd),
            step(wanted.ibpb, msr::PRED_CMD, 1),
            step(wanted.l1d, msr::FLUSH_CMD, 1),
            wanted.verw.then_some(Step::Verw),
        ]
    }
}

const fn bit_64(word: u64, number: u32) -> bool {
    word >> number & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::{Present, Step};
    use crate::host::CpuidResult;
    use bulkhead_arch::msr;
    use bulkhead_types::Barriers;

    const NONE: Barriers = Barriers { ibpb: false, l1d: false, verw: false, ssbd: false };

    fn processor(features: u32, extended: u32, capabilities: u64) -> Present {
        let cpuid = move |leaf: u32, _: u32| match leaf {
            0 => CpuidResult { eax: 7, ..CpuidResult::default() },
            7 => CpuidResult { edx: features, ..CpuidResult::default() },
            0x8000_0000 => CpuidResult { eax: 0x8000_0008, ..CpuidResult::default() },
            0x8000_0008 => CpuidResult { ebx: extended, ..CpuidResult::default() },
            _ => panic!("leaf {leaf:#x}"),
        };
        Present::of(cpuid, || capabilities)
    }

    fn write(index: u32, value: u64) -> Option<Step> {
        Some(Step::Write { index, value })
    }

    #[test]
    fn a_processor_without_any_is_told_nothing() {
        let none = processor(0, 0, 0);
        assert_eq!(none.between(Barriers::ALL, Barriers::ALL), [None; 4]);
        let old = Present::of(|_, _| CpuidResult::default(), || panic!("no such register"));
        assert_eq!(old, Present::default());
    }

    #[test]
    fn all_that_there_is_is_done_unless_no_zone_wants_it() {
        let all = processor(1 << 10 | 0b1_1111 << 26 | 1 << 31, 0, 1 << 1);
        let everything =
            [write(msr::SPEC_CTRL, 7), write(msr::PRED_CMD, 1), write(msr::FLUSH_CMD, 1), Some(Step::Verw)];
        assert_eq!(all.between(Barriers::ALL, Barriers::ALL), everything);
        assert_eq!(all.between(NONE, Barriers::ALL), everything);
        // Whoever is left is guarded too; its stores are not at stake any more.
        let [control, rest @ ..] = all.between(Barriers::ALL, NONE);
        assert_eq!((control, rest.as_slice()), (write(msr::SPEC_CTRL, 3), &everything[1..]));
        assert_eq!(all.between(NONE, NONE), [write(msr::SPEC_CTRL, 3), None, None, None]);
    }

    #[test]
    fn one_barrier_alone() {
        let ibpb = processor(1 << 26, 0, 0);
        assert_eq!(ibpb.between(Barriers::ALL, NONE), [None, write(msr::PRED_CMD, 1), None, None]);
        let wants = Barriers { l1d: true, ..NONE };
        assert_eq!(ibpb.between(wants, wants), [None; 4]);
    }

    #[test]
    fn the_other_enumeration_counts_too() {
        let other = processor(0, 1 << 12 | 1 << 15 | 1 << 16 | 1 << 24, 0);
        assert_eq!(other.barriers, Barriers { ibpb: true, ssbd: true, ..NONE });
        let told = other.between(NONE, Barriers::ALL);
        assert_eq!(told, [write(msr::SPEC_CTRL, 7), write(msr::PRED_CMD, 1), None, None]);
    }
}
