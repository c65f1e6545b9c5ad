//! A compartment's address space: made, entered, left.
//!
//! The skeleton (page tables, stacks, task-state segment) is made by the idle compartment, which owns the frames until it
//! hands them over; the rest (RAM, images, control pages) the new compartment maps for itself, from frames that the frame
//! table has given to it. [`Frames`] tokens say whose a frame is, so that there is no way to map one compartment's into
//! another's tables.

use crate::descriptors::{self, InterruptStacks};
use crate::layout::{self, Area};
use crate::ram::{WindowRam, clear};
use crate::region::Region;
use crate::startup::{Identity, Shared};
use crate::switch;
use crate::tables::MappedTables;
use bulkhead_core::frames::{
    Clean, FrameError, FrameTable, Frames, HostSpace, Image, Kind, NestedSpace, Ram, SpaceError, State, Tables,
};
use bulkhead_devices::layout::{HOLE, RAM_ABOVE_4G, ram_ranges};
use bulkhead_paging::{Format, Host, PagingError, Size, Tables as _, tables_needed, unmap};
use bulkhead_types::{Gpa, GuestId, Hpa, Hva, PAGE_SIZE};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// Why a compartment could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// The frame table refused.
    Frames(FrameError),
    /// The page tables refused.
    Space(SpaceError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(error) => error.fmt(f),
            Self::Space(error) => error.fmt(f),
        }
    }
}

impl From<FrameError> for BuildError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

impl From<SpaceError> for BuildError {
    fn from(error: SpaceError) -> Self {
        Self::Space(error)
    }
}

impl From<PagingError> for BuildError {
    fn from(error: PagingError) -> Self {
        Self::Space(error.into())
    }
}

/// Where a compartment's execution was left: an address of its own stack, and its root. Kept in the shared part.
#[derive(Debug)]
pub struct Context {
    stack: AtomicU64,
    root: AtomicU64,
}

impl Context {
    /// No compartment's.
    #[must_use]
    pub const fn empty() -> Self {
        Self { stack: AtomicU64::new(0), root: AtomicU64::new(0) }
    }

    /// Whether it is some compartment's.
    pub fn is_set(&self) -> bool {
        self.root.load(Ordering::Relaxed) != 0
    }

    /// Becomes that of execution `index` of a compartment that was just made.
    pub fn set(&self, from: &Compartment, index: usize) {
        self.root.store(from.root().as_u64(), Ordering::Relaxed);
        self.stack.store(layout::stack(index).end().as_u64() - FRESH_BYTES, Ordering::Relaxed);
    }

    /// Is nobody's any more.
    pub fn clear(&self) {
        self.root.store(0, Ordering::Relaxed);
    }

    /// Enters a compartment that was just made, the idle one, from start-up, for good: its first execution.
    pub fn enter(&self, _identity: Identity, entry: extern "C" fn() -> !) -> ! {
        let root = Hpa::new(self.root.load(Ordering::Relaxed));
        // SAFETY: `set` was given a skeleton, which maps the image as here, and whose stack is unused; start-up's stack is
        // never used again.
        unsafe { switch::enter(layout::stack(0).end().as_u64(), root, entry) }
    }

    /// Leaves the compartment whose context this is, and goes on in `to`; returns when that, or another, switches back.
    /// Does nothing if this is not the current compartment's, or `to` is, or is nobody's.
    pub fn switch(&self, to: &Self) {
        let current = crate::cpu::control_registers()[2] & !0xFFF;
        let target = to.root.load(Ordering::Relaxed);
        if self.root.load(Ordering::Relaxed) != current || target == current || target == 0 {
            return;
        }
        // SAFETY: a context's stack is that of a fresh skeleton, or was kept here by this very call when its compartment
        // was left; the checks above keep it from being entered twice. Interrupts are off in all compartments.
        unsafe { switch::switch(self.stack.as_ptr(), to.stack.load(Ordering::Relaxed), Hpa::new(target)) }
    }
}

/// How the skeleton under construction is reached.
pub trait Reach {
    /// Where `frames` are mapped, writable, for now.
    ///
    /// # Errors
    /// [`BuildError`] if they can not be.
    fn reach<K: Kind>(&mut self, frames: &Frames<K>) -> Result<Hva, BuildError>;
}

