//! A small machine with two guests; each way to break it is found, and the frame named.

mod faults;
mod list;

extern crate std;

use super::{Compartment, Fault, Holds, Region, Space, Violation, Walked, audit};
use crate::frames::{FrameState, FrameTable, Frames, HostSpace, Image, NestedSpace, Owner, Part, Ram, Tables, Use};
use bulkhead_paging::{Access, ENTRIES, Ept, Format, Host, Mapping, Memory, PagingError, ReadTables, Size, map, unmap};
use bulkhead_types::{Frame, Gpa, GuestId, Hpa, Hva, PAGE_SIZE};
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

const MIB2: u64 = 2 << 20;
const FRAMES: usize = 16384;
const RAM_FRAMES: u64 = 1024;
const SLOT: usize = 511;
const IMAGE: u64 = 0xFFFF_FF80_0000_0000;
const DEVICE: u64 = IMAGE + 0x4000_0000;
const LAPIC: Hpa = Hpa::new(0xFEE0_0000);
const WINDOW: u64 = 0xFFFF_8000_0000_0000;
const RAM: u64 = WINDOW + 0x4000_0000;
const IMAGES: u64 = WINDOW + 0x8000_0000;

const TEXT: Frame = Frame::new(0x200);
const RODATA: Frame = Frame::new(0x202);
const DATA: Frame = Frame::new(0x204);

const fn region(start: u64, bytes: u64, holds: Holds) -> Region {
    Region { start: Hva::new(start), bytes, holds }
}

const LAYOUT: [Region; 7] = [
    region(IMAGE, 2 * PAGE_SIZE, Holds::Hypervisor(Part::Text)),
    region(IMAGE + 2 * PAGE_SIZE, 2 * PAGE_SIZE, Holds::Hypervisor(Part::Rodata)),
    region(IMAGE + 4 * PAGE_SIZE, 2 * PAGE_SIZE, Holds::Hypervisor(Part::Data)),
    region(DEVICE, PAGE_SIZE, Holds::Device(LAPIC)),
    region(WINDOW, 0x4000_0000, Holds::Own(Use::Tables)),
    region(RAM, 0x4000_0000, Holds::Own(Use::Ram)),
    region(IMAGES, 0x4000_0000, Holds::Own(Use::Image)),
];

/// All page tables of the machine, and the frames to take further ones from.
struct PhysicalTables {
    tables: BTreeMap<Hpa, [u64; ENTRIES]>,
    pool: Vec<Frame>,
}

impl ReadTables for PhysicalTables {
    fn read(&self, table: Hpa, index: usize) -> Result<u64, PagingError> {
        self.tables.get(&table).map(|entries| entries[index]).ok_or(PagingError::Unreachable(table))
    }
}

impl bulkhead_paging::Tables for PhysicalTables {
    fn write(&mut self, table: Hpa, index: usize, value: u64) -> Result<(), PagingError> {
        self.tables.get_mut(&table).ok_or(PagingError::Unreachable(table))?[index] = value;
        Ok(())
    }

    fn allocate(&mut self) -> Result<Hpa, PagingError> {
        let table = self.pool.pop().ok_or(PagingError::OutOfTables)?.start();
        self.tables.insert(table, [0; ENTRIES]);
        Ok(table)
    }
}

/// What one guest owns.
struct Owned {
    tables: Frames<Tables>,
    ram: Frames<Ram>,
    images: Frames<Image>,
    host: HostSpace,
    nested: NestedSpace<Ept>,
}

struct Machine {
    frames: FrameTable<'static>,
    memory: PhysicalTables,
    guests: Vec<Owned>,
    shared: Hpa,
}

fn id(index: usize) -> GuestId {
    GuestId::new(u16::try_from(index + 1).unwrap())
}

fn page(from: u64, to: Frame, access: Access) -> Mapping {
    Mapping { from, to: to.start(), bytes: PAGE_SIZE, access, memory: Memory::WriteBack, largest: Size::Page4K }
}

