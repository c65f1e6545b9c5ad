//! What runs in a guest's own compartment: the guest is made here, and every exit of it is handled here.
//!
//! Everything about the guest is a local variable of [`main`], on the stack in the window: it is in no other address
//! space, and so it is nowhere while another guest is served.

use crate::backend::{Backend, Svm, Virtualization, Vmx};
use crate::console::GuestConsole;
use crate::entries::Entry;
use crate::log;
use crate::machine::{Asking, Command, FACTS, FRAMES, Facts, ONLINE, Order, Slot, State, cpuid, slot, this_cpu};
use crate::{audit, console, tally};
use bulkhead_arch::{Gpr, SegmentName};
use bulkhead_control::{Ending, Name};
use bulkhead_core::counters::Counters;
use bulkhead_core::frames::FrameTable;
use bulkhead_core::host::{CpuidResult, Host};
use bulkhead_core::load::{self, InitialState, LoadModule};
use bulkhead_core::{BackendError, End, Guest, Limits, Register, Vcpu, Yield};
use bulkhead_devices::layout::RSDP;
use bulkhead_devices::machine::MachineConfig;
use bulkhead_devices::{acpi, firmware};
use bulkhead_hw::compartment::{BuildError, Compartment, GuestRam};
use bulkhead_hw::cpu;
use bulkhead_hw::ram::WindowRam;
use bulkhead_hw::xstate::ExtendedState;
use bulkhead_paging::Format;
use bulkhead_types::manifest::{self, MAX_GUESTS};
use bulkhead_types::{Frame, Gpa, GuestId, GuestMemory, Hpa, MemoryError, PAGE_SIZE};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use spin::Mutex;

/// Compartments on their way from the idle compartment to their own: tokens and addresses only.
static MADE: [Mutex<Option<Compartment>>; MAX_GUESTS] = [const { Mutex::new(None) }; MAX_GUESTS];

/// Gives a compartment to the guest that will run in it.
pub fn hand_over(id: GuestId, made: Compartment) {
    if let Some(place) = usize::from(id.number()).checked_sub(1).and_then(|index| MADE.get(index)) {
        *place.lock() = Some(made);
    }
}

/// Why a guest could not be started.
pub enum StartError {
    /// Its compartment can not be completed.
    Build(BuildError),
    /// Its kernel can not be loaded.
    Load(load::LoadError),
    /// Its memory has no room for what it must find there.
    Memory(MemoryError),
    /// The processor refuses.
    Backend(BackendError),
    /// Something else.
    Missing(&'static str),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
            Self::Memory(error) => write!(f, "firmware tables at {} do not fit its memory", error.gpa),
            Self::Backend(error) => write!(f, "the processor refused {error}"),
            Self::Missing(what) => f.write_str(what),
        }
    }
}

macro_rules! from {
    ($($error:ty => $variant:ident),*) => {$(
        impl From<$error> for StartError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
from!(BuildError => Build, load::LoadError => Load, MemoryError => Memory, BackendError => Backend);

/// What belongs to the guest beside its processor, memory and devices.
struct Local {
    ram: GuestRam,
    lazy: bool,
    console: GuestConsole,
    extended: ExtendedState,
    /// Bytes that went to the console, and came from there.
    written: u64,
    read: u64,
}

/// The host, as this guest's run loop sees it.
struct Serving<'a, F> {
    compartment: &'a mut Compartment,
    local: &'a mut Local,
    nested: PhantomData<F>,
}

impl<F: Format> Host for Serving<'_, F> {
    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
    }

    fn console(&mut self, byte: u8) {
        self.local.written = self.local.written.wrapping_add(1);
        self.local.console.send(byte);
    }

    fn console_input(&mut self) -> Option<u8> {
        let byte = self.local.console.receive();
        self.local.read = self.local.read.wrapping_add(byte.is_some().into());
        byte
    }

    fn machine_check(&mut self) {
        cpu::take_machine_check();
    }

    fn set_xcr0(&mut self, value: u64) {
        self.local.extended.set_guest_xcr0(value);
    }

    fn populate(&mut self, gpa: Gpa) -> bool {
        self.local.lazy
            && self.compartment.map_nested::<F>(&self.local.ram, gpa.align_down(PAGE_SIZE), PAGE_SIZE).is_ok()
    }
}

