//! The audit itself: all tables walked, each frame of each page judged, secrets searched for.

use crate::PAGE;
use crate::dump::Dump;
use crate::format::Format;
use crate::image::Image;
use crate::layout;
use crate::owner::{Owner, Owners, Use};
use crate::roots::{self, NestedRoot, Roots};
use crate::secret::{Secret, search};
use crate::violation::{Found, Kind, Violation};
use crate::walk::{Item, Leaf, translate, walk};
use std::collections::{BTreeMap, BTreeSet};

/// A guest as the manifest has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExpectedGuest {
    /// Its name.
    pub name: String,
    /// Its RAM in bytes.
    pub memory: u64,
}

/// What the manifest says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expected {
    /// The guests, from number 1 on. Without any, names and memory sizes are not checked.
    pub guests: Vec<ExpectedGuest>,
    /// Pairs of guests that have a channel.
    pub channels: Vec<(u8, u8)>,
}

/// A host root and what it reaches.
#[derive(Clone, Debug)]
pub struct Compartment {
    /// Its guest's number: 0 is the idle compartment; none, if it maps the shared part alone.
    pub guest: Option<u16>,
    /// Its name.
    pub name: String,
    /// The root.
    pub root: u64,
    /// Nested roots, with their format.
    pub nested: Vec<(u64, Format)>,
    /// Bytes that it reaches, by format and by what the frame table says.
    pub reach: BTreeMap<(&'static str, String), u64>,
    leaves: Vec<Leaf>,
}

/// What the audit found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The compartments.
    pub compartments: Vec<Compartment>,
    /// Host roots in free memory that nothing names.
    pub dormant: Vec<u64>,
    /// Frames of RAM in the dump.
    pub frames: u64,
    /// Page tables walked.
    pub tables: u64,
    /// What is wrong.
    pub violations: Vec<Violation>,
}

struct Audit<'a> {
    dump: &'a Dump,
    expected: &'a Expected,
    owners: Owners,
    roots: Roots,
    compartments: Vec<Compartment>,
    tables: BTreeSet<u64>,
    /// Frames that each compartment maps for itself.
    private: BTreeMap<u64, u128>,
    shared: BTreeSet<u64>,
    found: Found,
}

/// Audits a dump.
///
/// # Errors
/// A sentence, if there is nothing to audit: no root, or no frame table.
pub fn audit(dump: &Dump, image: &Image, expected: &Expected, secrets: &[Secret]) -> Result<Report, &'static str> {
    if dump.cpus.iter().any(|cpu| cpu.cr4 & 1 << 12 != 0) {
        return Err("a processor uses 5-level paging, which this audit does not walk");
    }
    let candidates = roots::host_candidates(dump, image);
    let shared = roots::shared_entry(dump, &candidates)
        .ok_or("no page tables map the hypervisor's code: is it the hypervisor of this dump?")?;
    let reader = candidates.iter().find(|root| roots::shared_table(dump, **root) == Some(shared)).copied();
    let owners = Owners::read(dump, reader.unwrap_or_default());
    if owners.is_empty() {
        return Err("the frame table is not where it should be");
    }
    let roots = roots::find(dump, &candidates, &owners);
    let mut audit = Audit {
        dump,
        expected,
        owners,
        roots,
        compartments: Vec::new(),
        tables: BTreeSet::new(),
        private: BTreeMap::new(),
        shared: BTreeSet::new(),
        found: Found::default(),
    };
    audit.walk_host_roots(shared);
    audit.judge_host_leaves();
    audit.check_image(image);
    audit.walk_nested_roots();
    audit.check_frame_table();
    audit.check_manifest();
    audit.search_secrets(secrets);
    let Audit { compartments, tables, roots, found, .. } = audit;
    let frames = dump.frames().count().try_into().unwrap_or(u64::MAX);
    let tables = tables.len().try_into().unwrap_or(u64::MAX);
    Ok(Report { compartments, dormant: roots.dormant, frames, tables, violations: found.0 })
}