impl Reach for Identity {
    fn reach<K: Kind>(&mut self, frames: &Frames<K>) -> Result<Hva, BuildError> {
        let end = frames.start().add(frames.count()).start().as_u64();
        let reachable = end <= 1 << 32;
        reachable.then(|| Hva::new(frames.start().start().as_u64())).ok_or(PagingError::OutOfRange.into())
    }
}

/// The idle compartment's place for a skeleton.
#[derive(Debug)]
pub struct Workshop<'a> {
    idle: &'a mut Compartment,
    used: u64,
}

impl Reach for Workshop<'_> {
    fn reach<K: Kind>(&mut self, frames: &Frames<K>) -> Result<Hva, BuildError> {
        let at = layout::CONSTRUCTION.wrapping_add(self.used);
        self.idle.map(at, frames, Size::Page4K)?;
        self.used += frames.bytes();
        Ok(at)
    }
}

impl Workshop<'_> {
    /// Clears the place: what was made is reached from its own address space alone from now on.
    fn close(self) -> Result<(), BuildError> {
        let root = self.idle.root();
        let at = layout::CONSTRUCTION.as_u64();
        self.idle.with_tables(|tables| unmap::<Host>(tables, root, at, self.used))?;
        crate::cpu::flush_translations();
        Ok(())
    }
}

/// A compartment: an address space and the frames it is made of.
#[derive(Debug)]
pub struct Compartment {
    space: HostSpace,
    tables: Frames<Tables>,
    used: u64,
    skeleton: Frames<State>,
    /// Control pages in use.
    control: u64,
}

/// What an address space is to hold, for counting its page tables.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// RAM in bytes.
    pub memory: u64,
    /// RAM is mapped page by page.
    pub lazy: bool,
    /// Images in bytes.
    pub images: u64,
    /// Executions that can be in it at the same time.
    pub stacks: usize,
    /// Processors that can be in it.
    pub processors: usize,
}

impl Needs {
    /// Of the idle compartment: only skeletons under construction.
    #[must_use]
    pub const fn idle(processors: usize) -> Self {
        Self { memory: 0, lazy: false, images: 16 << 20, stacks: processors, processors }
    }

    /// Frames for page tables: an upper bound.
    fn tables(&self) -> u64 {
        let ram = |size| {
            let high = self.memory.saturating_sub(HOLE.as_u64());
            tables_needed(0, self.memory - high, size) + tables_needed(RAM_ABOVE_4G.as_u64(), high, size)
        };
        // Stretches of RAM begin and end inside a large page: a table more for each end.
        let nested = ram(if self.lazy { Size::Page4K } else { Size::Page2M }) + 8;
        let own = ram(Size::Page2M) + 4 + tables_needed(0, self.images, Size::Page4K) + 4;
        let row = |count: usize| (count as u64 * layout::STRIDE).div_ceil(Size::Page2M.bytes());
        let window = 8 + row(self.stacks) + row(self.processors);
        let sum = 2 + nested + own + window;
        // The tables themselves are mapped too.
        sum + sum.div_ceil(512) + 2
    }

    /// The areas of the skeleton.
    fn areas(&self) -> impl Iterator<Item = Area> + use<> {
        (0..self.stacks).map(layout::stack).chain((0..self.processors).flat_map(layout::processor))
    }
}

impl Compartment {
    /// Makes a skeleton whose executions begin at `entry`. Its frames belong to the idle compartment.
    ///
    /// # Errors
    /// [`BuildError`] if memory runs out.
    pub fn build(
        frames: &mut FrameTable<'_>,
        shared: &Shared,
        needs: &Needs,
        reach: &mut impl Reach,
        entry: extern "C" fn() -> !,
    ) -> Result<Self, BuildError> {
        let tables: Frames<Tables> = frames.allocate(GuestId::IDLE, needs.tables(), 1)?;
        let made = Self::assemble(frames, shared, needs, reach, &tables, entry);
        match made {
            Ok((used, skeleton)) => Ok(Self { space: HostSpace::new(&tables), used, tables, skeleton, control: 0 }),
            Err(error) => {
                frames.release(tables)?;
                Err(error)
            }
        }
    }

