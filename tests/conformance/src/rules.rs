//! The rules.

mod entering;
mod events;
mod leaving;
mod registers;

use crate::bench::{Arrival, Bench, Came, Entry, Failure, Fault, Happens, Instruction, Seen};
use crate::broken::{Broken, Way};
use crate::guest;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;
use bulkhead_arch::{Cr0, Cr4, Efer, Rflags, Segment, SegmentName};
use bulkhead_core::{Event, Exit, Register, Vcpu};
use core::fmt::Debug;

/// A rule, asked of a backend that is broken in this way or whole.
pub type Rule<B> = fn(&mut B, Option<Way>) -> Kept;
/// What was wrong, if it is not kept.
pub type Kept = Result<(), Failure>;

/// All rules with their names.
#[must_use]
#[expect(non_snake_case, reason = "a table, for each bench")]
pub fn RULES<B: Bench>() -> Vec<(&'static str, Rule<B>)> {
    macro_rules! rules {
        ($($module:ident::$name:ident),* $(,)?) => { alloc::vec![$((stringify!($name), $module::$name::<B> as Rule<B>)),*] };
    }
    rules![
        registers::a_new_vcpu_stands_as_after_reset,
        registers::registers_hold_what_they_are_set_to,
        registers::segments_hold_what_they_are_set_to,
        registers::the_guest_does_not_see_what_the_host_adds,
        leaving::an_instruction_is_told_and_gone_past,
        leaving::xsetbv_is_told,
        registers::the_instruction_pointer_wraps_at_32_bits,
        entering::going_past_an_instruction_ends_a_shadow,
        entering::going_past_an_instruction_makes_a_single_step_due,
        entering::a_single_step_is_due_no_more_behind_a_reset,
        leaving::an_emulated_instruction_is_gone_past,
        leaving::port_accesses_are_told,
        leaving::control_registers_name_their_general_register,
        leaving::nested_faults_are_told,
        events::events_are_delivered_once,
        events::the_last_injection_wins,
        events::real_mode_pushes_no_error_code,
        events::an_interrupted_delivery_is_told_once,
        events::an_interrupted_nmi_can_be_injected_again,
        events::an_nmi_blocks_further_ones,
        events::the_return_from_an_nmi_opens_its_window,
        entering::a_shadow_is_told_and_can_be_set,
        entering::windows_are_asked_for_as_long_as_they_are_wanted,
        entering::no_interrupt_is_taken_in_a_shadow,
        entering::translations_are_forgotten_when_told,
        entering::what_is_unmapped_is_out_of_reach,
        entering::the_timer_is_set_for_each_entry,
        entering::the_guests_counter_is_offset,
        leaving::debug_exceptions_are_told_with_their_causes,
        leaving::a_triple_fault_is_told,
        leaving::a_task_switch_is_told,
        leaving::an_interrupt_of_the_host_is_told,
        entering::a_refused_entry_is_final,
        entering::a_refused_entry_is_explained,
    ]
}

macro_rules! same {
    ($left:expr, $right:expr, $($what:tt)+) => { $crate::rules::compare($left, $right, &alloc::format!($($what)+))? };
}
use same;

fn compare<T: PartialEq + Debug>(found: T, wanted: T, what: &str) -> Kept {
    if found == wanted { Ok(()) } else { Err(Failure::Wrong(format!("{what}: found {found:x?}, wanted {wanted:x?}"))) }
}

fn holds(condition: bool, what: &str) -> Kept {
    if condition { Ok(()) } else { Err(Failure::Wrong(what.to_owned())) }
}

/// Ticks in which nothing of interest happens.
const SHORT: u64 = 5000;

/// A vCPU and its bench.
struct Subject<'a, B: Bench> {
    bench: &'a mut B,
    vcpu: Broken<B::Vcpu>,
}

impl<'a, B: Bench> Subject<'a, B> {
    fn reset(bench: &'a mut B, way: Option<Way>) -> Result<Self, Failure> {
        let mut vcpu = Broken::new(bench.vcpu()?, way);
        vcpu.activate()?;
        Ok(Self { bench, vcpu })
    }

    /// In real mode, interrupts on.
    fn real(bench: &'a mut B, way: Option<Way>) -> Result<Self, Failure> {
        let mut this = Self::reset(bench, way)?;
        let code = Segment { selector: 0, attributes: 0x9B, limit: 0xFFFF, base: 0 };
        this.vcpu.set_segment(SegmentName::Cs, code)?;
        this.begin()?;
        Ok(this)
    }