type GuestOn<B> = Guest<<B as Backend>::Vcpu, WindowRam>;

/// What the guests' compartments execute.
pub fn program(capabilities: &Virtualization) -> extern "C" fn() -> ! {
    match capabilities {
        Virtualization::Vmx(_) => main::<Vmx>,
        Virtualization::Svm(_) => main::<Svm>,
    }
}

/// The guest whose compartment was just entered for the first time, and the compartment, which is its own from now on.
#[must_use]
pub fn take() -> Option<(GuestId, Compartment)> {
    let id = GuestId::new(this_cpu().current.load(Ordering::Relaxed));
    let place = MADE.get(usize::from(id.number()).checked_sub(1)?)?;
    Some((id, place.lock().take()?))
}

/// What a guest's compartment executes.
extern "C" fn main<B: Backend>() -> ! {
    let (Some((id, mut compartment)), Some(facts)) = (take(), FACTS.get()) else { cpu::stop() };
    let (Some(config), Some(slot)) = (facts.guest(id), slot(id)) else { cpu::stop() };
    let mut made = start::<B>(facts, id, &config, &mut compartment);
    let name = Name::try_from(config.name.as_str()).unwrap_or_default();
    // What stays here when the compartment is left for good is never dropped.
    drop(config);
    match &made {
        Ok(_) => log!("event guest {id} {name} started"),
        Err(error) => log!("event guest {id} {name} ended killed can not start: {error}"),
    }
    loop {
        match (slot.command(), &mut made) {
            (Command::Audit, _) => audit::audit_here(facts, id, &compartment, true),
            (Command::Park, Ok((guest, local))) => {
                if park::<B>(guest, local).is_err() {
                    slot.set_state(State::Failed);
                }
            }
            (Command::Run, Ok((guest, local))) => {
                let mut serving = Serving { compartment: &mut compartment, local, nested: PhantomData::<B::Nested> };
                slot.become_next(run::<B>(id, &name, slot, guest, &mut serving));
            }
            (_, Err(_)) => slot.become_next(State::Failed),
        }
        slot.leave();
    }
}

/// Gives the guest its turn; what it is after it.
fn run<B: Backend>(
    id: GuestId,
    name: &str,
    slot: &Slot,
    guest: &mut GuestOn<B>,
    serving: &mut Serving<'_, B::Nested>,
) -> State {
    let until = slot.wake.load(Ordering::Relaxed);
    let order = slot.order();
    if order == Order::Nmi {
        guest.machine.interrupts_mut().raise_nmi();
    }
    let over = match load_state::<B>(id, guest, serving.local) {
        Ok(()) if matches!(order, Order::Kill | Order::Reset) => Yield::Ended(End::Stopped),
        Ok(()) => guest.run(serving, until),
        Err(error) => Yield::Ended(error.into()),
    };
    let over = match over {
        // Another processor may give it its next turn.
        Yield::TurnOver | Yield::Waiting { .. } if ONLINE.load(Ordering::Relaxed) > 1 => {
            park::<B>(guest, serving.local).map_or_else(|error| Yield::Ended(error.into()), |()| over)
        }
        over => over,
    };
    serving.local.console.flush();
    tally::publish(id, &guest.counters);
    for (count, now) in [
        (&slot.exits, guest.counters.total()),
        (&slot.written, serving.local.written),
        (&slot.read, serving.local.read),
    ] {
        count.store(now, Ordering::Relaxed);
    }
    match order {
        Order::Dump => dump::<B>(&mut console::Log::open(), guest),
        Order::Reset => slot.again.store(true, Ordering::Relaxed),
        Order::None | Order::Kill | Order::Nmi => {}
    }
    if matches!(order, Order::Dump | Order::Nmi) {
        slot.obeyed(order);
    }
    match over {
        Yield::TurnOver => State::Ready,
        Yield::Waiting { until } => {
            slot.wake.store(until.unwrap_or(u64::MAX), Ordering::Relaxed);
            State::Waiting
        }
        Yield::Ended(end) => {
            serving.local.console.finish();
            report_end::<B>(id, name, end, guest);
            // Its registers go out of the CPU with it; a refusal changes nothing any more.
            let _ = park::<B>(guest, serving.local);
            *slot.ending.lock() = ending(end);
            let well = matches!(end, End::PowerOff | End::Reset | End::TestExit(0) | End::Stopped);
            if well { State::Ended } else { State::Failed }
        }
    }
}

