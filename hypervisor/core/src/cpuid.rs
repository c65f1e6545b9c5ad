//! What a guest learns of its processor: an allow-list over the host's CPUID.
//!
//! A bit that is not listed reads as zero, so that a feature this hypervisor does not know is never on by accident.
//! SDM vol. 2A "CPUID"; leaves from 0x4000_0000 on are the hypervisor's.

use crate::host::CpuidResult;
use crate::pvclock;
use bulkhead_arch::{Cr4, Xcr0};
use bulkhead_types::Frequency;

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1 ECX, always there because virtual: x2APIC, TSC deadline, "a hypervisor is present".
const LEAF1_ECX_SET: u32 = bits(&[21, 24, 31]);
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
/// Leaf 1 EDX: all architectural features but processor serial number, debug store, ACPI, HTT, thermal monitor, PBE.
const LEAF1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27]);
const LEAF1_EDX_APIC: u32 = 1 << 9;
/// Leaf 7 EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA, and AVX-512
/// (F, DQ, IFMA, CD, BW, VL).
const LEAF7_EBX: u32 = bits(&[0, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
/// Leaf 7 ECX: AVX-512 VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ.
const LEAF7_ECX: u32 = bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14]);
/// Leaf 7 EDX: fast short REP MOV, MD_CLEAR.
const LEAF7_EDX: u32 = bits(&[4, 10]);
/// Leaf 7 EBX, always there because virtual: the register that says how far the time-stamp counter was set off. A guest
/// that finds it unmoved trusts the counter without a second clock.
const LEAF7_EBX_SET: u32 = bits(&[1]);
/// Leaf 0xD subleaf 1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX 1.
const LEAFD1_EAX: u32 = bits(&[0, 1, 2]);
/// Leaf 0x8000_0001 ECX: LAHF, LZCNT, 3DNow! prefetch.
const EXT1_ECX: u32 = bits(&[0, 5, 8]);
/// Leaf 0x8000_0001 EDX: SYSCALL, NX, 1-GiB pages, RDTSCP, long mode, and copies of leaf 1.
const EXT1_EDX: u32 = bits(&[11, 20, 26, 27, 29]) | (LEAF1_EDX & 0x0183_F3FF);
/// Leaf 0x8000_0007 EDX: the time-stamp counter runs at one rate.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 6 EAX: the APIC timer never stops.
const ARAT: u32 = 1 << 2;

/// Highest basic leaf: frequencies.
const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_0008;
/// First leaf of the hypervisor's own range, and of the one by KVM's convention (which Linux looks for before it uses
/// x2APIC without interrupt remapping).
const OWN: u32 = 0x4000_0000;
const KVM: u32 = 0x4000_0100;
/// KVM feature: port 0x80 need not be written for a delay.
const KVM_NOP_IO_DELAY: u32 = 1 << 1;

/// Extended state that guests may use.
pub const COMPONENTS: Xcr0 =
    Xcr0::X87.union(Xcr0::SSE).union(Xcr0::AVX).union(Xcr0::OPMASK).union(Xcr0::ZMM_HI256).union(Xcr0::HI16_ZMM);

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut rest = list;
    while let [first, tail @ ..] = rest {
        mask |= 1 << *first;
        rest = tail;
    }
    mask
}

/// The leaf whose answer depends on the guest's state, see [`show_state`].
pub const FEATURES: u32 = 1;

/// The guest's answer to CPUID, made from the processor's own (`host`).
#[must_use]
pub fn answer(leaf: u32, subleaf: u32, tsc: Frequency, host: impl Fn(u32, u32) -> CpuidResult) -> CpuidResult {
    // A leaf past the highest reads as the highest basic one (SDM, CPUID, "INPUT EAX"): here zero, which says as much.
    let native = || host(leaf, subleaf);
    match leaf {
        0 => CpuidResult { eax: MAX_BASIC, ..native() },
        FEATURES => features(native()),
        2 => native(),
        4 => CpuidResult { eax: native().eax & 0x3FFF, ..native() },
        6 => CpuidResult { eax: ARAT, ..CpuidResult::default() },
        7 if subleaf == 0 => structured(native()),
        0xB => topology(subleaf),
        0xD => extended_state(subleaf, host),
        0x15 => crystal(tsc),
        0x16 => {
            let megahertz = u32::try_from(tsc.as_hertz() / 1_000_000).unwrap_or(u32::MAX) & 0xFFFF;
            CpuidResult { eax: megahertz, ebx: megahertz, ecx: 100, edx: 0 }
        }
        OWN => signature(OWN, *b"BulkheadHV\0\0"),
        KVM => signature(KVM + 1, *b"KVMKVMKVM\0\0\0"),
        0x4000_0101 => CpuidResult { eax: KVM_NOP_IO_DELAY | pvclock::FEATURES, ..CpuidResult::default() },
        0x8000_0000 => CpuidResult { eax: native().eax.min(MAX_EXTENDED), ..native() },
        0x8000_0001 => {
            let native = native();
            CpuidResult { eax: native.eax, ebx: 0, ecx: native.ecx & EXT1_ECX, edx: native.edx & EXT1_EDX }
        }
        0x8000_0002..=0x8000_0006 => native(),
        0x8000_0007 => CpuidResult { edx: INVARIANT_TSC, ..CpuidResult::default() },
        0x8000_0008 => CpuidResult { eax: native().eax & 0xFFFF, ..CpuidResult::default() },
        _ => CpuidResult::default(),
    }
}

