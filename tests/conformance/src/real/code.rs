//! Pieces of guest code, in the encodings of the SDM, vol. 2 (the same in the APM, vol. 3).

use crate::bench::Instruction;
use crate::guest;
use alloc::vec::Vec;
use bulkhead_arch::Gpr;
use bulkhead_types::Width;

/// `jmp $`.
pub const SPIN: [u8; 2] = [0xEB, 0xFE];
/// `nop`.
pub const NOP: [u8; 1] = [0x90];
/// `sti`.
pub const STI: u8 = 0xFB;
/// `ud2`.
pub const UNDEFINED: [u8; 2] = [0x0F, 0x0B];
/// `rdtsc; hlt`.
pub const COUNT: [u8; 3] = [0x0F, 0x31, 0xF4];
/// `mov eax, 0x400; mov dr7, eax; hlt`, in 32-bit code.
pub const BREAKPOINTS_OFF: [u8; 9] = [0xB8, 0, 4, 0, 0, 0x0F, 0x23, 0xF8, HALT];
/// `iretd`, in 32-bit code.
pub const RETURN: [u8; 1] = [0xCF];
/// `pushf; push cs; push CODE + 6; iret; hlt`, in real mode.
pub const PUSH_AND_RETURN: [u8; 7] = [0x9C, 0x0E, 0x68, 0x06, 0x10, 0xCF, HALT];
/// `hlt`.
const HALT: u8 = 0xF4;
/// A segment override that changes nothing.
const PREFIX: u8 = 0x3E;

/// The bytes of an instruction, filled up to `length` with prefixes that change nothing.
#[must_use]
pub fn instruction(which: Instruction, length: u8, hypercall: [u8; 3]) -> Vec<u8> {
    let modrm = |number: u8, gpr: Gpr| 0xC0 | number << 3 | u8::try_from(gpr.number() & 7).unwrap_or(0);
    let bytes = match which {
        Instruction::Cpuid => Vec::from([0x0F, 0xA2]),
        Instruction::Halt => Vec::from([HALT]),
        Instruction::Hypercall => Vec::from(hypercall),
        Instruction::ReadMsr => Vec::from([0x0F, 0x32]),
        Instruction::WriteMsr => Vec::from([0x0F, 0x30]),
        Instruction::Xsetbv => Vec::from([0x0F, 0x01, 0xD1]),
        Instruction::WriteBackCaches => Vec::from([0x0F, 0x09]),
        Instruction::Monitor => Vec::from([0x0F, 0x01, 0xC8]),
        Instruction::WriteCr4(gpr) => Vec::from([0x0F, 0x22, modrm(4, gpr)]),
        // CR8 needs a REX prefix, which only 64-bit code has.
        Instruction::WriteCr8(gpr) => Vec::from([0x44, 0x0F, 0x22, modrm(0, gpr)]),
        Instruction::ReadCr8(gpr) => Vec::from([0x44, 0x0F, 0x20, modrm(0, gpr)]),
        Instruction::Port { width, write, .. } => {
            let operand = if width == Width::Byte { 0xEC } else { 0xED };
            let mut bytes = if width == Width::Word { Vec::from([0x66]) } else { Vec::new() };
            bytes.push(operand | u8::from(write) << 1);
            bytes
        }
    };
    let mut filled = alloc::vec![PREFIX; usize::from(length).saturating_sub(bytes.len())];
    filled.extend(bytes);
    filled
}

/// An access to `linear`: `mov [linear], al` or the other way, or `mov eax, linear; jmp eax`; of 64 bits if `long`.
#[must_use]
pub fn access(linear: u64, write: bool, execute: bool, long: bool) -> Vec<u8> {
    let mut bytes = if long && execute { Vec::from([0x48]) } else { Vec::new() };
    bytes.push(if execute {
        0xB8
    } else if write {
        0xA2
    } else {
        0xA0
    });
    bytes.extend(linear.to_le_bytes().iter().take(if long { 8 } else { 4 }));
    if execute {
        bytes.extend([0xFF, 0xE0]);
    }
    bytes
}

/// `mov al, [address]; hlt`, in 32-bit code.
#[must_use]
pub fn touch(address: u64) -> Vec<u8> {
    let mut bytes = access(address, false, false, false);
    bytes.push(HALT);
    bytes
}

/// A far jump to a task, in 32-bit code.
#[must_use]
pub fn jump_to_task(selector: u16) -> Vec<u8> {
    let [low, high] = selector.to_le_bytes();
    Vec::from([0xEA, 0, 0, 0, 0, low, high])
}

/// 32-bit code at `rip` that sets the breakpoints whose bits are in `causes`, the single step if bit 14 is, and comes to
/// them: with the step by a write of a byte, without by a fetch. (Two breakpoints on one write are one to QEMU's TCG.)
#[must_use]
pub fn debug(causes: u64, rip: u64) -> Vec<u8> {
    /// Bytes of `mov eax, value; mov dr, eax`, five times.
    const SETTING: u64 = 5 * 8;
    let step = causes >> 14 & 1 != 0;
    let mut bytes = Vec::new();
    let mut set = |number: u8, value: u64| {
        bytes.push(0xB8);
        bytes.extend(value.to_le_bytes().iter().take(4));
        bytes.extend([0x0F, 0x23, 0xC0 | number << 3]);
    };
    let mut enabled = 0x400;
    for number in 0..4_u8 {
        let wanted = causes >> number & 1 != 0;
        let place = if step { guest::DATA } else { rip + SETTING };
        set(number, if wanted { place } else { guest::DATA + 0x100 });
        if wanted {
            // Local; on a write of one byte, or on a fetch.
            enabled |= 1 << (2 * number) | u64::from(step) << (16 + 4 * number);
        }
    }
    set(7, enabled);
    if step {
        // pushfd; or dword [esp], TF; popfd: in force after the next instruction.
        bytes.extend([0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D]);
    }
    if step && causes & 0xF != 0 {
        bytes.extend(access(guest::DATA, true, false, false));
    } else {
        bytes.extend(NOP);
    }
    bytes
}
