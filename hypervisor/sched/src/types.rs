//! What the scheduler is told and what it answers.

/// Ticks of the time-stamp counter.
pub type Ticks = u64;

/// A vCPU: an index below `TASKS`, chosen by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TaskId(pub u16);

/// A CPU (a thread of a core): an index below `CPUS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cpu(pub u16);

/// CPUs 0 to 63, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuSet(pub u64);

impl CpuSet {
    /// Every CPU.
    pub const ALL: Self = Self(u64::MAX);

    /// This CPU only.
    #[must_use]
    pub const fn one(cpu: Cpu) -> Self {
        Self(if cpu.0 < 64 { 1 << cpu.0 } else { 0 })
    }

    /// Whether the CPU is in it.
    #[must_use]
    pub const fn has(self, cpu: Cpu) -> bool {
        self.0 & Self::one(cpu).0 != 0
    }
}

/// A guaranteed `budget` of ticks in each `period` of ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Length of a period.
    pub period: Ticks,
    /// What the group gets in each.
    pub budget: Ticks,
}

/// What a task asks for. `share`, `cap`, `burst` and `reservation` are its group's: the group's first task sets them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    /// Weight, not 0.
    pub share: u32,
    /// Thousandths of one CPU, not 0; may exceed 1000.
    pub cap: Option<u32>,
    /// Ticks that may be saved up and spent above the cap; a slice, if that is more.
    pub burst: Ticks,
    /// Guaranteed time.
    pub reservation: Option<Reservation>,
    /// Where it may run.
    pub cpus: CpuSet,
    /// Zones never share a core.
    pub zone: u16,
    /// The guest: an index below `TASKS`.
    pub group: u16,
}

/// Why a task was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddError {
    /// The task's or the group's number is out of range.
    Range,
    /// The task's number is taken.
    Taken,
    /// A share or cap of 0, a reservation with a budget of 0 or above its period, or another zone than its group's.
    Params,
    /// No CPU of its set is online.
    NoCpu,
    /// No CPU of its set has this reservation left.
    Overcommitted,
}

impl core::fmt::Display for AddError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Range | Self::Taken => "its number can not be used",
            Self::Params => "its share, cap or reservation is none",
            Self::NoCpu => "the machine has none of its processors: change its `cpus`",
            Self::Overcommitted => "no processor has so much left to reserve: change its `reservation`",
        })
    }
}

/// How a CPU's task came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It wants to go on.
    Ready,
    /// It sleeps until `wake`; with `until`, the caller wakes it then at the latest.
    Blocked,
    /// It ended: as `remove`.
    Gone,
}

/// What a CPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Run this, or idle.
    pub task: Option<TaskId>,
    /// What that one has waited for turns in all, up to now ([`Usage::waiting`]).
    pub waited: Ticks,
    /// Ask again at this time at the latest; `u64::MAX`: nothing to wait for.
    pub until: u64,
    /// A CPU to interrupt: it idles or runs without end, and a task waits that may run there.
    pub kick: Option<Cpu>,
}

/// Where a task's life went, in ticks. The four sum to its lifetime.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// On a CPU.
    pub ran: Ticks,
    /// Ready, but on no CPU ("stolen"); a capped task's throttled time too.
    pub waiting: Ticks,
    /// Asleep.
    pub blocked: Ticks,
    /// Paused.
    pub paused: Ticks,
}

impl Usage {
    /// No time at all.
    pub const ZERO: Self = Self { ran: 0, waiting: 0, blocked: 0, paused: 0 };
}

impl core::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.ran, other.ran),
            (&mut self.waiting, other.waiting),
            (&mut self.blocked, other.blocked),
            (&mut self.paused, other.paused),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Where a CPU's time went, in ticks, since it is online.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuUsage {
    /// It ran tasks.
    pub ran: Ticks,
    /// It had none, and waited.
    pub idle: Ticks,
    /// It did something else: between two turns, or after it had waited.
    pub own: Ticks,
}
