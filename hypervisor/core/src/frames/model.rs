//! Every order in which frames change hands, with guests that run on two CPUs all the while.
//!
//! The frame table is the real one: [`FrameTable::allocate`], [`Frames::scrub`], [`FrameTable::release`],
//! [`FrameTable::mark`]. Around it are what the hardware adds: nested tables as sets of frames, a TLB for each CPU that
//! keeps a guest's translations until it is told to forget them (whatever runs there meanwhile), and what frames hold.
//! Three things are as the design has them and not in the code yet: a second CPU; the rule that a frame is released only
//! when every CPU has confirmed that it forgot it; and channels, which are the hypervisor's frames in the table, zeroed, in
//! the nested tables of two guests (C7).
//!
//! The properties, all of them checked in each state:
//!
//! 1. What any guest can reach, by its nested tables or by any CPU's TLB, is its own RAM or a channel: so no frame is
//!    reachable by two owners.
//! 2. A frame that a guest can reach holds zeros or what that guest wrote, and a channel what either end wrote; so a frame
//!    is clean before a new owner gets it.
//! 3. What the table calls clean holds nothing of anyone but its owner.
//! 4. The table never refuses a token that it gave out, and counts each frame once.

extern crate std;

use super::{FrameState, FrameTable, Frames, Owner, Part, Ram, Use};
use crate::search::{Model, explore};
use bulkhead_types::{Frame, GuestId};
use std::format;
use std::println;
use std::string::{String, ToString};
use std::vec::Vec;

const FRAMES: usize = 2;
const CPUS: usize = 2;
const GUESTS: usize = 2;

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Holder {
    Free,
    Hypervisor,
    Guest(usize),
    /// Between both guests.
    Channel,
}

