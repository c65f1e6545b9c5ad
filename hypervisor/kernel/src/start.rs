//! Start-up: from the loader's hand-over to the idle compartment.

use crate::backend::Virtualization;
use crate::machine::{CPUS, FACTS, FRAMES, Facts, Program, this_cpu};
use crate::{backtrace, console, dispatch, entries, lives, log, operator};
use alloc::vec::Vec;
use bulkhead_boot::{BootInfo, Physical, Processors, Region};
use bulkhead_core::frames::{FrameTable, Owner, Part};
use bulkhead_hw::compartment::{Compartment, Needs};
use bulkhead_hw::startup::{self, FirstPage, Identity, Shared};
use bulkhead_hw::{apic, barrier, calibrate, clock, cpu, descriptors, heap, layout, legacy, serial, trap};
use bulkhead_types::manifest::{Guest, Manifest, PackHeader};
use bulkhead_types::{Frame, Hpa, MAX_CPUS, PAGE_SIZE};
use spin::{Mutex, Once};

/// Highest frame that the frame table reaches to: 1 TiB.
const MAX_FRAMES: u64 = 1 << 28;
/// Bytes of one entry of the frame table.
const STATE_BYTES: u64 = 4;

/// The idle compartment on its way from start-up to the dispatcher.
pub static IDLE_SPACE: Mutex<Option<Compartment>> = Mutex::new(None);
static BOOT: Once<BootInfo> = Once::new();

struct Reading<'a>(&'a Identity);

impl Physical for Reading<'_> {
    fn read(&self, at: Hpa, into: &mut [u8]) -> Option<()> {
        self.0.read(at, into)
    }
}

/// Says what is missing, and stops: the machine can not be run here.
pub fn refuse(message: impl core::fmt::Display) -> ! {
    log!("event preflight {message}");
    serial::Serial::again().flush();
    cpu::stop()
}

/// Prepares the machine; `magic` and `info` are the loader's, `program` is what the guests' compartments execute.
pub fn start(magic: u32, info: Hpa, program: Program) -> ! {
    let _ = serial::Serial::init();
    descriptors::load_early();
    trap::set_report(backtrace::faulted);
    legacy::mask();
    heap::init();
    log!("Bulkhead {}", env!("CARGO_PKG_VERSION"));
    let Some(mut identity) = Identity::take() else { refuse("start-up was entered twice: reset the machine") };
    let boot = match BootInfo::read(&Reading(&identity), magic, info) {
        Ok(boot) => BOOT.call_once(|| boot),
        Err(error) => refuse(error),
    };
    let capabilities = match Virtualization::probe() {
        Ok(capabilities) => capabilities,
        Err(missing) => refuse(missing),
    };
    let (pack, header, mut manifest) = read_pack(&identity, boot);
    console::set_mode(manifest.console);
    // The key goes to the idle compartment alone.
    *operator::KEY.lock() = manifest.control;
    // Its bytes stay where all compartments could read them no longer than that.
    if let Some(key) = &mut manifest.control {
        key.fill(0);
    }
    let Some(tsc) = calibrate::tsc_frequency() else {
        refuse(
            "neither CPUID leaf 0x15 nor a PIT tells how fast the time-stamp counter is: this machine is not supported",
        )
    };
    bulkhead_emulate::warm_up();
    lives::prepare(tsc);
    let local_apic = apic::register_page();
    let (shared, frames) = own_memory(&identity, boot, pack, local_apic);
    let guests = core::mem::take(&mut manifest.guests);
    let leftovers = leftovers(pack, &header, &guests);
    entries::fill(guests, pack.start);
    let facts = Facts {
        processors: processors(&identity, boot),
        first_page: first_page(&mut identity, boot),
        leftovers,
        manifest,
        shared,
        capabilities,
        barriers: barrier::probe(),
        program,
        scheduler: dispatch::schedule(tsc),
        tsc,
        epoch: clock::wall_clock().saturating_sub(cpu::tsc() / tsc.as_hertz()),
        local_apic,
    };
    let facts = FACTS.call_once(|| facts);
    let frames = FRAMES.call_once(|| Mutex::new(frames));
    describe(facts, &mut frames.lock());
    let needs = Needs::idle(facts.processors.len());
    let idle = Compartment::build(&mut frames.lock(), &facts.shared, &needs, &mut identity, dispatch::main);
    match idle {
        Ok(idle) => {
            CPUS.iter().take(facts.processors.len()).enumerate().for_each(|(index, cpu)| cpu.idle.set(&idle, index));
            *IDLE_SPACE.lock() = Some(idle);
            this_cpu().idle.enter(identity, dispatch::main)
        }
        Err(error) => refuse(error),
    }
}