impl Machine {
    /// Two guests of 4 MiB, set up as start-up would.
    fn new() -> Self {
        let mut frames = FrameTable::new(vec![FrameState::new(Owner::Absent, false); FRAMES].leak());
        let parts = [(TEXT, Part::Text), (RODATA, Part::Rodata), (DATA, Part::Data)];
        frames.mark(Frame::new(0), 0x200, Owner::Firmware).unwrap();
        for (start, part) in parts {
            frames.mark(start, 2, Owner::Hypervisor(part)).unwrap();
        }
        frames.mark(Frame::new(0x210), 16, Owner::Hypervisor(Part::Tables)).unwrap();
        frames.mark(Frame::new(0x220), 2, Owner::Hypervisor(Part::Boot)).unwrap();
        frames.mark(Frame::new(0x400), FRAMES as u64 - 0x400, Owner::Free).unwrap();

        let pool = (0x210..0x220).map(Frame::new).collect();
        let mut memory = PhysicalTables { tables: BTreeMap::new(), pool };
        let scratch = bulkhead_paging::Tables::allocate(&mut memory).unwrap();
        let accesses = [Access::READ_EXECUTE, Access::READ, Access::READ_WRITE];
        for (index, ((start, _), access)) in (0..).zip(parts.into_iter().zip(accesses)) {
            let range = Mapping { bytes: 2 * PAGE_SIZE, ..page(IMAGE + index * 2 * PAGE_SIZE, start, access) };
            map::<Host>(&mut memory, scratch, range).unwrap();
        }
        let device = Mapping { memory: Memory::Uncached, ..page(DEVICE, Frame::containing(LAPIC), Access::READ_WRITE) };
        map::<Host>(&mut memory, scratch, device).unwrap();
        let entry = memory.read(scratch, SLOT).unwrap();
        let shared = address(entry);

        let guests = (0..2).map(|index| guest(index, &mut frames, &mut memory, entry)).collect();
        Self { frames, memory, guests, shared }
    }

    fn audit(&mut self, index: usize) -> (Walked, Vec<Violation>) {
        let owned = &self.guests[index];
        let compartment = Compartment {
            guest: id(index),
            host_root: owned.host.root(),
            nested_root: Some(owned.nested.root()),
            shared_slot: SLOT,
            shared_table: self.shared,
            layout: &LAYOUT,
        };
        let mut found = Vec::new();
        let walked =
            audit::<Ept>(&compartment, &mut self.frames, &self.memory, &mut |violation| found.push(*violation));
        assert_eq!(walked.violations, found.len() as u64);
        (walked, found)
    }

    /// What both audits find.
    fn violations(&mut self) -> Vec<Violation> {
        let mut found = self.audit(0).1;
        found.extend(self.audit(1).1);
        found
    }

    fn map_host(&mut self, index: usize, mapping: Mapping) {
        let owned = &self.guests[index];
        self.memory.pool = pool(&owned.tables, 32);
        map::<Host>(&mut self.memory, owned.host.root(), mapping).unwrap();
    }

    fn map_nested(&mut self, index: usize, from: u64, to: Frame) {
        let owned = &self.guests[index];
        self.memory.pool = pool(&owned.tables, 32);
        map::<Ept>(&mut self.memory, owned.nested.root(), page(from, to, Access::ALL)).unwrap();
    }
}

/// Table frames of a guest from the one with this index on, in the order in which they are taken.
fn pool(tables: &Frames<Tables>, first: u64) -> Vec<Frame> {
    (first..tables.count()).rev().map(|i| tables.start().add(i)).collect()
}

