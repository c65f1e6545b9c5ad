//! A machine of no processor: it keeps count of what is done to it. For tests of both ends of the line.

extern crate std;

use crate::bucket::Rate;
use crate::event::Ring;
use crate::upload::{Upload, Wrong};
use crate::{
    Action, Ending, EventKind, Exits, Guest, Machine, Memory, Moment, Name, Operation, PAGE, Page, Refusal, Response,
    Source, State, Stats, Usage,
};
use bulkhead_types::manifest::Manifest;
use std::format;
use std::vec::Vec;

/// A guest of it.
#[derive(Clone, Debug)]
pub struct One {
    /// As lists show it.
    pub guest: Guest,
    /// What it wrote to its console.
    pub output: Vec<u8>,
    /// How much it wrote before that.
    pub gone: u64,
    /// What was written to its console.
    pub input: Vec<u8>,
    /// How much more it takes.
    pub room: usize,
    /// NMIs, resets, dumps.
    pub counts: [u32; 3],
}

/// The machine.
pub struct Fake {
    /// Its guests.
    pub guests: Vec<One>,
    /// What happened.
    pub events: Ring,
    /// The time.
    pub now: Moment,
    /// Operations that were performed.
    pub performed: usize,
    upload: Option<(Upload, Vec<u8>)>,
    next: u16,
    buffer: Vec<u8>,
}

impl Fake {
    /// A machine with guests of these names, which run.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let rate = Rate { burst: 64, ticks: 1000 };
        let mut fake = Self {
            guests: Vec::new(),
            events: Ring::new(rate),
            now: Moment { ticks: 1_000_000, unix_ms: 1_700_000_000_000 },
            performed: 0,
            upload: None,
            next: 1,
            buffer: Vec::new(),
        };
        for name in names {
            fake.add(name, Source::Manifest, [0xAB; 32], 16 << 20);
            let _ = fake.act(name, Action::Start, Source::Manifest);
        }
        fake
    }

    fn add(&mut self, name: &str, creator: Source, origin: [u8; 32], memory: u64) -> u16 {
        let id = self.next;
        self.next += 1;
        let guest = Guest {
            id,
            name: Name::try_from(name).unwrap_or_default(),
            zone: Name::try_from("zone").unwrap_or_default(),
            state: State::Stopped,
            vcpus: 1,
            memory,
            origin: Some(origin),
            creator,
            started: None,
            lease: None,
        };
        let output = format!("hello from {name}\n").into_bytes();
        self.guests.push(One { guest, output, gone: 0, input: Vec::new(), room: usize::MAX, counts: [0; 3] });
        self.events.push(self.now, id, name, EventKind::Created(creator));
        id
    }

    /// The guest of this name or number.
    pub fn find(&mut self, text: &str) -> Option<&mut One> {
        let number = text.parse().ok();
        let by_name = self.guests.iter().position(|one| one.guest.name == text);
        let index = by_name.or_else(|| self.guests.iter().position(|one| number == Some(one.guest.id)))?;
        self.guests.get_mut(index)
    }

    fn act(&mut self, guest: &str, action: Action, by: Source) -> Result<bool, Refusal> {
        use State::{Failed, Paused, Running, Stopped, Stopping};
        let now = self.now;
        let one = self.find(guest).ok_or(Refusal::NoGuest)?;
        let state = one.guest.state;
        let (next, kind) = match (action, state) {
            (Action::Start, Stopped | Failed) => (Running, EventKind::Started(by)),
            (Action::Start, Running) | (Action::Resume, Running) | (Action::Pause, Paused) => return Ok(false),
            (Action::Stop | Action::Kill, Stopped) => return Ok(false),
            (Action::Stop, Running) if one.guest.name == "stubborn" => (Running, EventKind::Stopping(by)),
            (Action::Stop, Running) => (Stopped, EventKind::Ended(Ending::PowerOff)),
            (Action::Kill, _) => (Stopped, EventKind::Ended(Ending::Stopped)),
            (Action::Pause, Running) => (Paused, EventKind::Paused(by)),
            (Action::Resume, Paused) => (Running, EventKind::Resumed(by)),
            (Action::Reset, Running) => (Running, EventKind::Reset(by)),
            (Action::Destroy, Stopped | Failed) => (Stopped, EventKind::Destroyed(by)),
            (Action::Nmi, Running | Stopping) => (state, EventKind::Injected(by)),
            (Action::Dump | Action::Trace(_), _) => {
                one.counts[2] += 1;
                return Ok(true);
            }
            _ => return Err(Refusal::Is(state)),
        };
        one.guest.state = next;
        one.counts[0] += u32::from(action == Action::Nmi);
        one.counts[1] += u32::from(action == Action::Reset);
        if action == Action::Start {
            one.guest.started = Some(now);
        }
        let (id, name) = (one.guest.id, one.guest.name.clone());
        if action == Action::Destroy {
            self.guests.retain(|one| one.guest.id != id);
        }
        self.events.push(now, id, &name, kind);
        Ok(true)
    }

    fn commit(&mut self, by: Source) -> Result<u16, Refusal> {
        let (upload, pack) = self.upload.as_ref().ok_or(Refusal::Upload(Wrong::NoPack))?;
        let hash = upload.finish().map_err(Refusal::Upload)?;
        let (_, manifest) = Manifest::from_pack(pack).map_err(|_| Refusal::Pack)?;
        let [guest] = manifest.guests.as_slice() else { return Err(Refusal::Pack) };
        if self.find(&guest.name).is_some() {
            return Err(Refusal::Taken);
        }
        self.upload = None;
        Ok(self.add(&guest.name, by, hash, guest.memory))
    }

    fn page<T>(&self, from: u16, item: impl Fn(&One) -> T) -> Page<T> {
        let mut rest = self.guests.iter().filter(|one| one.guest.id >= from);
        let items = rest.by_ref().take(PAGE).map(item).collect();
        Page { items, next: rest.next().map(|one| one.guest.id) }
    }

    fn usage(one: &One) -> Usage {
        Usage {
            id: one.guest.id,
            name: one.guest.name.clone(),
            used: 1000 * u64::from(one.guest.id),
            memory: one.guest.memory,
            exits: 7,
            written: one.output.len() as u64,
            read: one.input.len() as u64,
            ..Usage::default()
        }
    }

    fn read(&mut self, guest: &str, from: u64) -> Response<'_> {
        let Some(one) = self.find(guest) else { return Response::Refused(Refusal::NoGuest) };
        let end = one.gone + one.output.len() as u64;
        let at = if from > end { one.gone } else { from.max(one.gone) };
        let skip = usize::try_from(at - one.gone).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = one.output.iter().skip(skip).take(crate::line::CHUNK).copied().collect();
        self.buffer = bytes;
        Response::Output { at, bytes: &self.buffer }
    }
}

