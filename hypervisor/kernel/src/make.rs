//! A guest comes into being, in its own compartment: RAM, images, firmware tables, vCPUs.

use crate::audit;
use crate::backend::Backend;
use crate::console::GuestConsole;
use crate::guest::{Common, Console, Cpu, Me, Served};
use crate::machine::{Asking, FRAMES};
use crate::task::{Command, State};
use bulkhead_arch::{Gpr, SegmentName};
use bulkhead_core::frames::FrameTable;
use bulkhead_core::load::{self, InitialState, LoadModule};
use bulkhead_core::{BackendError, Guest, Limits, Register, Vcpu, VirtualCpu};
use bulkhead_devices::layout::RSDP;
use bulkhead_devices::machine::MachineConfig;
use bulkhead_devices::{acpi, firmware};
use bulkhead_hw::compartment::{BuildError, Compartment};
use bulkhead_hw::xstate::ExtendedState;
use bulkhead_hw::{apic, cpu};
use bulkhead_types::manifest;
use bulkhead_types::{Frame, Gpa, GuestId, GuestMemory, Hpa, MemoryError, PAGE_SIZE};
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};
use spin::Mutex;

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

/// Makes the guest: RAM, images, machine; and says how its first vCPU begins.
///
/// # Errors
/// [`StartError`].
#[inline(never)]
pub fn guest<B: Backend>(me: &Me, compartment: &mut Compartment) -> Result<(Served, InitialState), StartError> {
    let Me { facts, id, .. } = *me;
    let config = facts.guest(id).ok_or(StartError::Missing("nobody knows it any more"))?;
    let frames = FRAMES.get().ok_or(NO_FRAMES)?;
    let (wanted, largest) = ((config.memory, config.lazy), facts.capabilities.largest_page());
    let (mut memory, ram) = compartment.add_ram::<B::Nested>(frames, wanted, largest, |made| pause(me, made))?;
    let mut frames = frames.lock();
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
        cpus: u8::try_from(config.vcpus).unwrap_or(1),
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
    let components = limits.xcr0.bits();
    let guest = Guest::new(&machine, limits, cpu::tsc());
    let console = Mutex::new(Console::new(GuestConsole::new(id, &config.name, facts.tsc)));
    let (done, ended, lazy) = (Mutex::default(), AtomicU8::new(0), config.lazy);
    Ok((Served { guest, memory, ram, lazy, components, console, done, ended }, first_state))
}

/// Between two pieces of the work on a guest, in its first turn: ends the turn if it is over, or others want something of this
/// processor, and goes on in the next one. Who enters it for something else has it made first.
fn pause(me: &Me, compartment: &Compartment) {
    cpu::take_interrupts();
    let over = apic::take_kick() || cpu::tsc() >= me.task.until.load(Ordering::Relaxed);
    if !over || me.task.command() != Command::Run {
        return;
    }
    me.task.become_next(State::Ready);
    me.task.leave();
    while me.task.command() == Command::Audit {
        audit::audit_here(me.facts, me.id, compartment, true);
        me.task.leave();
    }
}

/// Makes a vCPU, which begins in `state`, or waits to be started.
///
/// # Errors
/// [`StartError`].
pub fn vcpu<'c, B: Backend>(
    me: &Me,
    common: &'c Common,
    state: Option<&InitialState>,
) -> Result<Cpu<'c, B>, StartError> {
    let served = &common.served;
    let extended = ExtendedState::new(served.components).ok_or(StartError::Missing("the processor has no XSAVE"))?;
    let mut compartment = common.compartment.lock();
    let mut frames = FRAMES.get().ok_or(NO_FRAMES)?.lock();
    let tag = me.task.id().0.wrapping_add(1);
    let mut vcpu = B::vcpu(me.facts, tag, &mut compartment, &mut frames, served.memory)?;
    drop((compartment, frames));
    if let Err(error) = state.map_or(Ok(()), |state| set_registers(&mut vcpu, state)) {
        // Its control structure may not stay the processor's.
        let _ = vcpu.deactivate();
        return Err(error.into());
    }
    let mut core = VirtualCpu::new(&served.guest, me.task.vcpu(), vcpu, served.memory)?;
    // It is made for its first turn, or for an audit, and then the turn may be on another processor.
    core.vcpu.deactivate()?;
    Ok(Cpu { core, common, served, extended, turns: u32::MAX, kept_off: false })
}

const NO_FRAMES: StartError = StartError::Missing("there is no frame table");

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
