//! What the processor's SVM can do, and what is missing for this hypervisor.
//!
//! APM vol. 2 15.4 "Enabling SVM"; vol. 3 appendix E.4.9 "Function 8000_000Ah SVM Features".

use crate::switched;
use bulkhead_arch::msr;
use bulkhead_hw::probe::Source;
use core::fmt;

/// What SVM lacks here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "each has its sentence in Display")]
pub enum Missing {
    Svm,
    Disabled,
    NestedPaging,
    Asids,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let old = "use a newer processor, or expose it to this virtual machine";
        let (what, advice) = match self {
            Self::Svm => (
                "this processor shows no SVM (CPUID.8000_0001:ECX bit 2)",
                "use an AMD processor with AMD-V; in a virtual machine, switch on nested virtualization",
            ),
            Self::Disabled => (
                "the firmware has switched SVM off (VM_CR.SVMDIS)",
                "switch on \"SVM Mode\" in the firmware's set-up, then power-cycle the machine",
            ),
            Self::NestedPaging => ("SVM lacks nested paging", old),
            Self::Asids => ("SVM has too few address-space identifiers", old),
        };
        write!(f, "{what}: {advice}.")
    }
}

/// What the processor's SVM can do; all that is needed is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// How many address-space identifiers there are, 0 (the host's) included.
    pub asids: u32,
    /// An exit says where the next instruction is.
    pub next_rip: bool,
    /// An exit says what a MOV to or from a control register named.
    pub decode_assists: bool,
    /// An entry can be told what has not changed.
    pub clean_bits: bool,
    /// One identifier's translations can be forgotten alone.
    pub flush_by_asid: bool,
    /// It may deliver an injected interrupt once more, unless an exit follows: QEMU's TCG does.
    pub repeats_interrupts: bool,
    /// Which of [`switched::SWITCHED`] exist.
    pub switched: [bool; switched::COUNT],
}

/// "TCGTCGTCGTCG", as leaf 4000_0000 has it.
const TCG: [u32; 3] = [0x5447_4354, 0x4354_4743, 0x4743_5447];

/// Fewest identifiers: the host's, and one for all guests.
const FEWEST_ASIDS: u32 = 2;

impl Capabilities {
    /// Reads what `source` says.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn read(source: &impl Source) -> Result<Self, Missing> {
        const SVM_DISABLED: u64 = 1 << 4;
        let [_, _, extended_ecx, extended_edx] = source.cpuid(0x8000_0001, 0);
        if extended_ecx & 1 << 2 == 0 {
            return Err(Missing::Svm);
        }
        if source.msr(msr::VM_CR) & SVM_DISABLED != 0 {
            return Err(Missing::Disabled);
        }
        let [_, asids, _, features] = source.cpuid(0x8000_000A, 0);
        if features & 1 == 0 {
            return Err(Missing::NestedPaging);
        }
        if asids < FEWEST_ASIDS {
            return Err(Missing::Asids);
        }
        Ok(Self {
            asids,
            next_rip: features & 1 << 3 != 0,
            clean_bits: features & 1 << 5 != 0,
            decode_assists: features & 1 << 7 != 0,
            flush_by_asid: features & 1 << 6 != 0,
            repeats_interrupts: matches!(source.cpuid(0x4000_0000, 0), [_, b, c, d] if [b, c, d] == TCG),
            // RDTSCP.
            switched: [extended_edx & 1 << 27 != 0],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Capabilities, Missing, Source};
    use std::string::ToString;

    struct Table {
        svm: u32,
        vm_cr: u64,
        asids: u32,
        features: u32,
        name: &'static [u8; 12],
    }

    impl Source for Table {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            match leaf {
                0x8000_0001 => [0, 0, self.svm, 1 << 27],
                0x8000_000A => [1, self.asids, 0, self.features],
                0x4000_0000 => {
                    let word = |at: usize| u32::from_le_bytes(self.name[at..at + 4].try_into().unwrap());
                    [0, word(0), word(4), word(8)]
                }
                _ => [0; 4],
            }
        }
        fn msr(&self, _: u32) -> u64 {
            self.vm_cr
        }
    }

    const GOOD: Table = Table { svm: 4, vm_cr: 0, asids: 16, features: 0b1_1001, name: b"KVMKVMKVM\0\0\0" };

    #[test]
    fn each_lack_has_its_sentence() {
        for (table, missing, text) in [
            (Table { svm: 0, ..GOOD }, Missing::Svm, "nested virtualization"),
            (Table { vm_cr: 0x10, ..GOOD }, Missing::Disabled, "SVM Mode"),
            (Table { features: 0, ..GOOD }, Missing::NestedPaging, "nested paging"),
            (Table { asids: 1, ..GOOD }, Missing::Asids, "identifiers"),
        ] {
            assert_eq!(Capabilities::read(&table), Err(missing));
            assert!(missing.to_string().contains(text) && missing.to_string().ends_with('.'));
        }
    }

    #[test]
    fn what_is_there_is_used() {
        let capabilities = Capabilities::read(&GOOD).unwrap();
        assert!(capabilities.next_rip && !capabilities.decode_assists && !capabilities.flush_by_asid);
        assert_eq!(capabilities.switched, [true]);
        assert!(!capabilities.repeats_interrupts);
        let tcg = Capabilities::read(&Table { name: b"TCGTCGTCGTCG", ..GOOD }).unwrap();
        assert!(tcg.repeats_interrupts);
    }
}
