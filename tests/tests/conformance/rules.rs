//! The rules.

use crate::bench::{Bench, Entry, Fault, Happens, Instruction, Seen};
use crate::broken::{Broken, Way};
use bulkhead_arch::{Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentName, Vector};
use bulkhead_core::{BackendError, Event, Exit, Interruptibility, IoAccess, Register, Vcpu, Windows};
use bulkhead_types::{Gpa, Width};
use std::fmt::Debug;

/// A rule: what was wrong, if it is not kept.
pub type Rule<B> = fn(&mut B, Option<Way>) -> Result<(), String>;

/// Where code is put, and what runs there: 64-bit code without paging is no mode, so most rules take flat 32-bit code.
const CODE: u64 = 0x1000;

/// All rules with their names.
#[expect(non_snake_case, reason = "a table, for each bench")]
pub fn RULES<B: Bench>() -> Vec<(&'static str, Rule<B>)> {
    macro_rules! rules {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), $name::<B> as Rule<B>)),*] };
    }
    rules![
        a_new_vcpu_stands_as_after_reset,
        registers_hold_what_they_are_set_to,
        segments_hold_what_they_are_set_to,
        the_guest_does_not_see_what_the_host_adds,
        an_instruction_is_told_and_gone_past,
        the_instruction_pointer_wraps_at_32_bits,
        going_past_an_instruction_ends_a_shadow,
        going_past_an_instruction_makes_a_single_step_due,
        an_emulated_instruction_is_gone_past,
        port_accesses_are_told,
        control_registers_name_their_general_register,
        nested_faults_are_told,
        events_are_delivered_once,
        the_last_injection_wins,
        real_mode_pushes_no_error_code,
        an_interrupted_delivery_is_told_once,
        an_interrupted_nmi_can_be_injected_again,
        an_nmi_blocks_further_ones,
        a_shadow_is_told_and_can_be_set,
        windows_are_asked_for_as_long_as_they_are_wanted,
        translations_are_forgotten_when_told,
        the_timer_is_set_for_each_entry,
        the_guests_counter_is_offset,
        debug_exceptions_are_told_with_their_causes,
        ends_are_told,
        a_refused_entry_is_final_and_explained,
    ]
}

macro_rules! same {
    ($left:expr, $right:expr, $($what:tt)+) => { compare($left, $right, &format!($($what)+))? };
}

fn compare<T: PartialEq + Debug>(found: T, wanted: T, what: &str) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: found {found:x?}, wanted {wanted:x?}")) }
}

fn holds(condition: bool, what: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

/// A vCPU and its bench.
struct Subject<'a, B: Bench> {
    bench: &'a mut B,
    vcpu: Broken<B::Vcpu>,
}

impl<'a, B: Bench> Subject<'a, B> {
    fn reset(bench: &'a mut B, way: Option<Way>) -> Self {
        let vcpu = bench.vcpu(way);
        Self { bench, vcpu }
    }

    /// In flat 32-bit code without paging, interrupts on.
    fn flat(bench: &'a mut B, way: Option<Way>) -> Self {
        let mut this = Self::reset(bench, way);
        let code = Segment { selector: 8, attributes: 0xC09B, limit: u32::MAX, base: 0 };
        let data = Segment { selector: 16, attributes: 0xC093, limit: u32::MAX, base: 0 };
        this.vcpu.set_segment(SegmentName::Cs, code).unwrap();
        this.vcpu.set_segment(SegmentName::Ss, data).unwrap();
        this.set(Register::Cr0, (Cr0::PE | Cr0::ET).bits());
        this.set(Register::Rip, CODE);
        this.set(Register::Rflags, (Rflags::FIXED | Rflags::IF).bits());
        this
    }

    fn set(&mut self, register: Register, value: u64) {
        self.vcpu.write(register, value).unwrap();
    }

    fn get(&self, register: Register) -> u64 {
        self.vcpu.read(register).unwrap()
    }

    /// One entry, and what it comes to.
    fn run(&mut self, happens: Happens) -> Result<Exit, BackendError> {
        self.bench.script(&mut self.vcpu.inner, happens);
        self.vcpu.run()
    }

    fn stop(&mut self, happens: Happens) -> Exit {
        self.run(happens).expect("an exit")
    }

    fn last(&mut self) -> Entry {
        *self.bench.entries(&mut self.vcpu.inner).last().expect("an entry")
    }

    /// An entry in which nothing of interest happens, as the processor saw it.
    fn entry(&mut self) -> Entry {
        self.stop(Happens::Timer);
        self.last()
    }
}