    fn assemble(
        frames: &mut FrameTable<'_>,
        shared: &Shared,
        needs: &Needs,
        reach: &mut impl Reach,
        tables: &Frames<Tables>,
        entry: extern "C" fn() -> !,
    ) -> Result<(u64, Frames<State>), BuildError> {
        let at = cleaned(frames, tables, reach)?;
        // SAFETY: just mapped at `at`, and zeroed; nobody else knows of the frames. The root and the nested root come
        // first.
        let mut mapped = unsafe { MappedTables::new(at, tables.start().start(), tables.count(), 2) };
        let space = HostSpace::new(tables);
        mapped.write(space.root(), layout::SHARED_INDEX, shared.entry)?;
        space.map(&mut mapped, layout::TABLES, tables, Size::Page4K)?;
        let skeleton: Frames<State> = frames.allocate(GuestId::IDLE, needs.areas().map(|area| area.pages).sum(), 1)?;
        let mut fill_in = || -> Result<(), BuildError> {
            let at = cleaned(frames, &skeleton, reach)?;
            let mut first = 0;
            for area in needs.areas() {
                space.map_part(&mut mapped, area.start, &skeleton, (first, area.pages), Size::Page4K)?;
                first += area.pages;
            }
            fill(at, needs, entry);
            Ok(())
        };
        match fill_in() {
            Ok(()) => Ok((mapped.used(), skeleton)),
            Err(error) => {
                frames.release(skeleton)?;
                Err(error)
            }
        }
    }

    /// Makes a compartment for `guest`, in the idle compartment `self`.
    ///
    /// # Errors
    /// [`BuildError`] if memory runs out.
    pub fn build_for(
        &mut self,
        guest: GuestId,
        frames: &mut FrameTable<'_>,
        shared: &Shared,
        needs: &Needs,
        entry: extern "C" fn() -> !,
    ) -> Result<Self, BuildError> {
        // Another processor may have closed the place since this one last looked there.
        crate::cpu::flush_translations();
        let mut workshop = Workshop { idle: self, used: 0 };
        let made = Self::build(frames, shared, needs, &mut workshop, entry);
        workshop.close()?;
        let Self { tables, used, skeleton, control, .. } = made?;
        let tables = frames.transfer(tables, guest)?;
        let skeleton = frames.transfer(skeleton, guest)?;
        Ok(Self { space: HostSpace::new(&tables), tables, used, skeleton, control })
    }

