//! Carries out a guest's instruction that touched a device.
//!
//! Where a guest names guest-physical memory that is a device and not RAM, its processor stops at the instruction.
//! [`mmio`] fetches that instruction through the guest's page tables, decodes it, and does what the processor would have
//! done, with the device's part of it going over a [`Bus`]. [`string_io`] does the same for INS and OUTS, whose memory
//! side the processor leaves to the hypervisor. [`decode`] only tells what an instruction is.
//!
//! Everything is read once: the code bytes, each table entry, each operand. An operand may cross a page, and each part
//! of it is RAM or device on its own. A read-modify-write reads the device once and writes it once, after all of its
//! translations were found allowed: a fault leaves no trace in a device. Repeated string instructions go on for at most
//! [`CHUNK`] elements a call, with registers exact after each element.
//!
//! Carried out: MOV (all forms but those of segment, control and debug registers), MOVZX, MOVSX, MOVSXD, MOVNTI, MOVBE,
//! AND, OR, XOR, ADD, SUB, ADC, SBB, CMP, TEST, NOT, NEG, INC, DEC, XCHG, XADD, CMPXCHG, BT, BTS, BTR, BTC, PUSH, MOVS, STOS, LODS, CMPS, SCAS.
//! Not: shifts, POP, far and near branches through memory, CMPXCHG8B/16B, and everything of x87, SSE and AVX (those registers
//! stay in the processor during an exit, and the hypervisor does not touch them). That is [`Stop::Unsupported`].
//! Alignment checks (#AC) and code-segment limits are not made again: the processor has made them.
//!
//! | what a hostile guest may try | what happens |
//! |---|---|
//! | other bytes than those that trapped (another processor writes them) | what was fetched is carried out, with the rights that the guest has |
//! | locked instructions on memory that another processor changes | a compare-exchange, and [`Outcome::Again`] if it fails |
//! | an instruction without an end, prefixes, garbage | at most 15 bytes are read; [`Stop::Unsupported`] |
//! | REP with a count of 2^64 - 1 | [`Outcome::Again`] after [`CHUNK`] elements |
//! | page tables or code in a device | [`Stop::Unreachable`] |
//! | operands across pages, segments' ends, the address space's end | byte-exact parts, #GP, #SS or #PF |
//!
//! No heap is used once [`warm_up`] was called. SDM vol. 2 "Instruction Set Reference"; vol. 3A 5.3 "Limit Checking",
//! 3.3.7.1 "Canonical Addressing".
#![no_std]
#![forbid(unsafe_code)]

mod access;
mod alu;
mod cpu;
mod decode;
mod execute;
mod fetch;
mod operand;
mod port;
mod string;

pub use cpu::{Bus, Cpu, Hint, Outcome, Stop};
pub use decode::{Decoded, Named, decode, source};
pub use fetch::DecodeCache;
pub use port::{StringIo, string_io};
pub use string::CHUNK;

use access::Machine;
use bulkhead_types::GuestMemory;
use fetch::Fetched;

/// Builds the decoder's tables: about 100 KiB of heap, never freed. To be called once at start-up: exits do not
/// allocate then.
pub fn warm_up() {
    fetch::warm_up();
}

/// Carries out the instruction at the guest's instruction pointer, which touched a device.
///
/// `hint` is what the processor said about the address, where it did: it saves the walk for that page. `cache` saves
/// decoding what was decoded before.
/// RIP is left alone. After [`Outcome::Done`] the caller goes past the instruction.
///
/// # Errors
/// See [`Stop`].
pub fn mmio<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized>(
    cpu: &mut C,
    memory: &mut M,
    bus: &mut B,
    hint: Option<Hint>,
    cache: &mut DecodeCache,
) -> Result<Outcome, Stop<C::Error>> {
    let rip = cpu.rip().map_err(Stop::Cpu)?;
    let mut machine = Machine::new(cpu, memory, bus, hint)?;
    let mut unused = Fetched::default();
    let slot = cache.slot(rip).unwrap_or(&mut unused);
    if let Err(trap) = machine.fetch(rip, slot) {
        return trap.end(None);
    }
    match machine.execute(&slot.instruction) {
        Ok(true) => Ok(Outcome::Done { length: slot.length }),
        Ok(false) => Ok(Outcome::Again),
        Err(trap) => trap.end(Some(slot)),
    }
}