const FAULT: Fault = Fault { gpa: 0xFEC0_0000, write: true, execute: false, walk: false, present: false };

fn nested(delivering: Event) -> Happens {
    Happens::Nested { fault: FAULT, delivering: Some(delivering) }
}

fn a_new_vcpu_stands_as_after_reset<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let subject = Subject::reset(bench, way);
    for (register, value) in [
        (Register::Cr0, 0x6000_0010),
        (Register::Cr3, 0),
        (Register::Cr4, 0),
        (Register::Efer, 0),
        (Register::Rip, 0xFFF0),
        (Register::Rflags, 2),
        (Register::Dr6, 0xFFFF_0FF0),
        (Register::Dr7, 0x400),
        (Register::Pat, 0x0007_0406_0007_0406),
        (Register::IdtLimit, 0xFFFF),
        (Register::GdtLimit, 0xFFFF),
    ] {
        same!(subject.get(register), value, "{register:?}");
    }
    for gpr in Gpr::ALL {
        same!(subject.vcpu.gpr(gpr), Ok(0), "{gpr:?}");
    }
    let cs = Segment { selector: 0xF000, attributes: 0x9B, limit: 0xFFFF, base: 0xFFFF_0000 };
    same!(subject.vcpu.segment(SegmentName::Cs), Ok(cs), "CS");
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "interruptibility");
    same!(subject.vcpu.privilege(), Ok(0), "privilege level");
    Ok(())
}

fn registers_hold_what_they_are_set_to<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::reset(bench, way);
    for gpr in Gpr::ALL {
        subject.vcpu.set_gpr(gpr, 0x1_0000_0001 * (gpr.number() as u64 + 1)).unwrap();
    }
    for gpr in Gpr::ALL {
        same!(subject.vcpu.gpr(gpr), Ok(0x1_0000_0001 * (gpr.number() as u64 + 1)), "{gpr:?}");
    }
    for (register, value) in [
        (Register::Rip, 0xFFFF_8000_1234_5678),
        (Register::Rflags, 0x4_0246),
        (Register::Cr2, 0x1234_5678_9ABC),
        (Register::Cr3, 0x1234_5018),
        (Register::Dr6, 0xFFFF_4FF1),
        (Register::Dr7, 0x2401),
        (Register::Pat, 0x0706_0504_0100_0706),
        (Register::GdtBase, 0xFFFF_FFFF_8100_0000),
        (Register::GdtLimit, 0x7F),
        (Register::IdtBase, 0xFFFF_FE00_0000_0000),
        (Register::IdtLimit, 0xFFF),
        (Register::SysenterCs, 0x10),
        (Register::SysenterEsp, 0xFFFF_8000_0000_1000),
        (Register::SysenterEip, 0xFFFF_8000_0000_2000),
    ] {
        subject.set(register, value);
        same!(subject.get(register), value, "{register:?}");
    }
    Ok(())
}

fn segments_hold_what_they_are_set_to<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::reset(bench, way);
    for (index, name) in SegmentName::ALL.into_iter().enumerate() {
        let base = 0x1000 * index as u64;
        let attributes = if matches!(name, SegmentName::Ldtr | SegmentName::Tr) { 0x8B } else { 0xC0F3 };
        let segment = Segment { selector: 0x2B, attributes, limit: 0xFFFF_F000 | 0xFFF, base };
        subject.vcpu.set_segment(name, segment).unwrap();
        same!(subject.vcpu.segment(name), Ok(segment), "{name:?}");
    }
    same!(subject.vcpu.privilege(), Ok(3), "the level of SS");
    let null = Segment { attributes: Segment::UNUSABLE, ..Segment::default() };
    subject.vcpu.set_segment(SegmentName::Gs, null).unwrap();
    holds(subject.vcpu.segment(SegmentName::Gs).unwrap().is_unusable(), "a null segment stays unusable")
}

fn the_guest_does_not_see_what_the_host_adds<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::reset(bench, way);
    for (register, values) in [
        (Register::Cr0, &[0x10, 0x11, 0x6000_0011, 0x8005_003B, 0xE000_0011][..]),
        (Register::Cr4, &[0, 0x20, 0x6F0, Cr4::MCE.bits()][..]),
        (Register::Efer, &[0, 1, 0x101, (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits()][..]),
    ] {
        for &value in values {
            subject.set(register, value);
            same!(subject.get(register), value, "{register:?}");
        }
    }
    Ok(())
}

