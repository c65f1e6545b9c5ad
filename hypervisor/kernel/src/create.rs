//! Guests that come over the control line: a pack of one guest, taken in chunks.
//!
//! The pack lies in frames of the idle compartment, which maps a chunk's only while it copies the chunk there. When it is
//! complete and sound, the frames become what a boot loader would have left, and the guest adopts its images from there as
//! those of the manifest do. Whoever has the key may still send what is wrong: no length, offset or manifest is believed.

use crate::entries::{self, Entry};
use crate::lives;
use crate::log;
use crate::machine::{FRAMES, Facts, NO_ZONE};
use crate::start::IDLE_SPACE;
use bulkhead_control::mac::{Hash, Key};
use bulkhead_control::upload::{Upload, Wrong};
use bulkhead_control::{EventKind, Refusal, Source};
use bulkhead_core::frames::{Frames, Owner, Part, State};
use bulkhead_hw::cpu;
use bulkhead_types::manifest::{Guest, Manifest, PackHeader};
use bulkhead_types::{GuestId, PAGE_SIZE};

/// Longest manifest of one guest, in pages: all command lines are 34 KiB at the most.
const MANIFEST_PAGES: u64 = 16;
/// Most zeros of one request.
const ZEROS_AT_ONCE: u64 = 1 << 16;
/// So many seconds after its last chunk a pack is given up.
const PATIENCE: u64 = 60;

/// The pack that is on its way, if any.
#[derive(Default)]
pub struct Pending(Option<(Upload, Frames<State>, u64)>);

