//! Guest registers in the VMCB, as policy reads and writes them.
//!
//! A segment's attributes are the two flag bytes of its descriptor without the gap between them. APM vol. 2 15.5.1 "Basic
//! Operation", "Segment State in the VMCB"; appendix B.

use crate::fields::{self as field, Field};
use crate::setup;
use crate::vmcb::Vmcb;
use bulkhead_arch::{Cr0, Cr4, Efer, Rflags, Segment, SegmentName};
use bulkhead_core::Register;

/// INTERRUPT_STATE: the guest is in an interrupt shadow.
pub(crate) const SHADOW: u64 = 1 << 0;
const PRESENT: u32 = 1 << 7;

/// The field of a register; `None` for those that paging holds in memory.
const fn place(register: Register) -> Option<Field> {
    Some(match register {
        Register::Rip => field::RIP,
        Register::Rflags => field::RFLAGS,
        Register::Cr0 => field::CR0,
        Register::Cr2 => field::CR2,
        Register::Cr3 => field::CR3,
        Register::Cr4 => field::CR4,
        Register::Efer => field::EFER,
        Register::Dr6 => field::DR6,
        Register::Dr7 => field::DR7,
        Register::Pat => field::PAT,
        Register::GdtBase => field::GDT_BASE,
        Register::GdtLimit => field::GDT_LIMIT,
        Register::IdtBase => field::IDT_BASE,
        Register::IdtLimit => field::IDT_LIMIT,
        Register::SysenterCs => field::SYSENTER_CS,
        Register::SysenterEsp => field::SYSENTER_ESP,
        Register::SysenterEip => field::SYSENTER_EIP,
        Register::Pdpte0 | Register::Pdpte1 | Register::Pdpte2 | Register::Pdpte3 => return None,
    })
}

/// Reads a register that is in the VMCB. EFER.SVME is the host's, and so is CR4.MCE: without it a machine check would shut
/// the guest down, and the host would not hear of it.
#[inline]
pub(crate) fn read(vmcb: &Vmcb, register: Register) -> Option<u64> {
    let value = place(register).map(|place| vmcb.get(place))?;
    Some(match register {
        Register::Efer => value & !Efer::SVME.bits(),
        Register::Cr4 if vmcb.get(field::INTERCEPT_CR) & setup::READ_CR4 != 0 => value & !Cr4::MCE.bits(),
        _ => value,
    })
}

/// Writes a register that is in the VMCB. Bits that VMRUN refuses are left out.
pub(crate) fn write(vmcb: &mut Vmcb, register: Register, value: u64) {
    if register == Register::Cr4 {
        let seen = if value & Cr4::MCE.bits() == 0 { setup::READ_CR4 } else { 0 };
        let others = vmcb.get(field::INTERCEPT_CR) & !setup::READ_CR4;
        vmcb.set(field::INTERCEPT_CR, others | seen);
    }
    let value = match register {
        Register::Efer => value | Efer::SVME.bits(),
        Register::Cr4 => value | Cr4::MCE.bits(),
        Register::Rflags => value | Rflags::FIXED.bits(),
        Register::Cr0 => value & 0xFFFF_FFFF | Cr0::ET.bits(),
        Register::Dr6 | Register::Dr7 => value & 0xFFFF_FFFF,
        _ => value,
    };
    if let Some(place) = place(register) {
        vmcb.set(place, value);
    }
}

/// Reads a segment register.
#[inline]
pub(crate) fn segment(vmcb: &Vmcb, name: SegmentName) -> Segment {
    let fields = field::segment(name);
    let [low, high, ..] = vmcb.get(fields.attributes).to_le_bytes();
    let attributes = u32::from(low) | u32::from(high & 0xF) << 12;
    let unusable = if attributes & PRESENT == 0 { Segment::UNUSABLE } else { 0 };
    let [a, b, ..] = vmcb.get(fields.selector).to_le_bytes();
    Segment {
        selector: u16::from_le_bytes([a, b]),
        attributes: attributes | unusable,
        limit: vmcb.get_low(fields.limit),
        base: vmcb.get(fields.base),
    }
}

/// Writes a segment register; that of SS says the privilege level too.
pub(crate) fn set_segment(vmcb: &mut Vmcb, name: SegmentName, value: Segment) {
    let fields = field::segment(name);
    let attributes = value.attributes & 0xFF | value.attributes >> 4 & 0xF00;
    let usable = value.attributes & Segment::UNUSABLE == 0;
    vmcb.set(fields.selector, value.selector.into());
    vmcb.set(fields.attributes, if usable { attributes } else { attributes & !PRESENT }.into());
    vmcb.set(fields.limit, value.limit.into());
    vmcb.set(fields.base, value.base);
    if name == SegmentName::Ss {
        vmcb.set(field::CPL, value.dpl().into());
    }
}

/// Whether the guest executes 64-bit code.
pub(crate) fn in_64_bit_code(vmcb: &Vmcb) -> bool {
    vmcb.get(field::EFER) & Efer::LMA.bits() != 0 && segment(vmcb, SegmentName::Cs).attributes & Segment::LONG != 0
}

#[cfg(test)]
mod tests {
    use super::{read, segment, set_segment, write};
    use crate::fake::vmcb;
    use crate::fields as field;
    use bulkhead_arch::{Segment, SegmentName};
    use bulkhead_core::Register;

    #[test]
    fn svme_stays_set_and_hidden() {
        let mut vmcb = vmcb();
        write(&mut vmcb, Register::Efer, 0x500);
        assert_eq!(vmcb.get(field::EFER), 0x1500);
        assert_eq!(read(&vmcb, Register::Efer), Some(0x500));
    }

    #[test]
    fn machine_checks_stay_on_and_the_guest_reads_its_own_bit() {
        let mut vmcb = vmcb();
        for (seen, exits) in [(0x20, true), (0x60, false), (0, true)] {
            write(&mut vmcb, Register::Cr4, seen);
            assert_eq!(vmcb.get(field::CR4) & 0x40, 0x40);
            assert_eq!(vmcb.get(field::INTERCEPT_CR) & 1 << 4 != 0, exits);
            assert_eq!(read(&vmcb, Register::Cr4), Some(seen));
        }
    }

    #[test]
    fn segment_attributes_close_the_gap() {
        let mut vmcb = vmcb();
        let code = Segment { selector: 8, attributes: 0xA09B, limit: u32::MAX, base: 0x1234 };
        set_segment(&mut vmcb, SegmentName::Cs, code);
        assert_eq!(vmcb.get(field::segment(SegmentName::Cs).attributes), 0xA9B);
        assert_eq!(segment(&vmcb, SegmentName::Cs), code);
        let stack = Segment { attributes: 0xC0F3, ..code };
        set_segment(&mut vmcb, SegmentName::Ss, stack);
        assert_eq!(vmcb.get(field::CPL), 3);
        let none = Segment { attributes: Segment::UNUSABLE, ..Segment::default() };
        set_segment(&mut vmcb, SegmentName::Ldtr, none);
        assert_eq!(segment(&vmcb, SegmentName::Ldtr), none);
    }
}