fn an_instruction_is_told_and_gone_past<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    let instructions = [
        (Instruction::Cpuid, 2, Exit::Cpuid),
        (Instruction::Cpuid, 5, Exit::Cpuid),
        (Instruction::Halt, 1, Exit::Halt),
        (Instruction::Hypercall, 3, Exit::Hypercall),
        (Instruction::ReadMsr, 2, Exit::ReadMsr),
        (Instruction::WriteMsr, 4, Exit::WriteMsr),
        (Instruction::Xsetbv, 3, Exit::Xsetbv),
        (Instruction::WriteBackCaches, 2, Exit::CacheFlush),
    ];
    let mut rip = CODE;
    for (instruction, length, exit) in instructions {
        same!(subject.stop(Happens::Instruction(instruction, length)), exit, "{instruction:?}");
        same!(subject.get(Register::Rip), rip, "RIP at {instruction:?}");
        subject.vcpu.skip_instruction().unwrap();
        rip += u64::from(length);
        same!(subject.get(Register::Rip), rip, "RIP past {instruction:?} of {length} bytes");
    }
    same!(subject.stop(Happens::Instruction(Instruction::Monitor, 3)), Exit::Undefined, "MONITOR");
    same!(subject.entry().rip, rip, "RIP at the next entry");
    Ok(())
}

fn the_instruction_pointer_wraps_at_32_bits<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    subject.set(Register::Rip, 0xFFFF_FFFE);
    subject.vcpu.skip_bytes(3).unwrap();
    same!(subject.get(Register::Rip), 1, "outside 64-bit code");
    let long = Segment { selector: 8, attributes: 0xA09B, limit: u32::MAX, base: 0 };
    subject.set(Register::Efer, (Efer::LME | Efer::LMA).bits());
    subject.vcpu.set_segment(SegmentName::Cs, long).unwrap();
    subject.set(Register::Rip, 0xFFFF_FFFE);
    subject.vcpu.skip_bytes(3).unwrap();
    same!(subject.get(Register::Rip), 0x1_0000_0001, "in 64-bit code");
    Ok(())
}

fn going_past_an_instruction_ends_a_shadow<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    let shadow = Interruptibility { sti: true, ..Interruptibility::default() };
    subject.vcpu.set_interruptibility(shadow).unwrap();
    subject.vcpu.skip_bytes(1).unwrap();
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "after the instruction");
    holds(!subject.entry().shadow, "the processor must not see the shadow any more")
}

fn going_past_an_instruction_makes_a_single_step_due<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    holds(!subject.entry().step, "no step without TF")?;
    subject.set(Register::Rflags, (Rflags::FIXED | Rflags::TF).bits());
    holds(!subject.entry().step, "no step before the instruction")?;
    subject.stop(Happens::Instruction(Instruction::Cpuid, 2));
    subject.vcpu.skip_instruction().unwrap();
    holds(subject.entry().step, "the step is due")
}

fn an_emulated_instruction_is_gone_past<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    subject.stop(Happens::Nested { fault: FAULT, delivering: None });
    subject.vcpu.skip_bytes(7).unwrap();
    same!(subject.get(Register::Rip), CODE + 7, "RIP");
    Ok(())
}

fn port_accesses_are_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for (port, width) in [(0x3F8, Width::Byte), (0xFFFF, Width::Word), (0, Width::Dword)] {
        for write in [false, true] {
            let access =
                IoAccess { port, width, write, string: false, repeat: false, segment: None, address_bytes: None };
            let exit = subject.stop(Happens::Instruction(Instruction::Port { port, width, write }, 1));
            let Exit::Io(found) = exit else { return Err(format!("port {port:x}: {exit:?}")) };
            // What is told of a memory operand does not matter: there is none.
            same!(IoAccess { segment: None, address_bytes: None, ..found }, access, "port {port:x}");
        }
    }
    let rip = subject.get(Register::Rip);
    subject.vcpu.skip_instruction().unwrap();
    same!(subject.get(Register::Rip), rip + 1, "RIP");
    Ok(())
}