fn guest(index: usize, frames: &mut FrameTable<'_>, memory: &mut PhysicalTables, shared: u64) -> Owned {
    let tables = frames.allocate::<Tables>(id(index), 64, 1).unwrap();
    let ram = frames.allocate::<Ram>(id(index), RAM_FRAMES, 512).unwrap();
    let images = frames.adopt(Frame::new(0x220 + index as u64), 1, id(index)).unwrap();
    let host = HostSpace::new(&tables);
    let nested = NestedSpace::new(&tables, 1).unwrap();
    memory.tables.extend([(host.root(), [0; ENTRIES]), (nested.root(), [0; ENTRIES])]);
    memory.tables.get_mut(&host.root()).unwrap()[SLOT] = shared;
    memory.pool = pool(&tables, 2);
    host.map(memory, Hva::new(WINDOW), &tables, Size::Page1G).unwrap();
    host.map(memory, Hva::new(RAM), &ram, Size::Page1G).unwrap();
    host.map(memory, Hva::new(IMAGES), &images, Size::Page1G).unwrap();
    let scrubbed = ram.scrub(frames, 0, RAM_FRAMES, |_| ()).unwrap();
    nested.map(memory, Gpa::new(0), scrubbed, Size::Page1G).unwrap();
    Owned { tables, ram, images, host, nested }
}

#[test]
fn a_machine_as_it_should_be_passes() {
    let mut machine = Machine::new();
    let (walked, found) = machine.audit(0);
    assert_eq!(found, []);
    // Host: its tables, RAM in two large pages, an image, the shared part; nested: RAM in two large pages.
    assert_eq!(walked.leaves, 64 + 2 + 1 + 7 + 2);
    assert_eq!(walked.frames, 64 + RAM_FRAMES + 1 + 7 + RAM_FRAMES);
    assert_eq!(machine.audit(1), (walked, vec![]), "and is the same for both");
    assert_eq!(machine.audit(1), (walked, vec![]), "and again");
    let mut sum = walked;
    sum += walked;
    assert_eq!(sum.frames, 2 * walked.frames);
    assert!(walked.to_string().ends_with(": 0 violations"), "{walked}");
}

#[test]
fn an_idle_compartment_has_no_nested_tables() {
    let mut machine = Machine::new();
    let (host_root, shared_table) = (machine.guests[0].host.root(), machine.shared);
    let layout = &LAYOUT;
    let idle = Compartment { guest: id(0), host_root, nested_root: None, shared_slot: SLOT, shared_table, layout };
    let walked = audit::<Ept>(&idle, &mut machine.frames, &machine.memory, &mut |violation| panic!("{violation}"));
    assert_eq!(walked.frames, 64 + RAM_FRAMES + 1 + 7);
}

/// Breaks a fresh machine, and expects exactly this.
fn expect(spoil: impl FnOnce(&mut Machine), at: u64, space: Space, expected: impl Fn(&Machine) -> (Frame, Fault)) {
    let mut machine = Machine::new();
    spoil(&mut machine);
    let (frame, fault) = expected(&machine);
    let violation = Violation { guest: id(0), space, fault, at, frame, count: 1 };
    assert_eq!(machine.violations(), [violation]);
    assert!(violation.to_string().contains(&frame.to_string()), "the frame is named: {violation}");
}

#[test]
fn a_frame_in_two_compartments() {
    let their = |machine: &Machine| machine.guests[1].ram.start().add(3);
    let fault = Fault::Foreign(Owner::Guest(id(1), Use::Ram));
    expect(|m| m.map_nested(0, 16 * MIB2, their(m)), 16 * MIB2, Space::Nested, |m| (their(m), fault));
    let at = RAM + 16 * MIB2;
    let spoil = |m: &mut Machine| {
        let mapping = page(at, their(m), Access::READ);
        m.map_host(0, mapping);
    };
    expect(spoil, at, Space::Host, |m| (their(m), fault));
}

#[test]
fn a_foreign_frame_within_a_large_page() {
    let mut machine = Machine::new();
    let theirs = machine.guests[0].ram.start().add(700);
    machine.frames.set(theirs, FrameState::new(Owner::Guest(id(1), Use::State), false));
    let lines: Vec<String> = machine.violations().iter().map(ToString::to_string).collect();
    let foreign = std::format!("frame {theirs}: foreign: it belongs to guest 2 (State)");
    let host = std::format!("compartment 1: host {:#x}: {foreign}", RAM + 700 * PAGE_SIZE);
    let nested = std::format!("compartment 1: guest-physical {:#x}: {foreign}", 700 * PAGE_SIZE);
    assert_eq!(lines, [host, nested]);
}