fn done(result: Result<bool, Refusal>) -> Response<'static> {
    match result {
        Ok(true) => Response::Done,
        Ok(false) => Response::Unchanged,
        Err(refusal) => Response::Refused(refusal),
    }
}

impl Machine for Fake {
    fn perform(&mut self, operation: &Operation<'_>, by: Source) -> Response<'_> {
        self.performed += 1;
        self.now.ticks += 1000;
        self.now.unix_ms += 1;
        match *operation {
            Operation::Version => Response::Version { version: "0.1.0", backend: "none", cpus: 2, hertz: 1_000_000 },
            Operation::List(from) => Response::Guests(self.page(from, |one| one.guest.clone())),
            Operation::Act { guest, action } => match self.act(guest, action, by) {
                Ok(true) if action == Action::Stop => Response::Asked,
                result => done(result),
            },
            Operation::Create { bytes, sha256 } => match &self.upload {
                Some((upload, _)) if upload.is(bytes, &sha256) => Response::Send(upload.come()),
                _ => {
                    self.upload = Some((Upload::new(bytes, sha256), Vec::new()));
                    Response::Send(0)
                }
            },
            Operation::Chunk { offset, bytes } => match &mut self.upload {
                Some((upload, pack)) => match upload.take(offset, bytes) {
                    Ok(new) => {
                        pack.extend(new);
                        Response::Send(upload.come())
                    }
                    Err(wrong) => Response::Refused(Refusal::Upload(wrong)),
                },
                None => Response::Refused(Refusal::Upload(Wrong::NoPack)),
            },
            Operation::Zeros { offset, count } => {
                let zeros = std::vec![0; usize::try_from(count).unwrap_or(0).min(1 << 16)];
                match &mut self.upload {
                    Some((upload, pack)) => match upload.take(offset, &zeros) {
                        Ok(new) => {
                            pack.extend(new);
                            Response::Send(upload.come())
                        }
                        Err(wrong) => Response::Refused(Refusal::Upload(wrong)),
                    },
                    None => Response::Refused(Refusal::Upload(Wrong::NoPack)),
                }
            }
            Operation::Commit => match self.commit(by) {
                Ok(id) => Response::Created(id),
                Err(refusal) => Response::Refused(refusal),
            },
            Operation::Stats(from) => {
                let guests = self.page(from, Self::usage);
                Response::Stats(Stats { at: self.now, total: 2 * self.now.ticks, idle: 5, own: 3, gone: 2, guests })
            }
            Operation::Exits(guest) => match self.find(guest) {
                Some(_) => Response::Exits(Exits(heapless::Vec::from_array([("cpuid", 3, 300), ("port", 4, 800)]))),
                None => Response::Refused(Refusal::NoGuest),
            },
            Operation::Events(from) => Response::Events(self.events.read(from)),
            Operation::Read { guest, from } => self.read(guest, from),
            Operation::Write { guest, bytes } => match self.find(guest) {
                Some(one) if one.guest.state != State::Running => Response::Refused(Refusal::Is(one.guest.state)),
                Some(one) => {
                    let taken: Vec<u8> = bytes.iter().copied().take(one.room).collect();
                    one.room -= taken.len();
                    one.input.extend(&taken);
                    // It echoes, as a terminal's other end does.
                    one.output.extend(&taken);
                    Response::Taken(u16::try_from(taken.len()).unwrap_or(u16::MAX))
                }
                None => Response::Refused(Refusal::NoGuest),
            },
            Operation::Memory(from) => {
                let owner = |one: &One| heapless::String::try_from(one.guest.name.as_str()).unwrap_or_default();
                Response::Memory(self.page(from, |one| Memory {
                    start: u64::from(one.guest.id) << 28,
                    bytes: one.guest.memory,
                    owner: owner(one),
                }))
            }
            Operation::Audit => Response::Audit { tables: 70, frames: 145_312, violations: 0 },
        }
    }
}
