//! Allocation against a model; scrubbing; what the type system does not refuse, the table does.

extern crate std;

use super::{FrameError, FrameState, FrameTable, Frames, HostSpace, NestedSpace, Owner, Part, Ram, Run, SpaceError};
use super::{State, Tables, Use};
use bulkhead_paging::{Ept, PagingError, ReadTables, Size};
use bulkhead_types::{Frame, Gpa, GuestId, Hpa, Hva};
use proptest::prelude::*;
use spin::Mutex;
use std::collections::BTreeSet;
use std::vec::Vec;
use std::{format, vec};

const ONE: GuestId = GuestId::new(1);
const TWO: GuestId = GuestId::new(2);

/// Garbage to begin with: whatever the memory of the table held.
fn garbage(count: usize) -> &'static mut [FrameState] {
    vec![FrameState::from_bits(0xFFFF_FFFF); count].leak()
}

/// A table whose frames from `free` on are free.
fn table(count: u64, free: u64) -> FrameTable<'static> {
    let mut table = FrameTable::new(garbage(usize::try_from(count).unwrap()));
    table.mark(Frame::new(free), count - free, Owner::Free).unwrap();
    table
}

#[test]
fn every_owner_survives_packing() {
    let parts = [Part::Text, Part::Rodata, Part::Data, Part::Tables, Part::FrameTable, Part::Boot];
    let uses = [Use::Ram, Use::Tables, Use::State, Use::Image];
    let guests = [GuestId::IDLE, ONE, GuestId::new(u16::MAX)];
    let owners = [Owner::Absent, Owner::Firmware, Owner::Device, Owner::Free]
        .into_iter()
        .chain(parts.map(Owner::Hypervisor))
        .chain(guests.into_iter().flat_map(|guest| uses.map(|what| Owner::Guest(guest, what))));
    let mut seen = BTreeSet::new();
    for owner in owners {
        for dirty in [false, true] {
            let state = FrameState::new(owner, dirty);
            assert_eq!((state.owner(), state.is_dirty()), (owner, dirty));
            assert_eq!(state.is_free(), owner == Owner::Free);
            assert_eq!(state.is_guests(), matches!(owner, Owner::Guest(..)));
            seen.insert(format!("{state:?}"));
        }
    }
    assert_eq!(seen.len(), 2 * (4 + 6 + 12), "no two are the same");
}

#[test]
fn a_new_table_has_no_memory_whatever_was_there() {
    let mut table = FrameTable::new(garbage(8));
    assert_eq!(table.count(|owner| owner == Owner::Absent), 8);
    assert_eq!(table.allocate::<Ram>(ONE, 1, 1), Err(FrameError::NoMemory { count: 1 }));
    assert_eq!(table.owner(Frame::new(u64::MAX)), Owner::Absent);
}

#[test]
fn frames_come_in_a_row_and_aligned() {
    let mut table = table(64, 3);
    let first = table.allocate::<Ram>(ONE, 5, 8).unwrap();
    assert_eq!((first.start(), first.count(), first.owner(), first.bytes()), (Frame::new(8), 5, ONE, 5 * 4096));
    let second = table.allocate::<State>(TWO, 2, 1).unwrap();
    assert_eq!(second.start(), Frame::new(13), "behind the last one");
    let third = table.allocate::<State>(TWO, 40, 1).unwrap();
    assert_eq!(third.start(), Frame::new(15));
    let around = table.allocate::<State>(TWO, 5, 1).unwrap();
    assert_eq!(around.start(), Frame::new(55));
    assert_eq!(table.allocate::<State>(TWO, 5, 1).unwrap().start(), Frame::new(3), "from the start again");
    assert_eq!(table.allocate::<State>(TWO, 5, 1), Err(FrameError::NoMemory { count: 5 }));
    let runs: Vec<_> = table.runs().map(|run| (run.start.number(), run.count, run.owner)).collect();
    let two = Owner::Guest(TWO, Use::State);
    let expected = [(0, 3, Owner::Absent), (3, 5, two), (8, 5, Owner::Guest(ONE, Use::Ram)), (13, 47, two)];
    assert_eq!(runs, [expected.as_slice(), &[(60, 4, Owner::Free)]].concat());
}

#[test]
fn impossible_requests_are_refused() {
    let mut table = table(64, 0);
    for (count, align) in [(0, 1), (65, 1), (u64::MAX, 1), (1, 1 << 63), (64, 128)] {
        let expected =
            if (count, align) == (1, 1 << 63) { Ok(Frame::new(0)) } else { Err(FrameError::NoMemory { count }) };
        assert_eq!(table.allocate::<Ram>(ONE, count, align).map(|frames| frames.start()), expected, "{count} {align}");
    }
    assert_eq!(table.allocate::<Ram>(ONE, 1, 1 << 63), Err(FrameError::NoMemory { count: 1 }));
}

