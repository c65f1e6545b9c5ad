//! What is left of a BIOS: interrupt vectors that say no.
//!
//! There is no firmware in the guest's machine. A kernel that calls one all the same (a real-mode trampoline that asks for
//! disks or video modes) shall hear that the function is not there, rather than run through whatever is at address 0.
//! Services (vectors 0x10 to 0x1F) return with the carry flag set, which stands for an error; everything else returns as
//! if nothing had been.
//!
//! | a hostile guest may try | what happens |
//! |---|---|
//! | change vectors or stub, jump anywhere in them | they are its own RAM |

use bulkhead_types::Gpa;

/// Where [`STUB`] belongs: F000:0000, behind the ACPI tables.
pub const STUB_AT: Gpa = Gpa::new(0xF_0000);
/// STC, RETF 2 (drops the flags that INT pushed); at offset 4: IRET.
pub const STUB: [u8; 5] = [0xF9, 0xCA, 0x02, 0x00, 0xCF];
const SERVICE: [u8; 4] = [0x00, 0x00, 0x00, 0xF0];
const RETURN: [u8; 4] = [0x04, 0x00, 0x00, 0xF0];

/// The 256 vectors at address 0. SDM vol. 3B 21.1.4 "Interrupt and Exception Handling" (real-address mode).
#[must_use]
pub fn vectors() -> [u8; 1024] {
    let mut table = [0; 1024];
    for (vector, entry) in table.chunks_exact_mut(4).enumerate() {
        entry.copy_from_slice(if (0x10..0x20).contains(&vector) { &SERVICE } else { &RETURN });
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{STUB, STUB_AT, vectors};

    #[test]
    fn each_vector_leads_into_the_stub() {
        for (vector, entry) in vectors().chunks(4).enumerate() {
            let [ip_low, ip_high, cs_low, cs_high] = entry else { panic!() };
            let at = u64::from(u16::from_le_bytes([*cs_low, *cs_high])) * 16
                + u64::from(u16::from_le_bytes([*ip_low, *ip_high]));
            let offset = usize::try_from(at - STUB_AT.as_u64()).unwrap();
            let service = (0x10..=0x1F).contains(&vector);
            assert_eq!(STUB[offset], if service { 0xF9 } else { 0xCF }, "vector {vector:#x}");
        }
    }
}
