use super::{Capabilities, Missing, Source};
use crate::fake;
use bulkhead_arch::msr;
use std::collections::BTreeMap;
use std::string::ToString;

/// A processor with the capability registers of a Haswell.
#[derive(Clone)]
struct Table {
    msrs: BTreeMap<u32, u64>,
    leaves: BTreeMap<u32, [u32; 4]>,
}

impl Source for Table {
    fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
        self.leaves.get(&leaf).copied().unwrap_or([0; 4])
    }

    fn msr(&self, index: u32) -> u64 {
        *self.msrs.get(&index).unwrap_or_else(|| panic!("MSR {index:#x} was not promised"))
    }
}

const TRUE_PIN: u32 = 0x48D;
const TRUE_PRIMARY: u32 = 0x48E;
const TRUE_EXIT: u32 = 0x48F;
const TRUE_ENTRY: u32 = 0x490;
const SECONDARY: u32 = 0x48B;
const EPT_VPID: u32 = 0x48C;

fn haswell() -> Table {
    let fake = fake::capabilities();
    let word = |allowed: crate::controls::Allowed| u64::from(allowed.must) | u64::from(allowed.may) << 32;
    Table {
        msrs: BTreeMap::from([
            (msr::FEATURE_CONTROL, 5),
            (msr::VMX_BASIC, 0x00DA_0400_0000_0012),
            (0x485, 0x7004_81E5),
            (0x486, fake.cr0.must),
            (0x487, fake.cr0.may),
            (0x488, fake.cr4.must),
            (0x489, fake.cr4.may),
            (SECONDARY, word(fake.secondary)),
            (EPT_VPID, fake.ept_vpid),
            (TRUE_PIN, word(fake.pin)),
            (TRUE_PRIMARY, word(fake.primary)),
            (TRUE_EXIT, word(fake.exit)),
            (TRUE_ENTRY, word(fake.entry)),
        ]),
        leaves: BTreeMap::from([
            (0, [0xD, 0, 0, 0]),
            (1, [0, 0, 1 << 5, 0]),
            (7, [0, 0, 0, 1 << 26]),
            (0x8000_0000, [0x8000_0008, 0, 0, 0]),
            (0x8000_0001, [0, 0, 0, 1 << 27]),
            (0x8000_0008, [0x3027, 0, 0, 0]),
        ]),
    }
}

#[test]
fn a_haswell_has_all() {
    let capabilities = Capabilities::read(&haswell()).unwrap();
    assert_eq!(capabilities.revision, 0x12);
    assert_eq!(capabilities.timer_shift, 5);
    assert_eq!(capabilities.physical_bits, 39);
    assert!(capabilities.string_info && capabilities.zero_length);
    assert!(capabilities.ept_1g() && capabilities.ept_accessed_dirty() && capabilities.invvpid_single());
    assert!(capabilities.rdtscp() && capabilities.invpcid());
    assert_eq!(capabilities.switched, [true; 6]);
}

#[test]
fn tsc_aux_is_switched_only_where_it_exists() {
    let mut table = haswell();
    table.leaves.remove(&7);
    table.leaves.remove(&0x8000_0001);
    assert_eq!(Capabilities::read(&table).unwrap().switched, [true, true, true, true, true, false]);
}

