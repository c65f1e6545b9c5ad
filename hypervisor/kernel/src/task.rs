//! vCPUs as the dispatcher sees them: the scheduler's tasks.
//!
//! A task's state says who may touch it. The processor that gives it its turn has it while it is [`State::Running`];
//! whoever changes [`State::Waiting`] to [`State::Ready`], which only one can, tells the scheduler.
//!
//! # One processor at a time
//!
//! A task's execution, its stack and its vCPU's registers, is on one processor at most, the one in [`Task::owner`]. Who enters
//! it makes it its own first, and if it is another one's does not enter it ([`Task::claim`]). It is given up when it is left
//! and its registers are not in the CPU any more: with several processors at each turn's end, with one when another task
//! is entered.
//!
//! # No kick is lost
//!
//! A vCPU that has something for another one of its guest kicks it ([`Task::kick`]): it sets *kicked*, then looks at the
//! state. Whoever gives turns clears *kicked*, then makes the state Running, and looks at *kicked* once more when it
//! has made the state Waiting. All of these are in one order. A kick before the clearing is seen by the turn that
//! begins. A kick that finds Running interrupts the processor; one that finds Waiting has the task woken; one that finds
//! neither came between clearing and Running, or before, and is seen by the turn that begins, too. One that found Running
//! just before Waiting is seen by the second look.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | send interrupts without end | a kick of a vCPU that waits ends the kicker's own turn; a kick of one that runs interrupts a processor that runs this guest; one that was called already is not kicked again |
//! | let a vCPU never exit | it is interrupted for its guest's end, and at its turn's end at the latest |
//! | end by several vCPUs at once | the first one counts; the last one out tells, and only then is anything taken back |
//! | let its vCPUs contend for its devices | they wait for each other, in the order in which they came, in their own turns |
//! | use several vCPUs to get more time | they divide their guest's share, cap and reservation |

use crate::log;
use crate::machine::{CPUS, this_cpu};
use crate::tally;
use bulkhead_core::counters::Counters;
use bulkhead_hw::apic;
use bulkhead_hw::compartment::Context;
use bulkhead_hw::cpu;
use bulkhead_sched::TaskId;
use bulkhead_types::{GuestId, MAX_TASKS, VcpuId};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering};

/// All tasks, by number.
pub static TASKS: [Task; MAX_TASKS] = [const { Task::empty() }; MAX_TASKS];
/// Tasks in use have numbers below this one.
static USED: AtomicUsize = AtomicUsize::new(0);

/// What an execution is entered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Command {
    /// Run the vCPU until [`Task::until`].
    Run = 0,
    /// Take its registers out of the CPU.
    Park = 1,
    /// Check all tables of the compartment.
    Audit = 2,
    /// Write its registers to the log.
    Dump = 3,
    /// Press its guest's power button.
    Press = 4,
    /// Exchange bytes between the guest's console and the lines.
    Console = 5,
}

/// Whether a vCPU can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// It is no vCPU, or one that is not yet complete, or has ended.
    Absent = 0,
    /// It can run: the scheduler knows.
    Ready = 1,
    /// It has a turn.
    Running = 2,
    /// It can run when the time has come, or input, or when it is kicked.
    Waiting = 3,
}

impl State {
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Ready,
            2 => Self::Running,
            3 => Self::Waiting,
            _ => Self::Absent,
        }
    }
}

/// A vCPU.
pub struct Task {
    /// Its own number.
    number: AtomicU16,
    /// Where its execution was left.
    pub context: Context,
    guest: AtomicU16,
    vcpu: AtomicU8,
    state: AtomicU8,
    next: AtomicU8,
    command: AtomicU8,
    kicked: AtomicBool,
    /// Number plus 1 of the processor that executes it or has its registers; 0 for none.
    owner: AtomicUsize,
    /// Host's time-stamp count: the end of the turn that begins.
    pub until: AtomicU64,
    /// Ticks that it waited for turns, up to the one that begins.
    pub waited: AtomicU64,
    /// Host's time-stamp count: when to wake it.
    pub wake: AtomicU64,
    /// Number of the processor that it runs on, or ran on last, which wakes it in time.
    pub cpu: AtomicUsize,
}

