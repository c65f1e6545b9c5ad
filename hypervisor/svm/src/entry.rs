//! The stub that enters a guest and comes back.
//!
//! From CLGI to STGI nothing interrupts, NMIs and machine checks included: the registers that only VMLOAD and VMSAVE
//! switch (TR, and with it the stacks of the host's handlers) are the guest's then. Interrupts are on only inside: so that
//! one for the host ends the guest's turn (V_INTR_MASKING, APM vol. 2 15.21.1 "EFLAGS.IF Virtualization"). Every register
//! that the host does not restore is cleared afterwards. 15.5 "VMRUN Instruction", 15.17 "Global Interrupt Flag, STGI and
//! CLGI Instructions".

use bulkhead_hw::frame::Frame;
use bulkhead_hw::{clear_given_up, pop_frame, pop_kept, push_frame, push_kept};
use core::arch::global_asm;

global_asm!(
    // void bulkhead_svm_enter(Frame *rdi, u64 vmcb rsi, u64 host rdx)
    ".pushsection .text.bulkhead_svm_enter, \"ax\", @progbits",
    ".global bulkhead_svm_enter",
    ".balign 64",
    "bulkhead_svm_enter:",
    push_kept!(),
    "push rdx",
    "mov [rdi + 120], rsp",
    // RAX is in the VMCB: its slot holds the VMCB's address until the guest is entered.
    "mov [rdi], rsi",
    "clgi",
    "sti",
    "mov rsp, rdi",
    pop_frame!(),
    "vmload rax",
    "vmrun rax",
    "vmsave rax",
    "cli",
    push_frame!(),
    "mov rsp, [rsp + 120]",
    "pop rax",
    "vmload rax",
    "stgi",
    "xor eax, eax",
    clear_given_up!(),
    pop_kept!(),
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// Enters the guest of the VMCB at `vmcb`; `host` is a VMCB that VMSAVE filled.
    pub(crate) fn bulkhead_svm_enter(frame: *mut Frame, vmcb: u64, host: u64);
}
