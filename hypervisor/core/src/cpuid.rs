//! What a guest learns of its processor: an allow-list over the host's CPUID.
//!
//! A bit that is not listed reads as zero, so that a feature this hypervisor does not know is never on by accident.
//! SDM vol. 2A "CPUID"; leaves from 0x4000_0000 on are the hypervisor's.

use crate::host::CpuidResult;
use crate::pvclock;
use bulkhead_arch::{Cr4, Xcr0};
use bulkhead_types::{Frequency, VcpuId};

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1 ECX, always there because virtual: x2APIC, TSC deadline, "a hypervisor is present".
const LEAF1_ECX_SET: u32 = bits(&[21, 24, 31]);
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
/// Leaf 1 EDX: all architectural features but processor serial number, debug store, ACPI, HTT, thermal monitor, PBE.
const LEAF1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27]);
const LEAF1_EDX_APIC: u32 = 1 << 9;
/// Leaf 1 EDX: the number of logical processors in EBX counts.
const LEAF1_EDX_HTT: u32 = 1 << 28;
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
/// Leaf 0x8000_0001 ECX: what leaf 1 counts are cores.
const EXT1_ECX_CORES: u32 = bits(&[1]);
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

/// Where a vCPU stands in its guest's package: each is a core with one thread, and its number is its APIC id.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    id: u32,
    vcpus: u32,
    /// Bits of an APIC id that tell the cores of the package apart.
    core_bits: u32,
    /// What leaf 1 says of it in EBX: its id, and how many ids the package has room for.
    brief: u32,
}

impl Topology {
    /// vCPU `id` of `vcpus`.
    #[must_use]
    pub const fn new(id: VcpuId, vcpus: u8) -> Self {
        let core_bits = u8::BITS - vcpus.saturating_sub(1).leading_zeros();
        let id = id.number() as u32;
        Self { id, vcpus: vcpus as u32, core_bits, brief: id << 24 | 1 << (16 + core_bits) }
    }

    /// APIC ids that the package has room for.
    const fn ids(&self) -> u32 {
        1 << self.core_bits
    }
}

/// The guest's answer to CPUID with this leaf and subleaf, made from the processor's own (`host`).
#[must_use]
pub fn answer(
    [leaf, subleaf]: [u32; 2],
    tsc: Frequency,
    topology: &Topology,
    host: impl Fn(u32, u32) -> CpuidResult,
) -> CpuidResult {
    // A leaf past the highest reads as the highest basic one (SDM, CPUID, "INPUT EAX"): here zero, which says as much.
    let native = || host(leaf, subleaf);
    match leaf {
        0 => CpuidResult { eax: MAX_BASIC, ..native() },
        FEATURES => features(native(), topology),
        2 => native(),
        4 => caches(native(), topology),
        6 => CpuidResult { eax: ARAT, ..CpuidResult::default() },
        7 if subleaf == 0 => structured(native()),
        0xB => levels(subleaf, topology),
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
            let allowed = if topology.vcpus > 1 { EXT1_ECX | EXT1_ECX_CORES } else { EXT1_ECX };
            CpuidResult { eax: native.eax, ebx: 0, ecx: native.ecx & allowed, edx: native.edx & EXT1_EDX }
        }
        0x8000_0002..=0x8000_0006 => native(),
        0x8000_0007 => CpuidResult { edx: INVARIANT_TSC, ..CpuidResult::default() },
        0x8000_0008 => {
            // Number of cores less one, and bits of their ids, on processors that tell them here.
            let cores = (topology.vcpus - 1) | topology.core_bits << 12;
            CpuidResult { eax: native().eax & 0xFFFF, ecx: cores, ..CpuidResult::default() }
        }
        _ => CpuidResult::default(),
    }
}

const fn features(native: CpuidResult, topology: &Topology) -> CpuidResult {
    let several = if topology.vcpus > 1 { LEAF1_EDX_HTT } else { 0 };
    CpuidResult {
        eax: native.eax,
        // Brand index and CLFLUSH line as they are.
        ebx: (native.ebx & 0xFFFF) | topology.brief,
        ecx: (native.ecx & LEAF1_ECX) | LEAF1_ECX_SET,
        edx: native.edx & LEAF1_EDX | several,
    }
}

