//! The first contents of a VMCS.
//!
//! Controls and host state stay as they are set here; the guest's state is that after reset, and policy sets what its
//! boot protocol wants over it. SDM vol. 3C 25.6 to 25.8.

use crate::capabilities::Capabilities;
use crate::controls::{EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::fields::{self as field, Fields};
use crate::state;
use crate::vmcs::VmcsAccess;
use bulkhead_arch::{SegmentName, Vector};
use bulkhead_core::{BackendError, reset};
use bulkhead_types::Hpa;

/// Exceptions that exit: #DB and #AC can recur without end inside one instruction; a machine check is the host's.
pub(crate) const EXCEPTIONS: u32 = 1 << Vector::DB.0 | 1 << Vector::AC.0 | 1 << Vector::MC.0;

/// Physical addresses and the tag that a VMCS names.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// MSR bitmap.
    pub msr_bitmap: Hpa,
    /// The virtual-APIC page.
    pub virtual_apic: Hpa,
    /// I/O bitmaps for ports 0-7FFFH and 8000H-FFFFH.
    pub io_bitmaps: [Hpa; 2],
    /// EPT pointer.
    pub ept_pointer: u64,
    /// Virtual-processor identifier, not 0.
    pub vpid: u16,
}

/// The EPT pointer for tables of four levels in write-back memory. SDM vol. 3C table 25-9.
#[must_use]
pub const fn ept_pointer(root: Hpa, accessed_dirty: bool) -> u64 {
    const WRITE_BACK: u64 = 6;
    const FOUR_LEVELS: u64 = 3 << 3;
    root.as_u64() | WRITE_BACK | FOUR_LEVELS | (accessed_dirty as u64) << 6
}

/// The primary controls of every vCPU, without windows.
#[must_use]
pub const fn primary_controls(capabilities: &Capabilities) -> u32 {
    capabilities.primary.adjust(Primary::WANTED.bits())
}

/// The secondary controls of every vCPU whose local APIC is not lent.
#[must_use]
pub const fn secondary_controls(capabilities: &Capabilities) -> u32 {
    capabilities.secondary.adjust(Secondary::NEEDED.union(Secondary::OPTIONAL).bits())
}

/// The VM-entry controls of every vCPU, outside IA-32e mode.
#[must_use]
pub const fn entry_controls(capabilities: &Capabilities) -> u32 {
    capabilities.entry.adjust(EntryControls::WANTED.bits())
}

/// Writes the control fields.
pub(crate) fn write_controls(
    vmcs: &mut impl VmcsAccess,
    capabilities: &Capabilities,
    addresses: &Addresses,
) -> Result<(), BackendError> {
    vmcs.set(field::PIN_CONTROLS, capabilities.pin.adjust(Pin::WANTED.bits()))?;
    vmcs.set(field::PRIMARY_CONTROLS, primary_controls(capabilities))?;
    vmcs.set(field::SECONDARY_CONTROLS, secondary_controls(capabilities))?;
    vmcs.set(field::EXIT_CONTROLS, capabilities.exit.adjust(ExitControls::WANTED.bits()))?;
    vmcs.set(field::ENTRY_CONTROLS, entry_controls(capabilities))?;
    vmcs.set(field::EXCEPTION_BITMAP, EXCEPTIONS)?;
    // No page fault matches: bit 14 of the exception bitmap is 0 and so are mask and match.
    for zero in [
        field::PAGE_FAULT_MASK,
        field::PAGE_FAULT_MATCH,
        field::CR3_TARGET_COUNT,
        field::EXIT_MSR_STORE_COUNT,
        field::EXIT_MSR_LOAD_COUNT,
        field::ENTRY_MSR_LOAD_COUNT,
        field::ENTRY_INTERRUPTION,
    ] {
        vmcs.set(zero, 0)?;
    }
    vmcs.set(field::IO_BITMAP_A, addresses.io_bitmaps[0].as_u64())?;
    vmcs.set(field::IO_BITMAP_B, addresses.io_bitmaps[1].as_u64())?;
    vmcs.set(field::MSR_BITMAP, addresses.msr_bitmap.as_u64())?;
    if capabilities.delivers_interrupts() {
        vmcs.set(field::VIRTUAL_APIC, addresses.virtual_apic.as_u64())?;
        // Not used with interrupt delivery, but checked without.
        vmcs.set(field::TPR_THRESHOLD, 0)?;
        vmcs.set(field::INTERRUPT_STATUS, 0)?;
    }
    vmcs.set(field::EPT_POINTER, addresses.ept_pointer)?;
    vmcs.set(field::VPID, addresses.vpid)?;
    vmcs.set(field::TSC_OFFSET, 0)?;
    vmcs.set(field::TIMER_VALUE, u32::MAX)?;
    vmcs.set(field::CR0_MASK, capabilities.cr0_owned())?;
    vmcs.set(field::CR4_MASK, capabilities.cr4_owned())
}

