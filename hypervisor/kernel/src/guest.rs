//! What runs in a guest's own compartment: the guest is made here, and every exit of it is handled here.
//!
//! Each vCPU has an execution, with a stack of its own in the window, and is a local variable of its [`main`]. What they
//! share, the guest with its memory, devices and console, is one of the first execution's ([`Common`]). None of it is in any
//! other address space, and so it is nowhere while another guest is served.

use crate::backend::{Backend, Svm, Virtualization, Vmx};
use crate::console::GuestConsole;
use crate::log;
use crate::machine::{FACTS, Facts, ONLINE, Order, Slot, cpuid, slot, this_cpu};
use crate::make::{self, StartError};
use crate::parcel::{self, Input};
use crate::task::{self, Command, State, Task};
use crate::{audit, console, tally};
use bulkhead_control::{Ending, Name};
use bulkhead_core::counters::Counters;
use bulkhead_core::frames::SpaceError;
use bulkhead_core::host::{CpuidResult, Host};
use bulkhead_core::load::InitialState;
use bulkhead_core::{BackendError, End, Guest, Reason, Vcpu, VirtualCpu, Yield};
use bulkhead_hw::compartment::{BuildError, Compartment, GuestRam};
use bulkhead_hw::cpu;
use bulkhead_hw::ram::WindowRam;
use bulkhead_hw::xstate::ExtendedState;
use bulkhead_paging::{Format, PagingError};
use bulkhead_types::manifest::MAX_GUESTS;
use bulkhead_types::{Gpa, GuestId, PAGE_SIZE, VcpuId};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use spin::Mutex;

/// A vCPU's counts are told at the end of its first turn, and of each of so many after it.
const TOLD_EACH: u32 = 8;
/// So often in a second a guest whose output waits for the line tries to send it: more often than pieces come.
const FLUSHES_PER_SECOND: u64 = 250;

/// Compartments on their way from the idle compartment to their own: tokens and addresses only.
static MADE: [Mutex<Option<Compartment>>; MAX_GUESTS] = [const { Mutex::new(None) }; MAX_GUESTS];
/// Where each compartment has its [`Common`], which is mapped there alone.
static COMMON: [AtomicPtr<Common>; MAX_GUESTS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_GUESTS];

fn index(id: GuestId) -> usize {
    usize::from(id.number()).wrapping_sub(1)
}

/// Gives a compartment to the guest that will run in it.
pub fn hand_over(id: GuestId, made: Compartment) {
    if let (Some(place), Some(shown)) = (MADE.get(index(id)), COMMON.get(index(id))) {
        // What is there is of its life before this one.
        shown.store(core::ptr::null_mut(), Ordering::Release);
        *place.lock() = Some(made);
    }
}

/// What a guest's executions share. Its locks are this guest's own: each is held for the time of one access.
pub struct Common {
    pub(crate) compartment: Mutex<Compartment>,
    pub(crate) served: Served,
}

/// A guest that was made.
pub struct Served {
    pub(crate) guest: Guest,
    pub(crate) memory: WindowRam,
    pub(crate) ram: GuestRam,
    pub(crate) lazy: bool,
    /// Components of the extended state that it can use.
    pub(crate) components: u64,
    pub(crate) console: Mutex<Console>,
    /// What its vCPUs that have ended did.
    pub(crate) done: Mutex<Counters>,
    /// How many have.
    pub(crate) ended: AtomicU8,
}

/// The guest's end of the lines: of the machine's console, and of the control line.
pub struct Console {
    line: GuestConsole,
    /// What came from there and the guest has no room for.
    input: Input,
    /// Bytes that the guest took of it.
    read: u64,
    /// Count of the time-stamp counter when it took one last, or had none to take.
    took: u64,
    /// It had no room for a byte.
    full: bool,
}

impl Console {
    /// Of a guest that has written nothing.
    pub const fn new(line: GuestConsole) -> Self {
        Self { line, input: Input::new(), read: 0, took: 0, full: false }
    }

