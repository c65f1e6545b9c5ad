//! The stub that enters a guest and comes back.
//!
//! From CLGI to STGI nothing interrupts, NMIs and machine checks included: the registers that only VMLOAD and VMSAVE
//! switch (TR, and with it the stacks of the host's handlers) are the guest's then. Interrupts are on only inside: so that
//! one for the host ends the guest's turn (V_INTR_MASKING, APM vol. 2 15.21.1 "EFLAGS.IF Virtualization"). Every register
//! that the host does not restore is cleared afterwards. 15.5 "VMRUN Instruction", 15.17 "Global Interrupt Flag, STGI and
//! CLGI Instructions".

use crate::frame::Frame;
use core::arch::global_asm;

global_asm!(
    // void bulkhead_svm_enter(Frame *rdi, u64 vmcb rsi, u64 host rdx)
    ".pushsection .text.bulkhead_svm_enter, \"ax\", @progbits",
    ".global bulkhead_svm_enter",
    ".balign 64",
    "bulkhead_svm_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdx",
    "push rdi",
    "mov rax, rsi",
    "clgi",
    "sti",
    "vmload rax",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "vmrun rax",
    "vmsave rax",
    "cli",
    "xchg rdi, [rsp]",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pop rcx",
    "mov [rdi + 56], rcx",
    "pop rax",
    "vmload rax",
    "stgi",
    "xor eax, eax",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "xor edi, edi",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// Enters the guest of the VMCB at `vmcb`; `host` is a VMCB that VMSAVE filled.
    pub(crate) fn bulkhead_svm_enter(frame: *mut Frame, vmcb: u64, host: u64);
}