/// Writes the guest's state after reset.
pub(crate) fn write_guest(vmcs: &mut impl VmcsAccess, capabilities: &Capabilities) -> Result<(), BackendError> {
    for (register, value) in reset::REGISTERS {
        state::write(vmcs, capabilities, register, value)?;
    }
    vmcs.set(field::GUEST_RSP, 0)?;
    for name in SegmentName::ALL {
        state::set_segment(vmcs, name, reset::segment(name))?;
    }
    vmcs.set(field::GUEST_DEBUGCTL, 0)?;
    vmcs.set(field::LINK_POINTER, u64::MAX)?;
    vmcs.set(field::ACTIVITY_STATE, 0)?;
    vmcs.set(field::INTERRUPTIBILITY, 0)?;
    vmcs.set(field::PENDING_DEBUG, 0)
}

#[cfg(test)]
mod tests {
    use super::{Addresses, ept_pointer, write_controls, write_guest};
    use crate::fake::{FakeProcessor, HOST, capabilities};
    use crate::fields::{self as field, Fields};
    use crate::host;
    use bulkhead_types::Hpa;

    const ADDRESSES: Addresses = Addresses {
        msr_bitmap: Hpa::new(0x1000),
        virtual_apic: Hpa::new(0x5000),
        io_bitmaps: [Hpa::new(0x2000), Hpa::new(0x3000)],
        ept_pointer: ept_pointer(Hpa::new(0x4000), true),
        vpid: 1,
    };

    #[test]
    fn ept_pointer_names_four_write_back_levels() {
        assert_eq!(ept_pointer(Hpa::new(0x1234_5000), false), 0x1234_501E);
        assert_eq!(ept_pointer(Hpa::new(0x1234_5000), true), 0x1234_505E);
    }

    #[test]
    fn every_writable_field_is_set_before_the_first_entry() {
        let mut fake = FakeProcessor::default();
        write_controls(&mut fake, &capabilities(), &ADDRESSES).unwrap();
        write_guest(&mut fake, &capabilities()).unwrap();
        host::write(&mut fake, &HOST).unwrap();
        // Set when used; or not used, because their counts or controls are 0.
        let later = [
            field::HOST_RSP.encoding(),
            field::EOI_EXIT0.encoding(),
            field::EOI_EXIT1.encoding(),
            field::EOI_EXIT2.encoding(),
            field::EOI_EXIT3.encoding(),
            field::ENTRY_ERROR_CODE.encoding(),
            field::ENTRY_INSTRUCTION_LENGTH.encoding(),
            field::EXIT_MSR_STORE_ADDRESS.encoding(),
            field::EXIT_MSR_LOAD_ADDRESS.encoding(),
            field::ENTRY_MSR_LOAD_ADDRESS.encoding(),
        ];
        for &encoding in field::ALL {
            let read_only = encoding >> 10 & 3 == 1;
            let expected = !read_only && !later.contains(&encoding);
            assert_eq!(fake.is_set(encoding), expected, "{}", field::name(encoding));
        }
    }

    #[test]
    fn interrupts_are_not_acknowledged_and_cr3_does_not_exit() {
        let mut fake = FakeProcessor::default();
        write_controls(&mut fake, &capabilities(), &ADDRESSES).unwrap();
        assert_eq!(fake.get(field::EXIT_CONTROLS).unwrap() & (1 << 15 | 1 << 22), 0);
        assert_eq!(fake.get(field::PRIMARY_CONTROLS).unwrap() & (1 << 15 | 1 << 16 | 1 << 9 | 1 << 12 | 1 << 23), 0);
        assert_eq!(fake.get(field::SECONDARY_CONTROLS).unwrap() & (1 << 20 | 1 << 2), 0);
    }
}