#[test]
fn a_frame_is_zeroed_between_owners_and_not_twice() {
    let mut table = table(16, 0);
    let zeroed = |table: &mut FrameTable<'_>, frames: &Frames<Ram>| {
        let mut zeroed = Vec::new();
        frames.scrub(table, 0, frames.count(), |frame| zeroed.push(frame.number())).unwrap();
        zeroed
    };
    let frames = table.allocate::<Ram>(ONE, 4, 1).unwrap();
    assert!(table.is_dirty(frames.start()), "firmware was there");
    assert_eq!(zeroed(&mut table, &frames), [0, 1, 2, 3]);
    assert!(!table.is_dirty(frames.start()));
    assert_eq!(zeroed(&mut table, &frames), [], "it is the guest's own by now");
    table.release(frames).unwrap();
    assert_eq!(table.runs().next(), Some(Run { start: Frame::new(0), count: 16, owner: Owner::Free, dirty: true }));

    let _ = table.allocate::<State>(TWO, 12, 1).unwrap();
    let frames = table.allocate::<Ram>(TWO, 4, 1).unwrap();
    assert_eq!(zeroed(&mut table, &frames), [0, 1, 2, 3], "it was another guest's");
}

#[test]
fn only_what_was_asked_for_is_scrubbed() {
    let mut table = table(16, 0);
    let frames = table.allocate::<Ram>(ONE, 4, 1).unwrap();
    let mut count = 0;
    let scrubbed = frames.scrub(&mut table, 2, 1, |_| count += 1).unwrap();
    assert_eq!((scrubbed.start(), scrubbed.bytes(), scrubbed.owner()), (Frame::new(2), 4096, ONE));
    assert_eq!(count, 1);
    for (first, count) in [(0, 0), (0, 5), (4, 1), (u64::MAX, 2), (1, u64::MAX)] {
        let result = frames.scrub(&mut table, first, count, |_| panic!("none of its frames"));
        assert!(matches!(result, Err(FrameError::OutOfRange(_))));
    }
}

#[test]
fn images_are_adopted_from_what_the_boot_loader_left() {
    let mut table = table(16, 8);
    table.mark(Frame::new(2), 4, Owner::Hypervisor(Part::Boot)).unwrap();
    let image = table.adopt(Frame::new(2), 2, ONE).unwrap();
    assert_eq!(table.owner(Frame::new(3)), Owner::Guest(ONE, Use::Image));
    assert!(!table.is_dirty(Frame::new(3)), "what it holds is meant for the guest");
    let owner = Owner::Guest(ONE, Use::Image);
    assert_eq!(table.adopt(Frame::new(3), 1, TWO), Err(FrameError::Owned { frame: Frame::new(3), owner }));
    let owner = Owner::Free;
    assert_eq!(table.adopt(Frame::new(8), 1, TWO), Err(FrameError::Owned { frame: Frame::new(8), owner }));
    assert_eq!(table.adopt(Frame::new(15), 2, TWO), Err(FrameError::OutOfRange(Frame::new(16))));
    table.release(image).unwrap();
    assert_eq!(table.count(|owner| owner == Owner::Free), 10);
}

#[test]
fn clean_frames_are_handed_out_in_parts() {
    let table = Mutex::new(table(16, 0));
    let frames = table.lock().allocate::<Ram>(ONE, 4, 1).unwrap();
    let clean = frames.into_clean(&table, |_| (), || ()).unwrap();
    assert_eq!(clean.part(1, 3).map(|part| (part.start(), part.bytes())), Some((Frame::new(1), 3 * 4096)));
    for (first, count) in [(0, 0), (0, 5), (4, 1), (u64::MAX, 2), (1, u64::MAX)] {
        assert!(clean.part(first, count).is_none());
    }
    assert_eq!(table.lock().release(clean.0), Ok(()));
}