const fn features(native: CpuidResult) -> CpuidResult {
    CpuidResult {
        eax: native.eax,
        // Brand index and CLFLUSH line as they are; one logical processor, with APIC id 0.
        ebx: (native.ebx & 0xFFFF) | 1 << 16,
        ecx: (native.ecx & LEAF1_ECX) | LEAF1_ECX_SET,
        edx: native.edx & LEAF1_EDX,
    }
}

/// Adds the guest's state to the answer of leaf [`FEATURES`]: whether CR4.OSXSAVE is set, and whether the local APIC is
/// enabled in its base register.
pub const fn show_state(answer: &mut CpuidResult, osxsave: bool, apic: bool) {
    if osxsave {
        answer.ecx |= LEAF1_ECX_OSXSAVE;
    }
    if !apic {
        answer.edx &= !LEAF1_EDX_APIC;
    }
}

fn structured(native: CpuidResult) -> CpuidResult {
    CpuidResult {
        eax: 0,
        ebx: (native.ebx & LEAF7_EBX) | LEAF7_EBX_SET,
        ecx: native.ecx & LEAF7_ECX,
        edx: native.edx & LEAF7_EDX,
    }
}

/// One thread in one core. SDM vol. 3A 9.9.1 "Hierarchical Mapping of Shared Resources".
const fn topology(subleaf: u32) -> CpuidResult {
    let kind = match subleaf {
        0 => 1 << 8,
        1 => 2 << 8,
        _ => 0,
    };
    CpuidResult { eax: 0, ebx: (kind != 0) as u32, ecx: kind | (subleaf & 0xFF), edx: 0 }
}

/// Extended state this guest may use on this processor: a mask as of XCR0.
#[must_use]
pub fn components(host: impl Fn(u32, u32) -> CpuidResult) -> Xcr0 {
    let offered = Xcr0::from_bits_truncate(u64::from(host(0xD, 0).eax)) & COMPONENTS;
    let avx512 = Xcr0::OPMASK | Xcr0::ZMM_HI256 | Xcr0::HI16_ZMM;
    if offered.contains(avx512) { offered } else { offered - avx512 }
}

fn extended_state(subleaf: u32, host: impl Fn(u32, u32) -> CpuidResult) -> CpuidResult {
    let allowed = components(&host);
    match subleaf {
        0 => CpuidResult {
            eax: u32::try_from(allowed.bits()).unwrap_or(0),
            // The guest's own XCR0 is in force: the processor knows the size.
            ebx: host(0xD, 0).ebx,
            ecx: area_bytes(allowed, host),
            edx: 0,
        },
        1 => CpuidResult { eax: host(0xD, 1).eax & LEAFD1_EAX, ebx: host(0xD, 1).ebx, ecx: 0, edx: 0 },
        2..=62 if allowed.bits() >> subleaf & 1 != 0 => CpuidResult { ecx: 0, edx: 0, ..host(0xD, subleaf) },
        _ => CpuidResult::default(),
    }
}

/// Bytes of the XSAVE area for these components, in standard form.
#[must_use]
pub fn area_bytes(components: Xcr0, host: impl Fn(u32, u32) -> CpuidResult) -> u32 {
    const LEGACY_AND_HEADER: u32 = 576;
    (2..=62)
        .filter(|bit| components.bits() >> bit & 1 != 0)
        .map(|bit| {
            let part = host(0xD, bit);
            part.ebx.saturating_add(part.eax)
        })
        .fold(LEGACY_AND_HEADER, u32::max)
}

