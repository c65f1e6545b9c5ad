//! One guest: its vCPU, its memory, its machine, and the loop that runs them.
//!
//! A turn is: let devices catch up with time, deliver what is due, enter the guest, act on its exit, and again until the
//! turn is over, the guest waits, or it has ended. Everything a guest can cause is decided here or in the modules of
//! this directory's other `impl`s, by tables and functions that know no vendor.

use crate::backend::{BackendError, Interruptibility, Register, Vcpu, Windows};
use crate::control::Mode;
use crate::counters::Counters;
use crate::cpuid;
use crate::end::End;
use crate::event::Event;
use crate::host::Host;
use crate::mtrr::Mtrrs;
use bulkhead_arch::{Cr0, Cr4, Efer, Rflags, Segment, SegmentName, Xcr0};
use bulkhead_devices::machine::{Machine, MachineConfig, Request};
use bulkhead_emulate::DecodeCache;
use bulkhead_types::{Frequency, GuestMemory, Ticks};

/// Why a guest's turn is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Yield {
    /// Its time was up, or the host was interrupted.
    TurnOver,
    /// It halted: nothing to do before this count of the host's time-stamp counter, if ever.
    Waiting {
        /// When a device next wants to act.
        until: Option<u64>,
    },
    /// It does not run any more.
    Ended(End),
}

/// A guest with one vCPU.
#[derive(Debug)]
pub struct Guest<V, M> {
    /// Its processor.
    pub vcpu: V,
    /// Its RAM.
    pub memory: M,
    /// Its devices.
    pub machine: Machine,
    /// What it did so far.
    pub counters: Counters,
    pub(crate) mtrrs: Mtrrs,
    /// The host's counter when its machine was switched on.
    power_on: u64,
    /// What its time-stamp counter is ahead of its machine's time, since it wrote to it.
    pub(crate) tsc_adjust: u64,
    /// What it wrote to KVM's clock register.
    pub(crate) clock: u64,
    /// Seconds since 1970 when its machine was switched on.
    pub(crate) wall_clock: u64,
    /// It executed HLT and nothing has woken it.
    pub(crate) halted: bool,
    /// What the last exit made due: an exception, or an event to be delivered again.
    pub(crate) due: Option<Event>,
    windows: Windows,
    /// The host has work. Whoever gives out turns does it; until then the guest could not be entered again.
    pub(crate) preempted: bool,
    pub(crate) limits: Limits,
    /// Instructions that were emulated last.
    pub(crate) decoded: DecodeCache,
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
            // Bit 2 of ECX is reserved on processors without them.
            configuration: ask(0x8000_0001, 0).ecx >> 2 & 1 != 0,
        }
    }
}

impl<V: Vcpu, M: GuestMemory> Guest<V, M> {
    /// A guest whose machine is switched on at `power_on`, a count of the host's time-stamp counter.
    ///
    /// # Errors
    /// If the processor refuses.
    pub fn new(
        vcpu: V,
        memory: M,
        config: &MachineConfig,
        limits: Limits,
        power_on: u64,
    ) -> Result<Self, BackendError> {
        let mut guest = Self {
            vcpu,
            memory,
            machine: Machine::new(config),
            counters: Counters::default(),
            mtrrs: Mtrrs::new(limits.address_bits),
            power_on,
            tsc_adjust: 0,
            clock: 0,
            wall_clock: config.wall_clock,
            halted: false,
            due: None,
            windows: Windows::default(),
            preempted: false,
            limits,
            decoded: DecodeCache::new(),
        };
        guest.apply_tsc_offset()?;
        guest.allow_direct_msrs();
        Ok(guest)
    }

    /// The machine's time at `tsc` of the host.
    pub(crate) const fn time(&self, tsc: u64) -> Ticks {
        Ticks::new(tsc.saturating_sub(self.power_on))
    }

    /// Makes the processor add what belongs to the guest's time-stamp counter.
    pub(crate) fn apply_tsc_offset(&mut self) -> Result<(), BackendError> {
        self.vcpu.set_tsc_offset(self.tsc_adjust.wrapping_sub(self.power_on))
    }

    /// Runs the guest until the host's time-stamp counter reaches `until`, or it has nothing to do.
    pub fn run(&mut self, host: &mut impl Host, until: u64) -> Yield {
        match self.turn(host, until) {
            Ok(over) => over,
            Err(end) => Yield::Ended(end),
        }
    }