/// A cache as the processor describes it, but for who shares it: from the third level on all cores. SDM vol. 2A "CPUID",
/// leaf 4.
const fn caches(native: CpuidResult, topology: &Topology) -> CpuidResult {
    if native.eax & 0x1F == 0 {
        return native;
    }
    let others = topology.ids() - 1;
    let sharing = if native.eax >> 5 & 7 >= 3 { others } else { 0 };
    CpuidResult { eax: native.eax & 0x3FFF | sharing << 14 | others << 26, ..native }
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

/// Threads in a core, cores in the package. SDM vol. 3A 9.9.1 "Hierarchical Mapping of Shared Resources".
const fn levels(subleaf: u32, topology: &Topology) -> CpuidResult {
    let (bits, count, kind) = match subleaf {
        0 => (0, 1, 1 << 8),
        1 => (topology.core_bits, topology.vcpus, 2 << 8),
        _ => (0, 0, 0),
    };
    CpuidResult { eax: bits, ebx: count, ecx: kind | (subleaf & 0xFF), edx: topology.id }
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
    use super::{Topology, answer, components, show_state};
    use crate::host::CpuidResult;
    use bulkhead_arch::Xcr0;
    use bulkhead_types::{Frequency, VcpuId};

    const TSC: Frequency = Frequency::hertz(10_000_000);

    fn ask(leaf: [u32; 2], tsc: Frequency, host: impl Fn(u32, u32) -> CpuidResult) -> CpuidResult {
        answer(leaf, tsc, &Topology::new(VcpuId::BOOT, 1), host)
    }

    fn all_ones(_: u32, _: u32) -> CpuidResult {
        CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX }
    }

    #[test]
    fn unknown_features_stay_off() {
        let one = ask([1, 0], TSC, all_ones);
        assert_eq!(one.ecx & (1 << 5 | 1 << 3 | 1 << 27), 0, "VMX, MONITOR, OSXSAVE");
        assert_eq!(one.ecx >> 31, 1, "hypervisor present");
        assert_eq!(ask([7, 0], TSC, all_ones).ecx & (1 << 3 | 1 << 16 | 1 << 7), 0, "PKU, LA57, CET");
        assert_eq!(ask([0x8000_0001, 0], TSC, all_ones).ecx & 4, 0, "SVM");
        for leaf in [3, 5, 8, 9, 0xA, 0xC, 0xF, 0x10, 0x12, 0x14, 0x17, 0x8000_0009, 0xFFFF_FFFF] {
            assert_eq!(ask([leaf, 0], TSC, all_ones), CpuidResult::default(), "leaf {leaf:#x}");
        }
    }

    #[test]
    fn the_guests_state_shows() {
        let mut one = ask([1, 0], TSC, all_ones);
        assert_eq!((one.ecx >> 27 & 1, one.edx >> 9 & 1), (0, 1));
        show_state(&mut one, true, false);
        assert_eq!((one.ecx >> 27 & 1, one.edx >> 9 & 1), (1, 0));
    }

    #[test]
    fn time_stamp_counter_rate() {
        let leaf = ask([0x15, 0], TSC, all_ones);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (1, 1, 10_000_000));
        let leaf = ask([0x15, 0], Frequency::hertz(5_000_000_000), all_ones);
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
        let leaf = ask([0xD, 0], TSC, some);
        assert_eq!((leaf.eax, leaf.ecx), (7, 832));
    }

    #[test]
    fn each_vcpu_finds_its_place() {
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (8, 3)] {
            for id in VcpuId::all(vcpus) {
                let ask = |leaf, subleaf| answer([leaf, subleaf], TSC, &Topology::new(id, vcpus), all_ones);
                let number = u32::from(id.number());
                assert_eq!((ask(1, 0).ebx >> 24, ask(1, 0).ebx >> 16 & 0xFF), (number, 1 << bits));
                assert_eq!(ask(1, 0).edx >> 28 & 1, u32::from(vcpus > 1));
                assert_eq!([0, 1, 2].map(|level| ask(0xB, level).edx), [number; 3]);
                assert_eq!((ask(0xB, 0).eax, ask(0xB, 0).ebx, ask(0xB, 0).ecx), (0, 1, 0x100));
                assert_eq!((ask(0xB, 1).eax, ask(0xB, 1).ebx, ask(0xB, 1).ecx), (bits, vcpus.into(), 0x201));
                assert_eq!((ask(0xB, 2).eax, ask(0xB, 2).ebx, ask(0xB, 2).ecx), (0, 0, 2));
                assert_eq!(ask(0x8000_0008, 0).ecx, (u32::from(vcpus) - 1) | (bits << 12));
                assert_eq!((ask(4, 0).eax >> 14 & 0xFFF, ask(4, 0).eax >> 26), ((1 << bits) - 1, (1 << bits) - 1));
                let own = |_, _| CpuidResult { eax: 0x121, ..CpuidResult::default() };
                assert_eq!(answer([4, 0], TSC, &Topology::new(id, vcpus), own).eax >> 14 & 0xFFF, 0, "level 1");
            }
        }
    }
}
