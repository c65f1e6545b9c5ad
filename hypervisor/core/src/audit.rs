//! The isolation audit: does every address lead where it should?
//!
//! A compartment is audited while its own address space is current: only there are its tables within reach. All its host
//! tables and nested tables are walked from their roots, and each 4-KiB frame of each page is held against the frame
//! table and the layout that a compartment may have. Since a frame has one owner, a frame in two compartments is a
//! foreign frame in one of them.
//!
//! What is checked:
//!
//! | rule | otherwise |
//! |---|---|
//! | a host page maps this compartment's frames or the hypervisor's | [`Fault::Foreign`], [`Fault::Free`] |
//! | it lies where the layout has such frames, with no more access | [`Fault::OutsideLayout`] |
//! | nothing is writable and executable | [`Fault::WritableExecutable`] |
//! | text, constants, shared tables and images are not writable | [`Fault::Writable`] |
//! | nothing is for privilege level 3 | [`Fault::User`] |
//! | no stretch of memory is mapped as it comes | [`Fault::DirectMap`] |
//! | the shared part is the same in all compartments | [`Fault::SharedDiffers`] |
//! | nested tables map this guest's RAM alone, scrubbed, each frame once | [`Fault::Foreign`], [`Fault::NotRam`], [`Fault::Dirty`], [`Fault::Alias`] |
//! | a table lies in a frame for tables of its compartment, in one place | [`Fault::TableOutside`], [`Fault::TableTwice`] |
//! | entries are well-formed, tables readable | [`Fault::Malformed`], [`Fault::Unreachable`] |

mod fault;
#[cfg(test)]
mod tests;

pub use fault::{Fault, Space, Violation, Walked};

use crate::frames::{FrameTable, Mark, Owner, Part, Use};
use bulkhead_paging::{Access, Entry, Format, Host, Item, LEVELS, Leaf, ReadTables, visit};
use bulkhead_types::{Frame, GuestId, Hpa, Hva, PAGE_SIZE};

/// This many frames in a row (2 MiB), mapped in a row where nothing allows it, are a direct map.
pub const DIRECT_MAP: u64 = 512;

/// What a stretch of a compartment's host address space may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// A part of the hypervisor: its text to read and execute, its constants and tables to read, all else to read and
    /// write.
    Hypervisor(Part),
    /// The compartment's own: images to read, all else to read and write.
    Own(Use),
    /// The registers of a device at this physical address, to read and write.
    Device(Hpa),
}

/// A stretch of a compartment's host address space. Several may cover the same addresses: one that fits is enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First byte, page-aligned.
    pub start: Hva,
    /// Length in bytes, page-aligned.
    pub bytes: u64,
    /// What it may hold.
    pub holds: Holds,
}

/// A compartment as it should be.
#[derive(Clone, Copy, Debug)]
pub struct Compartment<'a> {
    /// Whose it is.
    pub guest: GuestId,
    /// Root of its host tables.
    pub host_root: Hpa,
    /// Root of its nested tables; an idle compartment has none.
    pub nested_root: Option<Hpa>,
    /// The entry of the host root behind which all that is shared lies.
    pub shared_slot: usize,
    /// The table that this entry names, in all compartments.
    pub shared_table: Hpa,
    /// Everything that its host tables may map.
    pub layout: &'a [Region],
}

/// Walks all tables of `compartment`, the nested ones in format `F`, and reports each violation, neighbouring ones of a
/// kind as one.
pub fn audit<F: Format>(
    compartment: &Compartment<'_>,
    frames: &mut FrameTable<'_>,
    tables: &impl ReadTables,
    report: &mut dyn FnMut(&Violation),
) -> Walked {
    frames.clear_marks();
    let mut audit =
        Audit { compartment, frames, report, walked: Walked::default(), space: Space::Host, last: None, stretch: None };
    audit.check_shared(tables);
    visit::<Host>(tables, compartment.host_root, &mut |at, item| audit.see(at, item));
    audit.finish_space();
    if let Some(root) = compartment.nested_root {
        audit.space = Space::Nested;
        visit::<F>(tables, root, &mut |at, item| audit.see(at, item));
        audit.finish_space();
    }
    audit.walked
}

