//! The clock by KVM's convention, and the time that was stolen.
//!
//! The clock says how a guest's time-stamp counter becomes time, so that none has to measure it.
//! The guest writes the address of a structure to an MSR, and finds in it a count of its TSC, the time in nanoseconds at
//! that count, and a factor. Nothing of it changes later, since the TSC runs at one rate, unless the guest sets its TSC.
//! Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_WALL_CLOCK_NEW and MSR_KVM_SYSTEM_TIME_NEW.
//!
//! Stolen is the time in which a vCPU could have run and had no processor, as the scheduler meters it. The vCPU writes the
//! address of a structure to an MSR and finds the sum there, in nanoseconds since the vCPU was made. It is written when the
//! MSR is, and when a turn of the vCPU begins, so that it is right whenever the vCPU itself reads it; at a turn's end the
//! structure says that the vCPU does not run, for the others. MSR_KVM_STEAL_TIME of the same document.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | name any address | 12 or 32 bytes of its own RAM are written once; what is no RAM is #GP |
//! | have the time stolen told anywhere | 17 bytes of its own RAM are written each turn, with several vCPUs one at its end, in its own time; never read |

use bulkhead_types::{Frequency, Gpa, GuestMemory, MemoryError};

/// MSR: where to write what the date was when the machine was switched on.
pub(crate) const WALL_CLOCK: u32 = 0x4B56_4D00;
/// MSR: where to write how to read the time; bit 0 switches it on.
pub(crate) const SYSTEM_TIME: u32 = 0x4B56_4D01;
/// MSR: where to tell the time stolen; bit 0 switches it on.
pub(crate) const STEAL_TIME: u32 = 0x4B56_4D03;
/// KVM features of CPUID: the first two MSRs, the third, and that what is read never goes back from one processor to the next.
pub(crate) const FEATURES: u32 = 1 << 3 | 1 << 5 | 1 << 24;
/// Bit 0 of the MSRs that have it.
const ON: u64 = 1;
/// Bits of the third MSR that are to be clear: the structure has 64 bytes, and so is nowhere in two pages.
const RESERVED: u64 = 0x3E;

/// Nanoseconds of a tick: 2^32 times as many in a number from 2^31 on, after the ticks were shifted to the left (to the right
/// if negative).
fn factor(tsc: Frequency) -> (u32, i8) {
    const NANOSECONDS: u128 = 1_000_000_000 << 32;
    let hertz = u128::from(tsc.as_hertz());
    // A rate of 1 Hz to 2^64 Hz is between these.
    (-32..=32)
        .find_map(|shift: i8| {
            let nanoseconds = NANOSECONDS << 32 >> (32 + i32::from(shift));
            let factor = u32::try_from(nanoseconds / hertz.max(1)).ok()?;
            (factor >> 31 != 0).then_some((factor, shift))
        })
        .unwrap_or((0, 0))
}

/// Writes to `at` how the TSC of a guest becomes the time since its machine was switched on, when it was `count`.
pub(crate) fn write_system_time(
    memory: &mut impl GuestMemory,
    at: Gpa,
    count: u64,
    tsc: Frequency,
) -> Result<(), MemoryError> {
    const STABLE: u8 = 1;
    let (factor, shift) = factor(tsc);
    // Version (even: not being written), padding, count, time at the count, factor, shift, flags, padding.
    let fields = [2_u32.to_le_bytes(), [0; 4]].into_iter().flatten();
    let fields = fields.chain(count.to_le_bytes()).chain([0; 8]).chain(factor.to_le_bytes());
    memory.write(at, &collected::<32>(fields.chain(shift.to_le_bytes()).chain([STABLE, 0, 0])))
}

/// Writes to `at` the date when the machine was switched on, in seconds since 1970.
pub(crate) fn write_wall_clock(memory: &mut impl GuestMemory, at: Gpa, seconds: u64) -> Result<(), MemoryError> {
    let seconds = u32::try_from(seconds & 0xFFFF_FFFF).unwrap_or(0);
    memory.write(at, &collected::<12>([2, seconds, 0].into_iter().flat_map(u32::to_le_bytes)))
}

/// Where a vCPU wants to be told what was stolen from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stolen {
    /// The MSR.
    register: u64,
    /// How often it was told, twice; odd while it is.
    version: u32,
    /// It is the guest's only vCPU: nobody can look while it is told, or while the vCPU does not run.
    alone: bool,
}

