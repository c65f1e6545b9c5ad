//! Finds every root of page tables in a dump.
//!
//! How, and why none is missed, is in the crate's documentation. A VMCB is known by what VMRUN demands of it (APM vol. 2,
//! 15.5.1 "Basic Operation", "Canonicalization and Consistency Checks"; its fields: appendix B "Layout of VMCB"). An EPT
//! pointer: SDM vol. 3, 25.6.11 "Extended-Page-Table Pointer (EPTP)".

use crate::dump::{Dump, read64};
use crate::format::Format;
use crate::image::Image;
use crate::layout::SHARED_SLOT;
use crate::owner::{Owner, Owners, Use};
use crate::walk::translate;
use std::collections::{BTreeMap, BTreeSet};

/// A root of nested tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NestedRoot {
    /// Its frame.
    pub root: u64,
    /// Frame of the control structure that names it.
    pub named_by: u64,
    /// Whether it is in Intel's format.
    pub ept: bool,
}

impl NestedRoot {
    /// The format.
    pub fn format(self) -> Format {
        if self.ept { Format::Ept } else { Format::Npt }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// Host roots in use.
    pub host: Vec<u64>,
    /// Host roots that lie in free memory and that nothing names.
    pub dormant: Vec<u64>,
    /// Nested roots.
    pub nested: Vec<NestedRoot>,
    /// Control structures that would run a guest without nested tables.
    pub bare: Vec<u64>,
}

/// Frames under which the hypervisor's code can be executed.
pub fn host_candidates(dump: &Dump, image: &Image) -> Vec<u64> {
    let Some((address, code)) = image.code() else { return Vec::new() };
    let slot = usize::try_from((address >> 39) & 511).unwrap_or(0);
    let mut found = Vec::new();
    for frame in dump.frames() {
        let present = dump.frame(frame).and_then(|content| read64(content, slot * 8)).is_some_and(|e| e & 1 != 0);
        if !present {
            continue;
        }
        let Some((at, rights)) = translate(dump, frame, address) else { continue };
        if rights.execute && dump.frame(at) == Some(code) {
            found.push(frame);
        }
    }
    found
}

/// The entry for the shared part that most of `candidates` have.
pub fn shared_entry(dump: &Dump, candidates: &[u64]) -> Option<u64> {
    let mut count: BTreeMap<u64, usize> = BTreeMap::new();
    for root in candidates {
        if let Some(entry) = shared_table(dump, *root) {
            *count.entry(entry).or_default() += 1;
        }
    }
    count.into_iter().max_by_key(|(_, count)| *count).map(|(entry, _)| entry)
}

/// The shared part's entry of a root, without the bit that the processor sets (accessed).
pub fn shared_table(dump: &Dump, root: u64) -> Option<u64> {
    Some(dump.word(root + SHARED_SLOT * 8)? & !(1 << 5))
}

/// Sorts the candidates and looks for nested roots.
pub fn find(dump: &Dump, candidates: &[u64], owners: &Owners) -> Roots {
    let vmcbs: Vec<u64> = dump.frames().filter(|frame| is_vmcb(dump, *frame)).collect();
    let sought: BTreeSet<u64> = candidates.iter().chain(&vmcbs).copied().collect();
    let mut named: BTreeSet<u64> = dump.cpus.iter().map(|cpu| address_of(cpu.cr3)).collect();
    let mut roots = Roots::default();
    let mut nested = BTreeSet::new();
    for frame in dump.frames().filter(|frame| owners.of(*frame).is_hypervisors_data()) {
        for at in (0..4096).step_by(8) {
            let word = dump.frame(frame).and_then(|content| read64(content, at)).unwrap_or_default();
            if word != 0 && sought.contains(&address_of(word)) {
                named.insert(address_of(word));
            }
            if is_eptp(word) && owners.of(address_of(word)).is_tables() && dump.frame(address_of(word)).is_some() {
                nested.insert(NestedRoot { root: address_of(word), named_by: frame, ept: true });
            }
        }
    }
    for root in candidates {
        let dormant = owners.of(*root) == Owner::Free && !named.contains(root);
        if dormant { roots.dormant.push(*root) } else { roots.host.push(*root) }
    }
    for vmcb in vmcbs {
        if !matches!(owners.of(vmcb), Owner::Guest(_, Use::State)) && !named.contains(&vmcb) {
            continue;
        }
        let word = |at: u64| dump.word(vmcb + at).unwrap_or_default();
        if word(NP_ENABLE) & 1 == 0 {
            roots.bare.push(vmcb);
        } else {
            nested.insert(NestedRoot { root: address_of(word(N_CR3)), named_by: vmcb, ept: false });
        }
    }
    roots.nested = nested.into_iter().collect();
    roots
}

const INTERCEPTS: u64 = 0x10;
const ASID: u64 = 0x58;
const NP_ENABLE: u64 = 0x90;
const N_CR3: u64 = 0xB0;
const SAVED_EFER: u64 = 0x4D0;
const SAVED_CR0: u64 = 0x558;
/// Bits of EFER that are not reserved.
const EFER: u64 = 0x0037_FD01;
const SVME: u64 = 1 << 12;

/// Whether VMRUN would take this frame.
fn is_vmcb(dump: &Dump, frame: u64) -> bool {
    let word = |at: u64| dump.word(frame + at).unwrap_or_default();
    let efer = word(SAVED_EFER);
    word(INTERCEPTS) & 1 != 0
        && word(ASID) & 0xFFFF_FFFF != 0
        && efer & SVME != 0
        && efer & !EFER == 0
        && word(SAVED_CR0) >> 32 == 0
}

/// Write-back, four levels, no reserved bit.
fn is_eptp(word: u64) -> bool {
    word & 0xFFF & !(1 << 6) == 0x1E && word >> 52 == 0 && word >> 12 != 0
}

/// Bits 51:12.
const fn address_of(word: u64) -> u64 {
    word & 0x000F_FFFF_FFFF_F000
}
