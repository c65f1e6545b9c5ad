//! What runs in a guest's own compartment: the guest is made here, and every exit of it is handled here.
//!
//! Everything about the guest is a local variable of [`main`], on the stack in the window: it is in no other address
//! space, and so it is nowhere while another guest is served.

use crate::console::GuestConsole;
use crate::log;
use crate::machine::{Asking, CURRENT, Command, FACTS, FRAMES, Facts, IDLE, LOADED, Slot, State, cpuid, slot};
use crate::{audit, console};
use alloc::boxed::Box;
use bulkhead_core::host::{CpuidResult, Host};
use bulkhead_core::load::{self, InitialState, LoadModule};
use bulkhead_core::{BackendError, End, Guest, Limits, Register, Vcpu, Yield};
use bulkhead_arch::{Gpr, SegmentName};
use bulkhead_devices::acpi;
use bulkhead_devices::layout::RSDP;
use bulkhead_devices::machine::MachineConfig;
use bulkhead_hw::compartment::{BuildError, Compartment, GuestRam};
use bulkhead_hw::ram::WindowRam;
use bulkhead_hw::xstate::ExtendedState;
use bulkhead_hw::cpu;
use bulkhead_paging::Ept;
use bulkhead_types::manifest::{self, MAX_GUESTS};
use bulkhead_types::{Frame, Gpa, GuestId, GuestMemory, Hpa, MemoryError, PAGE_SIZE};
use bulkhead_vmx::{Resources, VmxVcpu};
use core::fmt;
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
enum StartError {
    Build(BuildError),
    Load(load::LoadError),
    Memory(MemoryError),
    Backend(BackendError),
    Missing(&'static str),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
            Self::Memory(error) => write!(f, "firmware tables at {} do not fit its memory", error.gpa),
            Self::Backend(error) => write!(f, "the processor refused it: {error:?}"),
            Self::Missing(what) => f.write_str(what),
        }
    }
}

impl From<BuildError> for StartError {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}
impl From<load::LoadError> for StartError {
    fn from(error: load::LoadError) -> Self {
        Self::Load(error)
    }
}
impl From<MemoryError> for StartError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}
impl From<BackendError> for StartError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

/// The host, as this guest's run loop sees it.
struct Serving {
    compartment: Compartment,
    ram: GuestRam,
    lazy: bool,
    console: GuestConsole,
    extended: ExtendedState,
}

impl Host for Serving {
    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
    }

    fn console(&mut self, byte: u8) {
        self.console.send(byte);
    }

    fn console_input(&mut self) -> Option<u8> {
        self.console.receive()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.extended.set_guest_xcr0(value);
    }

    fn populate(&mut self, gpa: Gpa) -> bool {
        self.lazy && self.compartment.map_nested::<Ept>(&self.ram, gpa.align_down(PAGE_SIZE), PAGE_SIZE).is_ok()
    }
}

type VmxGuest = Guest<VmxVcpu, WindowRam>;

/// What a guest's compartment executes.
pub extern "C" fn main() -> ! {
    let id = GuestId::new(CURRENT.load(Ordering::Relaxed));
    let index = usize::from(id.number()).wrapping_sub(1);
    let taken = MADE.get(index).and_then(|place| place.lock().take());
    let (Some(facts), Some(slot), Some(compartment)) = (FACTS.get(), slot(id), taken) else { cpu::stop() };
    let Some(config) = facts.manifest.guests.get(index) else { cpu::stop() };
    match start(facts, id, config, compartment) {
        Ok((mut guest, mut serving)) => {
            log!("event guest {id} {} started", config.name);
            loop {
                serve(facts, id, config, slot, &mut guest, &mut serving);
                slot.context.switch(&IDLE);
            }
        }
        Err(error) => {
            log!("event guest {id} {} ended killed can not start: {error}", config.name);
            slot.set_state(State::Failed);
            loop {
                slot.context.switch(&IDLE);
            }
        }
    }
}

/// Does what the compartment was entered for.
fn serve(facts: &Facts, id: GuestId, config: &manifest::Guest, slot: &Slot, guest: &mut VmxGuest, serving: &mut Serving) {
    let result = match slot.command() {
        Command::Audit => {
            audit::audit_here(facts, id, &serving.compartment, true);
            return;
        }
        Command::Park => park(guest, serving),
        Command::Run => load_state(id, guest, serving),
    };
    let until = slot.wake.load(Ordering::Relaxed);
    let over = match result {
        Err(error) => Yield::Ended(error.into()),
        Ok(()) if slot.command() == Command::Park => return,
        Ok(()) => guest.run(serving, until),
    };
    match over {
        Yield::TurnOver => {}
        Yield::Waiting { until } => {
            slot.wake.store(until.unwrap_or(u64::MAX), Ordering::Relaxed);
            slot.set_state(State::Waiting);
        }
        Yield::Ended(end) => {
            serving.console.end_line();
            report_end(id, config, end, guest);
            // Its registers go out of the CPU with it; a refusal changes nothing any more.
            let _ = park(guest, serving);
            let well = matches!(end, End::PowerOff | End::TestExit(0));
            slot.set_state(if well { State::Ended } else { State::Failed });
        }
    }
}

fn load_state(id: GuestId, guest: &mut VmxGuest, serving: &mut Serving) -> Result<(), BackendError> {
    if LOADED.swap(id.number(), Ordering::Relaxed) != id.number() {
        serving.extended.load();
        guest.vcpu.activate()?;
    }
    Ok(())
}

fn park(guest: &mut VmxGuest, serving: &mut Serving) -> Result<(), BackendError> {
    LOADED.store(0, Ordering::Relaxed);
    serving.extended.save();
    guest.vcpu.deactivate()
}

fn report_end(id: GuestId, config: &manifest::Guest, end: End, guest: &VmxGuest) {
    let mut log = console::Log;
    if !matches!(end, End::PowerOff | End::Reset | End::TestExit(_)) {
        let mut dump = DumpLines { fresh: true };
        let _ = guest.vcpu.dump(&mut dump);
        if matches!(end, End::Killed(bulkhead_core::Reason::Backend(BackendError::Entry { .. }))) {
            let _ = guest.vcpu.explain_entry_failure(&mut dump);
        }
        let _ = fmt::Write::write_char(&mut dump, '\n');
    }
    let _ = fmt::Write::write_fmt(&mut log, format_args!("log guest {id} exits:"));
    for (kind, count) in guest.counters.exits() {
        let _ = fmt::Write::write_fmt(&mut log, format_args!(" {kind} {count}"));
    }
    log!(" (unknown-msr {}, emulated {})", guest.counters.unknown_msr, guest.counters.emulated);
    log!("event guest {id} {} ended {end}", config.name);
}

/// Puts `dump ` in front of each line.
struct DumpLines {
    fresh: bool,
}

impl fmt::Write for DumpLines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive('\n') {
            if core::mem::replace(&mut self.fresh, part.ends_with('\n')) {
                console::Log.write_str("dump ")?;
            }
            console::Log.write_str(part)?;
        }
        Ok(())
    }
}

/// Makes the guest: RAM, images, machine, vCPU, and its first registers.
fn start(
    facts: &Facts,
    id: GuestId,
    config: &'static manifest::Guest,
    mut compartment: Compartment,
) -> Result<(Box<VmxGuest>, Box<Serving>), StartError> {
    Err(StartError::Missing("not wired yet"))
}