impl Task {
    const fn empty() -> Self {
        Self {
            number: AtomicU16::new(0),
            context: Context::empty(),
            guest: AtomicU16::new(0),
            vcpu: AtomicU8::new(0),
            state: AtomicU8::new(State::Absent as u8),
            next: AtomicU8::new(State::Ready as u8),
            command: AtomicU8::new(Command::Run as u8),
            kicked: AtomicBool::new(false),
            owner: AtomicUsize::new(0),
            until: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            wake: AtomicU64::new(u64::MAX),
            cpu: AtomicUsize::new(0),
        }
    }

    /// One that is nobody's becomes that of a vCPU. Nobody wakes it, or enters it, before it is [`State::Waiting`]. Called by
    /// one processor at a time.
    pub fn take(guest: GuestId, vcpu: VcpuId) -> Option<&'static Self> {
        let (number, task) = (0..).zip(&TASKS).find(|(_, task)| task.guest().is_none())?;
        task.number.store(number, Ordering::Relaxed);
        task.vcpu.store(vcpu.number(), Ordering::Relaxed);
        task.cpu.store(cpu::number(), Ordering::Relaxed);
        task.wake.store(u64::MAX, Ordering::Relaxed);
        tally::publish(task, &Counters::default());
        task.guest.store(guest.number(), Ordering::Relaxed);
        USED.fetch_max(usize::from(number) + 1, Ordering::Relaxed);
        Some(task)
    }

    /// Makes it nobody's. The vCPU has ended, and its compartment is entered no more.
    pub fn give_back(&self) {
        self.context.clear();
        self.set_state(State::Absent);
        self.guest.store(0, Ordering::Relaxed);
    }

    /// Its number, as the scheduler has it.
    pub fn id(&self) -> TaskId {
        TaskId(self.number.load(Ordering::Relaxed))
    }

    /// Whose vCPU it is.
    pub fn guest(&self) -> Option<GuestId> {
        Some(GuestId::new(self.guest.load(Ordering::Relaxed))).filter(|guest| *guest != GuestId::IDLE)
    }

    /// Which of the guest's it is.
    pub fn vcpu(&self) -> VcpuId {
        VcpuId::new(self.vcpu.load(Ordering::Relaxed)).unwrap_or(VcpuId::BOOT)
    }

    /// Whether it can run.
    pub fn state(&self) -> State {
        State::of(self.state.load(Ordering::SeqCst))
    }

    /// Sets whether it can run.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    /// Goes from waiting to ready; whether it was this processor that did it. What its last turn left in memory is there
    /// to be seen.
    pub fn stop_waiting(&self) -> bool {
        let (from, to) = (State::Waiting as u8, State::Ready as u8);
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// A turn of it begins, on processor `cpu`.
    pub fn begin(&self, cpu: usize) {
        self.cpu.store(cpu, Ordering::Relaxed);
        self.kicked.swap(false, Ordering::SeqCst);
        self.set_state(State::Running);
    }

    /// Whether it was kicked since its last turn began.
    pub fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// Has it look at its machine, on behalf of another vCPU of its guest, whose turn must end for it if this is so, since this
    /// processor wakes it; or between turns, on behalf of an operator.
    pub fn kick(&self) -> bool {
        self.kicked.store(true, Ordering::SeqCst);
        match self.state() {
            State::Running => {
                interrupt(self.cpu.load(Ordering::Relaxed));
                false
            }
            State::Waiting => {
                self.ask_to_wake();
                true
            }
            State::Ready | State::Absent => false,
        }
    }

    /// Has this processor wake it, once it is between turns.
    pub fn ask_to_wake(&self) {
        let TaskId(number) = self.id();
        if let Some(word) = this_cpu().wakes.get(usize::from(number / 64)) {
            word.fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
    }

    /// What it becomes once its turn is over and its compartment left. Before that no other processor may enter it.
    pub fn become_next(&self, state: State) {
        self.next.store(state as u8, Ordering::Relaxed);
    }

    /// What its last turn made of it.
    pub fn next(&self) -> State {
        State::of(self.next.load(Ordering::Relaxed))
    }

    /// When processor `number` has to wake it; never, if it does not wait or another one does.
    pub fn is_due(&self, number: usize) -> u64 {
        let mine = self.state() == State::Waiting && self.cpu.load(Ordering::Relaxed) == number;
        if mine { self.wake.load(Ordering::Relaxed) } else { u64::MAX }
    }

    /// What it is entered for.
    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Relaxed) {
            1 => Command::Park,
            2 => Command::Audit,
            3 => Command::Dump,
            4 => Command::Press,
            5 => Command::Console,
            _ => Command::Run,
        }
    }

    /// Makes it this processor's until it is left without its registers in the CPU. False, and said, if it is another one's:
    /// then the hypervisor is wrong, and it must not be entered.
    pub fn claim(&self) -> bool {
        let me = cpu::number() + 1;
        let owner = self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed);
        let Err(owner) = owner else { return true };
        if owner != me {
            let (guest, vcpu) = (self.guest.load(Ordering::Relaxed), self.vcpu());
            log!("event processor {} refused: vCPU {vcpu} of guest {guest} is on processor {}", me - 1, owner - 1);
        }
        owner == me
    }

    /// Whether a processor has it.
    pub fn is_owned(&self) -> bool {
        self.owner.load(Ordering::Relaxed) != 0
    }

    /// Enters its compartment from the idle one, unless another processor has it; returns when it comes back. To be called
    /// by the one processor that gives it its turn, or while no other gives turns.
    pub fn enter(&self, command: Command) {
        if !self.claim() {
            return;
        }
        let (cpu, number) = (this_cpu(), self.id().0.wrapping_add(1));
        self.command.store(command as u8, Ordering::Relaxed);
        cpu.current.store(number, Ordering::Relaxed);
        cpu.idle.switch(&self.context);
        cpu.current.store(0, Ordering::Relaxed);
        if cpu.loaded.load(Ordering::Relaxed) != number {
            self.owner.store(0, Ordering::Release);
        }
    }

    /// Leaves its compartment for the idle one; returns when it is entered again.
    pub fn leave(&self) {
        self.context.switch(&this_cpu().idle);
    }
}