/// Compares the frame table with the list of guests: reports stretches of frames whose guest is not `listed`, and counts
/// them.
pub fn compare(frames: &FrameTable<'_>, listed: impl Fn(GuestId) -> bool, report: &mut dyn FnMut(&Violation)) -> u64 {
    let mut count = 0;
    let mut stretch: Option<(Violation, Owner)> = None;
    // One more, which is nobody's, ends the last stretch.
    for number in 0..=frames.len() {
        let frame = Frame::new(number);
        let owner = frames.owner(frame);
        if let Some((violation, whose)) = &mut stretch {
            if *whose == owner {
                violation.count += 1;
                continue;
            }
            report(violation);
            count += 1;
            stretch = None;
        }
        if let Owner::Guest(guest, _) = owner
            && guest != GuestId::IDLE
            && !listed(guest)
        {
            let (space, fault, at) = (Space::Host, Fault::Unlisted, frame.start().as_u64());
            stretch = Some((Violation { guest, space, fault, at, frame, count: 1 }, owner));
        }
    }
    count
}

struct Audit<'a, 'f> {
    compartment: &'a Compartment<'a>,
    frames: &'a mut FrameTable<'f>,
    report: &'a mut dyn FnMut(&Violation),
    walked: Walked,
    space: Space,
    /// Found, not yet reported: the next may continue it.
    last: Option<Violation>,
    /// Wrong host frames that are mapped in a row, whatever is wrong with each.
    stretch: Option<Violation>,
}

impl Audit<'_, '_> {
    fn check_shared(&mut self, tables: &impl ReadTables) {
        let Compartment { host_root, shared_slot, shared_table, .. } = *self.compartment;
        let entry = tables.read(host_root, shared_slot).map(|entry| Host::decode(entry, LEVELS));
        if !matches!(entry, Ok(Entry::Table { table, .. }) if table == shared_table) {
            self.found(slot_address(shared_slot), Frame::containing(host_root), Fault::SharedDiffers);
        }
    }

    /// Looks at one thing that a walk has found. For a table: whether to look into it.
    fn see(&mut self, at: u64, item: Item) -> bool {
        match item {
            Item::Table { table, level } => return self.table(at, Frame::containing(table), level),
            Item::Leaf(leaf) => self.leaf(at, leaf),
            Item::Malformed { table, entry } => self.found(at, Frame::containing(table), Fault::Malformed(entry)),
            Item::Unreachable { table } => self.found(at, Frame::containing(table), Fault::Unreachable),
        }
        true
    }

    fn table(&mut self, at: u64, frame: Frame, level: u32) -> bool {
        self.walked.tables += 1;
        let shared = self.space == Space::Host && level != LEVELS && in_slot(at, self.compartment.shared_slot);
        let right =
            if shared { Owner::Hypervisor(Part::Tables) } else { Owner::Guest(self.compartment.guest, Use::Tables) };
        let owner = self.frames.owner(frame);
        let fault = if owner != right {
            Some(Fault::TableOutside(owner))
        } else {
            self.frames.note(frame, Mark::Table).then_some(Fault::TableTwice)
        };
        if let Some(fault) = fault {
            self.found(at, frame, fault);
        }
        fault.is_none()
    }

    fn leaf(&mut self, at: u64, leaf: Leaf) {
        self.walked.leaves += 1;
        let first = Frame::containing(leaf.page);
        for index in 0..leaf.size.bytes() / PAGE_SIZE {
            self.walked.frames += 1;
            let (at, frame) = (at.wrapping_add(index * PAGE_SIZE), first.add(index));
            let fault = match self.space {
                Space::Host => self.host_fault(at, frame, leaf.access),
                Space::Nested => self.nested_fault(frame),
            };
            if let Some(fault) = fault {
                self.found(at, frame, fault);
            }
        }
    }

