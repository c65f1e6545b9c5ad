//! What an instruction that was intercepted names, where the processor does not say.
//!
//! The processor has recognized it; what is asked is how long it is, and which register it names.

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
    /// LMSW of a register.
    MachineStatus(Gpr),
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

fn named(instruction: &Instruction) -> Named {
    let general = || {
        let registers = [instruction.op0_register(), instruction.op1_register()];
        registers.into_iter().find_map(Part::named).map(|part| part.gpr)
    };
    match (instruction.mnemonic(), general()) {
        (Mnemonic::Clts, _) => Named::ClearTaskSwitched,
        (Mnemonic::Lmsw, Some(gpr)) => Named::MachineStatus(gpr),
        (Mnemonic::Mov, Some(gpr)) => Named::General(gpr),
        _ => Named::Nothing,
    }
}