impl Audit<'_> {
    fn add(&mut self, kind: Kind, compartment: &str, at: Option<u64>, frame: u64, note: &str) {
        let frame = frame & !(PAGE - 1);
        let owner = self.owners.of(frame);
        let compartment = compartment.to_owned();
        self.found.add(Violation { kind, compartment, at, frame, count: 1, owner, note: note.to_owned() });
    }

    fn walk_host_roots(&mut self, shared: u64) {
        for (index, root) in self.roots.host.clone().into_iter().enumerate() {
            let mut leaves = Vec::new();
            let mut items = Vec::new();
            walk(self.dump, Format::Host, root, |item| match item {
                Item::Leaf(leaf) => leaves.push(leaf),
                other => items.push(other),
            });
            let guest = self.guest_of(root, &leaves);
            let name = self.name(guest);
            self.note_items(Format::Host, &name, &items);
            if roots::shared_table(self.dump, root) != Some(shared) {
                self.add(Kind::SharedDiffers, &name, None, root, "");
            }
            let right = guest.map_or(Owner::Hypervisor(0x13), |guest| Owner::Guest(guest, Use::Tables));
            if self.owners.of(root) != right {
                self.add(Kind::Misplaced, &name, None, root, "a host root");
            }
            for (at, frame) in leaves.iter().flat_map(pages) {
                if is_shared(at) {
                    self.shared.insert(frame);
                } else {
                    *self.private.entry(frame).or_default() |= bit(index);
                }
            }
            let (nested, reach) = (Vec::new(), BTreeMap::new());
            self.compartments.push(Compartment { guest, name, root, nested, reach, leaves });
        }
    }

    /// Whose compartment this is: most of what it maps for itself says so.
    fn guest_of(&self, root: u64, leaves: &[Leaf]) -> Option<u16> {
        let mut count: BTreeMap<u16, u64> = BTreeMap::new();
        for (_, frame) in leaves.iter().flat_map(pages).filter(|(at, _)| !is_shared(*at)) {
            if let Owner::Guest(guest, _) = self.owners.of(frame) {
                *count.entry(guest).or_default() += 1;
            }
        }
        let root_says = match self.owners.of(root) {
            Owner::Guest(guest, Use::Tables) if count.contains_key(&guest) => Some(guest),
            _ => None,
        };
        root_says.or_else(|| count.into_iter().max_by_key(|(_, n)| *n).map(|(guest, _)| guest))
    }

    fn name(&self, guest: Option<u16>) -> String {
        match guest {
            None => "nobody (shared part alone)".to_owned(),
            Some(0) => "idle".to_owned(),
            Some(guest) => {
                let known = usize::from(guest).checked_sub(1).and_then(|index| self.expected.guests.get(index));
                known.map_or_else(|| format!("guest {guest}"), |known| known.name.clone())
            }
        }
    }

    fn note_items(&mut self, format: Format, name: &str, items: &[Item]) {
        for item in items {
            match *item {
                Item::Table { frame, .. } => {
                    self.tables.insert(frame);
                }
                Item::Again { at, frame } => self.add(Kind::TableTwice(format), name, Some(at), frame, ""),
                Item::Malformed { at, frame } | Item::Outside { at, frame } => {
                    self.add(Kind::Malformed(format), name, Some(at), frame, "");
                }
                Item::Leaf(_) => {}
            }
        }
    }

    fn judge_host_leaves(&mut self) {
        for index in 0..self.compartments.len() {
            let Some(compartment) = self.compartments.get_mut(index) else { continue };
            let leaves = std::mem::take(&mut compartment.leaves);
            let (name, guest) = (compartment.name.clone(), compartment.guest);
            let mut reach = BTreeMap::new();
            // Frames that should not be there and follow each other: first address, first frame, how many.
            let mut stretch = (0, 0, 0);
            for leaf in &leaves {
                for (at, frame) in pages(leaf) {
                    let owner = self.owners.of(frame);
                    *reach.entry((Format::Host.name(), owner.to_string())).or_default() += PAGE;
                    self.judge_rights(&name, leaf, at, frame);
                    let Some((kind, note)) = self.host_fault(guest, index, at, frame) else { continue };
                    self.add(kind, &name, Some(at), frame, note);
                    let (first_at, first, count) = stretch;
                    if at == first_at + count * PAGE && frame == first + count * PAGE {
                        stretch.2 += 1;
                    } else {
                        stretch = (at, frame, 1);
                    }
                    if stretch.2 == DIRECT_MAP {
                        let note = "2 MiB or more of memory as it comes";
                        self.add(Kind::DirectMap, &name, Some(stretch.0), stretch.1, note);
                    }
                }
            }
            if let Some(compartment) = self.compartments.get_mut(index) {
                compartment.reach = reach;
            }
        }
    }

    fn judge_rights(&mut self, name: &str, leaf: &Leaf, at: u64, frame: u64) {
        let constant = match self.owners.of(frame) {
            Owner::Hypervisor(code) => matches!(code, 0x10 | 0x11 | 0x13),
            owner => matches!(owner, Owner::Guest(_, Use::Image)),
        };
        if leaf.rights.write && leaf.rights.execute {
            self.add(Kind::WritableExecutable, name, Some(at), frame, "");
        } else if leaf.rights.write && constant {
            self.add(Kind::Writable, name, Some(at), frame, "");
        }
        if leaf.rights.user {
            self.add(Kind::UserAccess, name, Some(at), frame, "");
        }
    }

    /// What is wrong with a frame that a host table maps.
    fn host_fault(&self, guest: Option<u16>, index: usize, at: u64, frame: u64) -> Option<(Kind, &'static str)> {
        let owner = self.owners.of(frame);
        if self.dump.frame(frame).is_none() {
            let apic = is_shared(at) && frame == layout::LOCAL_APIC;
            return (!apic).then_some((Kind::Device(Format::Host), ""));
        }
        if is_shared(at) {
            return (!matches!(owner, Owner::Hypervisor(_)))
                .then_some((Kind::Foreign(Format::Host), "in the shared part"));
        }
        match owner {
            Owner::Guest(other, _) if Some(other) == guest => None,
            Owner::Channel(..) => (!self.is_party(owner, guest)).then_some((Kind::ChannelThird(Format::Host), "")),
            Owner::Guest(..) if self.reached_by_owner(owner, frame, index) => Some((Kind::Foreign(Format::Host), "")),
            Owner::Guest(..) => Some((Kind::StaleOwner, "mapped here alone, but another's by the frame table")),
            Owner::Free => Some((Kind::StaleOwner, "mapped, but free by the frame table")),
            _ => Some((Kind::Foreign(Format::Host), "")),
        }
    }

    fn is_party(&self, owner: Owner, guest: Option<u16>) -> bool {
        let Owner::Channel(a, b) = owner else { return false };
        let granted = self.expected.channels.iter().any(|pair| *pair == (a, b) || *pair == (b, a));
        granted && guest.is_some_and(|guest| guest == u16::from(a) || guest == u16::from(b))
    }

    /// Whether a compartment of the owner, other than number `but`, maps the frame for itself.
    fn reached_by_owner(&self, owner: Owner, frame: u64, but: usize) -> bool {
        let Owner::Guest(guest, _) = owner else { return false };
        let reached = self.private.get(&frame).copied().unwrap_or_default();
        let mut all = self.compartments.iter().enumerate();
        all.any(|(index, c)| index != but && c.guest == Some(guest) && reached & bit(index) != 0)
    }

    /// Code and constants in memory are those of the ELF.
    fn check_image(&mut self, image: &Image) {
        let Some(root) = self.compartments.first().map(|c| c.root) else { return };
        for part in &image.parts {
            for (address, page) in (part.address..).step_by(4096).zip(part.bytes.chunks(4096)) {
                let frame = translate(self.dump, root, address).map(|(frame, _)| frame);
                let content = frame.and_then(|frame| self.dump.frame(frame));
                if !content.is_some_and(|content| content.starts_with(page)) {
                    self.add(Kind::ImageDiffers, "", Some(address), frame.unwrap_or_default(), "");
                }
            }
        }
    }

    fn walk_nested_roots(&mut self) {
        for vmcb in self.roots.bare.clone() {
            self.add(Kind::Bare, "", None, vmcb, "a VMCB without nested paging");
        }
        let controls: BTreeSet<u64> =
            self.roots.nested.iter().map(|n| n.named_by).chain(self.roots.bare.iter().copied()).collect();
        let mut walks = Vec::new();
        // First all tables, so that one guest's reach of another's nested tables is seen.
        for nested in self.roots.nested.clone() {
            let NestedRoot { root, named_by, .. } = nested;
            let reached = self.private.get(&named_by).copied().unwrap_or_default();
            let index = (0..self.compartments.len()).find(|index| reached & bit(*index) != 0);
            let Some((index, compartment)) = index.and_then(|i| Some((i, self.compartments.get_mut(i)?))) else {
                self.add(Kind::Misplaced, "", None, named_by, "a control structure that no compartment maps");
                continue;
            };
            let (name, guest, format) = (compartment.name.clone(), compartment.guest, nested.format());
            if compartment.nested.contains(&(root, format)) {
                continue;
            }
            compartment.nested.push((root, format));
            if guest.map(|guest| Owner::Guest(guest, Use::Tables)) != Some(self.owners.of(root)) {
                self.add(Kind::Misplaced, &name, None, root, "a nested root");
            }
            let (mut leaves, mut items) = (Vec::new(), Vec::new());
            walk(self.dump, format, root, |item| match item {
                // What lacks the user bit, the guest does not reach.
                Item::Leaf(leaf) if leaf.rights.user => leaves.push(leaf),
                Item::Leaf(_) => {}
                other => items.push(other),
            });
            self.note_items(format, &name, &items);
            walks.push((index, format, leaves));
        }
        for (index, format, leaves) in walks {
            self.judge_nested_leaves(index, format, &leaves, &controls);
        }
    }

    fn judge_nested_leaves(&mut self, index: usize, format: Format, leaves: &[Leaf], controls: &BTreeSet<u64>) {
        let Some(compartment) = self.compartments.get(index) else { return };
        let (name, guest) = (compartment.name.clone(), compartment.guest);
        let known = usize::from(guest.unwrap_or_default()).checked_sub(1);
        let memory = known.and_then(|known| self.expected.guests.get(known)).map(|known| known.memory);
        let mut reach: BTreeMap<(&'static str, String), u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (leaf, (at, frame)) in leaves.iter().flat_map(|leaf| pages(leaf).map(move |page| (leaf, page))) {
            let owner = self.owners.of(frame);
            *reach.entry((format.name(), owner.to_string())).or_default() += PAGE;
            let note = if leaf.rights.write { "writable" } else { "readable" };
            if memory.is_some_and(|memory| !is_guest_ram(at, memory)) {
                self.add(Kind::BeyondRam(format), &name, Some(at), frame, "");
            }
            let alias = !seen.insert(frame);
            let kind = match owner {
                _ if self.dump.frame(frame).is_none() => Some(Kind::Device(format)),
                _ if self.tables.contains(&frame) => Some(Kind::TableInGuest(format)),
                _ if controls.contains(&frame) => Some(Kind::ControlInGuest(format)),
                Owner::Guest(other, Use::Ram) if Some(other) == guest => alias.then_some(Kind::Alias(format)),
                Owner::Guest(other, _) if Some(other) == guest => Some(Kind::NotRam(format)),
                Owner::Channel(..) => (!self.is_party(owner, guest)).then_some(Kind::ChannelThird(format)),
                Owner::Free => Some(Kind::StaleOwner),
                Owner::Guest(..) if !self.reached_by_owner(owner, frame, index) => Some(Kind::StaleOwner),
                _ => Some(Kind::Foreign(format)),
            };
            if let Some(kind) = kind {
                self.add(kind, &name, Some(at), frame, note);
            }
        }
        if let Some(compartment) = self.compartments.get_mut(index) {
            compartment.reach.extend(reach);
        }
    }

    /// What the frame table says is so: each frame of a compartment is mapped by it, and page tables lead somewhere.
    fn check_frame_table(&mut self) {
        for frame in self.dump.frames().collect::<Vec<_>>() {
            let owner = self.owners.of(frame);
            if let Owner::Guest(guest, _) = owner
                && !self.reached_by_owner(owner, frame, usize::MAX)
            {
                let name = self.name(Some(guest));
                self.add(Kind::StaleOwner, &name, None, frame, "no table of its owner maps it");
            }
            let hidden = owner.is_tables() && !self.tables.contains(&frame);
            if hidden && self.dump.frame(frame).is_some_and(|content| content.iter().any(|byte| *byte != 0)) {
                self.add(Kind::HiddenTable, "", None, frame, "");
            }
        }
    }

    fn check_manifest(&mut self) {
        if self.expected.guests.is_empty() {
            return;
        }
        for (number, guest) in (1_u16..).zip(self.expected.guests.clone()) {
            let has = self.compartments.iter().any(|c| c.guest == Some(number));
            if !has {
                self.add(
                    Kind::Missing,
                    &guest.name,
                    None,
                    0,
                    "the manifest has this guest, the dump has no compartment",
                );
            }
        }
        let most = u16::try_from(self.expected.guests.len()).unwrap_or(u16::MAX);
        for (name, root) in self.compartments.iter().map(|c| (c.guest, c.root)).collect::<Vec<_>>() {
            if name.is_some_and(|guest| guest > most) {
                let name = self.name(name);
                self.add(Kind::Missing, &name, None, root, "the manifest has no such guest");
            }
        }
    }

    fn search_secrets(&mut self, secrets: &[Secret]) {
        let mut places: BTreeMap<(u64, &str), (u64, &str)> = BTreeMap::new();
        search(self.dump, secrets, |at, index| {
            if let Some(secret) = secrets.get(index) {
                places.entry((at & !(PAGE - 1), &secret.guest)).or_insert((at, &secret.what));
            }
        });
        for ((frame, guest), (at, what)) in places {
            let reached = self.private.get(&frame).copied().unwrap_or_default();
            let mut all = self.compartments.iter().enumerate();
            if all.any(|(index, c)| c.name == guest && reached & bit(index) != 0) {
                continue;
            }
            let kind = match self.owners.of(frame) {
                _ if self.shared.contains(&frame) => Kind::SecretInShared,
                Owner::Free => Kind::SecretInFree,
                _ => Kind::SecretElsewhere,
            };
            self.add(kind, "", Some(at), frame, &format!("of {guest}: {what}"));
        }
    }
}

/// Frames in a row that make a direct map: 2 MiB.
const DIRECT_MAP: u64 = 512;

/// Each page of a leaf: address before translation, and frame.
fn pages(leaf: &Leaf) -> impl Iterator<Item = (u64, u64)> + use<> {
    let Leaf { at, frame, bytes, .. } = *leaf;
    (0..bytes / PAGE).map(move |index| (at.wrapping_add(index * PAGE), frame + index * PAGE))
}

const fn bit(index: usize) -> u128 {
    if index < 128 { 1 << index } else { 0 }
}

const fn is_shared(at: u64) -> bool {
    (at >> 39) & 511 == layout::SHARED_SLOT
}

/// Whether a guest with so much memory has RAM at this guest-physical address.
const fn is_guest_ram(at: u64, memory: u64) -> bool {
    let high = memory.saturating_sub(layout::GUEST_HOLE);
    at < memory - high || (at >= layout::GUEST_HIGH && at - layout::GUEST_HIGH < high)
}
