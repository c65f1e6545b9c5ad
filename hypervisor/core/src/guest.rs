//! One guest: what its vCPUs share.
//!
//! The machine and whether the guest has ended lie behind one lock, which only this guest's own vCPUs ever take: ahead of
//! one that waits for it are at most as many as the guest has, each for the time of one access. Exits that touch no device
//! do not take it, and nobody holds it while a guest runs.
//!
//! # How a vCPU learns what another one did
//!
//! Each vCPU has a flag, *called*. Whoever made something due for it (an interrupt, INIT, start-up, the end of the guest)
//! sets the flag after it has released the lock, and if the flag was clear, has the host kick the vCPU
//! ([`Host::kick`]): interrupt it if it runs, wake it if it waits. The vCPU clears its flag before it takes the lock to
//! look at what there is ([`crate::VirtualCpu`]).
//!
//! Nothing is lost. All accesses to the flag are exchanges, in one order. If the flag was set before it was cleared, the
//! clearing sees what was done before the setting. If it was set afterwards, it is still set when the vCPU looks at
//! it for the last time: before an entry, after the host has noted that the vCPU runs and with interrupts off; and
//! before a wait, after the host has noted that it waits ([`Guest::is_called`]). A setting before that last look is
//! seen there. One after it finds the note, so that the kick interrupts the processor at its entry, or wakes the vCPU. If
//! the flag was set already, whoever set it has kicked or is about to, and the vCPU has not cleared it since.
//!
//! # Who minds the time
//!
//! Each vCPU minds the timer of its own local APIC. The devices that they share are minded by vCPU 0, which exists for as
//! long as the guest: the end of its entry and of its wait are never later than their deadline as it last saw it. Any
//! other vCPU that finds an earlier one, which is after each of its own accesses, calls vCPU 0.

use crate::cpuid;
use crate::end::End;
use crate::host::Host;
use bulkhead_arch::{Cr4, Xcr0};
use bulkhead_devices::machine::{Machine, MachineConfig, Request};
use bulkhead_types::{Frequency, MAX_VCPUS, Ticks, VcpuId};
use core::sync::atomic::{AtomicU8, Ordering};
use spin::mutex::{TicketMutex, TicketMutexGuard};

/// Why a vCPU's turn is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Yield {
    /// Its time was up, or the host was interrupted.
    TurnOver,
    /// It halted, or waits to be started: nothing to do before this count of the host's time-stamp counter, if ever,
    /// unless it is kicked. Whoever lets it wait notes that it does, and then lets it run if [`Guest::is_called`].
    Waiting {
        /// When a device next wants to act.
        until: Option<u64>,
    },
    /// The guest does not run any more.
    Ended(End),
}

/// What the processor allows the guest, found once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bits of CR4 it can set.
    pub cr4: Cr4,
    /// Bits of XCR0 it can set.
    pub xcr0: Xcr0,
    /// Width of its physical addresses in bits.
    pub address_bits: u32,
    /// Rate of the time-stamp counter.
    pub tsc: Frequency,
    /// Its RAM in bytes.
    pub memory: u64,
    /// It has RDTSCP, and the register that this instruction reads.
    pub rdtscp: bool,
    /// Its processor's kind has registers from 0xC001_0000 on that kernels use unasked.
    pub configuration: bool,
}

impl Limits {
    /// The limits on this host.
    #[must_use]
    pub fn of(host: &impl Host, tsc: Frequency, memory: u64) -> Self {
        let ask = |leaf, subleaf| host.cpuid(leaf, subleaf);
        Self {
            cr4: cpuid::allowed_cr4(ask),
            xcr0: cpuid::components(ask),
            address_bits: (ask(0x8000_0008, 0).eax & 0xFF).clamp(32, 52),
            tsc,
            memory,
            rdtscp: ask(0x8000_0001, 0).edx >> 27 & 1 != 0,
            configuration: ask(0x8000_0001, 0).ecx >> 2 & 1 != 0,
        }
    }
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) machine: Machine,
    /// Why it ended, by whoever ended it first.
    end: Option<(End, VcpuId)>,
    /// The latest time that the machine was told. The vCPUs' clocks need not agree to the tick.
    latest: Ticks,
    /// When the shared devices next want to act, as vCPU 0 knows.
    minded: Option<Ticks>,
}

