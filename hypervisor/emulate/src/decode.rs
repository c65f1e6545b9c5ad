//! What an instruction that was intercepted names, where the processor does not say.
//!
//! The processor has recognized it; what is asked is how long it is, and which register it names.

use crate::access::{Machine, Trap};
use crate::cpu::{Bus, Cpu, Stop};
use crate::fetch::{Code, Fetched};
use crate::operand::Part;
use bulkhead_arch::{Gpr, Segment};
use bulkhead_paging::guest::PagingState;
use bulkhead_types::GuestMemory;
use iced_x86::{Instruction, Mnemonic};

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Bytes, 1 to 15.
    pub length: u8,
    /// What it names.
    pub operand: Named,
}

/// What an instruction names, of what an interception can need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Named {
    /// Nothing that is asked for here.
    Nothing,
    /// MOV to or from a control register: the general register.
    General(Gpr),
    /// CLTS.
    ClearTaskSwitched,
    /// LMSW; [`source`] has its operand.
    MachineStatus,
}

/// Decodes the instruction at `rip` in the code segment `code`; `None` if it is out of reach, or none.
pub fn decode<M: GuestMemory + ?Sized>(
    memory: &mut M,
    state: &PagingState,
    code: &Segment,
    rip: u64,
) -> Option<Decoded> {
    let mut fetched = Fetched::default();
    Code::new(memory, state, code).fetch::<()>(rip, &mut fetched).ok()?;
    let instruction = &fetched.instruction;
    if instruction.is_invalid() {
        return None;
    }
    Some(Decoded { length: fetched.length, operand: named(instruction) })
}

/// The operand of the LMSW at RIP; `None` if memory changed under the hands: let the guest run the
/// instruction again.
///
/// # Errors
/// See [`Stop`].
pub fn source<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized>(
    cpu: &mut C,
    memory: &mut M,
    bus: &mut B,
) -> Result<Option<u64>, Stop<C::Error>> {
    let mut machine = Machine::new(cpu, memory, bus, None)?;
    let mut fetched = Fetched::default();
    let rip = machine.cpu.rip().map_err(Stop::Cpu)?;
    let read = machine.fetch(rip, &mut fetched).and_then(|()| {
        // Another processor may have put something else there since it was decoded.
        if fetched.instruction.mnemonic() != Mnemonic::Lmsw {
            return Err(Trap::Raced);
        }
        let operand = machine.operand(&fetched.instruction, 0, false)?;
        machine.get(operand)
    });
    match read {
        Ok(value) => Ok(Some(value)),
        Err(trap) => trap.end(Some(&fetched)).map(|_| None),
    }
}

fn named(instruction: &Instruction) -> Named {
    let general = || {
        let registers = [instruction.op0_register(), instruction.op1_register()];
        registers.into_iter().find_map(Part::named).map(|part| part.gpr)
    };
    match (instruction.mnemonic(), general()) {
        (Mnemonic::Clts, _) => Named::ClearTaskSwitched,
        (Mnemonic::Lmsw, _) => Named::MachineStatus,
        (Mnemonic::Mov, Some(gpr)) => Named::General(gpr),
        _ => Named::Nothing,
    }
}