    fn turn(&mut self, host: &mut impl Host, until: u64) -> Result<Yield, End> {
        self.take_input(host);
        // When the devices, or the end of the turn, must be looked at next: at once.
        let mut next = 0;
        loop {
            let now = host.tsc();
            if now >= next || self.machine.has_changed() {
                let deadline = self.catch_up(now)?;
                if self.halted && !self.wake()? {
                    return Ok(Yield::Waiting { until: deadline });
                }
                if now >= until || core::mem::take(&mut self.preempted) {
                    return Ok(Yield::TurnOver);
                }
                next = deadline.map_or(until, |deadline| deadline.min(until));
                self.deliver()?;
                self.machine.settle();
            } else if let Some(event) = self.due.take() {
                self.vcpu.inject(event)?;
            }
            self.vcpu.set_timer(next.saturating_sub(now))?;
            // By reference from here on: a payload is long to move.
            let exit = self.vcpu.run();
            let exit = exit.as_ref().map_err(|&error| error)?;
            self.due = self.vcpu.take_interrupted();
            self.counters.count(exit);
            self.act(exit, host)?;
        }
    }

    /// Lets the devices do what is due; when they next want to act, by the host's counter.
    fn catch_up(&mut self, now: u64) -> Result<Option<u64>, End> {
        let time = self.time(now);
        let mut deadline = self.machine.deadline();
        if deadline.is_some_and(|deadline| deadline <= time) {
            self.machine.advance(time);
            deadline = self.machine.deadline();
        }
        if self.machine.take_init() {
            // INIT of the one processor: what firmware would make of it is a reset.
            return Err(End::Reset);
        }
        Ok(deadline.map(|deadline| deadline.as_u64().saturating_add(self.power_on)))
    }

    /// Hands the console what has come in, as far as it has room.
    fn take_input(&mut self, host: &mut impl Host) {
        while self.machine.has_console_room() {
            let Some(byte) = host.console_input() else { break };
            self.machine.console_input(byte);
        }
    }

    /// Sends the console's output.
    #[inline(never)]
    pub(crate) fn drain_console(&mut self, host: &mut impl Host) {
        while let Some(byte) = self.machine.console_output() {
            host.console(byte);
        }
    }

    /// Acts on what the machine was asked to do by its ports.
    pub(crate) fn take_request(&mut self) -> Result<(), End> {
        match self.machine.take_request() {
            None => Ok(()),
            Some(Request::PowerOff) => Err(End::PowerOff),
            Some(Request::Reset) => Err(End::Reset),
            Some(Request::TestExit(code)) => Err(End::TestExit(code)),
        }
    }

    /// Ends a halt if something is there to wake for.
    fn wake(&mut self) -> Result<bool, BackendError> {
        let interrupts = self.machine.interrupts();
        let nmi = interrupts.nmi_pending();
        let wakes = nmi || interrupts.has_interrupt() && self.flags()?.contains(Rflags::IF) || self.due.is_some();
        self.halted = !wakes;
        Ok(wakes)
    }

    fn flags(&self) -> Result<Rflags, BackendError> {
        Ok(Rflags::from_bits_retain(self.vcpu.read(Register::Rflags)?))
    }

    /// Injects the one event that comes first, and asks for a window for the next.
    ///
    /// An exception or interrupted event of the last exit goes before an NMI, an NMI before an interrupt.
    /// SDM vol. 3A 6.9 "Prioritization of Concurrent Events"; vol. 3C 27.7 "Virtual-Machine Control Structures: Event
    /// Injection".
    fn deliver(&mut self) -> Result<(), BackendError> {
        let interrupts = self.machine.interrupts();
        let (mut nmi, mut interrupt) = (interrupts.nmi_pending(), interrupts.has_interrupt());
        let due = self.due.take();
        if let Some(event) = due {
            self.vcpu.inject(event)?;
        } else if nmi || interrupt {
            let blocked = self.vcpu.interruptibility()?;
            if nmi && blocked == Interruptibility::default() {
                self.machine.interrupts_mut().take_nmi();
                self.vcpu.inject(Event::Nmi)?;
                nmi = self.machine.interrupts().nmi_pending();
            } else if interrupt && !blocked.sti && !blocked.mov_ss && self.flags()?.contains(Rflags::IF) {
                if let Some(vector) = self.machine.interrupts_mut().acknowledge() {
                    self.vcpu.inject(Event::Interrupt(vector))?;
                }
                interrupt = self.machine.interrupts().has_interrupt();
            }
        }
        let windows = Windows { interrupt, nmi };
        if windows != self.windows {
            self.vcpu.request_windows(windows)?;
            self.windows = windows;
        }
        Ok(())
    }

    /// The registers that make up the processor's mode.
    pub(crate) fn mode(&self) -> Result<Mode, BackendError> {
        Ok(Mode {
            cr0: Cr0::from_bits_truncate(self.vcpu.read(Register::Cr0)?),
            cr3: self.vcpu.read(Register::Cr3)?,
            cr4: Cr4::from_bits_truncate(self.vcpu.read(Register::Cr4)?),
            efer: Efer::from_bits_truncate(self.vcpu.read(Register::Efer)?),
            long_code: self.vcpu.segment(SegmentName::Cs)?.attributes & Segment::LONG != 0,
        })
    }
}

#[cfg(test)]
mod model;
