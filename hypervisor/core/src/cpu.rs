//! One vCPU of a guest, and the loop that runs it.
//!
//! A turn is: let devices catch up with time, deliver what is due, enter the guest, act on its exit, and again until the
//! turn is over, the vCPU waits, or the guest has ended. Everything a guest can cause is decided here or in the modules
//! with other `impl`s of this type, by tables and functions that know no vendor.

use crate::backend::{BackendError, Interruptibility, Register, Vcpu, Windows};
use crate::control::Mode;
use crate::counters::Counters;
use crate::cpuid::Topology;
use crate::end::End;
use crate::event::Event;
use crate::guest::{Flags, Guest, Shared, Yield};
use crate::host::Host;
use crate::mtrr::Mtrrs;
use crate::pvclock::Stolen;
use crate::reset;
use bulkhead_arch::{Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentName};
use bulkhead_devices::machine::{Machine, earlier};
use bulkhead_emulate::DecodeCache;
use bulkhead_types::{GuestMemory, Ticks, VcpuId};

/// One vCPU.
#[derive(Debug)]
pub struct VirtualCpu<'g, V, M> {
    /// What it shares with the others.
    pub guest: &'g Guest,
    /// Which one it is.
    pub id: VcpuId,
    /// Its processor.
    pub vcpu: V,
    /// The guest's RAM.
    pub memory: M,
    /// What it did so far.
    pub counters: Counters,
    pub(crate) mtrrs: Mtrrs,
    pub(crate) topology: Topology,
    flags: &'g Flags,
    /// What its time-stamp counter is ahead of its machine's time, since it wrote to it.
    pub(crate) tsc_adjust: u64,
    /// What it wrote to KVM's clock register.
    pub(crate) clock: u64,
    /// Where it is told what was stolen from it.
    pub(crate) stolen: Stolen,
    /// IA32_APIC_BASE, which its local APIC has too.
    pub(crate) apic_base: u64,
    /// It executed HLT and nothing has woken it.
    pub(crate) halted: bool,
    /// What the last exit made due: an exception, or an event to be delivered again.
    pub(crate) due: Option<Event>,
    windows: Windows,
    /// Instructions that were emulated last.
    pub(crate) decoded: DecodeCache,
}

impl<'g, V: Vcpu, M: GuestMemory> VirtualCpu<'g, V, M> {
    /// vCPU `id` of `guest`. All but the first wait until they are started. If it fails, `vcpu` is off the processor.
    ///
    /// # Errors
    /// If the processor refuses.
    pub fn new(guest: &'g Guest, id: VcpuId, vcpu: V, memory: M) -> Result<Self, BackendError> {
        let mut cpu = Self {
            guest,
            id,
            vcpu,
            memory,
            counters: Counters::default(),
            mtrrs: Mtrrs::new(guest.limits.address_bits),
            topology: Topology::new(id, guest.vcpus),
            flags: guest.flags(id),
            tsc_adjust: 0,
            clock: 0,
            stolen: Stolen::new(guest.vcpus() == 1),
            apic_base: guest.first_apic_base(id),
            halted: false,
            due: None,
            windows: Windows::default(),
            decoded: DecodeCache::new(),
        };
        if let Err(error) = cpu.apply_tsc_offset() {
            // Its control structure may not stay the processor's.
            let _ = cpu.vcpu.deactivate();
            return Err(error);
        }
        cpu.allow_direct_msrs();
        Ok(cpu)
    }

    /// Makes the processor add what belongs to the guest's time-stamp counter.
    pub(crate) fn apply_tsc_offset(&mut self) -> Result<(), BackendError> {
        self.vcpu.set_tsc_offset(self.tsc_adjust.wrapping_sub(self.guest.power_on))
    }

    /// Runs the vCPU until the host's time-stamp counter reaches `until`, or it has nothing to do.
    pub fn run(&mut self, host: &mut impl Host, until: u64) -> Yield {
        self.counters.begin(host.tsc());
        self.stolen.begin(&mut self.memory, host.waited(), self.guest.limits.tsc);
        let over = match self.turn(host, until) {
            Ok(over) => over,
            Err(end) => Yield::Ended(self.guest.end(end, self.id, host)),
        };
        self.stolen.end(&mut self.memory);
        self.counters.serve(host.tsc());
        over
    }