impl Shared {
    /// Notes that vCPU `by` minds the shared devices' deadline if that is up to it; else whether vCPU 0 must be called.
    pub(crate) fn mind(&mut self, by: VcpuId, deadline: Option<Ticks>) -> bool {
        if by == VcpuId::BOOT {
            self.minded = deadline;
        }
        deadline.is_some_and(|deadline| self.minded.is_none_or(|minded| deadline < minded))
    }

    /// What the machine was asked to do by its ports.
    ///
    /// # Errors
    /// It is an error, since it ends the guest.
    pub(crate) fn take_request(&mut self) -> Result<(), End> {
        match self.machine.take_request() {
            None => Ok(()),
            Some(Request::PowerOff) => Err(End::PowerOff),
            Some(Request::Reset) => Err(End::Reset),
            Some(Request::TestExit(code)) => Err(End::TestExit(code)),
        }
    }

    /// Sends the console's output, as far as the host has room. Whether so much is left that the transmitter went busy: the
    /// turn is to end, since the host makes room between turns.
    pub(crate) fn drain_console(&mut self, host: &mut impl Host) -> bool {
        while let Some(byte) = self.machine.next_console_output() {
            if !host.console(byte) {
                break;
            }
            self.machine.console_output();
        }
        self.machine.take_console_busy()
    }

    /// Hands the console what has come in, as far as it has room.
    pub(crate) fn take_input(&mut self, host: &mut impl Host) {
        while self.machine.has_console_room() {
            let Some(byte) = host.console_input() else { break };
            self.machine.console_input(byte);
        }
    }
}

/// What a vCPU is told by others, or by itself for later.
#[derive(Debug)]
pub(crate) struct Flags(AtomicU8);

impl Flags {
    /// It has to look at the machine.
    const CALLED: u8 = 1;
    /// Its turn is to end.
    const PREEMPTED: u8 = 2;

    const fn new() -> Self {
        Self(AtomicU8::new(Self::CALLED))
    }

    /// Whether there is anything.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Whether its turn is to end.
    pub(crate) fn is_preempted(&self) -> bool {
        self.0.load(Ordering::Relaxed) & Self::PREEMPTED != 0
    }

    /// The same, and no more from now on.
    pub(crate) fn take_preempted(&self) -> bool {
        self.is_preempted() && self.0.fetch_and(!Self::PREEMPTED, Ordering::Relaxed) & Self::PREEMPTED != 0
    }
}

/// A guest, without its vCPUs.
#[derive(Debug)]
pub struct Guest {
    shared: TicketMutex<Shared>,
    flags: [Flags; MAX_VCPUS],
    /// The host's counter when its machine was switched on.
    pub(crate) power_on: u64,
    /// Seconds since 1970 at that time.
    pub(crate) wall_clock: u64,
    pub(crate) limits: Limits,
    /// How many vCPUs it has.
    pub(crate) vcpus: u8,
}

impl Guest {
    /// A guest whose machine is switched on at `power_on`, a count of the host's time-stamp counter.
    #[must_use]
    pub fn new(config: &MachineConfig, limits: Limits, power_on: u64) -> Self {
        let machine = Machine::new(config);
        Self {
            shared: TicketMutex::new(Shared { machine, end: None, latest: Ticks::ZERO, minded: None }),
            flags: [const { Flags::new() }; MAX_VCPUS],
            power_on,
            wall_clock: config.wall_clock,
            limits,
            vcpus: config.cpus,
        }
    }

    /// How many vCPUs it has.
    #[must_use]
    pub const fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// The machine's time at `tsc` of the host.
    pub(crate) const fn time(&self, tsc: u64) -> Ticks {
        Ticks::new(tsc.saturating_sub(self.power_on))
    }

    /// IA32_APIC_BASE of a vCPU that has not run yet.
    pub(crate) fn first_apic_base(&self, id: VcpuId) -> u64 {
        self.shared.lock().machine.interrupts().lapic(id).base()
    }

    /// Takes the lock, and what time it is. Whoever has changed anything lets go of it by [`Guest::release`].
    pub(crate) fn lock(&self, host: &impl Host) -> (TicketMutexGuard<'_, Shared>, Ticks) {
        self.lock_at(host.tsc())
    }