#[test]
fn many_frames_are_cleaned_by_pieces_and_the_table_is_free_meanwhile() {
    let table = Mutex::new(table(200, 0));
    let frames = table.lock().allocate::<Ram>(ONE, 200, 1).unwrap();
    // Some are clean already.
    frames.scrub(&mut table.lock(), 60, 10, |_| ()).unwrap();
    let (mut zeroed, mut pieces) = (Vec::new(), Vec::<Vec<(u64, bool)>>::new());
    let zero = |frame: Frame| {
        let table = table.try_lock().expect("it is free");
        assert!(table.is_dirty(frame), "{frame} is clean before it is zeroed");
        zeroed.push(frame.number());
    };
    let between =
        || pieces.push(table.try_lock().expect("it is free").runs().map(|run| (run.count, run.dirty)).collect());
    let clean = frames.into_clean(&table, zero, between).unwrap();
    assert_eq!(zeroed, (0..60).chain(70..200).collect::<Vec<u64>>());
    let runs: [Vec<(u64, bool)>; 4] = [
        vec![(70, false), (130, true)],
        vec![(128, false), (72, true)],
        vec![(192, false), (8, true)],
        vec![(200, false)],
    ];
    assert_eq!(pieces, runs, "what is not yet zeroed is not clean");
    assert!(clean.part(0, 200).is_some());
}

#[test]
fn only_the_idle_compartment_gives_frames_away_as_they_are() {
    let mut table = table(16, 0);
    let skeleton = table.allocate::<State>(GuestId::IDLE, 4, 1).unwrap();
    let start = skeleton.start();
    skeleton.scrub(&mut table, 0, 3, |_| ()).unwrap();
    let owner = Owner::Guest(ONE, Use::State);
    let theirs = table.transfer(skeleton, ONE).unwrap();
    assert_eq!((theirs.owner(), table.owner(start), table.is_dirty(start)), (ONE, owner, false));
    assert!(table.is_dirty(start.add(3)), "giving away does not clean");
    assert_eq!(table.transfer(theirs, TWO), Err(FrameError::Owned { frame: start, owner }));
    assert_eq!(table.owner(start), owner);
    assert_eq!([GuestId::IDLE, ONE, TWO].map(|guest| table.owned(guest)), [0, 4, 0]);
}

#[test]
fn marking_does_not_touch_what_guests_own() {
    let mut table = table(16, 0);
    let frames = table.allocate::<Ram>(ONE, 4, 1).unwrap();
    let owner = Owner::Guest(ONE, Use::Ram);
    let taken = Err(FrameError::Owned { frame: frames.start(), owner });
    assert_eq!(table.mark(Frame::new(0), 16, Owner::Firmware), taken);
    assert_eq!(table.mark(Frame::new(8), 1, owner), Err(FrameError::Owned { frame: Frame::new(8), owner }));
    assert_eq!(table.count(|owner| owner == Owner::Free), 12, "nothing was changed");
    assert!(table.mark(Frame::new(15), 2, Owner::Free).is_err());
    assert!(table.mark(Frame::new(u64::MAX), u64::MAX, Owner::Free).is_err());
    assert_eq!(table.mark(Frame::new(8), 0, Owner::Free), Ok(()), "nothing is nothing");
}

#[test]
fn a_token_that_the_table_does_not_know_is_refused() {
    let mut table = table(16, 0);
    let frames = table.allocate::<Ram>(ONE, 4, 1).unwrap();
    let wrong = Frame::new(2);
    table.set(wrong, FrameState::new(Owner::Guest(TWO, Use::Ram), false));
    let owned = FrameError::Owned { frame: wrong, owner: Owner::Guest(TWO, Use::Ram) };
    assert_eq!(frames.scrub(&mut table, 0, 4, |_| ()).map(|_| ()), Err(owned));
    assert_eq!(table.release(frames), Err(owned));
}

/// No tables at all.
struct Nothing;

impl ReadTables for Nothing {
    fn read(&self, table: Hpa, _: usize) -> Result<u64, PagingError> {
        Err(PagingError::Unreachable(table))
    }
}

impl bulkhead_paging::Tables for Nothing {
    fn write(&mut self, table: Hpa, _: usize, _: u64) -> Result<(), PagingError> {
        Err(PagingError::Unreachable(table))
    }

    fn allocate(&mut self) -> Result<Hpa, PagingError> {
        Err(PagingError::OutOfTables)
    }
}