    fn turn(&mut self, host: &mut impl Host, until: u64) -> Result<Yield, End> {
        let (mut shared, _) = self.guest.lock_at(0);
        if self.id == VcpuId::BOOT {
            shared.take_input(host);
        }
        shared.drain_console(host);
        self.guest.release(shared, self.id, host);
        let mut next = 0;
        loop {
            let now = host.tsc();
            self.counters.serve(now);
            if now >= next || self.flags.any() {
                match self.attend(host, now, until)? {
                    Attended::Yield(over) => return Ok(over),
                    // What was found for others may end this turn, once the processor has what was delivered.
                    Attended::Enter { .. } if self.flags.is_preempted() => next = now,
                    Attended::Enter { before } => next = before.min(until),
                }
                self.counters.serve(host.tsc());
            } else if let Some(event) = self.due.take() {
                self.vcpu.inject(event)?;
            }
            self.vcpu.set_timer(next.saturating_sub(now))?;
            let exit = self.vcpu.run();
            let left = host.tsc();
            let exit = exit.as_ref().map_err(|&error| error)?;
            self.due = self.vcpu.take_interrupted();
            self.counters.count(exit, left);
            self.act(exit, host)?;
        }
    }

    /// Looks at the machine: lets it catch up with time, and takes from it what it has for this vCPU.
    #[inline(never)]
    fn attend(&mut self, host: &mut impl Host, now: u64, until: u64) -> Result<Attended, End> {
        self.guest.answer(self.id);
        let over = now >= until;
        let (mut shared, now) = self.guest.lock_at(now);
        Guest::ended(&shared)?;
        let attended = self.serve(&mut shared, now, over, host);
        // What was done to the machine up to here has been looked at.
        let _ = shared.machine.take_changed();
        let called = matches!(attended, Ok((_, true)));
        self.guest.release(shared, self.id, host);
        if called {
            self.guest.call(VcpuId::BOOT.bit(), self.id, host);
        }
        attended.map(|(attended, _)| attended)
    }

    /// The part of [`Self::attend`] that needs the lock; also whether vCPU 0 must mind an earlier deadline.
    fn serve(
        &mut self,
        shared: &mut Shared,
        now: Ticks,
        over: bool,
        host: &mut impl Host,
    ) -> Result<(Attended, bool), End> {
        let machine = &mut shared.machine;
        let is_due = |machine: &Machine| {
            let own = machine.interrupts().deadline(self.id);
            earlier(machine.deadline(), own).is_some_and(|deadline| deadline <= now)
        };
        if is_due(machine) {
            machine.advance(self.id, now);
        }
        self.take_init(machine, host)?;
        let common = machine.deadline();
        let mut deadline = machine.interrupts().deadline(self.id);
        if self.id == VcpuId::BOOT {
            deadline = earlier(deadline, common);
        }
        let call = shared.mind(self.id, common);
        let machine = &mut shared.machine;
        let before = deadline.map(|deadline| deadline.as_u64().saturating_add(self.guest.power_on));
        if machine.interrupts().lapic(self.id).is_parked() {
            return Ok((Attended::Yield(Yield::Waiting { until: None }), call));
        }
        self.lend(machine)?;
        if self.halted && !self.wake(machine)? {
            return Ok((Attended::Yield(Yield::Waiting { until: before }), call));
        }
        if over || self.flags.take_preempted() {
            return Ok((Attended::Yield(Yield::TurnOver), call));
        }
        self.deliver(machine)?;
        Ok((Attended::Enter { before: before.unwrap_or(u64::MAX) }, call))
    }

    /// Takes an INIT or start-up message. SDM vol. 3A 9.4 "Multiple-Processor (MP) Initialization".
    fn take_init(&mut self, machine: &mut Machine, host: &mut impl Host) -> Result<(), End> {
        let interrupts = machine.interrupts_mut();
        if interrupts.take_init(self.id) {
            // No firmware is there to start again from.
            if self.id == VcpuId::BOOT {
                return Err(End::Reset);
            }
            self.reset(host)?;
        }
        if let Some(vector) = machine.interrupts_mut().take_startup(self.id) {
            let (selector, base) = (u16::from(vector) << 8, u64::from(vector) << 12);
            let code = Segment { selector, base, ..reset::segment(SegmentName::Cs) };
            self.vcpu.set_segment(SegmentName::Cs, code)?;
            self.vcpu.write(Register::Rip, 0)?;
        }
        Ok(())
    }