#[test]
fn foreign_tables_and_images_in_a_host_table() {
    let frame = |m: &Machine, what| match what {
        Use::Image => m.guests[1].images.start(),
        _ => m.guests[1].tables.start(),
    };
    for what in [Use::Tables, Use::Image] {
        let at = IMAGES + MIB2;
        let spoil = |m: &mut Machine| {
            let mapping = page(at, frame(m, what), Access::READ);
            m.map_host(0, mapping);
        };
        expect(spoil, at, Space::Host, |m| (frame(m, what), Fault::Foreign(Owner::Guest(id(1), what))));
    }
}

#[test]
fn a_free_frame() {
    let free = Frame::new(FRAMES as u64 - 1);
    expect(
        |m| m.map_host(0, page(RAM + MIB2 * 16, free, Access::READ_WRITE)),
        RAM + MIB2 * 16,
        Space::Host,
        |_| (free, Fault::Free),
    );
    expect(|m| m.map_nested(0, MIB2 * 16, free), MIB2 * 16, Space::Nested, |_| (free, Fault::Free));
}

#[test]
fn a_writable_text_page() {
    let shared = Frame::new(0x21F);
    for (frame, part) in [(TEXT, Part::Text), (RODATA.add(1), Part::Rodata), (shared, Part::Tables)] {
        let at = WINDOW + 0x2000_0000;
        let spoil = |m: &mut Machine| m.map_host(0, page(at, frame, Access::READ_WRITE));
        expect(spoil, at, Space::Host, |_| (frame, Fault::Writable(Owner::Hypervisor(part))));
    }
}

#[test]
fn a_writable_text_page_in_the_shared_part_is_found_in_every_compartment() {
    let mut machine = Machine::new();
    let root = machine.guests[0].host.root();
    unmap::<Host>(&mut machine.memory, root, IMAGE + PAGE_SIZE, PAGE_SIZE).unwrap();
    let mapping = page(IMAGE + PAGE_SIZE, TEXT.add(1), Access::READ_WRITE);
    machine.map_host(0, mapping);
    let found = machine.violations();
    let fault = Fault::Writable(Owner::Hypervisor(Part::Text));
    assert_eq!(
        found.iter().map(|v| (v.guest, v.frame, v.fault)).collect::<Vec<_>>(),
        [(id(0), TEXT.add(1), fault), (id(1), TEXT.add(1), fault)]
    );
}

/// The table that an entry names.
const fn address(entry: u64) -> Hpa {
    Hpa::new(entry & 0xF_FFFF_F000)
}

/// Overwrites an entry of the lowest host table of guest 0 that serves `at`.
fn poke(machine: &mut Machine, at: u64, change: impl FnOnce(u64) -> u64) {
    let mut table = machine.guests[0].host.root();
    for shift in [39, 30, 21] {
        let entry = machine.memory.read(table, usize::try_from(at >> shift & 0x1FF).unwrap()).unwrap();
        table = address(entry);
    }
    let entry = &mut machine.memory.tables.get_mut(&table).unwrap()[usize::try_from(at >> 12 & 0x1FF).unwrap()];
    *entry = change(*entry);
}

#[test]
fn a_writable_and_executable_page() {
    let spoil = |m: &mut Machine| poke(m, WINDOW + 5 * PAGE_SIZE, |entry| entry & !(1 << 63));
    let frame = |m: &Machine| (m.guests[0].tables.start().add(5), Fault::WritableExecutable);
    expect(spoil, WINDOW + 5 * PAGE_SIZE, Space::Host, frame);
}

#[test]
fn a_page_for_user_mode() {
    let mut machine = Machine::new();
    poke(&mut machine, IMAGES, |entry| entry | 4);
    assert_eq!(machine.violations(), [], "the tables above it say no");
    let mut table = machine.guests[0].host.root();
    for index in [256, 2, 0] {
        let entry = machine.memory.read(table, index).unwrap();
        machine.memory.write_entry(table, index, entry | 4);
        table = address(entry);
    }
    let found = machine.violations();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].fault, found[0].at), (Fault::User, IMAGES));
}