    /// The same at `tsc` of the host, or at what was the latest time so far.
    pub(crate) fn lock_at(&self, tsc: u64) -> (TicketMutexGuard<'_, Shared>, Ticks) {
        let mut shared = self.shared.lock();
        let now = self.time(tsc).max(shared.latest);
        shared.latest = now;
        (shared, now)
    }

    /// Lets go of the lock, and calls those for whom the machine has something now; `by` included, if what it did to the
    /// machine may concern itself.
    pub(crate) fn release(&self, mut shared: TicketMutexGuard<'_, Shared>, by: VcpuId, host: &mut impl Host) {
        let own = shared.machine.take_changed();
        // What it did for itself is in the former.
        let others = shared.machine.take_attention() & !by.bit();
        drop(shared);
        if own || others != 0 {
            self.call(others | if own { by.bit() } else { 0 }, by, host);
        }
    }

    /// Calls the vCPUs of `set`, on behalf of vCPU `by`.
    pub(crate) fn call(&self, set: u32, by: VcpuId, host: &mut impl Host) {
        for id in VcpuId::in_set(set) {
            let called = self.flags(id).0.fetch_or(Flags::CALLED, Ordering::SeqCst) & Flags::CALLED != 0;
            if !called && id != by && host.kick(id) {
                self.preempt(by);
            }
        }
    }

    /// Whether vCPU `id` has to look at the machine, and therefore must not wait.
    #[must_use]
    pub fn is_called(&self, id: VcpuId) -> bool {
        self.flags(id).0.load(Ordering::SeqCst) & Flags::CALLED != 0
    }

    /// Clears the flag of a vCPU that is about to look at the machine.
    pub(crate) fn answer(&self, id: VcpuId) {
        self.flags(id).0.fetch_and(!Flags::CALLED, Ordering::SeqCst);
    }

    /// vCPU `id` has to look at the machine once more, by its own doing.
    pub(crate) fn look_again(&self, id: VcpuId) {
        self.flags(id).0.fetch_or(Flags::CALLED, Ordering::SeqCst);
    }

    /// Ends the turn of vCPU `id`, which it is: the host has work. Whoever gives out turns does it; until then the guest
    /// could not be entered again.
    pub(crate) fn preempt(&self, id: VcpuId) {
        self.flags(id).0.fetch_or(Flags::PREEMPTED, Ordering::Relaxed);
    }

    /// The flags of a vCPU.
    pub(crate) fn flags(&self, id: VcpuId) -> &Flags {
        let [boot, ..] = &self.flags;
        self.flags.get(id.index()).unwrap_or(boot)
    }

    /// Ends the guest on behalf of vCPU `by`, if it has not ended already; why it ended.
    pub fn end(&self, end: End, by: VcpuId, host: &mut impl Host) -> End {
        let (first, _) = *self.shared.lock().end.get_or_insert((end, by));
        let all = VcpuId::all(self.vcpus).fold(0, |set, id| set | id.bit());
        self.call(all, by, host);
        first
    }

    /// Why it ended, if it has.
    pub(crate) fn ended(shared: &Shared) -> Result<(), End> {
        shared.end.map_or(Ok(()), |(end, _)| Err(end))
    }

    /// Sends its first vCPU, on whose behalf this is, an NMI.
    pub fn raise_nmi(&self, host: &mut impl Host) {
        let (mut shared, _) = self.lock(host);
        shared.machine.interrupts_mut().raise_nmi();
        self.release(shared, VcpuId::BOOT, host);
        self.look_again(VcpuId::BOOT);
    }

    /// Presses its power button, on behalf of its first vCPU; `false` if it does not listen.
    pub fn press_power_button(&self, host: &mut impl Host) -> bool {
        let (mut shared, _) = self.lock(host);
        let heard = shared.machine.press_power_button();
        self.release(shared, VcpuId::BOOT, host);
        heard
    }

    /// Sends what its console's chip still has, as far as the host has room: it has ended.
    pub fn drain_console(&self, host: &mut impl Host) {
        self.shared.lock().drain_console(host);
    }

    /// How many bytes its console has lost, see [`Machine::console_lost`].
    #[must_use]
    pub fn console_lost(&self) -> u64 {
        self.shared.lock().machine.console_lost()
    }

    /// Whether vCPU `id` is the one that ended it.
    #[must_use]
    pub fn was_ended_by(&self, id: VcpuId) -> bool {
        self.shared.lock().end.is_some_and(|(_, by)| by == id)
    }
}