    /// Resets the registers as INIT does, the debug registers too; the PAT, x87 and vector registers stay as they are. KVM's
    /// are cleared, as KVM does: what they name may be in other use.
    /// SDM vol. 3A 10.1.1 "Processor State After Reset", table 10-1.
    #[cold]
    fn reset(&mut self, host: &mut impl Host) -> Result<(), BackendError> {
        host.clear_debug_addresses();
        for (register, value) in reset::REGISTERS {
            if register != Register::Pat {
                self.vcpu.write(register, value)?;
            }
        }
        for name in SegmentName::ALL {
            self.vcpu.set_segment(name, reset::segment(name))?;
        }
        for gpr in Gpr::ALL {
            self.vcpu.set_gpr(gpr, 0)?;
        }
        self.vcpu.set_interruptibility(Interruptibility::default())?;
        (self.halted, self.due, self.clock, self.stolen) = (false, None, 0, self.stolen.reset());
        Ok(())
    }

    /// Lets a processor that can keep the local APIC's TPR, ISR and IRR while that is in x2APIC mode, and gives it what has
    /// come. What is left for [`Self::deliver`] then are NMIs and the PICs' interrupts.
    fn lend(&mut self, machine: &mut Machine) -> Result<(), BackendError> {
        if !self.vcpu.delivers_interrupts() {
            return Ok(());
        }
        let interrupts = machine.interrupts_mut();
        let lapic = interrupts.lapic(self.id);
        if !lapic.is_x2apic() {
            return self.vcpu.take_back();
        }
        if !lapic.is_lent() {
            self.vcpu.lend(&|register| lapic.register(register))?;
            interrupts.lend(self.id);
        }
        self.vcpu.request(&interrupts.take_requests(self.id))
    }

    /// Ends a halt if something is there to wake for. An NMI while one is being handled is not: it waits for the next IRET.
    /// SDM vol. 3A 6.7.1 "Handling Multiple NMIs".
    fn wake(&mut self, machine: &Machine) -> Result<bool, BackendError> {
        let interrupts = machine.interrupts();
        let nmi = interrupts.nmi_pending(self.id) && !self.vcpu.interruptibility()?.nmi;
        let interrupt = interrupts.has_interrupt(self.id) || self.vcpu.has_interrupt();
        let wakes = nmi || interrupt && self.flags()?.contains(Rflags::IF) || self.due.is_some();
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
    fn deliver(&mut self, machine: &mut Machine) -> Result<(), BackendError> {
        let id = self.id;
        let interrupts = machine.interrupts_mut();
        let (mut nmi, mut interrupt) = (interrupts.nmi_pending(id), interrupts.has_interrupt(id));
        // Beside one that is on its way or handled one more waits. SDM vol. 3A 6.7.1 "Handling Multiple NMIs".
        if nmi && (self.due == Some(Event::Nmi) || self.vcpu.interruptibility()?.nmi) {
            interrupts.merge_nmis(id);
        }
        if let Some(event) = self.due.take() {
            self.vcpu.inject(event)?;
        } else if nmi || interrupt {
            let blocked = self.vcpu.interruptibility()?;
            if nmi && blocked == Interruptibility::default() {
                interrupts.take_nmi(id);
                self.vcpu.inject(Event::Nmi)?;
                nmi = interrupts.nmi_pending(id);
            } else if interrupt && !blocked.sti && !blocked.mov_ss && self.flags()?.contains(Rflags::IF) {
                if let Some(vector) = interrupts.acknowledge(id) {
                    self.vcpu.inject(Event::Interrupt(vector))?;
                }
                interrupt = interrupts.has_interrupt(id);
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

/// What comes of a look at the machine.
enum Attended {
    /// The turn is over.
    Yield(Yield),
    /// The guest is to be entered, and looked at again at this count of the host's time-stamp counter.
    Enter { before: u64 },
}

#[cfg(test)]
mod model;
