//! A third guest for which memory runs out: at its n-th allocation, of frames or of a page table, for every n.
//!
//! The real table is made to refuse by giving all that is free to the idle compartment.

extern crate std;

use super::{Compartment, IMAGES, LAYOUT, Machine, RAM, RAM_FRAMES, SLOT, Violation, WINDOW, audit, id, pool};
use crate::frames::{FrameTable, Frames, HostSpace, Image, NestedSpace, Owner, Part, Ram, State, Tables};
use bulkhead_paging::{ENTRIES, Ept, ReadTables, Size};
use bulkhead_types::{Frame, Gpa, GuestId, Hva};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

/// What the guest has when memory has run out, or when it is whole.
#[derive(Default)]
struct Parts {
    tables: Option<Frames<Tables>>,
    ram: Option<Frames<Ram>>,
    images: Option<Frames<Image>>,
    spaces: Option<(HostSpace, NestedSpace<Ept>)>,
    hoard: Vec<Frames<State>>,
}

/// Frames that the guest asks the table for; behind them come page tables.
const RUNS: usize = 2;
const INDEX: usize = 2;
const BOOT: Frame = Frame::new(0x222);

/// Takes all that is free.
fn hoard(frames: &mut FrameTable<'_>) -> Vec<Frames<State>> {
    let mut all = Vec::new();
    for bits in (0..=14).rev() {
        while let Ok(some) = frames.allocate(GuestId::IDLE, 1 << bits, 1) {
            all.push(some);
        }
    }
    all
}

impl Parts {
    /// Makes the guest, with room for so many allocations.
    fn fill(&mut self, machine: &mut Machine, room: usize) -> Result<(), String> {
        let shared = machine.memory.read(machine.guests[0].host.root(), SLOT).unwrap();
        let Machine { frames, memory, .. } = machine;
        let show = |error: &dyn std::fmt::Display| error.to_string();
        if room == 0 {
            self.hoard = hoard(frames);
        }
        let tables = self.tables.insert(frames.allocate(id(INDEX), 64, 1).map_err(|e| show(&e))?);
        if room == 1 {
            self.hoard = hoard(frames);
        }
        let ram = self.ram.insert(frames.allocate(id(INDEX), RAM_FRAMES, 512).map_err(|e| show(&e))?);
        let images = self.images.insert(frames.adopt(BOOT, 1, id(INDEX)).map_err(|e| show(&e))?);
        let (host, nested) =
            self.spaces.insert((HostSpace::new(tables), NestedSpace::new(tables, 1).ok_or("no second table")?));
        memory.tables.extend([(host.root(), [0; ENTRIES]), (nested.root(), [0; ENTRIES])]);
        memory.tables.get_mut(&host.root()).unwrap()[SLOT] = shared;
        memory.pool = pool(tables, 2);
        let spare = memory.pool.len().saturating_sub(room - RUNS);
        memory.pool.drain(..spare);
        host.map(memory, Hva::new(WINDOW), tables, Size::Page1G).map_err(|e| show(&e))?;
        host.map(memory, Hva::new(RAM), ram, Size::Page1G).map_err(|e| show(&e))?;
        host.map(memory, Hva::new(IMAGES), images, Size::Page1G).map_err(|e| show(&e))?;
        let scrubbed = ram.scrub(frames, 0, RAM_FRAMES, |_| ()).map_err(|e| show(&e))?;
        nested.map(memory, Gpa::new(0), scrubbed, Size::Page1G).map_err(|e| show(&e))
    }

    /// Gives everything back.
    fn release(self, frames: &mut FrameTable<'_>) {
        self.tables.map_or(Ok(()), |some| frames.release(some)).unwrap();
        self.ram.map_or(Ok(()), |some| frames.release(some)).unwrap();
        self.images.map_or(Ok(()), |some| frames.release(some)).unwrap();
        self.hoard.into_iter().try_for_each(|some| frames.release(some)).unwrap();
    }
}

/// What the audit finds in the guest as far as it has come.
fn audit_part(machine: &mut Machine, parts: &Parts) -> Vec<Violation> {
    let Some((host, nested)) = &parts.spaces else { return Vec::new() };
    let compartment = Compartment {
        guest: id(INDEX),
        host_root: host.root(),
        nested_root: Some(nested.root()),
        shared_slot: SLOT,
        shared_table: machine.shared,
        layout: &LAYOUT,
    };
    let mut found = Vec::new();
    let Machine { frames, memory, .. } = machine;
    audit::<Ept>(&compartment, frames, memory, &mut |violation| found.push(*violation));
    found
}

#[test]
fn when_memory_runs_out_nothing_is_lost_and_nothing_wrong() {
    let mut failures = 0;
    loop {
        let mut machine = Machine::new();
        machine.frames.mark(BOOT, 1, Owner::Hypervisor(Part::Boot)).unwrap();
        let unowned = |owner| matches!(owner, Owner::Free | Owner::Hypervisor(Part::Boot));
        let free = machine.frames.count(unowned);

        let mut parts = Parts::default();
        let made = parts.fill(&mut machine, failures);
        assert_eq!(audit_part(&mut machine, &parts), [], "what there is of it: {failures}");
        assert_eq!(machine.violations(), [], "the others: {failures}");
        assert_eq!(parts.hoard.is_empty(), failures >= RUNS, "the table refused because it was empty");

        parts.release(&mut machine.frames);
        assert_eq!(machine.frames.count(unowned), free, "all frames come back: {failures}");
        let Err(why) = made else { break };
        assert!(why.starts_with("no "), "{why}");

        // With memory again, the same guest can be made.
        machine.frames.mark(BOOT, 1, Owner::Hypervisor(Part::Boot)).unwrap();
        let mut parts = Parts::default();
        parts.fill(&mut machine, usize::MAX).unwrap();
        assert_eq!((audit_part(&mut machine, &parts), machine.violations()), (vec![], vec![]), "{failures}");
        failures += 1;
    }
    std::println!("{failures} allocations");
    assert!(failures > RUNS + 4, "only {failures} allocations");
}