    /// In flat 32-bit code without paging, interrupts on.
    fn flat(bench: &'a mut B, way: Option<Way>) -> Result<Self, Failure> {
        let mut this = Self::reset(bench, way)?;
        let code = Segment { selector: guest::CODE_32, attributes: 0xC09B, limit: u32::MAX, base: 0 };
        this.protected(code, guest::IDT_32)?;
        this.set(Register::Cr0, (Cr0::PE | Cr0::ET).bits())?;
        Ok(this)
    }

    /// In 64-bit code, interrupts on.
    fn long(bench: &'a mut B, way: Option<Way>) -> Result<Self, Failure> {
        let mut this = Self::reset(bench, way)?;
        let code = Segment { selector: guest::CODE_64, attributes: 0xA09B, limit: u32::MAX, base: 0 };
        this.protected(code, guest::IDT_64)?;
        this.set(Register::Cr4, Cr4::PAE.bits())?;
        this.set(Register::Cr3, guest::ROOT)?;
        this.set(Register::Cr0, (Cr0::PE | Cr0::ET | Cr0::PG).bits())?;
        this.set(Register::Efer, (Efer::LME | Efer::LMA).bits())?;
        Ok(this)
    }

    fn protected(&mut self, code: Segment, handlers: u64) -> Kept {
        let data = Segment { selector: guest::DATA_FLAT, attributes: 0xC093, limit: u32::MAX, base: 0 };
        let task =
            Segment { selector: guest::TASK, attributes: 0x8B, limit: guest::TASK_LIMIT, base: guest::TASK_STATE };
        self.vcpu.set_segment(SegmentName::Cs, code)?;
        for name in [SegmentName::Ss, SegmentName::Ds, SegmentName::Es] {
            self.vcpu.set_segment(name, data)?;
        }
        self.vcpu.set_segment(SegmentName::Tr, task)?;
        self.set(Register::GdtBase, guest::GDT)?;
        self.set(Register::GdtLimit, guest::GDT_LIMIT)?;
        self.set(Register::IdtBase, handlers)?;
        self.set(Register::IdtLimit, 0xFFF)?;
        self.begin()
    }

    fn begin(&mut self) -> Kept {
        self.set(Register::Rip, guest::CODE)?;
        self.set(Register::Rflags, (Rflags::FIXED | Rflags::IF).bits())
    }

    fn set(&mut self, register: Register, value: u64) -> Kept {
        Ok(self.vcpu.write(register, value)?)
    }

    fn get(&self, register: Register) -> Result<u64, Failure> {
        Ok(self.vcpu.read(register)?)
    }

    /// One entry, and what it comes to.
    fn run(&mut self, happens: Happens) -> Result<Came, Failure> {
        self.bench.run(&mut self.vcpu, happens)
    }

    fn stop(&mut self, happens: Happens) -> Result<Exit, Failure> {
        Ok(self.run(happens)??)
    }

    /// What the processor was told at the last entry.
    fn told(&self) -> Result<Entry, Failure> {
        self.bench.told().ok_or_else(|| Failure::Wrong("the guest was not entered".to_owned()))
    }

    /// An entry in which nothing of interest happens, and what the processor was told.
    fn entry(&mut self) -> Result<Entry, Failure> {
        self.vcpu.set_timer(SHORT)?;
        same!(self.stop(Happens::Timer)?, Exit::Timer, "an entry that ends with the time");
        self.told()
    }

    /// An entry in which this event, and no other, has to come to the guest.
    fn delivers(&mut self, seen: Option<Seen>, what: &str) -> Kept {
        let flags = Rflags::from_bits_retain(self.get(Register::Rflags)?) & Arrival::FLAGS;
        let entry = self.entry()?;
        same!(entry.event, seen, "the event of the entry, {what}");
        let arrival = seen.map(|(_, vector, error)| Arrival { vector, error, rip: entry.rip, flags });
        same!(self.bench.arrived(), arrival, "what has come to the guest, {what}");
        Ok(())
    }
}

/// A write where there is nothing.
const FAULT: Fault = Fault { gpa: guest::ABSENT, write: true, execute: false, walk: false, present: false };

fn nested(delivering: Option<Event>) -> Happens {
    Happens::Nested { fault: FAULT, delivering }
}

const CPUID: Happens = Happens::Instruction(Instruction::Cpuid, 2);
