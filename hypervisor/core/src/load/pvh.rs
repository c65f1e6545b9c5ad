//! PVH: an ELF file entered in 32-bit mode at the address of its Xen note.
//!
//! Xen, docs/misc/pvh.pandoc "x86/HVM direct boot ABI" and include/public/arch-x86/hvm/start_info.h. EBX is the start
//! information, version 1: command line, modules, memory map, ACPI root pointer. Paging is off, segments are flat.

use super::elf::Elf;
use super::error::{LoadError, Part};
use super::modules::Modules;
use super::space::Space;
use super::state::InitialState;
use super::write::{Cursor, string_bytes};
use super::{Protocol, Request, map};
use bulkhead_arch::Gpr;
use bulkhead_types::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336E_C578;
/// Bytes of `hvm_start_info`, version 1.
const START_INFO: u64 = 56;
/// Bytes of `hvm_memmap_table_entry`.
const MAP_ENTRY: u64 = 24;
/// Bytes of `hvm_modlist_entry`.
const MODULE: u64 = 32;

/// Puts kernel, modules and start information into memory; the kernel has its note's entry at `entry`.
pub(super) fn load(
    elf: &Elf<'_>,
    entry: u64,
    request: &Request<'_>,
    memory: &mut impl GuestMemory,
) -> Result<InitialState, LoadError> {
    let space = &mut Space::new(request.memory);
    elf.load(space, memory)?;
    let entry = space.entry("XEN_ELFNOTE_PHYS32_ENTRY", entry)?;
    let modules = Modules::load(request.modules, space, memory)?;
    let start_info = write_start_info(request, &modules, space, memory)?;
    let state = InitialState::protected(Protocol::Pvh, entry, space, memory)?;
    Ok(state.with(Gpr::Rbx, u64::from(start_info)))
}

/// Start information, memory map, module list and strings, in this order. Its address.
fn write_start_info(
    request: &Request<'_>,
    modules: &Modules<'_>,
    space: &mut Space,
    memory: &mut impl GuestMemory,
) -> Result<u32, LoadError> {
    let entries = map::count(request.memory);
    let map_bytes = u64::from(entries).saturating_mul(MAP_ENTRY);
    let module_bytes = u64::from(modules.count()).saturating_mul(MODULE);
    let fixed = START_INFO.saturating_add(map_bytes).saturating_add(module_bytes);
    let strings = modules.string_bytes().saturating_add(string_bytes(request.cmdline));
    let start = space.place_structure(Part::BootInfo, fixed.saturating_add(strings), 8)?;

    let mut cursor = Cursor::new(start);
    let behind = |bytes: u64| u64::from(start).saturating_add(bytes);
    let module_list = behind(START_INFO.saturating_add(map_bytes));
    cursor.u32(memory, MAGIC)?;
    cursor.u32(memory, 1)?; // version
    cursor.u32(memory, 0)?; // flags
    cursor.u32(memory, modules.count())?;
    cursor.u64(memory, if modules.count() == 0 { 0 } else { module_list })?;
    cursor.u64(memory, behind(fixed))?; // command line
    cursor.u64(memory, request.rsdp.as_u64())?;
    cursor.u64(memory, behind(START_INFO))?;
    cursor.u32(memory, entries)?;
    cursor.u32(memory, 0)?;
    for entry in map::entries(request.memory) {
        cursor.u64(memory, entry.start)?;
        cursor.u64(memory, entry.bytes())?;
        cursor.u64(memory, u64::from(entry.kind))?;
    }
    let mut strings = cursor;
    strings.skip(module_bytes);
    strings.string(memory, request.cmdline)?;
    for module in modules.iter() {
        let cmdline = strings.string(memory, module.cmdline)?;
        cursor.u64(memory, u64::from(module.start))?;
        cursor.u64(memory, u64::from(module.bytes()))?;
        cursor.u64(memory, u64::from(cmdline))?;
        cursor.u64(memory, 0)?;
    }
    Ok(start)
}
