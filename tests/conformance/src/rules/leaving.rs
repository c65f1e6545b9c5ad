//! Why the guest stopped, and going past what stopped it.

use super::{CPUID, Kept, Subject, holds, nested, same};
use crate::bench::{Bench, Failure, Fault, Happens, Instruction};
use crate::broken::Way;
use crate::guest;
use alloc::format;
use bulkhead_arch::{Cr4, Gpr, Vector};
use bulkhead_core::{Exit, IoAccess, Register, Vcpu};
use bulkhead_types::{Gpa, Width};

pub(super) fn an_instruction_is_told_and_gone_past<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    let instructions = [
        (Instruction::Cpuid, 2, Exit::Cpuid),
        (Instruction::Cpuid, 5, Exit::Cpuid),
        (Instruction::Halt, 1, Exit::Halt),
        (Instruction::Hypercall, 3, Exit::Hypercall),
        (Instruction::ReadMsr, 2, Exit::ReadMsr),
        (Instruction::WriteMsr, 4, Exit::WriteMsr),
        (Instruction::WriteBackCaches, 2, Exit::CacheFlush),
    ];
    let mut rip = guest::CODE;
    for (instruction, length, exit) in instructions {
        same!(subject.stop(Happens::Instruction(instruction, length))?, exit, "{instruction:?}");
        same!(subject.get(Register::Rip)?, rip, "RIP at {instruction:?}");
        subject.vcpu.skip_instruction()?;
        rip += u64::from(length);
        same!(subject.get(Register::Rip)?, rip, "RIP past {instruction:?} of {length} bytes");
    }
    same!(subject.stop(Happens::Instruction(Instruction::Monitor, 3))?, Exit::Undefined, "MONITOR");
    same!(subject.entry()?.rip, rip, "RIP at the next entry");
    Ok(())
}

pub(super) fn xsetbv_is_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    // Without it XSETBV is no instruction.
    subject.set(Register::Cr4, Cr4::OSXSAVE.bits())?;
    same!(subject.stop(Happens::Instruction(Instruction::Xsetbv, 3))?, Exit::Xsetbv, "XSETBV");
    subject.vcpu.skip_instruction()?;
    same!(subject.get(Register::Rip)?, guest::CODE + 3, "RIP past it");
    Ok(())
}

pub(super) fn an_emulated_instruction_is_gone_past<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.stop(nested(None))?;
    same!(subject.get(Register::Rip)?, guest::CODE, "RIP at it");
    subject.vcpu.skip_bytes(5)?;
    same!(subject.get(Register::Rip)?, guest::CODE + 5, "RIP past it");
    same!(subject.entry()?.rip, guest::CODE + 5, "RIP at the next entry");
    Ok(())
}

pub(super) fn port_accesses_are_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    for (port, width) in [(0x3F8, Width::Byte), (0xFFFF, Width::Word), (0, Width::Dword)] {
        // In 32-bit code 16 bits need a prefix.
        let length = if width == Width::Word { 2 } else { 1 };
        for write in [false, true] {
            let access =
                IoAccess { port, width, write, string: false, repeat: false, segment: None, address_bytes: None };
            let exit = subject.stop(Happens::Instruction(Instruction::Port { port, width, write }, length))?;
            let Exit::Io(found) = exit else { return Err(Failure::Wrong(format!("port {port:x}: {exit:?}"))) };
            // What is told of a memory operand does not matter: there is none.
            same!(IoAccess { segment: None, address_bytes: None, ..found }, access, "port {port:x}");
        }
    }
    let rip = subject.get(Register::Rip)?;
    subject.vcpu.skip_instruction()?;
    same!(subject.get(Register::Rip)?, rip.wrapping_add(1), "RIP");
    Ok(())
}