/// The counter's rate as a crystal's: leaf 0x15, ratio 1 as long as the rate fits.
fn crystal(tsc: Frequency) -> CpuidResult {
    let ratio = 1 + (tsc.as_hertz() >> 32);
    let hertz = u32::try_from(tsc.as_hertz() / ratio).unwrap_or(u32::MAX);
    CpuidResult { eax: 1, ebx: u32::try_from(ratio).unwrap_or(1), ecx: hertz, edx: 0 }
}

const fn signature(highest: u32, text: [u8; 12]) -> CpuidResult {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = text;
    CpuidResult {
        eax: highest,
        ebx: u32::from_le_bytes([a, b, c, d]),
        ecx: u32::from_le_bytes([e, f, g, h]),
        edx: u32::from_le_bytes([i, j, k, l]),
    }
}

/// CR4 bits that the features of `answer` give a guest.
#[must_use]
pub fn allowed_cr4(host: impl Fn(u32, u32) -> CpuidResult) -> Cr4 {
    let (one, seven) = (host(1, 0), host(7, 0));
    let mut allowed = Cr4::VME | Cr4::PVI | Cr4::TSD | Cr4::DE | Cr4::PSE | Cr4::PAE | Cr4::MCE | Cr4::PGE | Cr4::PCE;
    allowed |= Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    let optional = [
        (one.ecx >> 26 & 1, Cr4::OSXSAVE),
        (one.ecx >> 17 & 1, Cr4::PCIDE),
        (seven.ebx & 1, Cr4::FSGSBASE),
        (seven.ebx >> 7 & 1, Cr4::SMEP),
        (seven.ebx >> 20 & 1, Cr4::SMAP),
        (seven.ecx >> 2 & 1, Cr4::UMIP),
    ];
    for (present, bit) in optional {
        allowed.set(bit, allowed.contains(bit) || present != 0);
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::{answer, components, show_state};
    use crate::host::CpuidResult;
    use bulkhead_arch::Xcr0;
    use bulkhead_types::Frequency;

    const TSC: Frequency = Frequency::hertz(10_000_000);

    fn all_ones(_: u32, _: u32) -> CpuidResult {
        CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX }
    }

    #[test]
    fn unknown_features_stay_off() {
        let one = answer(1, 0, TSC, all_ones);
        assert_eq!(one.ecx & (1 << 5 | 1 << 3 | 1 << 27), 0, "VMX, MONITOR, OSXSAVE");
        assert_eq!(one.ecx >> 31, 1, "hypervisor present");
        assert_eq!(answer(7, 0, TSC, all_ones).ecx & (1 << 3 | 1 << 16 | 1 << 7), 0, "PKU, LA57, CET");
        assert_eq!(answer(0x8000_0001, 0, TSC, all_ones).ecx & 4, 0, "SVM");
        for leaf in [3, 5, 8, 9, 0xA, 0xC, 0xF, 0x10, 0x12, 0x14, 0x17, 0x8000_0009, 0xFFFF_FFFF] {
            assert_eq!(answer(leaf, 0, TSC, all_ones), CpuidResult::default(), "leaf {leaf:#x}");
        }
    }

    #[test]
    fn the_guests_state_shows() {
        let mut one = answer(1, 0, TSC, all_ones);
        assert_eq!((one.ecx >> 27 & 1, one.edx >> 9 & 1), (0, 1));
        show_state(&mut one, true, false);
        assert_eq!((one.ecx >> 27 & 1, one.edx >> 9 & 1), (1, 0));
    }

    #[test]
    fn time_stamp_counter_rate() {
        let leaf = answer(0x15, 0, TSC, all_ones);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (1, 1, 10_000_000));
        let leaf = answer(0x15, 0, Frequency::hertz(5_000_000_000), all_ones);
        assert_eq!(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax), 5_000_000_000);
    }

    #[test]
    fn extended_state_is_whole_or_absent() {
        let some = |leaf: u32, sub: u32| match (leaf, sub) {
            (0xD, 0) => CpuidResult { eax: 0x27, ..CpuidResult::default() },
            (0xD, 2) => CpuidResult { eax: 256, ebx: 576, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        };
        assert_eq!(components(some), Xcr0::X87 | Xcr0::SSE | Xcr0::AVX);
        let leaf = answer(0xD, 0, TSC, some);
        assert_eq!((leaf.eax, leaf.ecx), (7, 832));
    }
}
