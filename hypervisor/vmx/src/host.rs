//! The host's half of a VMCS: what an exit leads back to.
//!
//! A guest's VMCS is set up while the guest's own host address space is current, so HOST_CR3 is that space: the
//! processor enters it at every exit of the guest and no other. SDM vol. 3C 25.5 "Host-State Area".

use crate::fields::{self as field, Fields};
use crate::vmcs::VmcsAccess;
use bulkhead_core::BackendError;

/// The registers that an exit loads, but RSP, which is the vCPU's frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct HostState {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub pat: u64,
    pub es: u16,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub fs: u16,
    pub gs: u16,
    pub tr: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub tr_base: u64,
    pub gdt_base: u64,
    pub idt_base: u64,
    pub sysenter_cs: u32,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub rip: u64,
}

impl HostState {
    /// Writes it to the current VMCS.
    ///
    /// # Errors
    /// If the processor refuses.
    pub fn write(&self, vmcs: &mut impl VmcsAccess) -> Result<(), BackendError> {
        // Requested privilege level and table indicator must be 0 here.
        const INDEX: u16 = !7;
        vmcs.set(field::HOST_CR0, self.cr0)?;
        vmcs.set(field::HOST_CR3, self.cr3)?;
        vmcs.set(field::HOST_CR4, self.cr4)?;
        vmcs.set(field::HOST_EFER, self.efer)?;
        vmcs.set(field::HOST_PAT, self.pat)?;
        vmcs.set(field::HOST_ES_SELECTOR, self.es & INDEX)?;
        vmcs.set(field::HOST_CS_SELECTOR, self.cs & INDEX)?;
        vmcs.set(field::HOST_SS_SELECTOR, self.ss & INDEX)?;
        vmcs.set(field::HOST_DS_SELECTOR, self.ds & INDEX)?;
        vmcs.set(field::HOST_FS_SELECTOR, self.fs & INDEX)?;
        vmcs.set(field::HOST_GS_SELECTOR, self.gs & INDEX)?;
        vmcs.set(field::HOST_TR_SELECTOR, self.tr & INDEX)?;
        vmcs.set(field::HOST_FS_BASE, self.fs_base)?;
        vmcs.set(field::HOST_GS_BASE, self.gs_base)?;
        vmcs.set(field::HOST_TR_BASE, self.tr_base)?;
        vmcs.set(field::HOST_GDTR_BASE, self.gdt_base)?;
        vmcs.set(field::HOST_IDTR_BASE, self.idt_base)?;
        vmcs.set(field::HOST_SYSENTER_CS, self.sysenter_cs)?;
        vmcs.set(field::HOST_SYSENTER_ESP, self.sysenter_esp)?;
        vmcs.set(field::HOST_SYSENTER_EIP, self.sysenter_eip)?;
        vmcs.set(field::HOST_RIP, self.rip)
    }
}

/// Base address in a 16-byte system descriptor. SDM vol. 3A 7.2.3 "TSS Descriptor in 64-bit mode".
#[must_use]
pub const fn descriptor_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0x00FF_FFFF | low >> 56 << 24 | high << 32
}

#[cfg(test)]
mod tests {
    use super::{HostState, descriptor_base};
    use crate::fake::FakeProcessor;
    use crate::fields::{self as field, Fields};

    #[test]
    fn base_of_a_64_bit_tss_descriptor() {
        assert_eq!(descriptor_base(0x8100_8B23_4567_0067, 0xFFFF_8000), 0xFFFF_8000_8123_4567);
    }

    #[test]
    fn selectors_lose_rpl_and_ti() {
        let mut fake = FakeProcessor::default();
        HostState { cs: 0x0B, tr: 0x2F, cr3: 0x1234_5000, ..HostState::default() }.write(&mut fake).unwrap();
        assert_eq!(fake.get(field::HOST_CS_SELECTOR), Ok(8));
        assert_eq!(fake.get(field::HOST_TR_SELECTOR), Ok(0x28));
        assert_eq!(fake.get(field::HOST_CR3), Ok(0x1234_5000));
    }
}