impl Pending {
    /// A pack of so many bytes with this hash is announced: where to go on. Another one that was on its way is given up.
    ///
    /// # Errors
    /// [`Refusal::Pack`] if no pack has this length, [`Refusal::NoRoom`].
    pub fn announce(&mut self, bytes: u64, sha256: &Key) -> Result<u64, Refusal> {
        if let Some((upload, ..)) = self.0.as_ref()
            && upload.is(bytes, sha256)
        {
            return Ok(upload.come());
        }
        self.give_up();
        if bytes < 2 * PAGE_SIZE || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::Pack);
        }
        let frames = FRAMES.get().and_then(|frames| frames.lock().allocate(GuestId::IDLE, bytes / PAGE_SIZE, 1).ok());
        self.0 = Some((Upload::new(bytes, *sha256), frames.ok_or(Refusal::NoRoom)?, cpu::tsc()));
        Ok(0)
    }

    /// Takes the bytes from `offset` on: where to go on.
    ///
    /// # Errors
    /// [`Refusal::Upload`].
    pub fn take(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        let (upload, frames, last) = self.0.as_mut().ok_or(Refusal::Upload(Wrong::NoPack))?;
        *last = cpu::tsc();
        let at = upload.come();
        let new = upload.take(offset, bytes).map_err(Refusal::Upload)?;
        if !new.is_empty() {
            let (first, skip) = (at / PAGE_SIZE, usize::try_from(at % PAGE_SIZE).unwrap_or(0));
            let pages = (skip + new.len()).div_ceil(PAGE_SIZE_BYTES) as u64;
            let copy = |page: &mut [u8]| page.iter_mut().skip(skip).zip(new).for_each(|(to, from)| *to = *from);
            if visit(frames, (first, pages), copy).is_none() {
                // What has come is not all there any more.
                self.give_up();
                return Err(Refusal::NoRoom);
            }
        }
        Ok(self.0.as_ref().map_or(0, |(upload, ..)| upload.come()))
    }

    /// Takes so many zeros from `offset` on, or the first of them: where to go on.
    ///
    /// # Errors
    /// [`Refusal::Upload`].
    pub fn take_zeros(&mut self, offset: u64, count: u32) -> Result<u64, Refusal> {
        let mut next = self.take(offset, &[])?;
        let end = offset.saturating_add(u64::from(count).min(ZEROS_AT_ONCE));
        while next >= offset && next < end {
            let zeros = [0; PAGE_SIZE_BYTES];
            let rest = usize::try_from(end - next).unwrap_or(usize::MAX);
            next = self.take(next, zeros.get(..rest).unwrap_or(&zeros))?;
        }
        Ok(next)
    }

    /// Makes the guest of the pack, which is complete; it does not run.
    ///
    /// # Errors
    /// What is wrong with the pack, or why there can be no such guest. The pack is given up, unless it is incomplete.
    pub fn commit(&mut self, facts: &Facts, by: Source) -> Result<GuestId, Refusal> {
        let (upload, ..) = self.0.as_ref().ok_or(Refusal::Upload(Wrong::NoPack))?;
        match upload.finish() {
            Err(Wrong::Incomplete) => return Err(Refusal::Upload(Wrong::Incomplete)),
            Err(wrong) => {
                self.give_up();
                return Err(Refusal::Upload(wrong));
            }
            Ok(_) => {}
        }
        let made = self.make(facts, by);
        // The frames are the guest's by now, if there is one.
        self.give_up();
        let id = made?;
        lives::event(facts, id, EventKind::Created(by));
        Ok(id)
    }

    #[inline(never)]
    fn make(&mut self, facts: &Facts, by: Source) -> Result<GuestId, Refusal> {
        let (_, frames, _) = self.0.as_ref().ok_or(Refusal::Pack)?;
        let pages = frames.count().min(MANIFEST_PAGES);
        let read = visit(frames, (0, pages), |bytes| {
            let header = PackHeader::decode(bytes).ok()?;
            // What is longer could ask for more memory than there is for manifests.
            let short = u64::from(header.manifest_bytes) < MANIFEST_PAGES * PAGE_SIZE;
            Manifest::from_pack(short.then_some(bytes)?).ok()
        });
        let (header, mut manifest) = read.flatten().ok_or(Refusal::Pack)?;
        let (Some(mut guest), true) = (manifest.guests.pop(), manifest.guests.is_empty()) else {
            return Err(Refusal::Pack);
        };
        if header.pack_bytes != frames.bytes() || origin(frames, &guest) != Some(guest.origin) {
            return Err(Refusal::Pack);
        }
        let name = manifest.zones.get(usize::from(guest.zone)).map_or("", |zone| &zone.name);
        let zones = &facts.manifest.zones;
        let zone = zones.iter().position(|zone| zone.name == name);
        // A guest whose manifest says no zone is one of its own; no other has the number that it gets.
        if zone.is_none() && name != guest.name {
            return Err(Refusal::NoZone);
        }
        // Its own zone has its name: nothing would tell it from the machine's.
        let named = zones.iter().map(|zone| &zone.name).any(|zone| *zone == guest.name);
        if named || entries::all().filter_map(entries::get).any(|other| other.name == guest.name) {
            return Err(Refusal::Taken);
        }
        let (first, count) = (frames.start(), frames.count());
        let entry = |id: GuestId| {
            let zone = zone.unwrap_or_else(|| zones.len() + usize::from(id.number()));
            guest.zone = u16::try_from(zone).unwrap_or(NO_ZONE);
            Entry { guest, creator: by, pack: first.start(), frames: Some((first, count)) }
        };
        let id = entries::add(entry).ok_or(Refusal::NoRoom)?;
        let Some((_, frames, _)) = self.0.take() else { return Err(Refusal::Pack) };
        if let Some(table) = FRAMES.get() {
            let mut table = table.lock();
            let given = table.release(frames).and_then(|()| table.mark(first, count, Owner::Hypervisor(Part::Boot)));
            if let Err(error) = given {
                log!("event guest {id} images lost: {error}");
            }
        }
        Ok(id)
    }

    /// Gives the frames back, if there is a pack on its way.
    fn give_up(&mut self) {
        if let Some((_, frames, _)) = self.0.take()
            && let Some(table) = FRAMES.get()
        {
            let pages = frames.count();
            if let Err(error) = table.lock().release(frames) {
                log!("event images lost, {pages} pages: {error}");
            }
        }
    }

    /// Gives up what has not gone on for long.
    pub fn look(&mut self, facts: &Facts, now: u64) {
        let old = facts.tsc.as_hertz().saturating_mul(PATIENCE);
        if self.0.as_ref().is_some_and(|(_, _, last)| now.saturating_sub(*last) > old) {
            log!("event control line: a guest's images did not come to their end, and are dropped");
            self.give_up();
        }
    }
}

const PAGE_SIZE_BYTES: usize = 4096;

/// SHA-256 of the guest's images in the pack in these frames. The first processor's guests wait for it, as long as it took while
/// they came.
fn origin(frames: &Frames<State>, guest: &Guest) -> Option<Key> {
    let mut hash = Hash::default();
    for image in [guest.kernel].into_iter().chain(guest.modules.iter().map(|module| module.image)) {
        let (mut page, mut rest) = (image.offset / PAGE_SIZE, usize::try_from(image.bytes).ok()?);
        while rest != 0 {
            let count = rest.min(PAGE_SIZE_BYTES);
            visit(frames, (page, 1), |bytes| bytes.get(..count).map(|bytes| hash.update(bytes)))??;
            (page, rest) = (page + 1, rest - count);
        }
    }
    Some(hash.finish())
}

/// Lets `act` have some of the frames' bytes, in the idle compartment: from the frame with this index on, so many.
fn visit<R>(frames: &Frames<State>, which: (u64, u64), act: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
    IDLE_SPACE.lock().as_mut()?.visit(frames, which, act).ok()
}
