//! What holds while the guest runs: shadows, windows, translations, time, and entries that are refused.

use super::{CPUID, Kept, Subject, holds, same};
use crate::bench::{Arrival, Bench, Failure, Happens, Instruction};
use crate::broken::Way;
use crate::guest;
use alloc::format;
use alloc::string::String;
use bulkhead_arch::{Gpr, Rflags, Vector};
use bulkhead_core::{BackendError, Exit, Interruptibility, Register, Vcpu, Windows};
use bulkhead_types::Gpa;

const BY_STI: Interruptibility = Interruptibility { sti: true, mov_ss: false, nmi: false };
const WINDOW: Windows = Windows { interrupt: true, nmi: false };

pub(super) fn going_past_an_instruction_ends_a_shadow<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    same!(subject.stop(Happens::InShadow(Instruction::Cpuid, 2))?, Exit::Cpuid, "behind STI");
    same!(subject.vcpu.interruptibility(), Ok(BY_STI), "at the instruction");
    subject.vcpu.skip_instruction()?;
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "after the instruction");
    subject.vcpu.request_windows(WINDOW)?;
    same!(subject.stop(Happens::InterruptWindow)?, Exit::InterruptWindow, "the window");
    holds(!subject.told()?.shadow, "the processor must not see the shadow any more")?;
    same!(subject.get(Register::Rip)?, guest::CODE + 3, "RIP at the window");
    Ok(())
}

pub(super) fn going_past_an_instruction_makes_a_single_step_due<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    holds(!subject.entry()?.step, "no step without TF")?;
    subject.set(Register::Rflags, (Rflags::FIXED | Rflags::TF).bits())?;
    same!(subject.stop(CPUID)?, Exit::Cpuid, "CPUID");
    holds(!subject.told()?.step, "no step before the instruction")?;
    subject.vcpu.skip_instruction()?;
    subject.vcpu.set_timer(super::SHORT)?;
    let exit = subject.stop(Happens::Timer)?;
    holds(subject.told()?.step, "the step is due")?;
    // It is told first, or comes to the guest at once.
    if exit == Exit::Timer {
        let step = Arrival { vector: Vector::DB.0, error: None, rip: guest::CODE + 2, flags: Rflags::TF };
        same!(subject.bench.arrived(), Some(step), "what has come to the guest");
    } else {
        let wanted = Exit::Exception { vector: Vector::DB, error: None, debug_status: 1 << 14 };
        same!(exit, wanted, "the step");
        same!(subject.get(Register::Rip)?, guest::CODE + 2, "RIP at the step");
    }
    Ok(())
}

pub(super) fn a_single_step_is_due_no_more_behind_a_reset<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.set(Register::Rflags, (Rflags::FIXED | Rflags::TF).bits())?;
    same!(subject.stop(CPUID)?, Exit::Cpuid, "CPUID");
    subject.vcpu.skip_instruction()?;
    // As policy does at INIT.
    subject.begin()?;
    subject.vcpu.set_interruptibility(Interruptibility::default())?;
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "nothing is due");
    subject.delivers(None, "behind the reset")
}

pub(super) fn a_shadow_is_told_and_can_be_set<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    same!(subject.stop(Happens::InShadow(Instruction::Cpuid, 2))?, Exit::Cpuid, "behind STI");
    same!(subject.get(Register::Rip)?, guest::CODE + 1, "RIP behind STI");
    let blocked = subject.vcpu.interruptibility()?;
    holds(blocked.sti || blocked.mov_ss, "the shadow in which the guest stopped")?;
    holds(subject.entry()?.shadow, "it is still there at the next entry")?;
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "an instruction ends it");
    subject.vcpu.set_interruptibility(Interruptibility { mov_ss: true, ..Interruptibility::default() })?;
    let blocked = subject.vcpu.interruptibility()?;
    holds(blocked.sti || blocked.mov_ss, "one that was set")?;
    holds(subject.entry()?.shadow, "the processor sees it")
}

pub(super) fn windows_are_asked_for_as_long_as_they_are_wanted<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    holds(!subject.entry()?.interrupt_window, "none was asked for")?;
    subject.vcpu.request_windows(WINDOW)?;
    for _ in 0..2 {
        same!(subject.stop(Happens::InterruptWindow)?, Exit::InterruptWindow, "the window");
        holds(subject.told()?.interrupt_window, "asked for at each entry")?;
        same!(subject.get(Register::Rip)?, guest::CODE, "RIP: no instruction was executed");
    }
    // While interrupts are off there is none.
    subject.set(Register::Rflags, Rflags::FIXED.bits())?;
    holds(subject.entry()?.interrupt_window, "asked for, but closed")?;
    subject.set(Register::Rflags, (Rflags::FIXED | Rflags::IF).bits())?;
    subject.vcpu.request_windows(Windows::default())?;
    holds(!subject.entry()?.interrupt_window, "not wanted any more")
}

