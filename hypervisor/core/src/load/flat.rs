//! Flat binaries: bytes copied to an address of the manifest and entered there.
//!
//! Below 1 MiB: 16-bit real mode, CS:IP = `at`/16:0, DS, ES, FS and GS as CS (so that a tiny-model program finds its data
//! at once). From 1 MiB on: 32-bit protected mode, flat, paging off. In both the stack is the last page of the RAM
//! below 640 KiB (SS:SP = 9000:FFF0, ESP = 9FFF0), all other registers are 0, and the program must set up the rest.

use super::bytes::length;
use super::error::{LoadError, Part};
use super::space::Space;
use super::state::InitialState;
use super::write::fill;
use super::{Protocol, Request};
use bulkhead_arch::Gpr;
use bulkhead_devices::layout;
use bulkhead_types::{GuestMemory, PAGE_SIZE};

/// First address of 32-bit entries.
const PROTECTED: u64 = 1 << 20;
/// Segment of the real-mode stack.
const STACK_SEGMENT: u16 = 0x9000;
/// First stack pointer in the last page of low RAM, relative to [`STACK_SEGMENT`].
const STACK_POINTER: u16 = 0xFFF0;

/// Puts the binary to `at`.
pub(super) fn load(request: &Request<'_>, at: u64, memory: &mut impl GuestMemory) -> Result<InitialState, LoadError> {
    let protocol = if at < PROTECTED { Protocol::FlatReal } else { Protocol::FlatProtected };
    let lost = [(request.modules.is_empty(), "modules"), (request.cmdline.is_empty(), "command line")];
    if let Some((_, what)) = lost.into_iter().find(|(passed, _)| !passed) {
        return Err(LoadError::NotPassed { protocol, what });
    }
    let bytes = length(request.kernel);
    if bytes == 0 {
        return Err(LoadError::Short { what: "the flat binary", needed: 1, have: 0 });
    }
    let space = &mut Space::new(request.memory);
    let stack = layout::LOW_RAM_END.as_u64().saturating_sub(PAGE_SIZE);
    space.claim(Part::Stack, stack, PAGE_SIZE)?;
    space.claim(Part::Kernel, at, bytes)?;
    fill(memory, at, request.kernel, bytes)?;
    let entry = space.entry("at", at)?;
    if protocol == Protocol::FlatProtected {
        let pointer = u64::from(STACK_SEGMENT) << 4 | u64::from(STACK_POINTER);
        return Ok(InitialState::protected(protocol, entry, space, memory)?.with(Gpr::Rsp, pointer));
    }
    let segment = u16::try_from(at >> 4).ok().filter(|_| at & 15 == 0);
    let segment = segment.ok_or(LoadError::Field { field: "at", value: at, must: "a multiple of 16 below 1 MiB" })?;
    Ok(InitialState::real(protocol, segment, STACK_SEGMENT).with(Gpr::Rsp, u64::from(STACK_POINTER)))
}
