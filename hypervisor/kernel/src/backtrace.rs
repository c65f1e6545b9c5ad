//! What the hypervisor says before it stops for a bug of its own.
//!
//! The lines are `event panic REASON`, registers, and one `  at ADDRESS` for each frame of the stack, which the host tool
//! turns into names and lines.

use crate::console::Log;
use crate::machine::{CPUS, ONLINE};
use bulkhead_hw::cpu::{control_registers, number, stop};
use bulkhead_hw::serial::Serial;
use bulkhead_hw::trap::{Frame, frames_of_stack, stop_others};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// Reports a panic.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    finish(|log| {
        writeln!(log, "\nevent panic {}", info.message())?;
        if let Some(place) = info.location() {
            writeln!(log, "  in {place}")?;
        }
        frames_of_stack(None, &mut |address| writeln!(log, "  at {address:#x}").unwrap_or(()));
        Ok(())
    })
}

/// Reports an exception of the hypervisor.
pub fn faulted(frame: &Frame) -> ! {
    finish(|log| {
        let name = bulkhead_arch::Vector(u8::try_from(frame.vector).unwrap_or(u8::MAX)).name();
        let [cr0, cr2, cr3, cr4] = control_registers();
        writeln!(log, "\nevent panic exception {} #{name}, error {:#x}", frame.vector, frame.error)?;
        writeln!(log, "  rip {:016x} cs  {:04x} rflags {:x}", frame.rip, frame.cs, frame.rflags)?;
        writeln!(log, "  rsp {:016x} rbp {:016x}", frame.rsp, frame.rbp)?;
        writeln!(log, "  cr0 {cr0:x} cr2 {cr2:016x} cr3 {cr3:x} cr4 {cr4:x}")?;
        let general = [
            ("rax", frame.rax),
            ("rbx", frame.rbx),
            ("rcx", frame.rcx),
            ("rdx", frame.rdx),
            ("rsi", frame.rsi),
            ("rdi", frame.rdi),
            ("r8 ", frame.r8),
            ("r9 ", frame.r9),
            ("r10", frame.r10),
            ("r11", frame.r11),
            ("r12", frame.r12),
            ("r13", frame.r13),
            ("r14", frame.r14),
            ("r15", frame.r15),
        ];
        for (name, value) in general {
            writeln!(log, "  {name} {value:016x}")?;
        }
        writeln!(log, "  at {:#x}", frame.rip)?;
        frames_of_stack(Some(frame), &mut |address| writeln!(log, "  at {address:#x}").unwrap_or(()));
        Ok(())
    })
}

fn finish(report: impl FnOnce(&mut Log) -> fmt::Result) -> ! {
    // A fault while the first one is being reported ends it.
    static REPORTING: AtomicBool = AtomicBool::new(false);
    if REPORTING.swap(true, Ordering::Relaxed) {
        stop();
    }
    // Guests do not run on a hypervisor that has failed; and what others hold is never given back.
    let (me, online) = (number(), ONLINE.load(Ordering::Relaxed));
    let others = CPUS.iter().take(online).enumerate().filter(|(number, _)| *number != me);
    stop_others(others.map(|(_, cpu)| cpu.apic.load(Ordering::Relaxed)));
    let _ = report(&mut Log::force());
    let _ = writeln!(Log::force(), "event panic end");
    Serial::again().flush();
    stop()
}