/// Numbers of the processors' local APICs, this one's first.
fn processors(identity: &Identity, boot: &BootInfo) -> Vec<u32> {
    let me = apic::initial_id();
    let others = Processors::read(&Reading(identity), boot.acpi);
    core::iter::once(me).chain(others.iter().filter(|id| *id != me)).take(MAX_CPUS).collect()
}

/// The page below 640 KiB where other processors begin.
fn first_page(identity: &mut Identity, boot: &BootInfo) -> Option<FirstPage> {
    const END: u64 = 0xA_0000;
    let whole = |region: Region| {
        let last = region.end().min(END) / PAGE_SIZE * PAGE_SIZE;
        last.checked_sub(PAGE_SIZE).filter(|start| *start >= region.start.as_u64().max(PAGE_SIZE))
    };
    let at = boot.regions().filter_map(whole).max()?;
    #[expect(unsafe_code, reason = "only start-up knows the firmware's memory map")]
    // SAFETY: RAM by the firmware's map, below what anything of ours is put into; what the loader left there was read.
    unsafe {
        FirstPage::new(identity, Hpa::new(at))
    }
}

fn describe(facts: &Facts, frames: &mut FrameTable<'_>) {
    let free = (frames.free() * PAGE_SIZE) >> 20;
    log!("memory {free} MiB free, time-stamp counter {} kHz", facts.tsc.as_hertz() / 1000);
    let has = facts.barriers.barriers;
    log!("barriers between zones: this processor has {has}");
    for zone in &facts.manifest.zones {
        log!("zone {}: wants {}, gets {}", zone.name, zone.barriers, zone.barriers.and(has));
    }
}

fn read_pack(identity: &Identity, boot: &BootInfo) -> (Region, PackHeader, Manifest) {
    let Some(pack) = boot.pack else {
        refuse("no pack of guests: give one as the first boot module (`hv image` and `hv run` do)")
    };
    let Some(bytes) = identity.bytes(pack.start, pack.bytes) else {
        refuse("the pack of guests lies above 4 GiB: load it lower")
    };
    match Manifest::from_pack(bytes) {
        Ok((header, _)) if header.pack_bytes > pack.bytes.next_multiple_of(PAGE_SIZE) => {
            refuse("the pack is cut short: pack or copy it again")
        }
        Ok(_) if !pack.start.is_aligned(PAGE_SIZE) => {
            refuse("the pack is not loaded at a page boundary: use another loader")
        }
        Ok((header, manifest)) => (pack, header, manifest),
        Err(error) => refuse(error),
    }
}