/// Whose data a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Content {
    Zeros,
    Firmware,
    Hypervisor,
    Guest(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Page {
    holder: Holder,
    dirty: bool,
    content: Content,
    /// Whose nested tables map it.
    mapped: [bool; GUESTS],
    /// Which translations of it each CPU keeps.
    cached: [[bool; GUESTS]; CPUS],
    /// It was unmapped: the CPUs that have not confirmed yet.
    leaving: Option<[bool; CPUS]>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Machine {
    pages: [Page; FRAMES],
    /// Where the table looks first.
    next: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Allocate {
        guest: usize,
    },
    ScrubAndMap {
        guest: usize,
        frame: usize,
    },
    /// The guest, on this CPU, writes.
    Touch {
        cpu: usize,
        guest: usize,
        frame: usize,
    },
    Unmap {
        frame: usize,
    },
    /// The CPU forgets its translations of the frame, and confirms.
    Invalidate {
        cpu: usize,
        frame: usize,
    },
    /// Gives an unmapped frame back.
    Release {
        frame: usize,
    },
    HypervisorTakes {
        frame: usize,
    },
    HypervisorGives {
        frame: usize,
    },
    OpenChannel {
        frame: usize,
    },
}

/// A way in which the hypervisor is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Frames are declared clean, and not zeroed.
    SkipsScrub,
    /// Channels are not zeroed.
    SkipsScrubOfChannels,
    /// What is released counts as clean.
    ReleasesAsClean,
    /// Nobody is told to forget a translation.
    SkipsInvalidation,
    /// Only the first CPU is.
    InvalidatesOneCpu,
    /// A frame is released when the first CPU has confirmed.
    ReleasesEarly,
    /// A channel that is closed stays in the tables of its second end.
    ClosesOneEnd,
    /// A frame is released while it is mapped.
    ReleasesMapped,
}

const WAYS: [Way; 8] = [
    Way::SkipsScrub,
    Way::SkipsScrubOfChannels,
    Way::ReleasesAsClean,
    Way::SkipsInvalidation,
    Way::InvalidatesOneCpu,
    Way::ReleasesEarly,
    Way::ClosesOneEnd,
    Way::ReleasesMapped,
];

fn id(guest: usize) -> GuestId {
    GuestId::new(u16::try_from(guest + 1).unwrap())
}

fn frame(number: usize) -> Frame {
    Frame::new(number as u64)
}

fn token(guest: usize, number: usize) -> Frames<Ram> {
    Frames::new(id(guest), frame(number), 1)
}

impl Holder {
    fn owner(self) -> Owner {
        match self {
            Self::Free => Owner::Free,
            Self::Hypervisor | Self::Channel => Owner::Hypervisor(Part::Data),
            Self::Guest(guest) => Owner::Guest(id(guest), Use::Ram),
        }
    }
}

impl Machine {
    /// Does this to the real table, and takes over what it says afterwards; whatever is the hypervisor's becomes `part`.
    fn table<R>(&mut self, number: usize, part: Holder, act: impl FnOnce(&mut FrameTable<'_>) -> R) -> R {
        let mut states = self.pages.map(|page| FrameState::new(page.holder.owner(), page.dirty));
        let mut table = FrameTable { states: &mut states, next: self.next, owned: [0; _] };
        let result = act(&mut table);
        self.next = table.next;
        for (index, page) in self.pages.iter_mut().enumerate() {
            page.dirty = table.is_dirty(frame(index));
            page.holder = match table.owner(frame(index)) {
                Owner::Guest(owner, Use::Ram) => Holder::Guest(usize::from(owner.number()) - 1),
                Owner::Hypervisor(Part::Data) if index == number => part,
                Owner::Hypervisor(Part::Data) => page.holder,
                _ => Holder::Free,
            };
        }
        result
    }

    fn mark(&mut self, number: usize, holder: Holder) -> Result<(), String> {
        self.table(number, holder, |table| table.mark(frame(number), 1, holder.owner())).map_err(|e| e.to_string())
    }

    fn scrub_and_map(&mut self, guest: usize, number: usize, way: Option<Way>) -> Result<(), String> {
        let mut zeroed = false;
        let zero = |_| zeroed = true;
        self.table(number, Holder::Free, |table| token(guest, number).scrub(table, 0, 1, zero).map(drop))
            .map_err(|e| e.to_string())?;
        let page = &mut self.pages[number];
        if zeroed && way != Some(Way::SkipsScrub) {
            page.content = Content::Zeros;
        }
        page.mapped[guest] = true;
        Ok(())
    }

    fn unmap(&mut self, number: usize, way: Option<Way>) {
        let page = &mut self.pages[number];
        let stays = page.holder == Holder::Channel && way == Some(Way::ClosesOneEnd);
        page.mapped = [false, stays];
        page.leaving = Some(match way {
            Some(Way::SkipsInvalidation) => [false; CPUS],
            Some(Way::InvalidatesOneCpu) => [true, false],
            _ => [true; CPUS],
        });
    }

    fn release(&mut self, number: usize, way: Option<Way>) -> Result<(), String> {
        let holder = self.pages[number].holder;
        let Holder::Guest(guest) = holder else { return self.mark(number, Holder::Free) };
        self.table(number, Holder::Free, |table| table.release(token(guest, number))).map_err(|e| e.to_string())?;
        self.pages[number].dirty &= way != Some(Way::ReleasesAsClean);
        Ok(())
    }

    fn open_channel(&mut self, number: usize, way: Option<Way>) -> Result<(), String> {
        self.mark(number, Holder::Channel)?;
        let page = &mut self.pages[number];
        if way != Some(Way::SkipsScrubOfChannels) {
            page.content = Content::Zeros;
        }
        page.mapped = [true; GUESTS];
        Ok(())
    }

    /// The first property that does not hold.
    fn check(&self) -> Result<(), String> {
        for (number, page) in self.pages.iter().enumerate() {
            let own = |guest| page.holder == Holder::Guest(guest) || page.holder == Holder::Channel;
            for guest in 0..GUESTS {
                let reaches = page.mapped[guest] || page.cached.iter().any(|cpu| cpu[guest]);
                if reaches && !own(guest) {
                    return Err(format!("guest {guest} reaches frame {number}, which is {:?}", page.holder));
                }
                let may_read = match page.content {
                    Content::Zeros => true,
                    Content::Guest(writer) => writer == guest || page.holder == Holder::Channel,
                    _ => false,
                };
                if reaches && !may_read {
                    return Err(format!("guest {guest} can read {:?} in frame {number}", page.content));
                }
            }
            let of_owner = match page.content {
                Content::Zeros => true,
                Content::Guest(writer) => own(writer),
                _ => false,
            };
            if !page.dirty && !of_owner {
                return Err(format!("frame {number} counts as clean and holds {:?}", page.content));
            }
        }
        let mut copy = self.clone();
        let count = copy.table(FRAMES, Holder::Free, |table| table.count(|_| true));
        if count == FRAMES as u64 { Ok(()) } else { Err(format!("{count} frames of {FRAMES}")) }
    }
}

struct Ownership(Option<Way>);

impl Ownership {
    fn may_release(&self, page: &Page) -> bool {
        let early = self.0 == Some(Way::ReleasesMapped) && matches!(page.holder, Holder::Guest(_));
        early
            || page.leaving.is_some_and(|waits| {
                let first = self.0 == Some(Way::ReleasesEarly) && !waits[0];
                first || waits == [false; CPUS]
            })
    }

    fn of_page(&self, page: &Page, frame: usize, into: &mut Vec<Action>) {
        for guest in 0..GUESTS {
            if page.holder == Holder::Guest(guest) && page.mapped == [false; GUESTS] && page.leaving.is_none() {
                into.push(Action::ScrubAndMap { guest, frame });
            }
            for cpu in 0..CPUS {
                if page.mapped[guest] || page.cached[cpu][guest] {
                    into.push(Action::Touch { cpu, guest, frame });
                }
            }
        }
        if page.leaving.is_none() && page.mapped != [false; GUESTS] {
            into.push(Action::Unmap { frame });
        }
        let waits = page.leaving.unwrap_or_default();
        into.extend((0..CPUS).filter(|&cpu| waits[cpu]).map(|cpu| Action::Invalidate { cpu, frame }));
        if self.may_release(page) {
            into.push(Action::Release { frame });
        }
        match page.holder {
            Holder::Free => into.extend([Action::HypervisorTakes { frame }, Action::OpenChannel { frame }]),
            Holder::Hypervisor => into.push(Action::HypervisorGives { frame }),
            _ => {}
        }
    }
}

impl Model for Ownership {
    type State = Machine;
    type Action = Action;

    fn first(&self) -> Machine {
        let page = Page {
            holder: Holder::Free,
            dirty: true,
            content: Content::Firmware,
            mapped: [false; GUESTS],
            cached: [[false; GUESTS]; CPUS],
            leaving: None,
        };
        Machine { pages: [page; FRAMES], next: 0 }
    }

    fn actions(&self, machine: &Machine) -> Vec<Action> {
        let mut actions = Vec::new();
        if machine.pages.iter().any(|page| page.holder == Holder::Free) {
            actions.extend((0..GUESTS).map(|guest| Action::Allocate { guest }));
        }
        for (frame, page) in machine.pages.iter().enumerate() {
            self.of_page(page, frame, &mut actions);
        }
        actions
    }

    fn step(&self, machine: &Machine, action: Action) -> Result<Machine, String> {
        let mut after = machine.clone();
        match action {
            Action::Allocate { guest } => {
                let given = after.table(FRAMES, Holder::Free, |table| table.allocate::<Ram>(id(guest), 1, 1));
                let at = given.map_err(|e| e.to_string())?.start();
                let before = machine.pages.get(usize::try_from(at.number()).unwrap());
                if before.is_none_or(|page| page.holder != Holder::Free) {
                    return Err(format!("frame {at} was given out twice"));
                }
            }
            Action::ScrubAndMap { guest, frame } => after.scrub_and_map(guest, frame, self.0)?,
            Action::Touch { cpu, guest, frame } => {
                let page = &mut after.pages[frame];
                page.cached[cpu][guest] = true;
                page.content = Content::Guest(guest);
            }
            Action::Unmap { frame } => after.unmap(frame, self.0),
            Action::Invalidate { cpu, frame } => {
                let page = &mut after.pages[frame];
                page.cached[cpu] = [false; GUESTS];
                if let Some(waits) = &mut page.leaving {
                    waits[cpu] = false;
                }
            }
            Action::Release { frame } => {
                after.release(frame, self.0)?;
                after.pages[frame].leaving = None;
            }
            Action::HypervisorTakes { frame } => {
                after.mark(frame, Holder::Hypervisor)?;
                after.pages[frame].content = Content::Hypervisor;
            }
            Action::HypervisorGives { frame } => after.mark(frame, Holder::Free)?,
            Action::OpenChannel { frame } => after.open_channel(frame, self.0)?,
        }
        after.check()?;
        Ok(after)
    }
}

#[test]
fn no_frame_is_reached_by_two_owners_or_before_it_is_clean() {
    let states = explore(&Ownership(None)).unwrap();
    println!("{states} states");
    assert!(states > 1000, "only {states} states");
}

/// Prints how; `cargo test -- --nocapture` shows it.
#[test]
fn every_wrong_hand_over_breaks_a_property_of_frames() {
    for way in WAYS {
        let found = explore(&Ownership(Some(way))).err();
        println!("{way:?}: {found:?}");
        assert!(found.is_some(), "{way:?} goes unnoticed");
    }
}