    /// Takes what was typed from the machine's console. What does not fit waits there for a guest that reads; but for an
    /// operator who wants the monitor, too. So it is dropped if the guest has taken nothing for a second.
    fn take_typed(&mut self, slot: &Slot) {
        let now = cpu::tsc();
        if self.input.is_empty() {
            self.took = now;
        }
        let waits = now.saturating_sub(self.took) < self.line.second();
        for _ in 0..self.input.capacity() {
            if waits && self.input.is_full() {
                return;
            }
            let Some(byte) = self.line.receive() else { return };
            slot.dropped.fetch_add(self.input.push_back(byte).is_err().into(), Ordering::Relaxed);
        }
    }
}

/// One vCPU, and what it needs.
pub struct Cpu<'c, B: Backend> {
    pub(crate) core: VirtualCpu<'c, B::Vcpu, WindowRam>,
    pub(crate) common: &'c Common,
    pub(crate) served: &'c Served,
    pub(crate) extended: ExtendedState,
    /// Turns that it had.
    pub(crate) turns: u32,
    /// Others had the line when output was last to be sent.
    pub(crate) kept_off: bool,
}

/// The host, as a vCPU's run loop sees it.
struct Serving<'a, F> {
    common: &'a Common,
    served: &'a Served,
    extended: &'a mut ExtendedState,
    slot: &'static Slot,
    task: &'static Task,
    nested: PhantomData<F>,
}

impl<F: Format> Host for Serving<'_, F> {
    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn waited(&self) -> u64 {
        self.task.waited.load(Ordering::Relaxed)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
    }

    fn console(&mut self, byte: u8) -> bool {
        let mut console = self.served.console.lock();
        let taken = console.line.push(byte);
        console.full |= !taken;
        taken
    }

    fn console_input(&mut self) -> Option<u8> {
        let mut console = self.served.console.lock();
        let byte = console.input.pop_front()?;
        console.read = console.read.wrapping_add(1);
        console.took = cpu::tsc();
        Some(byte)
    }

    fn machine_check(&mut self) {
        cpu::take_machine_check();
    }

    fn set_xcr0(&mut self, value: u64) {
        self.extended.set_guest_xcr0(value);
    }

    fn clear_debug_addresses(&mut self) {
        self.extended.clear_debug_addresses();
    }

    /// A page that another vCPU has mapped meanwhile is there, too: the guest tries again.
    fn populate(&mut self, gpa: Gpa) -> bool {
        let at = gpa.align_down(PAGE_SIZE);
        let Served { guest, lazy, ram, .. } = self.served;
        *lazy
            && match self.common.compartment.lock().map_nested::<F>(ram, at, PAGE_SIZE) {
                Err(BuildError::Space(SpaceError::Paging(PagingError::Mapped(_)))) => guest.vcpus() > 1,
                mapped => mapped.is_ok(),
            }
    }

    fn kick(&mut self, vcpu: VcpuId) -> bool {
        self.slot.task(vcpu).is_some_and(Task::kick)
    }
}

/// What the guests' compartments execute.
pub fn program(capabilities: &Virtualization) -> extern "C" fn() -> ! {
    match capabilities {
        Virtualization::Vmx(_) => main::<Vmx>,
        Virtualization::Svm(_) => main::<Svm>,
    }
}

/// Whose execution was just entered for the first time, and what the machine has for it.
pub struct Me {
    /// What start-up found.
    pub facts: &'static Facts,
    /// The vCPU.
    pub task: &'static Task,
    /// Its guest.
    pub id: GuestId,
    /// The same, as the dispatcher sees it.
    pub slot: &'static Slot,
    /// The same's name.
    pub name: Name,
}

