//! The VMX instructions, with their failures decoded.
//!
//! CF says that there is no current VMCS, ZF that its VM-instruction error field holds a number.
//! SDM vol. 3C 31.2 "Conventions", 31.3 "VMX Instructions", 31.4 "VM Instruction Error Numbers".

use crate::fields::INSTRUCTION_ERROR;
use bulkhead_core::BackendError;
use core::arch::asm;

/// What a VM-instruction error number means.
#[must_use]
pub const fn error_name(number: u32) -> &'static str {
    match number {
        0 => "no current VMCS",
        1 => "VMCALL in root operation",
        2 => "VMCLEAR of an invalid address",
        3 => "VMCLEAR of the VMXON region",
        4 => "VMLAUNCH of a VMCS that is not clear",
        5 => "VMRESUME of a VMCS that is not launched",
        6 => "VMRESUME after VMXOFF",
        7 => "entry with an invalid control field",
        8 => "entry with an invalid host-state field",
        9 => "VMPTRLD of an invalid address",
        10 => "VMPTRLD of the VMXON region",
        11 => "VMPTRLD of a VMCS with the wrong revision",
        12 => "no such VMCS field",
        13 => "VMWRITE to a read-only field",
        15 => "VMXON in root operation",
        16..=18 | 25 => "entry with a wrong executive VMCS",
        19 | 20 | 22 | 24 => "VMCALL to a wrong SMM monitor",
        23 => "VMXOFF under the dual-monitor treatment",
        26 => "entry while MOV SS blocks events",
        28 => "wrong operand of INVEPT or INVVPID",
        _ => "unknown error",
    }
}

/// VMREAD.
///
/// # Safety
/// In VMX root operation.
#[inline]
pub(crate) unsafe fn vmread(encoding: u32) -> Result<u64, BackendError> {
    let value: u64;
    let failed: u8;
    // SAFETY: the caller vouches for VMX root operation, where VMREAD changes nothing but its operand and the flags.
    unsafe {
        asm!("vmread {}, {}", "setna {}", out(reg) value, in(reg) u64::from(encoding), out(reg_byte) failed,
            options(nomem, nostack));
    }
    if failed == 0 { Ok(value) } else { Err(field_error(encoding)) }
}

/// VMREAD of a field that exists, in a VMCS that is current: not checked. The field's number if it fails all the same.
///
/// Told to the compiler as a read of memory: it may leave out a read that nobody uses, and repeat none that no VMWRITE
/// and no entry came after.
///
/// # Safety
/// In VMX root operation.
#[inline]
pub(crate) unsafe fn vmread_known(encoding: u32) -> u64 {
    let value: u64;
    // SAFETY: the caller vouches for VMX root operation, where VMREAD changes nothing but its operand and the flags.
    unsafe { asm!("vmread {0}, {0}", inlateout(reg) u64::from(encoding) => value, options(pure, readonly, nostack)) };
    value
}

/// VMWRITE.
///
/// # Safety
/// In VMX root operation; the value keeps what the host relies on.
#[inline]
pub(crate) unsafe fn vmwrite(encoding: u32, value: u64) -> Result<(), BackendError> {
    // SAFETY: the caller vouches for VMX root operation, where VMWRITE changes only the current VMCS and the flags. That
    // frame is never accessed through Rust once it is a VMCS.
    unsafe {
        asm!("vmwrite {}, {}", "jbe {}", in(reg) u64::from(encoding), in(reg) value,
            label { return Err(field_error(encoding)) }, options(nostack));
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn field_error(field: u32) -> BackendError {
    BackendError::Field { field, code: error_number() }
}

/// The number in the VM-instruction error field; 0 if there is no current VMCS.
#[cold]
#[inline(never)]
pub(crate) fn error_number() -> u32 {
    let value: u64;
    let failed: u8;
    // SAFETY: only the functions of this module call it, after a VMX instruction: the processor is in VMX root
    // operation, where VMREAD changes nothing but its operand and the flags.
    unsafe {
        asm!("vmread {}, {}", "setna {}", out(reg) value, in(reg) u64::from(INSTRUCTION_ERROR.encoding()),
            out(reg_byte) failed, options(nomem, nostack));
    }
    if failed == 0 { u32::try_from(value).unwrap_or(u32::MAX) } else { 0 }
}

/// One instruction with a 64-bit address operand in memory.
macro_rules! with_address {
    ($function:ident, $mnemonic:literal, $safety:literal) => {
        #[doc = concat!($mnemonic, ".\n\n# Safety\n", $safety)]
        pub(crate) unsafe fn $function(address: u64) -> Result<(), BackendError> {
            // SAFETY: the caller vouches for the frame; the operand is a local, read only.
            unsafe {
                asm!(concat!($mnemonic, " [{}]"), "jbe {}", in(reg) &raw const address, label {
                    return Err(BackendError::Instruction { name: $mnemonic, code: error_number() })
                }, options(nostack));
            }
            Ok(())
        }
    };
}

with_address!(vmclear, "vmclear", "In VMX root operation; the frame is a VMCS that nothing else uses.");
with_address!(vmptrld, "vmptrld", "In VMX root operation; the frame is a VMCS with host state that holds.");

/// VMXON. Its failure has no number: before it there is no VMCS.
///
/// # Safety
/// CR4.VMXE is set and IA32_FEATURE_CONTROL allows VMX; the frame is given to the processor for good.
pub(crate) unsafe fn vmxon(address: u64) -> Result<(), BackendError> {
    // SAFETY: the caller vouches for the conditions and the frame; the operand is a local, read only.
    unsafe {
        asm!("vmxon [{}]", "jbe {}", in(reg) &raw const address, label {
            return Err(BackendError::Instruction { name: "vmxon", code: 0 })
        }, options(nostack));
    }
    Ok(())
}

/// One instruction with a type and a 16-byte descriptor in memory.
macro_rules! invalidate {
    ($function:ident, $mnemonic:literal) => {
        #[doc = concat!($mnemonic, ": forgets translations; the two words of its descriptor as the manual has them.\n\n")]
        #[doc = "# Safety\nIn VMX root operation."]
        pub(crate) unsafe fn $function(kind: u64, descriptor: [u64; 2]) -> Result<(), BackendError> {
            // SAFETY: the caller vouches for VMX root operation, where it only forgets what can be walked anew; the
            // operand is a local, read only.
            unsafe {
                asm!(concat!($mnemonic, " {}, [{}]"), "jbe {}", in(reg) kind, in(reg) &raw const descriptor, label {
                    return Err(BackendError::Instruction { name: $mnemonic, code: error_number() })
                }, options(nostack));
            }
            Ok(())
        }
    };
}

invalidate!(invept, "invept");
invalidate!(invvpid, "invvpid");

#[cfg(test)]
mod tests {
    use super::error_name;

    #[test]
    fn the_errors_an_entry_can_meet_have_names() {
        assert_eq!(error_name(7), "entry with an invalid control field");
        assert_eq!(error_name(8), "entry with an invalid host-state field");
        assert_eq!(error_name(14), "unknown error");
        assert_eq!(error_name(u32::MAX), "unknown error");
    }
}
