//! The clock by KVM's convention: how a guest's time-stamp counter becomes time, so that none has to measure it.
//!
//! The guest writes the address of a structure to an MSR, and finds in it a count of its TSC, the time in nanoseconds at
//! that count, and a factor. Nothing of it changes later, since the TSC runs at one rate, unless the guest sets its TSC.
//! Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_WALL_CLOCK_NEW and MSR_KVM_SYSTEM_TIME_NEW.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | name any address | 12 or 32 bytes of its own RAM are written once; what is no RAM is #GP |

use bulkhead_types::{Frequency, Gpa, GuestMemory, MemoryError};

/// MSR: where to write what the date was when the machine was switched on.
pub(crate) const WALL_CLOCK: u32 = 0x4B56_4D00;
/// MSR: where to write how to read the time; bit 0 switches it on.
pub(crate) const SYSTEM_TIME: u32 = 0x4B56_4D01;
/// KVM features of CPUID: these two MSRs, and that what is read never goes back from one processor to the next.
pub(crate) const FEATURES: u32 = 1 << 3 | 1 << 24;

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

fn collected<const N: usize>(bytes: impl Iterator<Item = u8>) -> [u8; N] {
    let mut all = [0; N];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    all
}

#[cfg(test)]
mod tests {
    use super::factor;
    use bulkhead_types::Frequency;

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