impl Me {
    /// Called in a guest's compartment.
    #[must_use]
    pub fn find() -> Option<Self> {
        let task = task::numbered(this_cpu().current.load(Ordering::Relaxed))?;
        let (facts, id) = (FACTS.get()?, task.guest()?);
        // What is held here when the compartment is left for good is never dropped.
        let slot = slot(id)?;
        Some(Self { facts, task, id, slot, name: slot.name.lock().clone() })
    }

    /// The compartment, which is its first execution's from now on.
    #[must_use]
    pub fn take_compartment(&self) -> Option<Compartment> {
        MADE.get(index(self.id))?.lock().take()
    }

    /// Its guest does not start.
    fn fail(&self, error: &StartError) {
        log!("event guest {} {} ended killed can not start: {error}", self.id, self.name);
        // The other vCPUs are never woken.
        self.slot.left.store(1, Ordering::Relaxed);
    }

    fn is_first(&self) -> bool {
        self.task.vcpu() == VcpuId::BOOT
    }
}

/// What a vCPU's execution in its guest's compartment does.
extern "C" fn main<B: Backend>() -> ! {
    let Some(me) = Me::find() else { cpu::stop() };
    let Some(shown) = COMMON.get(index(me.id)) else { cpu::stop() };
    if !me.is_first() {
        loop {
            #[expect(unsafe_code, reason = "the executions of a compartment meet here")]
            // SAFETY: null until the first execution of this compartment has shown it, which never returns from where it
            // lies; all in it that changes is behind locks.
            let common = unsafe { shown.load(Ordering::Acquire).as_ref() };
            if let Some(common) = common {
                live::<B>(&me, common, None)
            }
            // It was entered for its registers, which it has none of yet, or woken by what was meant for who had its number.
            me.task.become_next(State::Waiting);
            me.task.leave();
        }
    }
    let Some(mut compartment) = me.take_compartment() else { cpu::stop() };
    match make::guest::<B>(&me, &mut compartment) {
        Ok((served, state)) => {
            let common = Common { compartment: Mutex::new(compartment), served };
            live::<B>(&me, &common, Some(&state))
        }
        Err(error) => {
            me.fail(&error);
            me.task.become_next(State::Absent);
            loop {
                if me.task.command() == Command::Audit {
                    audit::audit_here(me.facts, me.id, &compartment, true);
                }
                me.task.leave();
            }
        }
    }
}

/// Makes the vCPU, and does what its execution is entered for, for ever.
fn live<B: Backend>(me: &Me, common: &Common, state: Option<&InitialState>) -> ! {
    let Me { id, task, slot, .. } = *me;
    let mut made = make::vcpu::<B>(me, common, state);
    match &made {
        Ok(_) if me.is_first() => {
            log!("event guest {id} {} started", me.name);
            if let Some(shown) = COMMON.get(index(id)) {
                shown.store((&raw const *common).cast_mut(), Ordering::Release);
            }
            slot.tasks().skip(1).for_each(|task| _ = task.kick());
        }
        Ok(_) => {}
        Err(error) if me.is_first() => me.fail(error),
        Err(error) => {
            log!("log guest {id} vCPU {}: can not be made: {error}", task.vcpu());
            slot.order_end();
        }
    }
    loop {
        match (task.command(), &mut made) {
            (Command::Audit, _) => audit::audit_here(me.facts, id, &common.compartment.lock(), true),
            (Command::Park, Ok(cpu)) => {
                let parked = cpu.park();
                debug_assert!(parked.is_ok());
            }
            (Command::Dump, Ok(cpu)) => cpu.dump(me),
            (Command::Press, Ok(cpu)) => {
                let (core, mut serving) = cpu.serving(me);
                slot.asked.store(core.guest.press_power_button(&mut serving), Ordering::Relaxed);
            }
            (Command::Console, _) => {
                let mut console = common.served.console.lock();
                console.take_typed(slot);
                let Console { line, input, .. } = &mut *console;
                parcel::obey(line.output(), input);
            }
            (Command::Run, Ok(cpu)) => task.become_next(cpu.turn(me)),
            (_, Err(_)) => task.become_next(State::Absent),
        }
        task.leave();
    }
}