pub(super) fn control_registers_name_their_general_register<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    for from in [Gpr::Rcx, Gpr::Rdi, Gpr::Rax] {
        let exit = subject.stop(Happens::Instruction(Instruction::WriteCr4(from), 3))?;
        same!(exit, Exit::WriteCr { number: 4, from }, "MOV to CR4");
    }
    subject.vcpu.skip_instruction()?;
    same!(subject.get(Register::Rip)?, guest::CODE + 3, "RIP");
    // CR8 is there in 64-bit code alone.
    let mut subject = Subject::long(subject.bench, way)?;
    let exit = subject.stop(Happens::Instruction(Instruction::WriteCr8(Gpr::Rbx), 4))?;
    same!(exit, Exit::WriteCr { number: 8, from: Gpr::Rbx }, "MOV to CR8");
    let exit = subject.stop(Happens::Instruction(Instruction::ReadCr8(Gpr::Rsi), 4))?;
    same!(exit, Exit::ReadCr { number: 8, to: Gpr::Rsi }, "MOV from CR8");
    subject.vcpu.skip_instruction()?;
    same!(subject.get(Register::Rip)?, guest::CODE + 4, "RIP past it");
    Ok(())
}

pub(super) fn nested_faults_are_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::long(bench, way)?;
    for (page, present) in [(guest::FORBIDDEN, false), (guest::FORBIDDEN, true), (guest::ABSENT_HIGH, false)] {
        for (index, (write, execute)) in [(false, false), (true, false), (false, true)].into_iter().enumerate() {
            for walk in [false, true] {
                // What is mapped can be read, and is no table.
                if present && (walk || !write && !execute) {
                    continue;
                }
                let fault = Fault { gpa: page + 0x300 + 8 * index as u64, write, execute, walk, present };
                subject.set(Register::Rip, guest::CODE)?;
                let exit = subject.stop(Happens::Nested { fault, delivering: None })?;
                let Exit::Nested(found) = exit else { return Err(Failure::Wrong(format!("{fault:?}: {exit:?}"))) };
                same!(found.gpa, Gpa::new(fault.gpa), "address of {fault:x?}");
                // What a walk does with a table that is not there is the processor's affair.
                let told = (found.write || walk, found.execute && !walk, found.table_walk, found.present);
                let wanted = (write || walk, execute && !walk, walk, present);
                same!(told, wanted, "write, execute, walk, present of {fault:x?}");
                holds(!found.malformed, "nothing is malformed")?;
                same!(subject.vcpu.take_interrupted(), None, "nothing was being delivered");
            }
        }
    }
    Ok(())
}

pub(super) fn debug_exceptions_are_told_with_their_causes<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    for causes in [1 << 14, 0b0001, 0b1010, 1 << 14 | 0b0100] {
        let mut subject = Subject::flat(bench, way)?;
        subject.set(Register::Dr6, 0xFFFF_0FF0)?;
        let exit = subject.stop(Happens::Debug(causes))?;
        let Exit::Exception { vector, error, debug_status } = exit else {
            return Err(Failure::Wrong(format!("{causes:#x}: {exit:?}")));
        };
        same!((vector, error), (Vector::DB, None), "vector and error code");
        // As policy puts them together: which breakpoints were met is told anew, what else happened stays.
        let status = subject.get(Register::Dr6)? & !0xF | debug_status;
        same!(status & 0x400F, causes, "causes in DR6");
    }
    Ok(())
}

pub(super) fn a_triple_fault_is_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    same!(subject.stop(Happens::TripleFault)?, Exit::TripleFault, "the third fault");
    Ok(())
}

pub(super) fn a_task_switch_is_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    same!(subject.stop(Happens::TaskSwitch)?, Exit::TaskSwitch, "a task switch");
    Ok(())
}

pub(super) fn an_interrupt_of_the_host_is_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    same!(subject.stop(Happens::Host)?, Exit::Host, "the host's");
    same!(subject.bench.arrived(), None, "the guest sees nothing of it");
    same!(subject.stop(CPUID)?, Exit::Cpuid, "the guest goes on");
    Ok(())
}
