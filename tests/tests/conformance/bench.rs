//! A vCPU on a scripted processor, and what one tells the other, in words of no vendor.

use crate::broken::{Broken, Way};
use bulkhead_arch::Gpr;
use bulkhead_core::{Event, Vcpu};
use bulkhead_types::Width;

/// An instruction that stops a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    Cpuid,
    Halt,
    Hypercall,
    ReadMsr,
    WriteMsr,
    Xsetbv,
    WriteBackCaches,
    /// MONITOR: one that this machine does not have.
    Monitor,
    /// MOV to CR4 that policy has to see.
    WriteCr4(Gpr),
    WriteCr8(Gpr),
    ReadCr8(Gpr),
    /// IN or OUT with DX.
    Port {
        port: u16,
        width: Width,
        write: bool,
    },
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happens {
    /// The guest comes to this instruction, which has so many bytes with its prefixes.
    Instruction(Instruction, u8),
    /// The nested tables do not allow an access, perhaps while this event was being delivered.
    Nested { fault: Fault, delivering: Option<Event> },
    /// #DB with these bits of DR6: breakpoints 0 to 3, bit 14 for a single step.
    Debug(u64),
    /// The guest can take an interrupt, as was asked.
    InterruptWindow,
    /// The third fault in a row.
    TripleFault,
    /// A task gate.
    TaskSwitch,
    /// The host's timer, after the time that was set.
    Timer,
    /// Another interrupt of the host's, in the shadow of STI if so.
    Host { shadow: bool },
    /// The processor refuses the guest's state.
    Refused,
}

/// What an access wanted, and what was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    pub gpa: u64,
    pub write: bool,
    pub execute: bool,
    pub walk: bool,
    pub present: bool,
}

/// An event to be delivered: its type as both manuals number it, vector, error code.
pub type Seen = (u32, u8, Option<u32>);

/// What the processor saw at an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub rip: u64,
    /// The event to be delivered.
    pub event: Option<Seen>,
    /// A single step is due before the next instruction.
    pub step: bool,
    /// Interrupts are held back for one instruction.
    pub shadow: bool,
    /// Translations of the nested tables were forgotten since the last entry.
    pub flushed: bool,
    /// It stops when it can take an interrupt.
    pub interrupt_window: bool,
    pub tsc_offset: u64,
    /// Ticks until the timer.
    pub timer: u64,
}

/// A backend on a scripted processor.
pub trait Bench: Default {
    const NAME: &'static str;
    type Vcpu: Vcpu;

    /// A vCPU as after reset, broken in this way.
    fn vcpu(&mut self, way: Option<Way>) -> Broken<Self::Vcpu>;

    /// What the next entry of it comes to; the guest's registers are as the vCPU has them.
    fn script(&mut self, vcpu: &mut Self::Vcpu, happens: Happens);

    /// All entries so far.
    fn entries(&mut self, vcpu: &mut Self::Vcpu) -> Vec<Entry>;
}

/// The bytes of an instruction, filled up with prefixes that change nothing.
pub fn code(instruction: Instruction, length: u8) -> Vec<u8> {
    let modrm = |number: u8, gpr: Gpr| 0xC0 | number << 3 | u8::try_from(gpr.number()).unwrap();
    let bytes: &[u8] = match instruction {
        Instruction::Cpuid => &[0x0F, 0xA2],
        Instruction::Halt => &[0xF4],
        Instruction::Hypercall => &[0x0F, 0x01, 0xD9],
        Instruction::ReadMsr => &[0x0F, 0x32],
        Instruction::WriteMsr => &[0x0F, 0x30],
        Instruction::Xsetbv => &[0x0F, 0x01, 0xD1],
        Instruction::WriteBackCaches => &[0x0F, 0x09],
        Instruction::Monitor => &[0x0F, 0x01, 0xC8],
        Instruction::WriteCr4(gpr) => &[0x0F, 0x22, modrm(4, gpr)],
        // CR8 needs a REX prefix, which only 64-bit code has.
        Instruction::WriteCr8(gpr) => &[0x44, 0x0F, 0x22, modrm(0, gpr)],
        Instruction::ReadCr8(gpr) => &[0x44, 0x0F, 0x20, modrm(0, gpr)],
        Instruction::Port { width: Width::Byte, write, .. } => &[0xEC | u8::from(write) << 1],
        Instruction::Port { write, .. } => &[0xED | u8::from(write) << 1],
    };
    let prefixes = usize::from(length).checked_sub(bytes.len()).expect("room for the instruction");
    let segment = std::iter::repeat_n(0x3E, prefixes);
    segment.chain(bytes.iter().copied()).collect()
}