#[test]
fn pages_outside_the_layout() {
    let own = |m: &Machine| m.guests[0].ram.start();
    let owner = Owner::Guest(id(0), Use::Ram);
    for at in [0, PAGE_SIZE, 0x7FFF_FFFF_F000, IMAGES + MIB2, IMAGES + 0x4000_0000] {
        let spoil = |m: &mut Machine| {
            let mapping = page(at, own(m), Access::READ);
            m.map_host(0, mapping);
        };
        expect(spoil, at, Space::Host, |m| (own(m), Fault::OutsideLayout(owner)));
    }
    // The firmware's memory, where RAM may be; RAM that can be executed; another device's registers.
    let at = RAM + MIB2 * 16;
    let firmware = page(at, Frame::new(1), Access::READ);
    expect(|m| m.map_host(0, firmware), at, Space::Host, |_| (Frame::new(1), Fault::OutsideLayout(Owner::Firmware)));
    let spoil = |m: &mut Machine| {
        let mapping = page(at, own(m), Access::READ_EXECUTE);
        m.map_host(0, mapping);
    };
    expect(spoil, at, Space::Host, |m| (own(m), Fault::OutsideLayout(owner)));
}

#[test]
fn a_device_page_leads_to_its_device_alone() {
    let mut machine = Machine::new();
    poke(&mut machine, DEVICE, |entry| entry + PAGE_SIZE);
    let found = machine.violations();
    let frame = Frame::containing(LAPIC).add(1);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|v| (v.frame, v.fault, v.at) == (frame, Fault::OutsideLayout(Owner::Absent), DEVICE)));
}

#[test]
fn a_direct_map() {
    for largest in [Size::Page4K, Size::Page2M] {
        let mut machine = Machine::new();
        let at = 0xFFFF_8880_0000_0000;
        let all = Mapping { bytes: 16 * MIB2, largest, ..page(at, Frame::new(0), Access::READ_WRITE) };
        machine.map_host(0, all);
        let (_, found) = machine.audit(0);
        let direct: Vec<_> = found.iter().filter(|v| v.fault == Fault::DirectMap).collect();
        assert_eq!(direct.len(), 1, "{found:?}");
        assert_eq!((direct[0].at, direct[0].frame, direct[0].count), (at, Frame::new(0), 16 * 512));
        let theirs = machine.guests[1].ram.start();
        let foreign = found.iter().find(|v| v.fault == Fault::Foreign(Owner::Guest(id(1), Use::Ram))).unwrap();
        assert_eq!((foreign.frame, foreign.count), (theirs, RAM_FRAMES), "and what it gives away is named too");
        assert_eq!(machine.audit(1).1, [], "the other compartment is sound");
    }
}

#[test]
fn a_shared_part_of_its_own() {
    let mut machine = Machine::new();
    let copy = machine.guests[0].tables.start().add(40).start();
    let (root, shared) = (machine.guests[0].host.root(), machine.shared);
    let entries = machine.memory.tables[&shared];
    machine.memory.tables.insert(copy, entries);
    machine.memory.write_entry(root, SLOT, Host::table(copy));
    let faults: Vec<_> = machine.violations().iter().map(|v| (v.guest, v.frame, v.fault)).collect();
    let owner = Owner::Guest(id(0), Use::Tables);
    assert_eq!(
        faults,
        [
            (id(0), Frame::containing(root), Fault::SharedDiffers),
            (id(0), Frame::containing(copy), Fault::TableOutside(owner))
        ]
    );
    machine.memory.write_entry(root, SLOT, 0);
    assert_eq!(machine.violations().iter().map(|v| v.fault).collect::<Vec<_>>(), [Fault::SharedDiffers]);
}

impl PhysicalTables {
    fn write_entry(&mut self, table: Hpa, index: usize, value: u64) {
        self.tables.get_mut(&table).unwrap()[index] = value;
    }
}

