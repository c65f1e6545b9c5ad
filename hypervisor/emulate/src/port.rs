//! INS and OUTS: the memory side of string port accesses.
//!
//! The processor has checked the port against the privilege level and stopped before anything moved. SDM vol. 2A 3.3
//! "INS/INSB/INSW/INSD", vol. 2B 4.3 "OUTS/OUTSB/OUTSW/OUTSD"; vol. 3C 28.2.5 "Information for VM Exits Due to
//! Instruction Execution", table 28-8.

use crate::access::Machine;
use crate::cpu::{Bus, Cpu, Outcome, Stop};
use crate::fetch::Fetched;
use crate::string::{Form, form};
use bulkhead_arch::SegmentName;
use bulkhead_types::{GuestMemory, Width};
use iced_x86::{Instruction, Mnemonic};

/// What the processor says about an INS or OUTS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringIo {
    /// Port number.
    pub port: u16,
    /// Width of an element; never [`Width::Qword`].
    pub width: Width,
    /// OUTS rather than INS.
    pub write: bool,
    /// With a REP prefix.
    pub repeat: bool,
    /// Segment of the memory operand of OUTS, where the processor says so.
    pub segment: Option<SegmentName>,
    /// Address size in bytes (2, 4, 8), where the processor says so.
    pub address_bytes: Option<u8>,
}

/// Carries out an INS or OUTS, up to [`crate::CHUNK`] elements of it. An element's memory is translated before its port
/// is touched: no input is lost to a fault.
///
/// The instruction is fetched and decoded only where `access` does not say all. Otherwise the length in
/// [`Outcome::Done`] is 0 and the exit's own holds.
///
/// # Errors
/// See [`Stop`].
pub fn string_io<C: Cpu, M: GuestMemory + ?Sized, B: Bus + ?Sized>(
    cpu: &mut C,
    memory: &mut M,
    bus: &mut B,
    access: StringIo,
) -> Result<Outcome, Stop<C::Error>> {
    let mut machine = Machine::new(cpu, memory, bus, None)?;
    let mut fetched = Fetched::default();
    let mut form = known(access);
    if form.is_none() {
        let rip = machine.cpu.rip().map_err(Stop::Cpu)?;
        if let Err(trap) = machine.fetch(rip, &mut fetched) {
            return trap.end(None);
        }
        form = decoded(&fetched.instruction, access);
    }
    // Other code than what trapped is there by now: let the guest run that.
    let Some(form) = form else { return Ok(Outcome::Again) };
    let result = machine.repeat(form, |machine, element| {
        if access.write {
            let from = machine.place(form.segment, element.source, form.width, false)?;
            let value = u32::try_from(machine.read(from)).unwrap_or(u32::MAX);
            machine.bus.port_write(access.port, access.width, value);
        } else {
            let to = machine.place(SegmentName::Es, element.destination, form.width, true)?;
            let value = machine.bus.port_read(access.port, access.width);
            machine.write(to, u64::from(value));
        }
        Ok(true)
    });
    match result {
        Ok(true) => Ok(Outcome::Done { length: fetched.length }),
        Ok(false) => Ok(Outcome::Again),
        Err(trap) => trap.end(Some(&fetched)),
    }
}

/// The shape of the instruction, if the processor said all of it.
const fn known(access: StringIo) -> Option<Form> {
    let address = match access.address_bytes {
        Some(2) => Width::Word,
        Some(4) => Width::Dword,
        Some(8) => Width::Qword,
        _ => return None,
    };
    let segment = match access.segment {
        Some(segment) => segment,
        None if access.write => return None,
        None => SegmentName::Es,
    };
    let (source, destination, repeat) = (access.write, !access.write, access.repeat);
    Some(Form { width: access.width, address, segment, source, destination, repeat })
}

/// The shape of a decoded instruction, if it is the one that `access` tells of.
fn decoded(instruction: &Instruction, access: StringIo) -> Option<Form> {
    let form = form(instruction, access.width, access.write, !access.write)?;
    let same = element(instruction.mnemonic()) == Some((access.width, access.write)) && form.repeat == access.repeat;
    same.then_some(form)
}

/// Width and direction of an INS or OUTS.
const fn element(mnemonic: Mnemonic) -> Option<(Width, bool)> {
    match mnemonic {
        Mnemonic::Insb => Some((Width::Byte, false)),
        Mnemonic::Insw => Some((Width::Word, false)),
        Mnemonic::Insd => Some((Width::Dword, false)),
        Mnemonic::Outsb => Some((Width::Byte, true)),
        Mnemonic::Outsw => Some((Width::Word, true)),
        Mnemonic::Outsd => Some((Width::Dword, true)),
        _ => None,
    }
}