fn control_registers_name_their_general_register<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for from in [Gpr::Rcx, Gpr::Rdi, Gpr::Rax] {
        let exit = subject.stop(Happens::Instruction(Instruction::WriteCr4(from), 3));
        same!(exit, Exit::WriteCr { number: 4, from }, "MOV to CR4");
    }
    let rip = subject.get(Register::Rip);
    subject.vcpu.skip_instruction().unwrap();
    same!(subject.get(Register::Rip), rip + 3, "RIP");
    // CR8 is there in 64-bit code alone.
    subject.set(Register::Efer, (Efer::LME | Efer::LMA).bits());
    let long = Segment { selector: 8, attributes: 0xA09B, limit: u32::MAX, base: 0 };
    subject.vcpu.set_segment(SegmentName::Cs, long).unwrap();
    let exit = subject.stop(Happens::Instruction(Instruction::WriteCr8(Gpr::Rbx), 4));
    same!(exit, Exit::WriteCr { number: 8, from: Gpr::Rbx }, "MOV to CR8");
    let exit = subject.stop(Happens::Instruction(Instruction::ReadCr8(Gpr::Rsi), 4));
    same!(exit, Exit::ReadCr { number: 8, to: Gpr::Rsi }, "MOV from CR8");
    subject.vcpu.skip_instruction().unwrap();
    same!(subject.get(Register::Rip), rip + 7, "RIP past it");
    Ok(())
}

fn nested_faults_are_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for bits in 0..16 {
        let [write, execute, walk, present] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        if write && execute {
            continue;
        }
        let gpa = 0x1_FEE0_0300 + bits;
        let fault = Fault { gpa, write, execute, walk, present };
        let exit = subject.stop(Happens::Nested { fault, delivering: None });
        let Exit::Nested(found) = exit else { return Err(format!("{fault:?}: {exit:?}")) };
        same!(found.gpa, Gpa::new(gpa), "address");
        let told = (found.write, found.execute, found.table_walk, found.present, found.malformed);
        same!(told, (write, execute, walk, present, false), "write, execute, walk, present, malformed");
        same!(subject.vcpu.take_interrupted(), None, "nothing was being delivered");
    }
    Ok(())
}

/// Events as policy injects them, and what the processor must see: type, vector, error code.
const EVENTS: [(Event, Seen); 6] = [
    (Event::Interrupt(0x31), (0, 0x31, None)),
    (Event::Nmi, (2, 2, None)),
    (Event::GP, (3, 13, Some(0))),
    (Event::fault(Vector::PF, 6), (3, 14, Some(6))),
    (Event::UD, (3, 6, None)),
    // An error code that the vector does not have is left out.
    (Event::fault(Vector::DB, 5), (3, 1, None)),
];

fn events_are_delivered_once<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    for (event, seen) in EVENTS {
        let mut subject = Subject::flat(bench, way);
        same!(subject.entry().event, None, "before {event:?}");
        subject.vcpu.inject(event).unwrap();
        same!(subject.entry().event, Some(seen), "{event:?}");
        same!(subject.entry().event, None, "after {event:?}");
    }
    Ok(())
}

fn the_last_injection_wins<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    subject.vcpu.inject(Event::fault(Vector::PF, 6)).unwrap();
    subject.vcpu.inject(Event::Interrupt(0x20)).unwrap();
    same!(subject.entry().event, Some((0, 0x20, None)), "the second");
    Ok(())
}

fn real_mode_pushes_no_error_code<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::reset(bench, way);
    subject.vcpu.inject(Event::GP).unwrap();
    same!(subject.entry().event, Some((3, 13, None)), "#GP");
    Ok(())
}

fn an_interrupted_delivery_is_told_once<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for event in [Event::Interrupt(0x31), Event::fault(Vector::PF, 2), Event::UD] {
        let exit = subject.stop(nested(event));
        holds(matches!(exit, Exit::Nested(_)), "the fault is told too")?;
        same!(subject.vcpu.take_interrupted(), Some(event), "{event:?}");
        same!(subject.vcpu.take_interrupted(), None, "{event:?} a second time");
        subject.vcpu.inject(event).unwrap();
        let (_, seen) = EVENTS.into_iter().find(|(known, _)| *known == event).unwrap_or((event, (3, 14, Some(2))));
        same!(subject.entry().event, Some(seen), "{event:?} again");
        same!(subject.vcpu.take_interrupted(), None, "after it was delivered");
    }
    Ok(())
}

fn an_interrupted_nmi_can_be_injected_again<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    subject.vcpu.inject(Event::Nmi).unwrap();
    subject.stop(nested(Event::Nmi));
    same!(subject.vcpu.take_interrupted(), Some(Event::Nmi), "the NMI");
    holds(!subject.vcpu.interruptibility().unwrap().nmi, "it is not in service")?;
    subject.vcpu.inject(Event::Nmi).unwrap();
    same!(subject.entry().event, Some((2, 2, None)), "again");
    Ok(())
}