/// Makes the guest's registers the CPU's, if they are not.
fn load_state<B: Backend>(id: GuestId, guest: &mut GuestOn<B>, local: &Local) -> Result<(), BackendError> {
    if this_cpu().loaded.swap(id.number(), Ordering::Relaxed) != id.number() {
        local.extended.load();
        guest.vcpu.activate()?;
    }
    Ok(())
}

/// Takes the guest's registers out of the CPU.
fn park<B: Backend>(guest: &mut GuestOn<B>, local: &mut Local) -> Result<(), BackendError> {
    this_cpu().loaded.store(0, Ordering::Relaxed);
    local.extended.save();
    guest.vcpu.deactivate()
}

/// How it ended, as events have it.
const fn ending(end: End) -> Ending {
    match end {
        End::PowerOff => Ending::PowerOff,
        End::Reset => Ending::Reset,
        End::TestExit(value) => Ending::TestExit(value),
        End::TripleFault => Ending::TripleFault,
        End::Killed(_) => Ending::Failed,
        End::Stopped => Ending::Stopped,
    }
}

/// Writes the guest's registers to the log.
fn dump<B: Backend>(log: &mut console::Log, guest: &GuestOn<B>) {
    let mut dump = DumpLines { log, fresh: true };
    let _ = bulkhead_core::dump::write(&guest.vcpu, &mut dump);
    let _ = guest.vcpu.dump(&mut dump);
    let _ = fmt::Write::write_char(&mut dump, '\n');
}

fn report_end<B: Backend>(id: GuestId, name: &str, end: End, guest: &GuestOn<B>) {
    let mut log = console::Log::open();
    if matches!(end, End::Killed(bulkhead_core::Reason::Backend(BackendError::Entry { .. }))) {
        let _ = guest.vcpu.explain_entry_failure(&mut DumpLines { log: &mut log, fresh: true });
    }
    if matches!(end, End::Killed(_) | End::TripleFault) {
        dump::<B>(&mut log, guest);
    }
    let _ = fmt::Write::write_fmt(&mut log, format_args!("log guest {id} exits:"));
    for (kind, count) in guest.counters.exits() {
        let _ = fmt::Write::write_fmt(&mut log, format_args!(" {kind} {count}"));
    }
    let Counters { unknown_msr, emulated, .. } = &guest.counters;
    let _ = fmt::Write::write_fmt(&mut log, format_args!(" (unknown-msr {unknown_msr}, emulated {emulated})\n"));
    drop(log);
    log!("event guest {id} {name} ended {end}");
}

/// Puts `dump ` in front of each line.
struct DumpLines<'a> {
    log: &'a mut console::Log,
    fresh: bool,
}

impl fmt::Write for DumpLines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive('\n') {
            if core::mem::replace(&mut self.fresh, part.ends_with('\n')) {
                self.log.write_str("dump ")?;
            }
            self.log.write_str(part)?;
        }
        Ok(())
    }
}

