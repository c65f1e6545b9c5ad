//! Why an entry was refused: the processor's checks, done again in software.
//!
//! The processor says only VMEXIT_INVALID. Here each check of the manual that can fail with the features that are used is
//! one line; all that fail are reported with field, value and rule. APM vol. 2 15.5.1 "Basic Operation", "Canonicalization
//! and Consistency Checks"; 15.20 "Event Injection"; 15.25.4 "Nested Paging and VMRUN/#VMEXIT".

use crate::fields::{self as field, Field};
use crate::inject;
use crate::state;
use crate::vmcb::Vmcb;
use bulkhead_arch::{Cr0, Cr4, Efer, Segment, SegmentName};
use bulkhead_core::BackendError;
use bulkhead_core::control::check_pat;
use core::fmt;

/// VMRUN must be intercepted: bit 0 of its word.
const VMRUN: u64 = 1;
/// CR3 bits 63:52 must be zero.
const CR3_RESERVED: u64 = !0 << 52;
/// CR4 bits that no processor of this manual defines.
const CR4_RESERVED: u64 = !0x00FF_3FFF;

/// Writes why the entry that ended with `error` was refused.
///
/// # Errors
/// Of the writer.
pub fn write(vmcb: &Vmcb, error: Option<BackendError>, out: &mut dyn fmt::Write) -> fmt::Result {
    if error.is_none() {
        return writeln!(out, "no entry was refused");
    }
    writeln!(out, "entry refused: VMEXIT_INVALID")?;
    let mut result = Ok(());
    let mut count = 0_usize;
    check(vmcb, &mut |name, value, rule| {
        count += 1;
        result = result.and_then(|()| writeln!(out, "  {name} = {value:#x}: {rule}"));
    });
    result?;
    if count == 0 { writeln!(out, "  every check that is known here holds") } else { Ok(()) }
}

/// Does all checks and reports field, value and rule of each that fails.
pub fn check(vmcb: &Vmcb, report: &mut dyn FnMut(&'static str, u64, &'static str)) {
    let mut rule = |of: Field, holds: bool, rule| {
        if !holds {
            report(name(of), vmcb.get(of), rule);
        }
    };
    controls(vmcb, &mut rule);
    guest(vmcb, &mut rule);
}

fn name(of: Field) -> &'static str {
    field::ALL.iter().find(|(_, known)| *known == of).map_or("?", |(name, _)| name)
}