/// Finds room for the frame table and the shared part's tables, builds both.
fn own_memory(
    identity: &Identity,
    boot: &BootInfo,
    pack: Region,
    local_apic: Option<Hpa>,
) -> (Shared, FrameTable<'static>) {
    let image = image_region();
    let top = boot.regions().map(|region| region.end()).max().unwrap_or(0);
    let count = (top / PAGE_SIZE).min(MAX_FRAMES);
    let state_bytes = (count * STATE_BYTES).next_multiple_of(PAGE_SIZE);
    let table_frames = startup::shared_tables_needed(state_bytes);
    let bytes = state_bytes + table_frames * PAGE_SIZE;
    let Some(room) = boot.find(bytes, PAGE_SIZE, &[image, pack]) else {
        refuse("no room for the frame table below 4 GiB: the machine needs more memory")
    };
    let tables = room.wrapping_add(state_bytes);
    #[expect(unsafe_code, reason = "only start-up knows the firmware's memory map")]
    // SAFETY: the room was found in the firmware's map of usable RAM, beside image and pack, and nothing else was placed.
    let shared = match unsafe { startup::build_shared(identity, room, state_bytes, table_frames, local_apic) } {
        Ok(shared) => shared,
        Err(error) => refuse(error),
    };
    let Some(states) = startup::frame_states(&shared, count) else {
        refuse("start-up was entered twice: reset the machine")
    };
    let mut frames = FrameTable::new(states);
    let marks = mark_all(&mut frames, boot, pack, (room, state_bytes), (tables, table_frames));
    if let Err(error) = marks {
        refuse(error);
    }
    (shared, frames)
}

/// The image with its hand-over code, in physical memory.
fn image_region() -> Region {
    let end = layout::image_physical(layout::image().data.1).as_u64();
    Region { start: Hpa::new(0x20_0000), bytes: end - 0x20_0000 }
}

fn mark_all(
    frames: &mut FrameTable<'static>,
    boot: &BootInfo,
    pack: Region,
    (states, state_bytes): (Hpa, u64),
    (tables, table_frames): (Hpa, u64),
) -> Result<(), bulkhead_core::frames::FrameError> {
    let end = frames.len();
    for region in boot.regions() {
        let first = region.start.as_u64().div_ceil(PAGE_SIZE);
        let last = (region.end() / PAGE_SIZE).min(end);
        if first < last {
            frames.mark(Frame::new(first), last - first, Owner::Free)?;
        }
    }
    let mut mark = |start: Hpa, bytes: u64, owner| {
        let first = Frame::containing(start).number();
        let last = start.as_u64().saturating_add(bytes).div_ceil(PAGE_SIZE).min(end);
        if first < last { frames.mark(Frame::new(first), last - first, owner) } else { Ok(()) }
    };
    // What lies below 1 MiB is the firmware's: its data, and what loaders leave there.
    mark(Hpa::new(0), 1 << 20, Owner::Firmware)?;
    let image = image_region();
    mark(image.start, image.bytes, Owner::Hypervisor(Part::Boot))?;
    let parts = layout::image();
    for ((start, end), part) in [(parts.text, Part::Text), (parts.rodata, Part::Rodata), (parts.data, Part::Data)] {
        mark(layout::image_physical(start), end.as_u64() - start.as_u64(), Owner::Hypervisor(part))?;
    }
    mark(pack.start, pack.bytes, Owner::Hypervisor(Part::Boot))?;
    mark(states, state_bytes, Owner::Hypervisor(Part::FrameTable))?;
    mark(tables, table_frames * PAGE_SIZE, Owner::Hypervisor(Part::Tables))
}

/// Frames that nobody needs once the idle compartment is entered: hand-over code and tables, and the pack's start.
fn leftovers(pack: Region, header: &PackHeader, guests: &[Guest]) -> Vec<(u64, u64)> {
    let image = image_region();
    let text = layout::image_physical(layout::image().text.0);
    let first = Frame::containing(image.start).number();
    let boot = (first, Frame::containing(text).number() - first);
    let images = guests.iter().flat_map(|guest| {
        core::iter::once(guest.kernel.offset).chain(guest.modules.iter().map(|module| module.image.offset))
    });
    let manifest_end = images.min().unwrap_or(header.pack_bytes) / PAGE_SIZE;
    Vec::from([boot, (Frame::containing(pack.start).number(), manifest_end)])
}
