//! The host's half of a VMCS: what an exit leads back to.
//!
//! A guest's VMCS is set up while the guest's own host address space is current, so HOST_CR3 is that space: the
//! processor enters it at every exit of the guest and no other. SDM vol. 3C 25.5 "Host-State Area".

use crate::vmcs::VmcsAccess;
use bulkhead_core::BackendError;

/// The fields that an exit loads, by number, with their values; all but HOST_RSP, which is the vCPU's frame.
pub type HostState = [(u32, u64); 21];

/// Writes `state` to the current VMCS.
///
/// # Errors
/// If the processor refuses.
pub(crate) fn write(vmcs: &mut impl VmcsAccess, state: &HostState) -> Result<(), BackendError> {
    state.iter().try_for_each(|&(encoding, value)| {
        // The 16-bit fields are selectors, whose privilege level and table indicator must be 0 here.
        let is_selector = encoding >> 13 == 0;
        vmcs.write(encoding, if is_selector { value & !7 } else { value })
    })
}

/// Base address in a 16-byte system descriptor. SDM vol. 3A 7.2.3 "TSS Descriptor in 64-bit mode".
#[must_use]
pub const fn descriptor_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0x00FF_FFFF | low >> 56 << 24 | high << 32
}

#[cfg(test)]
mod tests {
    use super::{descriptor_base, write};
    use crate::fake::{FakeProcessor, HOST};
    use crate::fields::{self as field, Fields};

    #[test]
    fn base_of_a_64_bit_tss_descriptor() {
        assert_eq!(descriptor_base(0x8100_8B23_4567_0067, 0xFFFF_8000), 0xFFFF_8000_8123_4567);
    }

    #[test]
    fn selectors_lose_rpl_and_ti() {
        let mut state = HOST;
        for (encoding, value) in &mut state {
            if *encoding == field::HOST_CS_SELECTOR.encoding() {
                *value = 0x0F;
            }
        }
        let mut fake = FakeProcessor::default();
        write(&mut fake, &state).unwrap();
        assert_eq!(fake.get(field::HOST_CS_SELECTOR), Ok(8));
        assert_eq!(fake.get(field::HOST_TR_SELECTOR), Ok(0x18));
        assert_eq!(fake.get(field::HOST_CR3), Ok(0x10_0000));
    }
}