fn an_nmi_blocks_further_ones<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    subject.vcpu.inject(Event::Nmi).unwrap();
    subject.entry();
    holds(subject.vcpu.interruptibility().unwrap().nmi, "in service")?;
    subject.vcpu.set_interruptibility(Interruptibility::default()).unwrap();
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "it can be ended");
    Ok(())
}

fn a_shadow_is_told_and_can_be_set<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    subject.stop(Happens::Host { shadow: true });
    let blocked = subject.vcpu.interruptibility().unwrap();
    holds(blocked.sti || blocked.mov_ss, "the shadow in which the guest stopped")?;
    holds(subject.entry().shadow, "it is still there at the next entry")?;
    subject.stop(Happens::Host { shadow: false });
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "after it");
    subject.vcpu.set_interruptibility(Interruptibility { mov_ss: true, ..Interruptibility::default() }).unwrap();
    let blocked = subject.vcpu.interruptibility().unwrap();
    holds(blocked.sti || blocked.mov_ss, "one that was set")?;
    holds(subject.entry().shadow, "the processor sees it")
}

fn windows_are_asked_for_as_long_as_they_are_wanted<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    holds(!subject.entry().interrupt_window, "none was asked for")?;
    subject.vcpu.request_windows(Windows { interrupt: true, nmi: false }).unwrap();
    for _ in 0..2 {
        same!(subject.stop(Happens::InterruptWindow), Exit::InterruptWindow, "the window");
        holds(subject.last().interrupt_window, "asked for at each entry")?;
    }
    subject.vcpu.request_windows(Windows::default()).unwrap();
    holds(!subject.entry().interrupt_window, "not wanted any more")
}

fn translations_are_forgotten_when_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    holds(subject.entry().flushed, "before the first entry: another guest had the tag")?;
    holds(!subject.entry().flushed, "not without need")?;
    subject.vcpu.flush_nested();
    holds(subject.entry().flushed, "after something was unmapped")?;
    holds(!subject.entry().flushed, "once")
}

fn the_timer_is_set_for_each_entry<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for ticks in [5000, 1_000_000, 300] {
        subject.vcpu.set_timer(ticks).unwrap();
        same!(subject.stop(Happens::Timer), Exit::Timer, "after {ticks} ticks");
        let armed = subject.last().timer;
        holds(armed <= ticks + 64, &format!("{ticks} ticks became {armed}"))?;
    }
    Ok(())
}

fn the_guests_counter_is_offset<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for offset in [5_u64.wrapping_neg(), 1 << 40, 0] {
        subject.vcpu.set_tsc_offset(offset).unwrap();
        same!(subject.entry().tsc_offset, offset, "offset");
    }
    Ok(())
}

fn debug_exceptions_are_told_with_their_causes<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    for causes in [1 << 14, 0b0001, 0b1010, 1 << 14 | 0b0100] {
        subject.set(Register::Dr6, 0xFFFF_0FF0);
        let exit = subject.stop(Happens::Debug(causes));
        let Exit::Exception { vector, error, debug_status } = exit else { return Err(format!("{exit:?}")) };
        same!((vector, error), (Vector::DB, None), "vector and error code");
        // As policy puts them together: which breakpoints were met is told anew, what else happened stays.
        let status = subject.get(Register::Dr6) & !0xF | debug_status;
        same!(status & 0x400F, causes, "causes in DR6");
    }
    Ok(())
}

fn ends_are_told<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    same!(subject.stop(Happens::TripleFault), Exit::TripleFault, "the third fault");
    same!(subject.stop(Happens::TaskSwitch), Exit::TaskSwitch, "a task switch");
    same!(subject.stop(Happens::Host { shadow: false }), Exit::Host, "the host");
    Ok(())
}

fn a_refused_entry_is_final_and_explained<B: Bench>(bench: &mut B, way: Option<Way>) -> Result<(), String> {
    let mut subject = Subject::flat(bench, way);
    // No processor has so wide addresses.
    subject.set(Register::Cr3, 1 << 60);
    let first = subject.run(Happens::Refused);
    holds(matches!(first, Err(BackendError::Entry { .. })), "an error of the entry")?;
    same!(subject.run(Happens::Timer), first, "again");
    let mut text = String::new();
    subject.vcpu.explain_entry_failure(&mut text).unwrap();
    holds(text.contains("CR3 = 0x1000000000000000: "), &format!("field, value and rule in {text:?}"))
}