/// Tasks in use, and perhaps some that are not.
pub fn used() -> &'static [Task] {
    TASKS.get(..USED.load(Ordering::Relaxed)).unwrap_or(&TASKS)
}

/// The task with this number plus 1.
pub fn numbered(number: u16) -> Option<&'static Task> {
    TASKS.get(usize::from(number).checked_sub(1)?)
}

/// Whether this processor was asked to wake any.
pub fn is_asked() -> bool {
    this_cpu().wakes.iter().any(|word| word.load(Ordering::Relaxed) != 0)
}

/// Tasks that this processor was asked to wake, and not any more.
pub fn asked() -> impl Iterator<Item = &'static Task> {
    let words = this_cpu().wakes.iter().map(|word| match word.load(Ordering::Relaxed) {
        0 => 0,
        _ => word.swap(0, Ordering::Relaxed),
    });
    words.zip(TASKS.chunks(64)).filter(|(word, _)| *word != 0).flat_map(|(word, tasks)| {
        tasks.iter().enumerate().filter(move |(bit, _)| word >> bit & 1 != 0).map(|(_, task)| task)
    })
}

/// Interrupts processor `number`, unless it is this one.
pub fn interrupt(number: usize) {
    if number != cpu::number()
        && let Some(other) = CPUS.get(number)
    {
        apic::kick(other.apic.load(Ordering::Relaxed));
    }
}