/// Makes the guest: RAM, images, machine, vCPU, and its first registers.
fn start<B: Backend>(
    facts: &Facts,
    id: GuestId,
    config: &Entry,
    compartment: &mut Compartment,
) -> Result<(GuestOn<B>, Local), StartError> {
    let mut frames = FRAMES.get().ok_or(StartError::Missing("there is no frame table"))?.lock();
    let largest = facts.capabilities.largest_page();
    let (mut memory, ram) = compartment.add_ram::<B::Nested>(&mut frames, config.memory, config.lazy, largest)?;
    let mut images = Images { pack: config.pack, id, used: 0, compartment, frames: &mut frames };
    let kernel = images.add(config.kernel)?;
    let mut modules = heapless::Vec::<LoadModule<'_>, { manifest::MAX_MODULES }>::new();
    for module in &config.modules {
        let added = LoadModule { bytes: images.add(module.image)?, cmdline: &module.cmdline };
        modules.push(added).map_err(|_| StartError::Missing("it has too many modules"))?;
    }
    drop(frames);
    let machine = MachineConfig {
        tsc: facts.tsc,
        memory: config.memory,
        wall_clock: facts.epoch.saturating_add(cpu::tsc() / facts.tsc.as_hertz()),
        cpus: config.vcpus,
        test_exit: config.test_exit,
        test_device: config.test_device,
    };
    memory.write(RSDP, &acpi::tables(&machine))?;
    memory.write(firmware::STUB_AT, &firmware::STUB)?;
    memory.write(Gpa::new(0), &firmware::vectors())?;
    let request = load::Request {
        kernel,
        load: config.load,
        cmdline: &config.cmdline,
        modules: &modules,
        memory: config.memory,
        rsdp: RSDP,
    };
    let first_state = load::load(&request, &mut memory)?;
    let limits = Limits::of(&Asking, facts.tsc, config.memory);
    let extended = ExtendedState::new(limits.xcr0.bits()).ok_or(StartError::Missing("the processor has no XSAVE"))?;
    let mut frames = FRAMES.get().ok_or(StartError::Missing("there is no frame table"))?.lock();
    let mut vcpu = B::vcpu(facts, id, compartment, &mut frames, memory)?;
    drop(frames);
    if let Err(error) = set_registers(&mut vcpu, &first_state) {
        // Its control structure may not stay the processor's.
        let _ = vcpu.deactivate();
        return Err(error.into());
    }
    let guest = Guest::new(vcpu, memory, &machine, limits, cpu::tsc())?;
    let console = GuestConsole::new(id, &config.name);
    Ok((guest, Local { ram, lazy: config.lazy, console, extended, written: 0, read: 0 }))
}

/// A guest's images on their way from the pack into its compartment.
struct Images<'a, 'f> {
    pack: Hpa,
    id: GuestId,
    used: u64,
    compartment: &'a mut Compartment,
    frames: &'a mut FrameTable<'f>,
}

impl Images<'_, '_> {
    fn add(&mut self, image: manifest::Image) -> Result<&'static [u8], StartError> {
        if image.bytes == 0 {
            return Ok(&[]);
        }
        let first = Frame::containing(self.pack.wrapping_add(image.offset));
        let count = image.bytes.div_ceil(PAGE_SIZE);
        let frames = self.frames.adopt(first, count, self.id).map_err(BuildError::from)?;
        let bytes = self.compartment.add_images(self.used, &frames)?;
        self.used += count * PAGE_SIZE;
        let length = usize::try_from(image.bytes).unwrap_or(usize::MAX);
        bytes.get(..length).ok_or(StartError::Missing("an image is too long"))
    }
}

/// Puts the loader's registers into the vCPU.
fn set_registers(vcpu: &mut impl Vcpu, state: &InitialState) -> Result<(), BackendError> {
    for (name, segment) in SegmentName::ALL.into_iter().zip(state.segments) {
        vcpu.set_segment(name, segment)?;
    }
    for (gpr, value) in Gpr::ALL.into_iter().zip(state.gpr) {
        vcpu.set_gpr(gpr, value)?;
    }
    let registers = [
        (Register::Cr4, state.cr4),
        (Register::Cr3, state.cr3),
        (Register::Cr0, state.cr0),
        (Register::Efer, state.efer),
        (Register::GdtBase, state.gdt.base),
        (Register::GdtLimit, state.gdt.limit.into()),
        (Register::IdtBase, state.idt.base),
        (Register::IdtLimit, state.idt.limit.into()),
        (Register::Rip, state.rip),
        (Register::Rflags, state.rflags),
    ];
    registers.into_iter().try_for_each(|(register, value)| vcpu.write(register, value))
}
