//! The stub that enters a guest and comes back.
//!
//! The exit path touches no stack but the frame: HOST_RSP is the end of the frame's registers, and the first thing that
//! the exit does is to push them there. Then the host's stack comes back, and every register that the host does not
//! restore is cleared, so that nothing later can be speculated on a guest's value. An exit clears RFLAGS (no interrupt,
//! no DF, no AC) by itself. SDM vol. 3C 28.5.3 "Loading Host RIP, RSP, RFLAGS, and SSP".

use bulkhead_hw::frame::Frame;
use bulkhead_hw::{clear_given_up, pop_frame, pop_kept, push_frame, push_kept};
use core::arch::global_asm;

global_asm!(
    // u32 bulkhead_vmx_enter(Frame *rdi, u32 launched esi): 0 after an exit, 1 or 2 if the entry was refused without or
    // with an error number.
    ".pushsection .text.bulkhead_vmx_enter, \"ax\", @progbits",
    ".global bulkhead_vmx_enter, bulkhead_vmx_exit",
    ".balign 64",
    "bulkhead_vmx_enter:",
    push_kept!(),
    "mov [rdi + 120], rsp",
    "mov rsp, rdi",
    "test esi, esi", // no POP below changes flags
    pop_frame!(),
    "jz 2f",
    "vmresume",
    "jmp 3f",
    "2: vmlaunch",
    // Refused: RSP is still the end of the frame, and the flags say how.
    "3: mov rsp, [rsp]",
    "mov eax, 1; mov ecx, 2; cmovz eax, ecx",
    "jmp 4f",
    ".balign 64",
    "bulkhead_vmx_exit:",
    push_frame!(),
    "mov rsp, [rsp + 120]",
    "xor eax, eax",
    "4:",
    clear_given_up!(),
    pop_kept!(),
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// Enters the guest of the current VMCS, whose HOST_RIP and HOST_RSP lead to `bulkhead_vmx_exit` and to `frame`.
    pub(crate) fn bulkhead_vmx_enter(frame: *mut Frame, launched: u32) -> u32;
    /// Where an exit leads to.
    fn bulkhead_vmx_exit();
}

/// The address that HOST_RIP has to hold.
pub(crate) fn exit_address() -> u64 {
    (bulkhead_vmx_exit as *const ()).addr() as u64
}