pub(super) fn no_interrupt_is_taken_in_a_shadow<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.vcpu.set_interruptibility(BY_STI)?;
    subject.vcpu.request_windows(WINDOW)?;
    same!(subject.stop(Happens::InterruptWindow)?, Exit::InterruptWindow, "the window");
    same!(subject.get(Register::Rip)?, guest::CODE + 1, "RIP: one instruction was executed");
    Ok(())
}

pub(super) fn translations_are_forgotten_when_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    holds(subject.entry()?.flushed, "before the first entry: another guest had the tag")?;
    holds(!subject.entry()?.flushed, "not without need")?;
    subject.vcpu.flush_nested();
    holds(subject.entry()?.flushed, "after something was unmapped")?;
    holds(!subject.entry()?.flushed, "once")
}

pub(super) fn what_is_unmapped_is_out_of_reach<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    for _ in 0..2 {
        subject.bench.give_spare(true)?;
        subject.set(Register::Rip, guest::CODE)?;
        same!(subject.stop(Happens::Touch)?, Exit::Halt, "a page that is there");
        subject.bench.give_spare(false)?;
        subject.vcpu.flush_nested();
        subject.set(Register::Rip, guest::CODE)?;
        let exit = subject.stop(Happens::Touch)?;
        let there = matches!(exit, Exit::Nested(fault) if fault.gpa == Gpa::new(guest::SPARE) && !fault.present);
        holds(there, &format!("a page that was unmapped: {exit:?}"))?;
    }
    Ok(())
}

pub(super) fn the_timer_is_set_for_each_entry<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    for ticks in [5000, 1_000_000, 300] {
        let start = subject.bench.count();
        subject.vcpu.set_timer(ticks)?;
        same!(subject.stop(Happens::Timer)?, Exit::Timer, "after {ticks} ticks");
        let armed = subject.told()?.timer;
        holds(armed <= ticks + 64, &format!("{ticks} ticks became {armed}"))?;
        let passed = subject.bench.count().wrapping_sub(start);
        holds(passed >= ticks, &format!("{passed} ticks passed instead of {ticks}"))?;
    }
    Ok(())
}

pub(super) fn the_guests_counter_is_offset<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    for offset in [5_u64.wrapping_neg(), 1 << 40, 0] {
        subject.vcpu.set_tsc_offset(offset)?;
        let start = subject.bench.count();
        same!(subject.stop(Happens::Count)?, Exit::Halt, "RDTSC");
        same!(subject.told()?.tsc_offset, offset, "offset");
        let [low, high] = [subject.vcpu.gpr(Gpr::Rax)?, subject.vcpu.gpr(Gpr::Rdx)?];
        let passed = (high << 32 | low).wrapping_sub(offset).wrapping_sub(start);
        let most = subject.bench.count().wrapping_sub(start);
        holds(passed <= most, &format!("the guest reads {passed} ticks more than the host, which counts {most}"))?;
        subject.set(Register::Rip, guest::CODE)?;
    }
    Ok(())
}

/// A guest whose page tables lie where no processor has an address, refused.
fn refused<B: Bench>(bench: &mut B, way: Option<Way>, kept: bool) -> Result<(Subject<'_, B>, BackendError), Failure> {
    let mut subject = Subject::long(bench, way)?;
    subject.set(Register::Cr3, 1 << 60)?;
    match subject.run(Happens::Refused { kept })? {
        Err(error @ BackendError::Entry { .. }) => Ok((subject, error)),
        other => Err(Failure::Wrong(format!("the entry came to {other:?}"))),
    }
}

pub(super) fn a_refused_entry_is_final<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let (mut subject, first) = refused(bench, way, false)?;
    same!(subject.run(Happens::Refused { kept: false })?, Err(first), "again");
    Ok(())
}

pub(super) fn a_refused_entry_is_explained<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let (subject, _) = refused(bench, way, true)?;
    let mut text = String::new();
    holds(subject.vcpu.explain_entry_failure(&mut text).is_ok(), "it is explained")?;
    holds(text.contains("CR3 = 0x1000000000000000: "), &format!("field, value and rule in {text:?}"))
}