    /// What is wrong with a host page, the gravest first.
    fn host_fault(&self, at: u64, frame: Frame, access: Access) -> Option<Fault> {
        let owner = self.frames.owner(frame);
        let guest = self.compartment.guest;
        let constant = match owner {
            Owner::Hypervisor(part) => matches!(part, Part::Text | Part::Rodata | Part::Tables),
            owner => matches!(owner, Owner::Guest(_, Use::Image)),
        };
        let permitted =
            || self.compartment.layout.iter().any(|region| permits(region, guest, (at, frame), owner, access));
        match owner {
            Owner::Guest(other, _) if other != guest => Some(Fault::Foreign(owner)),
            Owner::Free => Some(Fault::Free),
            _ if access.user => Some(Fault::User),
            _ if access.write && access.execute => Some(Fault::WritableExecutable),
            _ if access.write && constant => Some(Fault::Writable(owner)),
            _ if !permitted() => Some(Fault::OutsideLayout(owner)),
            _ => None,
        }
    }

    /// What is wrong with a frame in nested tables, the gravest first.
    fn nested_fault(&mut self, frame: Frame) -> Option<Fault> {
        let owner = self.frames.owner(frame);
        let guest = self.compartment.guest;
        match owner {
            Owner::Guest(other, _) if other != guest => Some(Fault::Foreign(owner)),
            Owner::Free => Some(Fault::Free),
            Owner::Guest(_, Use::Ram) if self.frames.note(frame, Mark::Nested) => Some(Fault::Alias),
            Owner::Guest(_, Use::Ram) => self.frames.is_dirty(frame).then_some(Fault::Dirty),
            _ => Some(Fault::NotRam(owner)),
        }
    }

    fn found(&mut self, at: u64, frame: Frame, fault: Fault) {
        let new = Violation { guest: self.compartment.guest, space: self.space, fault, at, frame, count: 1 };
        if !self.last.as_mut().is_some_and(|last| last.fault == fault && last.extend(&new)) {
            self.report_last();
            self.last = Some(new);
        }
        if self.space == Space::Host && !self.stretch.as_mut().is_some_and(|stretch| stretch.extend(&new)) {
            self.report_stretch();
            self.stretch = Some(Violation { fault: Fault::DirectMap, ..new });
        }
    }

    fn report_last(&mut self) {
        if let Some(violation) = self.last.take() {
            self.walked.violations += 1;
            (self.report)(&violation);
        }
    }

    fn report_stretch(&mut self) {
        if let Some(violation) = self.stretch.take().filter(|stretch| stretch.count >= DIRECT_MAP) {
            self.walked.violations += 1;
            (self.report)(&violation);
        }
    }

    fn finish_space(&mut self) {
        self.report_last();
        self.report_stretch();
    }
}

/// Whether `region` of the compartment of `guest` may have this frame of `owner` at this address, with this access.
fn permits(region: &Region, guest: GuestId, (at, frame): (u64, Frame), owner: Owner, access: Access) -> bool {
    let offset = at.wrapping_sub(region.start.as_u64());
    let (right, most) = match region.holds {
        Holds::Hypervisor(part) => (
            owner == Owner::Hypervisor(part),
            match part {
                Part::Text => Access::READ_EXECUTE,
                Part::Rodata | Part::Tables => Access::READ,
                _ => Access::READ_WRITE,
            },
        ),
        Holds::Own(what) => {
            (owner == Owner::Guest(guest, what), if what == Use::Image { Access::READ } else { Access::READ_WRITE })
        }
        Holds::Device(registers) => {
            let here = frame.start() == registers.wrapping_add(offset);
            (here && matches!(owner, Owner::Absent | Owner::Device | Owner::Firmware), Access::READ_WRITE)
        }
    };
    offset < region.bytes && right && access.and(most) == access
}

/// Whether a host address is served by this entry of the root.
const fn in_slot(at: u64, slot: usize) -> bool {
    (at >> SLOT_BITS) & 0x1FF == slot as u64
}

/// First host address served by this entry of the root.
const fn slot_address(slot: usize) -> u64 {
    let address = (slot as u64) << SLOT_BITS;
    if slot < 256 { address } else { address | u64::MAX << 48 }
}

/// Bits of an address below the index into the root.
const SLOT_BITS: u32 = 39;