impl Stolen {
    pub(crate) const fn new(alone: bool) -> Self {
        Self { register: 0, version: 0, alone }
    }

    /// As nothing were asked for.
    pub(crate) const fn reset(self) -> Self {
        Self::new(self.alone)
    }

    /// What the MSR reads as.
    pub(crate) const fn register(self) -> u64 {
        self.register
    }

    /// Takes what was written to the MSR, and tells the time stolen if it is to be told. `None` if it may not be: nothing is
    /// changed then.
    #[must_use]
    pub(crate) fn set(&mut self, memory: &mut impl GuestMemory, value: u64, ticks: u64, tsc: Frequency) -> Option<()> {
        let mut new = Self { register: value, ..*self };
        if value & RESERVED != 0 || new.at().is_some_and(|at| new.write(memory, at, ticks, tsc).is_err()) {
            return None;
        }
        *self = new;
        Some(())
    }

    /// A turn begins; `ticks` were stolen up to now.
    pub(crate) fn begin(&mut self, memory: &mut impl GuestMemory, ticks: u64, tsc: Frequency) {
        if let Some(at) = self.at()
            && self.write(memory, at, ticks, tsc).is_err()
        {
            self.register = 0;
        }
    }

    /// A turn is over.
    pub(crate) fn end(&mut self, memory: &mut impl GuestMemory) {
        const PREEMPTED: [u8; 1] = [1];
        if let Some(at) = self.at()
            && !self.alone
            && memory.write(Gpa::new(at.wrapping_add(16)), &PREEMPTED).is_err()
        {
            self.register = 0;
        }
    }

    /// Where, if it is to be told at all.
    fn at(self) -> Option<u64> {
        (self.register & ON != 0).then_some(self.register & !ON)
    }

    /// Writes the structure at `at`. The bytes are written in this order, and all of them lie in one page.
    fn write(&mut self, memory: &mut impl GuestMemory, at: u64, ticks: u64, tsc: Frequency) -> Result<(), MemoryError> {
        const NANOSECONDS: Frequency = Frequency::hertz(1_000_000_000);
        let (stolen, version) = (Gpa::new(at), Gpa::new(at.wrapping_add(8)));
        let told = self.version.wrapping_add(2);
        let nanoseconds = tsc.convert(ticks, NANOSECONDS).to_le_bytes();
        if self.alone {
            // Version, flags, preempted.
            memory.write(stolen, &collected::<17>(nanoseconds.into_iter().chain(told.to_le_bytes())))?;
        } else {
            memory.write(version, &self.version.wrapping_add(1).to_le_bytes())?;
            memory.write(stolen, &nanoseconds)?;
            memory.write(version, &collected::<9>(told.to_le_bytes().into_iter()))?;
        }
        self.version = told;
        Ok(())
    }
}

fn collected<const N: usize>(bytes: impl Iterator<Item = u8>) -> [u8; N] {
    let mut all = [0; N];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    all
}

#[cfg(test)]
mod tests {
    use super::{Stolen, factor};
    use bulkhead_types::{Frequency, Gpa, GuestMemory, MemoryError};
    extern crate std;
    use std::vec::Vec;

    /// 128 bytes of RAM from [`Self::AT`] on, and what was written in which order.
    struct Ram {
        bytes: [u8; 128],
        writes: Vec<(u64, usize)>,
        gone: bool,
    }

    impl Ram {
        const AT: u64 = 0x1000;

        fn new() -> Self {
            Self { bytes: [0xAA; 128], writes: Vec::new(), gone: false }
        }

        fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
            self.bytes[offset..offset + N].try_into().unwrap()
        }
    }

    impl GuestMemory for Ram {
        fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), MemoryError> {
            panic!("what a guest may have changed is never read");
        }
        fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
            let error = MemoryError { gpa, bytes: from.len() };
            let offset = usize::try_from(gpa.as_u64().checked_sub(Self::AT).ok_or(error)?).unwrap();
            let end = offset.checked_add(from.len()).filter(|_| !self.gone).ok_or(error)?;
            self.bytes.get_mut(offset..end).ok_or(error)?.copy_from_slice(from);
            self.writes.push((offset as u64, from.len()));
            Ok(())
        }
        fn zero(&mut self, gpa: Gpa, _: u64) -> Result<(), MemoryError> {
            Err(MemoryError { gpa, bytes: 0 })
        }
    }

    const TSC: Frequency = Frequency::hertz(10_000_000);

    #[test]
    fn what_was_stolen_is_told_in_nanoseconds_each_turn() {
        let (mut ram, mut stolen) = (Ram::new(), Stolen::new(false));
        stolen.begin(&mut ram, 5, TSC);
        stolen.end(&mut ram);
        assert!(ram.writes.is_empty(), "nobody asked");
        assert_eq!(stolen.set(&mut ram, Ram::AT + 64 + 1, 10, TSC), Some(()));
        assert_eq!(stolen.register(), Ram::AT + 64 + 1);
        assert_eq!((u64::from_le_bytes(ram.at(64)), u32::from_le_bytes(ram.at(72))), (1000, 2));
        assert_eq!((ram.at::<4>(76), ram.at::<1>(80), ram.at::<1>(81)), ([0; 4], [0], [0xAA]));
        stolen.end(&mut ram);
        assert_eq!((ram.at::<1>(80), ram.at::<4>(72)), ([1], [2, 0, 0, 0]));
        ram.writes.clear();
        stolen.begin(&mut ram, 1 << 62, TSC);
        assert_eq!(
            ram.writes,
            [(72, 4), (64, 8), (72, 9)],
            "the version is odd, then the time changes, then it is even"
        );
        assert_eq!((ram.at::<4>(72), ram.at::<1>(80)), ([4, 0, 0, 0], [0]));
        assert!(ram.bytes[..64].iter().all(|byte| *byte == 0xAA));
        assert_eq!(stolen.set(&mut ram, 0, 20, TSC), Some(()));
        ram.writes.clear();
        stolen.begin(&mut ram, 30, TSC);
        assert!(ram.writes.is_empty(), "switched off");
    }

    #[test]
    fn an_only_vcpu_is_told_at_once() {
        let (mut ram, mut stolen) = (Ram::new(), Stolen::new(true));
        assert_eq!(stolen.set(&mut ram, Ram::AT + 1, 10, TSC), Some(()));
        stolen.end(&mut ram);
        assert_eq!(ram.writes, [(0, 17)]);
        assert_eq!((u64::from_le_bytes(ram.at(0)), ram.at::<9>(8)), (1000, [2, 0, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn the_version_goes_round() {
        let mut stolen = Stolen { version: u32::MAX - 1, ..Stolen::new(false) };
        assert_eq!(stolen.set(&mut Ram::new(), Ram::AT | 1, 0, TSC), Some(()));
        assert_eq!(stolen.version, 0);
    }

    #[test]
    fn only_whole_structures_in_ram() {
        let mut stolen = Stolen::new(false);
        assert_eq!(stolen.set(&mut Ram::new(), Ram::AT | 1, 0, TSC), Some(()));
        for bit in 1..6 {
            for on in [0, 1] {
                let mut ram = Ram::new();
                assert_eq!(stolen.set(&mut ram, Ram::AT | 1 << bit | on, 0, TSC), None, "bit {bit}");
                assert!(ram.writes.is_empty());
            }
        }
        for wrong in [Ram::AT - 64, Ram::AT + 128, 0, !0x3F, 1 << 63, 0x0007_FFFF_FFFF_FFC0] {
            assert_eq!(stolen.set(&mut Ram::new(), wrong | 1, 0, TSC), None, "{wrong:#x}");
            assert_eq!(stolen.register(), Ram::AT | 1, "what was refused changes nothing");
            // What is off names nothing.
            assert_eq!(Stolen::new(false).set(&mut Ram::new(), wrong, 0, TSC), Some(()));
        }
        let mut gone = Ram { gone: true, ..Ram::new() };
        stolen.begin(&mut gone, 1, TSC);
        assert_eq!(stolen.register(), 0, "RAM that is gone is not written again");
    }

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hertz in [1_000_000, 10_000_000, 999_999_999, 1_000_000_000, 1_000_000_001, 2_600_000_000, 5_000_000_000] {
            let (factor, shift) = factor(Frequency::hertz(hertz));
            // As the guest does it: Linux, pvclock_scale_delta().
            let ticks = if shift < 0 { u128::from(hertz) >> -shift } else { u128::from(hertz) << shift };
            let nanoseconds = (ticks * u128::from(factor)) >> 32;
            assert!(nanoseconds.abs_diff(1_000_000_000) <= 3, "{hertz}: {factor} {shift}: {nanoseconds}");
            assert!(factor >> 31 == 1);
        }
    }
}