    /// Lets `act` have the bytes of `count` of the idle compartment's frames, from the one with index `first` on. They are
    /// mapped for as long.
    ///
    /// # Errors
    /// [`BuildError`] if they are not the compartment's, or not there.
    pub fn visit<R>(
        &mut self,
        frames: &Frames<State>,
        (first, count): (u64, u64),
        act: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, BuildError> {
        let length = usize::try_from(count * PAGE_SIZE).map_err(|_| PagingError::OutOfRange)?;
        let space = HostSpace::new(&self.tables);
        self.with_tables(|tables| space.map_part(tables, layout::CONSTRUCTION, frames, (first, count), Size::Page4K))?;
        // Another processor may have closed the place since this one last looked there.
        crate::cpu::flush_translations();
        // SAFETY: just mapped there, writable, from frames that are this compartment's; `&mut self` keeps others away.
        let bytes = unsafe { core::slice::from_raw_parts_mut(layout::CONSTRUCTION.as_u64() as *mut u8, length) };
        let result = act(bytes);
        Workshop { idle: self, used: count * PAGE_SIZE }.close()?;
        Ok(result)
    }

    /// Address of the root: the value of CR3.
    #[must_use]
    pub const fn root(&self) -> Hpa {
        self.space.root()
    }

    /// Address of the nested root.
    #[must_use]
    pub fn nested_root(&self) -> Hpa {
        self.tables.start().add(1).start()
    }

    /// This compartment's tables, while its address space is current.
    fn with_tables<R>(&mut self, act: impl FnOnce(&mut MappedTables) -> R) -> R {
        let (start, count) = (self.tables.start().start(), self.tables.count());
        // SAFETY: every compartment's tables are mapped there, writable; `&mut self` keeps a second value away.
        let mut tables = unsafe { MappedTables::new(layout::TABLES, start, count, self.used) };
        let result = act(&mut tables);
        self.used = tables.used();
        result
    }

    /// Reads this compartment's tables, while its address space is current.
    #[must_use]
    pub fn tables(&self) -> MappedTables {
        // SAFETY: mapped as in `with_tables`; callers get it to read (what writes goes through `&mut self`).
        unsafe {
            MappedTables::new(layout::TABLES, self.tables.start().start(), self.tables.count(), self.tables.count())
        }
    }

    fn map<K: Kind>(&mut self, at: Hva, frames: &Frames<K>, largest: Size) -> Result<(), BuildError> {
        let space = HostSpace::new(&self.tables);
        Ok(self.with_tables(|tables| space.map(tables, at, frames, largest))?)
    }

    /// Gives the guest `memory` bytes of RAM, scrubbed, in the window; with `lazy`, the nested tables stay empty. Pages of
    /// the nested tables are at most `largest`. `between` is called often: zeroing takes long, and locks nothing.
    ///
    /// # Errors
    /// [`BuildError`] if memory runs out.
    pub fn add_ram<F: Format>(
        &mut self,
        frames: &Mutex<FrameTable<'_>>,
        (memory, lazy): (u64, bool),
        largest: Size,
        between: impl Fn(&Self),
    ) -> Result<(WindowRam, GuestRam), BuildError> {
        let owner = self.tables.owner();
        let mut parts = [const { None }; PARTS];
        let mut places = parts.iter_mut();
        let high = memory.saturating_sub(HOLE.as_u64());
        for (first, bytes) in [(Gpa::new(0), memory - high), (RAM_ABOVE_4G, high)] {
            let mut done = 0;
            while done < bytes {
                let slot = places.next().ok_or(FrameError::NoMemory { count: (bytes - done) / PAGE_SIZE })?;
                let start = first.wrapping_add(done);
                let part = allocate_run(&mut frames.lock(), owner, bytes - done, largest)?;
                done += part.bytes();
                let at = layout::RAM.wrapping_add(start.as_u64());
                self.map(at, &part, Size::Page2M)?;
                let zero = zeroing(&part, at);
                *slot = Some((start, part.into_clean(frames, zero, || between(self))?));
            }
        }
        let ram = GuestRam { parts, largest };
        for range in ram_ranges(memory).into_iter().filter(|_| !lazy) {
            let end = range.start.as_u64() + range.bytes;
            for (start, part) in ram.parts() {
                let from = range.start.max(*start);
                let to = end.min(start.as_u64() + part.frames().bytes());
                if let Some(bytes @ 1..) = to.checked_sub(from.as_u64()) {
                    self.map_nested::<F>(&ram, from, bytes)?;
                }
            }
        }
        // SAFETY: all parts were just mapped at their guest-physical addresses, for as long as the compartment is.
        Ok((unsafe { WindowRam::new(layout::RAM, memory) }, ram))
    }

    /// Lets the guest have `bytes` bytes of its RAM from `at` on.
    ///
    /// # Errors
    /// [`BuildError`] if it is no RAM, or mapped already.
    pub fn map_nested<F: Format>(&mut self, ram: &GuestRam, at: Gpa, bytes: u64) -> Result<(), BuildError> {
        let part = ram.parts.iter().flatten().rfind(|(start, _)| *start <= at);
        let (start, part) = part.ok_or(PagingError::OutOfRange)?;
        let first = (at.as_u64() - start.as_u64()) / PAGE_SIZE;
        let clean = part.part(first, bytes / PAGE_SIZE).ok_or(PagingError::OutOfRange)?;
        let nested = NestedSpace::<F>::new(&self.tables, 1).ok_or(PagingError::OutOfTables)?;
        Ok(self.with_tables(|tables| nested.map(tables, at, clean, ram.largest))?)
    }

    /// Gives the guest pages for the processor's own use, zeroed.
    ///
    /// # Errors
    /// [`BuildError`] if memory runs out.
    pub fn add_control_pages<const N: usize>(
        &mut self,
        frames: &mut FrameTable<'_>,
    ) -> Result<[Region; N], BuildError> {
        let pages: Frames<State> = frames.allocate(self.tables.owner(), N as u64, 1)?;
        let start = layout::CONTROL.wrapping_add(self.control * PAGE_SIZE);
        self.map(start, &pages, Size::Page4K)?;
        self.control += pages.count();
        pages.scrub(frames, 0, pages.count(), zeroing(&pages, start))?;
        let page = |index: usize| {
            let at = start.wrapping_add(index as u64 * PAGE_SIZE).as_u64() as *mut [u8; 4096];
            // SAFETY: mapped just now for this compartment, for as long as it is; each page is handed out once.
            unsafe { Region::new(at, pages.start().add(index as u64).start()) }
        };
        // Addresses of whole pages: none is refused.
        let regions = core::array::from_fn(page);
        if regions.iter().any(Option::is_none) {
            return Err(PagingError::Unaligned.into());
        }
        Ok(regions.map(|region| match region {
            Some(region) => region,
            None => crate::cpu::stop(),
        }))
    }

    /// Maps the guest's images, read-only, in a row.
    ///
    /// # Errors
    /// [`BuildError`] if there are too many, or they are another guest's.
    pub fn add_images(&mut self, at: u64, image: &Frames<Image>) -> Result<&'static [u8], BuildError> {
        let start = layout::IMAGES.wrapping_add(at);
        self.map(start, image, Size::Page4K)?;
        let bytes = usize::try_from(image.bytes()).map_err(|_| PagingError::OutOfRange)?;
        // SAFETY: mapped just now, read-only, from frames that belong to this guest for good and that nobody writes.
        Ok(unsafe { core::slice::from_raw_parts(start.as_u64() as *const u8, bytes) })
    }
}

