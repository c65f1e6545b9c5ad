//! How fast the time-stamp counter ticks.
//!
//! By CPUID where it says so (SDM vol. 2A CPUID leaf 15H "Time Stamp Counter and Nominal Core Crystal Clock"), else
//! against channel 2 of the PIT (Intel 8254 data sheet, mode 0), which every PC has.

use crate::cpu::{cpuid, tsc};
use crate::ports::{read, write};
use bulkhead_types::Frequency;

const PIT_HERTZ: u64 = 1_193_182;
/// PIT ticks of one measurement: about 10 ms.
const INTERVAL: u64 = 11_932;
/// Measurements. What comes between (the firmware, or a busy host of a virtual machine) makes one longer, never shorter.
const MEASUREMENTS: u32 = 5;
/// Looks at the PIT before it is given up.
const PATIENCE: u32 = 100_000_000;

/// Ticks of the time-stamp counter a second; `None` if neither CPUID nor a PIT tells.
#[must_use]
pub fn tsc_frequency() -> Option<Frequency> {
    by_cpuid().or_else(by_pit).map(Frequency::hertz)
}

fn by_cpuid() -> Option<u64> {
    if cpuid(0, 0).eax < 0x15 {
        return None;
    }
    let leaf = cpuid(0x15, 0);
    let (denominator, numerator, crystal) = (u64::from(leaf.eax), u64::from(leaf.ebx), u64::from(leaf.ecx));
    (denominator != 0 && numerator != 0 && crystal != 0).then(|| crystal * numerator / denominator)
}

fn by_pit() -> Option<u64> {
    let ticks = (0..MEASUREMENTS).map_while(|_| interval()).min()?;
    Some(ticks.saturating_mul(PIT_HERTZ) / INTERVAL)
}

/// Counts the interval down on channel 2 (gate and speaker at port 0x61) and looks at its output.
fn interval() -> Option<u64> {
    let [low, high, ..] = INTERVAL.to_le_bytes();
    // SAFETY: the PIT's command and channel-2 ports and the gate at port 0x61, which nothing else in the hypervisor
    // uses; the speaker stays off.
    unsafe {
        write(0x61, (read(0x61) & !2) | 1);
        write(0x43, 0xB0);
        write(0x42, low);
        write(0x42, high);
    }
    let start = tsc();
    for _ in 0..PATIENCE {
        // SAFETY: as above; bit 5 is the channel's output.
        if unsafe { read(0x61) } & 0x20 != 0 {
            return Some(tsc().wrapping_sub(start));
        }
    }
    None
}