/// Takes each needed thing away, one at a time.
#[test]
fn each_missing_thing_is_named() {
    let without = |index: u32, bit: u32| {
        let mut table = haswell();
        *table.msrs.get_mut(&index).unwrap() &= !(1_u64 << bit);
        Capabilities::read(&table).unwrap_err()
    };
    let may = 32;
    for (index, bit, missing) in [
        (msr::VMX_BASIC, 51, "uncached memory"),
        (TRUE_PIN, may, "VT-x lacks NMI exiting or virtual NMIs"),
        (TRUE_PIN, may + 3, "VT-x lacks NMI exiting or virtual NMIs"),
        (TRUE_PIN, may + 5, "VT-x lacks NMI exiting or virtual NMIs"),
        (TRUE_PIN, may + 6, "VT-x lacks the preemption timer"),
        (TRUE_PRIMARY, may + 7, "VT-x lacks HLT, MWAIT, RDPMC or CR8 exiting or TSC offsetting"),
        (TRUE_PRIMARY, may + 3, "VT-x lacks HLT, MWAIT, RDPMC or CR8 exiting or TSC offsetting"),
        (TRUE_PRIMARY, may + 19, "VT-x lacks HLT, MWAIT, RDPMC or CR8 exiting or TSC offsetting"),
        (TRUE_PRIMARY, may + 2, "VT-x lacks HLT, MWAIT, RDPMC or CR8 exiting or TSC offsetting"),
        (TRUE_PRIMARY, may + 22, "VT-x lacks HLT, MWAIT, RDPMC or CR8 exiting or TSC offsetting"),
        (TRUE_PRIMARY, may + 25, "VT-x lacks MSR bitmaps or I/O bitmaps"),
        (TRUE_PRIMARY, may + 28, "VT-x lacks MSR bitmaps or I/O bitmaps"),
        (TRUE_PRIMARY, may + 31, "VT-x lacks the secondary processor-based controls"),
        (SECONDARY, may + 1, "VT-x lacks extended page tables (EPT)"),
        (SECONDARY, may + 5, "VT-x lacks virtual-processor identifiers (VPID)"),
        (SECONDARY, may + 7, "VT-x lacks unrestricted guest (real mode without emulation)"),
        (EPT_VPID, 6, "EPT lacks tables of four levels"),
        (EPT_VPID, 14, "EPT lacks write-back tables"),
        (EPT_VPID, 16, "EPT lacks 2-MiB pages"),
        (EPT_VPID, 20, "INVEPT lacks the single-context or the all-context type"),
        (EPT_VPID, 25, "INVEPT lacks the single-context or the all-context type"),
        (EPT_VPID, 26, "INVEPT lacks the single-context or the all-context type"),
        (EPT_VPID, 32, "INVVPID lacks the single-context and the all-context type"),
        (TRUE_EXIT, may + 9, "VT-x lacks 64-bit hosts or IA-32e mode guests"),
        (TRUE_ENTRY, may + 9, "VT-x lacks 64-bit hosts or IA-32e mode guests"),
        (TRUE_EXIT, may + 20, "VT-x does not switch IA32_EFER"),
        (TRUE_ENTRY, may + 15, "VT-x does not switch IA32_EFER"),
        (TRUE_EXIT, may + 19, "VT-x does not switch IA32_PAT"),
        (TRUE_ENTRY, may + 14, "VT-x does not switch IA32_PAT"),
        (TRUE_EXIT, may + 2, "VT-x does not switch DR7 and IA32_DEBUGCTL"),
    ] {
        let sentence = without(index, bit).to_string();
        assert!(sentence.contains(missing), "MSR {index:#x} without bit {bit}: {sentence}");
        assert!(sentence.contains(": use a newer processor") && sentence.ends_with('.'), "{sentence}");
    }
}

#[test]
fn cr3_exits_that_can_not_be_switched_off_are_named() {
    let mut table = haswell();
    *table.msrs.get_mut(&TRUE_PRIMARY).unwrap() |= 1 << 15;
    assert_eq!(
        Capabilities::read(&table),
        Err(Missing::feature("VT-x can not let a guest load CR3 without an exit (TRUE controls)"))
    );
}

#[test]
fn without_vmx_no_msr_is_read() {
    let table = Table { msrs: BTreeMap::new(), leaves: BTreeMap::from([(1, [0, 0, !(1 << 5), 0])]) };
    assert_eq!(Capabilities::read(&table), Err(Missing::VMX));
}

#[test]
fn locked_off_is_told_from_not_yet_on() {
    let mut table = haswell();
    table.msrs.insert(msr::FEATURE_CONTROL, 1);
    assert_eq!(Capabilities::read(&table), Err(Missing::LOCKED_OFF));
    table.msrs.insert(msr::FEATURE_CONTROL, 0);
    assert!(Capabilities::read(&table).is_ok());
}

#[test]
fn one_form_of_invvpid_is_enough() {
    let mut table = haswell();
    *table.msrs.get_mut(&EPT_VPID).unwrap() &= !(1 << 41);
    assert!(!Capabilities::read(&table).unwrap().invvpid_single());
    *table.msrs.get_mut(&EPT_VPID).unwrap() &= !(1 << 42);
    assert_eq!(
        Capabilities::read(&table),
        Err(Missing::feature("INVVPID lacks the single-context and the all-context type"))
    );
}

#[test]
fn paging_bits_are_the_guests_and_caching_bits_are_not() {
    let capabilities = fake::capabilities();
    assert_eq!(capabilities.cr0_owned(), !0x8005_001F);
    assert_eq!(capabilities.cr0_real(0x6000_0010), 0x30);
    assert_eq!(capabilities.cr0_real(0xE005_0033), 0x8005_0033);
    assert_eq!(capabilities.cr4_real(0), 0x2040);
    // Not on this processor: UMIP is nobody's to set.
    assert_eq!(!capabilities.cr4_owned(), 0x37_07BF);
    assert_eq!(capabilities.cr4_real(u64::MAX), capabilities.cr4.may);
}