fn controls(vmcb: &Vmcb, rule: &mut dyn FnMut(Field, bool, &'static str)) {
    let page = |of| vmcb.get(of) & (0xFFF | CR3_RESERVED) == 0;
    rule(field::INTERCEPT_MORE, vmcb.get(field::INTERCEPT_MORE) & VMRUN != 0, "VMRUN must be intercepted (bit 0)");
    rule(field::ASID, vmcb.get(field::ASID) != 0, "must not be 0, the host's");
    for map in [field::IOPM_BASE, field::MSRPM_BASE, field::NESTED_CR3] {
        rule(map, page(map), "must be a page in the physical address width");
    }
    let legal = check_pat(vmcb.get(field::PAT)).is_ok();
    rule(field::PAT, legal, "each byte must be a memory type: 0, 1, 4, 5, 6 or 7");
    let event = vmcb.get(field::EVENT_INJECTION);
    let [vector, kind, ..] = event.to_le_bytes();
    let legal = match kind & 7 {
        0 | 4 => true,
        2 => vector == 2,
        3 => vector < 32 && vector != 2,
        _ => false,
    };
    rule(field::EVENT_INJECTION, event & inject::VALID == 0 || legal, "the type must be known and fit the vector");
}

fn guest(vmcb: &Vmcb, rule: &mut dyn FnMut(Field, bool, &'static str)) {
    let cr0 = Cr0::from_bits_retain(vmcb.get(field::CR0));
    let cr4 = Cr4::from_bits_retain(vmcb.get(field::CR4));
    let efer = Efer::from_bits_retain(vmcb.get(field::EFER));
    let long = efer.contains(Efer::LME) && cr0.contains(Cr0::PG);
    let code = state::segment(vmcb, SegmentName::Cs).attributes;
    let both = code & Segment::LONG != 0 && code & Segment::BIG != 0;
    rule(field::EFER, efer.contains(Efer::SVME), "SVME must be 1");
    rule(field::EFER, Efer::all().contains(efer), "reserved bits must be 0");
    rule(field::CR0, cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW), "NW needs CD");
    rule(field::CR0, cr0.bits() >> 32 == 0, "bits 63:32 must be 0");
    rule(field::CR0, !long || cr0.contains(Cr0::PE), "long mode needs PE");
    rule(field::CR3, vmcb.get(field::CR3) & CR3_RESERVED == 0, "bits 63:52 must be 0");
    rule(field::CR4, cr4.bits() & CR4_RESERVED == 0, "reserved bits must be 0");
    rule(field::CR4, !long || cr4.contains(Cr4::PAE), "long mode needs PAE");
    rule(field::EFER, !(long && cr4.contains(Cr4::PAE) && both), "in long mode, CS must not have both L and D");
    for register in [field::DR6, field::DR7] {
        rule(register, vmcb.get(register) >> 32 == 0, "bits 63:32 must be 0");
    }
}

#[cfg(test)]
mod tests {
    use super::{check, write};
    use crate::fake::vmcb;
    use crate::fields::{self as field, Field};
    use crate::setup::{self, Addresses};
    use crate::vmcb::Vmcb;
    use bulkhead_core::BackendError;
    use bulkhead_types::Hpa;
    use std::string::String;
    use std::vec::Vec;

    fn legal() -> Vmcb {
        let mut vmcb = vmcb();
        let page = Hpa::new(0x1000);
        setup::write_controls(&mut vmcb, &Addresses { msr_map: page, io_map: page, nested_root: page, asid: 1 });
        setup::write_guest(&mut vmcb);
        vmcb
    }

    fn failed(vmcb: &Vmcb) -> Vec<&'static str> {
        let mut names = Vec::new();
        check(vmcb, &mut |name, _, _| names.push(name));
        names
    }

    #[test]
    fn the_state_after_reset_passes() {
        assert!(failed(&legal()).is_empty());
        let mut text = String::new();
        write(&legal(), Some(BackendError::Entry { code: u64::MAX }), &mut text).unwrap();
        assert_eq!(text, "entry refused: VMEXIT_INVALID\n  every check that is known here holds\n");
        text.clear();
        write(&legal(), None, &mut text).unwrap();
        assert_eq!(text, "no entry was refused\n");
    }

    #[test]
    fn each_check_fails_by_itself() {
        let wrong: [(Field, u64, &str); 16] = [
            (field::INTERCEPT_MORE, 0, "INTERCEPT_MORE"),
            (field::ASID, 0, "ASID"),
            (field::IOPM_BASE, 0x1008, "IOPM_BASE"),
            (field::MSRPM_BASE, 1 << 52, "MSRPM_BASE"),
            (field::NESTED_CR3, 0x1018, "NESTED_CR3"),
            (field::PAT, 2, "PAT"),
            (field::EVENT_INJECTION, 0x8000_0302, "EVENT_INJECTION"),
            (field::EVENT_INJECTION, 0x8000_0100, "EVENT_INJECTION"),
            (field::EFER, 0, "EFER"),
            (field::EFER, 0x1002, "EFER"),
            (field::CR0, 0x2000_0010, "CR0"),
            (field::CR0, 1 << 32, "CR0"),
            (field::CR3, 1 << 60, "CR3"),
            (field::CR4, 1 << 40, "CR4"),
            (field::DR6, 1 << 32, "DR6"),
            (field::DR7, 1 << 32, "DR7"),
        ];
        for (of, value, name) in wrong {
            let mut vmcb = legal();
            vmcb.set(of, value);
            assert_eq!(failed(&vmcb), [name], "{value:#x}");
        }
    }

    #[test]
    fn long_mode_needs_protection_pae_and_a_possible_code_segment() {
        let mut vmcb = legal();
        vmcb.set(field::EFER, 0x1100);
        vmcb.set(field::CR0, 0x8000_0010);
        assert_eq!(failed(&vmcb), ["CR0", "CR4"]);
        vmcb.set(field::CR0, 0x8000_0011);
        vmcb.set(field::CR4, 0x20);
        assert!(failed(&vmcb).is_empty());
        vmcb.set(field::segment(bulkhead_arch::SegmentName::Cs).attributes, 0x69B);
        assert_eq!(failed(&vmcb), ["EFER"]);
    }
}