#[test]
fn nested_tables_that_map_tables_or_images_or_state() {
    let at = 16 * MIB2;
    let tables = |m: &Machine| m.guests[0].tables.start().add(1);
    let not_ram = |what| Fault::NotRam(Owner::Guest(id(0), what));
    expect(|m| m.map_nested(0, at, tables(m)), at, Space::Nested, |m| (tables(m), not_ram(Use::Tables)));
    let images = |m: &Machine| m.guests[0].images.start();
    expect(|m| m.map_nested(0, at, images(m)), at, Space::Nested, |m| (images(m), not_ram(Use::Image)));
    let data = |_: &Machine| (DATA, Fault::NotRam(Owner::Hypervisor(Part::Data)));
    expect(|m| m.map_nested(0, at, DATA), at, Space::Nested, data);
}

#[test]
fn nested_tables_that_map_a_frame_twice() {
    let frame = |m: &Machine| m.guests[0].ram.start().add(9);
    expect(|m| m.map_nested(0, 16 * MIB2, frame(m)), 16 * MIB2, Space::Nested, |m| (frame(m), Fault::Alias));
}

#[test]
fn ram_that_was_not_scrubbed() {
    let frame = |m: &Machine| m.guests[0].ram.start().add(9);
    let spoil = |m: &mut Machine| {
        let dirty = FrameState::new(Owner::Guest(id(0), Use::Ram), true);
        m.frames.set(frame(m), dirty);
    };
    expect(spoil, 9 * PAGE_SIZE, Space::Nested, |m| (frame(m), Fault::Dirty));
}

#[test]
fn a_table_in_a_frame_that_the_guest_can_write() {
    let at = 1 << 39;
    let frame = |m: &Machine| m.guests[0].ram.start();
    let spoil = |m: &mut Machine| {
        let (root, table) = (m.guests[0].nested.root(), frame(m).start());
        m.memory.write_entry(root, 1, Ept::table(table));
    };
    let fault = Fault::TableOutside(Owner::Guest(id(0), Use::Ram));
    expect(spoil, at, Space::Nested, |m| (frame(m), fault));
}

#[test]
fn tables_that_contain_themselves() {
    let spoil = |m: &mut Machine| {
        let root = m.guests[0].nested.root();
        m.memory.tables.get_mut(&root).unwrap()[1..].fill(Ept::table(root));
    };
    let mut machine = Machine::new();
    spoil(&mut machine);
    let found = machine.violations();
    assert_eq!(found.len(), 511, "each of them is named, none is followed");
    assert!(found.iter().all(|v| v.fault == Fault::TableTwice));
}

#[test]
fn malformed_entries_and_tables_out_of_reach() {
    let root = |m: &Machine| m.guests[0].nested.root();
    let at = 1 << 39;
    let spoil = |m: &mut Machine| m.memory.write_entry(root(m), 1, 2);
    expect(spoil, at, Space::Nested, |m| (Frame::containing(root(m)), Fault::Malformed(2)));
    let frame = |m: &Machine| m.guests[0].tables.start().add(63);
    let spoil = |m: &mut Machine| m.memory.write_entry(root(m), 1, Ept::table(frame(m).start()));
    expect(spoil, at, Space::Nested, |m| (frame(m), Fault::Unreachable));
}

#[test]
fn the_same_frame_may_be_ram_and_in_the_window_but_an_image_only_read() {
    let mut machine = Machine::new();
    poke(&mut machine, IMAGES, |entry| entry | 2);
    let found = machine.violations();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].fault, Fault::Writable(Owner::Guest(id(0), Use::Image)));
    assert_eq!(found[0].frame, machine.guests[0].images.start());
}

#[test]
fn what_was_released_must_not_stay_mapped() {
    let mut machine = Machine::new();
    let owned = machine.guests.remove(1);
    let start = owned.ram.start();
    machine.frames.release(owned.ram).unwrap();
    let ram = machine.frames.allocate(id(1), 1, 1).unwrap();
    machine.guests.push(Owned { ram, ..owned });
    let found = machine.audit(1).1;
    assert!(found.iter().any(|v| v.fault == Fault::Free && v.space == Space::Host && v.frame == start));
    assert!(found.iter().any(|v| v.fault == Fault::Free && v.space == Space::Nested && v.frame == start));
}