#[test]
fn frames_of_one_guest_do_not_go_into_tables_of_another() {
    let mut table = table(64, 0);
    let tables = table.allocate::<Tables>(ONE, 4, 1).unwrap();
    let host = HostSpace::new(&tables);
    let nested = NestedSpace::<Ept>::new(&tables, 3).unwrap();
    assert!(NestedSpace::<Ept>::new(&tables, 4).is_none());
    assert_eq!((host.root(), nested.root()), (tables.start().start(), tables.start().add(3).start()));
    for (guest, expected) in [
        (TWO, SpaceError::Foreign { tables: ONE, frames: TWO }),
        (ONE, SpaceError::Paging(PagingError::Unreachable(host.root()))),
    ] {
        let ram = table.allocate::<Ram>(guest, 1, 1).unwrap();
        assert_eq!(host.map(&mut Nothing, Hva::new(0), &ram, Size::Page4K), Err(expected));
        let ram = ram.scrub(&mut table, 0, 1, |_| ()).unwrap();
        let done = nested.map(&mut Nothing, Gpa::new(0), ram, Size::Page4K);
        assert_eq!(done.is_err_and(|e| matches!(e, SpaceError::Foreign { .. })), guest == TWO);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate { count: u64, align: u32 },
    Release(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u64..40, 0u32..6).prop_map(|(count, align)| Step::Allocate { count, align }),
        2 => any::<usize>().prop_map(Step::Release),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// The model is a set of free frames: what is given out was free and is in a row; a refusal is right.
    #[test]
    fn allocation_agrees_with_a_set(steps in steps()) {
        let mut table = table(256, 7);
        let mut free: BTreeSet<u64> = (7..256).collect();
        let mut held: Vec<Frames<Ram>> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate { count, align } => match table.allocate::<Ram>(ONE, count, 1 << align) {
                    Ok(frames) => {
                        let start = frames.start().number();
                        prop_assert_eq!((frames.count(), start % (1 << align)), (count, 0));
                        for frame in start..start + count {
                            prop_assert!(free.remove(&frame), "frame {} was taken", frame);
                        }
                        held.push(frames);
                    }
                    Err(_) => {
                        let fits = |start: &u64| (*start..start + count).all(|frame| free.contains(&frame));
                        prop_assert_eq!((0..256).step_by(1 << align).find(fits), None);
                    }
                },
                Step::Release(which) if !held.is_empty() => {
                    let frames = held.swap_remove(which % held.len());
                    free.extend(frames.start().number()..frames.start().number() + frames.count());
                    prop_assert_eq!(table.release(frames), Ok(()));
                }
                Step::Release(_) => {}
            }
            prop_assert_eq!(table.count(|owner| owner == Owner::Free), free.len() as u64);
            prop_assert_eq!(table.owned(ONE), held.iter().map(Frames::count).sum::<u64>());
            prop_assert_eq!(table.runs().map(|run| run.count).sum::<u64>(), 256);
        }
    }

    #[test]
    fn any_bits_are_a_state(bits: u32) {
        let state = FrameState::from_bits(bits);
        let again = FrameState::new(state.owner(), state.is_dirty());
        prop_assert_eq!((again.owner(), again.is_dirty()), (state.owner(), state.is_dirty()));
    }
}

#[test]
fn what_a_guest_had_is_reclaimed_whole_and_nothing_else() {
    let mut table = table(64, 16);
    table.mark(Frame::new(8), 4, Owner::Hypervisor(Part::Boot)).unwrap();
    let image = table.adopt(Frame::new(8), 4, ONE).unwrap();
    let ram: Frames<Ram> = table.allocate(ONE, 5, 1).unwrap();
    let other: Frames<Ram> = table.allocate(TWO, 3, 1).unwrap();
    let state: Frames<State> = table.allocate(ONE, 2, 1).unwrap();
    let idle: Frames<Tables> = table.allocate(GuestId::IDLE, 2, 1).unwrap();
    assert_eq!(table.reclaim(GuestId::IDLE), 0, "the hypervisor's own stay");
    assert_eq!([GuestId::IDLE, ONE, TWO].map(|guest| table.owned(guest)), [2, 4 + 5 + 2, 3]);
    assert_eq!(table.reclaim(ONE), 4 + 5 + 2);
    assert_eq!([GuestId::IDLE, ONE, TWO].map(|guest| table.owned(guest)), [2, 0, 3]);
    for (frames, owner) in [
        ((image.start(), 4), Owner::Hypervisor(Part::Boot)),
        ((ram.start(), 5), Owner::Free),
        ((other.start(), 3), Owner::Guest(TWO, Use::Ram)),
        ((state.start(), 2), Owner::Free),
        ((idle.start(), 2), Owner::Guest(GuestId::IDLE, Use::Tables)),
    ] {
        assert!((0..frames.1).all(|index| table.owner(frames.0.add(index)) == owner), "{owner}");
    }
    assert!(table.is_dirty(ram.start()), "the next owner's is zeroed first");
    assert_eq!(table.reclaim(ONE), 0);
    assert!(table.adopt(image.start(), 4, TWO).is_ok(), "another can be started from it");
}