impl<'c, B: Backend> Cpu<'c, B> {
    /// Gives the vCPU its turn; what it is after it.
    fn turn(&mut self, me: &Me) -> State {
        if me.is_first() {
            self.served.console.lock().take_typed(me.slot);
        }
        let order = if me.is_first() { me.slot.order() } else { Order::None };
        if order == Order::Nmi {
            let (core, mut serving) = self.serving(me);
            core.guest.raise_nmi(&mut serving);
            me.slot.obeyed(order);
        }
        let mut over = match self.load(me.task) {
            Ok(()) if matches!(order, Order::Kill | Order::Reset) => self.end(me, End::Stopped),
            Ok(()) => {
                let look = if self.kept_off { next_look(me) } else { u64::MAX };
                let until = me.task.until.load(Ordering::Relaxed).min(look);
                let (core, mut serving) = self.serving(me);
                core.run(&mut serving, until)
            }
            Err(error) => self.end(me, error.into()),
        };
        // Another processor may give it its next turn.
        if !matches!(over, Yield::Ended(_))
            && ONLINE.load(Ordering::Relaxed) > 1
            && let Err(error) = self.park()
        {
            over = self.end(me, error.into());
        }
        self.tell(me, over);
        match over {
            Yield::TurnOver => State::Ready,
            // What was made due for it by itself, after it had looked for the last time.
            Yield::Waiting { .. } if self.served.guest.is_called(self.core.id) => State::Ready,
            Yield::Waiting { until } => {
                let console = self.served.console.lock();
                let busy = console.line.waits() || !console.input.is_empty();
                let look = if busy { next_look(me) } else { u64::MAX };
                me.task.wake.store(until.unwrap_or(u64::MAX).min(look), Ordering::Relaxed);
                State::Waiting
            }
            // The next turn is like this one, until all that it wrote is sent.
            Yield::Ended(_) if self.has_output(me) => {
                if ONLINE.load(Ordering::Relaxed) > 1 {
                    // It has ended, whatever the processor says.
                    let _ = self.park();
                }
                if !self.kept_off {
                    return State::Ready;
                }
                me.task.wake.store(next_look(me), Ordering::Relaxed);
                State::Waiting
            }
            Yield::Ended(end) => {
                self.finish(me, end);
                State::Absent
            }
        }
    }

    /// Whether some of the console's output was not sent; what the chip has is taken from it.
    fn has_output(&mut self, me: &Me) -> bool {
        let (core, mut serving) = self.serving(me);
        core.guest.drain_console(&mut serving);
        self.served.console.lock().line.waits()
    }

    /// The vCPU, and the host that it sees.
    fn serving(&mut self, me: &Me) -> (&mut VirtualCpu<'c, B::Vcpu, WindowRam>, Serving<'_, B::Nested>) {
        let Self { core, common, served, extended, .. } = self;
        (core, Serving { common, served, extended, slot: me.slot, task: me.task, nested: PhantomData })
    }

    /// Ends the guest.
    fn end(&mut self, me: &Me, end: End) -> Yield {
        let (core, mut serving) = self.serving(me);
        Yield::Ended(core.guest.end(end, core.id, &mut serving))
    }

    /// Says what it did so far.
    fn tell(&mut self, me: &Me, over: Yield) {
        let ended = matches!(over, Yield::Ended(_));
        let due = if let Yield::Waiting { until } = over { until } else { None };
        self.turns = self.turns.wrapping_add(1);
        if self.turns % TOLD_EACH == 1 || ended {
            tally::publish(me.task, &self.core.counters);
        }
        let mut console = self.served.console.lock();
        console.line.flush(due.unwrap_or(u64::MAX), ended);
        self.kept_off = console.line.is_kept_off();
        me.slot.written.store(console.line.output().end(), Ordering::Relaxed);
        me.slot.read.store(console.read, Ordering::Relaxed);
        let full = core::mem::replace(&mut console.full, false);
        drop(console);
        if full {
            me.slot.lost.store(self.served.guest.console_lost(), Ordering::Relaxed);
        }
    }