/// The RAM of a guest: frames and where they begin in its physical memory.
#[derive(Debug)]
pub struct GuestRam {
    /// The largest page that the processor takes in nested tables.
    largest: Size,
    parts: [Option<(Gpa, Clean<Ram>)>; PARTS],
}

/// Most runs of frames that a guest's RAM is made of.
const PARTS: usize = 16;

impl GuestRam {
    /// Its stretches: first guest-physical address, and frames.
    pub fn parts(&self) -> impl Iterator<Item = &(Gpa, Clean<Ram>)> {
        self.parts.iter().flatten()
    }
}

/// Frames in a row for RAM: `bytes` bytes of it, or the most by halves that there is in one piece. Placed so that the
/// largest pages fit, if there is room so.
fn allocate_run(
    frames: &mut FrameTable<'_>,
    owner: GuestId,
    bytes: u64,
    largest: Size,
) -> Result<Frames<Ram>, FrameError> {
    let mut wanted = bytes;
    loop {
        let align = if largest.bytes() <= wanted { largest } else { Size::Page2M };
        let mut get = |size: Size| frames.allocate(owner, wanted / PAGE_SIZE, size.bytes() / PAGE_SIZE);
        match get(align).or_else(|_| get(Size::Page2M)) {
            Err(_) if wanted > Size::Page2M.bytes() => {
                wanted = (wanted / 2).next_multiple_of(Size::Page2M.bytes());
            }
            result => return result,
        }
    }
}

const FRESH_BYTES: u64 = 64;
const PAGE_BYTES: usize = 4096;

/// Reaches frames and zeroes them.
fn cleaned<K: Kind>(frames: &mut FrameTable<'_>, part: &Frames<K>, reach: &mut impl Reach) -> Result<Hva, BuildError> {
    let at = reach.reach(part)?;
    part.scrub(frames, 0, part.count(), zeroing(part, at))?;
    Ok(at)
}

/// What zeroes a frame of `part`, which is mapped at `at`.
fn zeroing<K: Kind>(part: &Frames<K>, at: Hva) -> impl FnMut(bulkhead_types::Frame) + use<K> {
    let start = part.start();
    move |frame| {
        let offset = (frame.number() - start.number()) * PAGE_SIZE;
        // SAFETY: the callers just mapped `part` there, writable, and the token says that it is nobody else's.
        unsafe { clear((at.as_u64() + offset) as *mut u8, PAGE_BYTES) }
    }
}

/// Writes what a skeleton holds from the start; `at` is where it is reached for now.
fn fill(at: Hva, needs: &Needs, entry: extern "C" fn() -> !) {
    let mut end = at;
    for index in 0..needs.stacks {
        end = end.wrapping_add(layout::stack(index).pages * PAGE_SIZE);
        // SAFETY: `at` is where the caller reaches the whole skeleton, which nobody uses yet, its areas one after another.
        unsafe { ((end.as_u64() - FRESH_BYTES) as *mut [u64; 8]).write(switch::fresh_stack(entry)) }
    }
    for index in 0..needs.processors {
        let [nmi, double_fault, machine_check, task] = layout::processor(index);
        let stacks =
            InterruptStacks { nmi: nmi.end(), double_fault: double_fault.end(), machine_check: machine_check.end() };
        let tss = descriptors::tss_bytes(&stacks);
        end = end.wrapping_add([nmi, double_fault, machine_check].iter().map(|area| area.pages * PAGE_SIZE).sum());
        // SAFETY: an area of the same skeleton, behind the ones before it.
        unsafe { (end.as_u64() as *mut [u8; descriptors::TSS_BYTES]).write(tss) }
        end = end.wrapping_add(task.pages * PAGE_SIZE);
    }
}