    /// Makes the vCPU's registers the CPU's, if they are not.
    fn load(&mut self, task: &Task) -> Result<(), BackendError> {
        let number = task.id().0.wrapping_add(1);
        if this_cpu().loaded.swap(number, Ordering::Relaxed) != number {
            self.extended.load();
            self.core.vcpu.activate()?;
        }
        Ok(())
    }

    /// Takes the vCPU's registers out of the CPU.
    fn park(&mut self) -> Result<(), BackendError> {
        this_cpu().loaded.store(0, Ordering::Relaxed);
        self.extended.save();
        self.core.vcpu.deactivate()
    }

    /// The guest has ended, and this vCPU with it; with the last one it is said.
    fn finish(&mut self, me: &Me, end: End) {
        let Self { core, served, .. } = self;
        let mut done = served.done.lock();
        *done += core.counters;
        if served.guest.was_ended_by(core.id) {
            *me.slot.ending.lock() = ending(end);
            if matches!(end, End::Killed(_) | End::TripleFault) {
                let mut log = console::Log::open();
                if matches!(end, End::Killed(Reason::Backend(BackendError::Entry { .. }))) {
                    let _ = core.vcpu.explain_entry_failure(&mut DumpLines { log: &mut log, fresh: true });
                }
                dump(&mut log, &core.vcpu);
            }
        }
        let last = served.ended.fetch_add(1, Ordering::Relaxed) + 1 == served.guest.vcpus();
        if last {
            served.console.lock().line.finish();
            report_end(me, end, &done);
        }
        drop(done);
        // Its registers go out of the CPU with it; a refusal changes nothing any more.
        let _ = self.park();
    }

    /// Writes its registers to the log.
    fn dump(&mut self, me: &Me) {
        if self.load(me.task).is_ok() {
            log!("log guest {} vCPU {}:", me.id, self.core.id);
            dump(&mut console::Log::open(), &self.core.vcpu);
        }
        let _ = self.park();
    }
}

/// Host's time-stamp count at which to see to the console again.
fn next_look(me: &Me) -> u64 {
    cpu::tsc().saturating_add(me.facts.tsc.as_hertz() / FLUSHES_PER_SECOND)
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

/// Writes a vCPU's registers to the log.
fn dump(log: &mut console::Log, vcpu: &impl Vcpu) {
    let mut dump = DumpLines { log, fresh: true };
    let _ = bulkhead_core::dump::write(vcpu, &mut dump);
    let _ = vcpu.dump(&mut dump);
    let _ = fmt::Write::write_char(&mut dump, '\n');
}

fn report_end(me: &Me, end: End, done: &Counters) {
    let mut log = console::Log::open();
    let _ = fmt::Write::write_fmt(&mut log, format_args!("log guest {} exits:", me.id));
    for (kind, count) in done.exits() {
        let _ = fmt::Write::write_fmt(&mut log, format_args!(" {kind} {count}"));
    }
    let Counters { unknown_msr, emulated, .. } = done;
    let _ = fmt::Write::write_fmt(&mut log, format_args!(" (unknown-msr {unknown_msr}, emulated {emulated})\n"));
    let _ = fmt::Write::write_fmt(&mut log, format_args!("log guest {} exits' ticks:", me.id));
    for (kind, ticks) in done.ticks() {
        let _ = fmt::Write::write_fmt(&mut log, format_args!(" {kind} {ticks}"));
    }
    let _ = fmt::Write::write_char(&mut log, '\n');
    drop(log);
    log!("event guest {} {} ended {end}", me.id, me.name);
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
