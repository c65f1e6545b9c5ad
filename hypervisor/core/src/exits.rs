//! What each exit comes to.

use crate::adapter::{PDPTES, Registers, Wires};
use crate::backend::{BackendError, Register, Vcpu};
use crate::control::check_xcr0;
use crate::cpu::VirtualCpu;
use crate::cpuid;
use crate::end::{End, Reason};
use crate::event::{Combined, Event};
use crate::exit::{Exit, IoAccess, NestedFault};
use crate::host::Host;
use crate::msr::Refusal;
use bulkhead_arch::{Cr4, Gpr, Vector, msr};
use bulkhead_devices::layout::ram_ranges;
use bulkhead_emulate::{Hint, Outcome, Stop, StringIo};
use bulkhead_paging::guest::error;
use bulkhead_types::{Gpa, GuestMemory, Gva};

/// IA32_APIC_BASE: the local APIC is enabled.
const APIC_ENABLE: u64 = 1 << 11;
/// What a hypercall answers that is not offered, or not to this privilege level (as KVM has it: -ENOSYS is 1000).
const NO_SUCH_CALL: u64 = 1000_u64.wrapping_neg();
const NOT_PERMITTED: u64 = 1_u64.wrapping_neg();

impl<V: Vcpu, M: GuestMemory> VirtualCpu<'_, V, M> {
    /// Acts on an exit: the guest goes on, or ends.
    ///
    /// The frequent ones that take more have a function of their own, which is not inlined: no kind of exit pays for the
    /// stack and the registers that another one needs.
    #[inline]
    pub(crate) fn act(&mut self, exit: &Exit, host: &mut impl Host) -> Result<(), End> {
        match *exit {
            Exit::Timer => Ok(()),
            Exit::Host => {
                self.guest.preempt(self.id);
                Ok(())
            }
            Exit::MachineCheck => {
                host.machine_check();
                Ok(())
            }
            Exit::InterruptWindow | Exit::NmiWindow => {
                self.guest.look_again(self.id);
                Ok(())
            }
            Exit::EndOfInterrupt { vector } => {
                let (mut shared, _) = self.guest.lock_at(0);
                shared.machine.interrupts_mut().end_of_interrupt(self.id, vector);
                self.guest.release(shared, self.id, host);
                Ok(())
            }
            Exit::RegisterWritten { register, value } => self.register_written(register, value, host),
            Exit::Cpuid => self.cpuid(host),
            Exit::Io(ref access) if access.string => self.string_port(access, host),
            Exit::Io(ref access) if access.write => self.write_port(access, host),
            Exit::Io(ref access) => self.read_port(access, host),
            Exit::ReadMsr => self.rdmsr(host).or_else(|refusal| self.refuse(refusal)),
            Exit::WriteMsr => self.wrmsr(host).or_else(|refusal| self.refuse(refusal)),
            Exit::Nested(ref fault) => self.nested(fault, host),
            Exit::Halt => {
                self.halted = true;
                self.guest.look_again(self.id);
                Ok(self.vcpu.skip_instruction()?)
            }
            Exit::Hypercall => self.hypercall(),
            Exit::WriteCr { number, from } => {
                let value = self.vcpu.gpr(from)?;
                self.write_control(number, value, host)
            }
            Exit::ReadCr { number, to } => {
                let task_priority = || self.guest.lock_at(0).0.machine.interrupts().cr8(self.id).into();
                let value = if number == 4 { self.vcpu.read(Register::Cr4)? } else { task_priority() };
                self.vcpu.set_gpr(to, value)?;
                Ok(self.vcpu.skip_instruction()?)
            }
            Exit::Lmsw { value } => self.lmsw(value, host),
            Exit::Xsetbv => self.xsetbv(host),
            // Guest memory is write-back and coherent with all that the guest can reach: nothing to flush.
            Exit::CacheFlush => Ok(self.vcpu.skip_instruction()?),
            Exit::Undefined => self.raise(Vector::UD, None),
            Exit::Exception { vector, error, debug_status } => self.reflect(vector, error, debug_status),
            Exit::TripleFault => Err(End::TripleFault),
            Exit::TaskSwitch => Err(End::Killed(Reason::TaskSwitch)),
            Exit::Unexpected { reason, info } => Err(End::Killed(Reason::Exit { reason, info })),
        }
    }

    /// Makes an exception due, together with what was being delivered when it came.
    fn raise(&mut self, vector: Vector, error: Option<u32>) -> Result<(), End> {
        let event = Event::Exception { vector, error };
        let combined = match self.due.take() {
            Some(first) => first.followed_by(vector, event),
            None => Combined::Deliver(event),
        };
        match combined {
            Combined::Deliver(event) => {
                self.due = Some(event);
                Ok(())
            }
            Combined::TripleFault => Err(End::TripleFault),
        }
    }

    #[inline(never)]
    fn cpuid(&mut self, host: &impl Host) -> Result<(), End> {
        let [leaf, subleaf] = [self.vcpu.gpr(Gpr::Rax)?, self.vcpu.gpr(Gpr::Rcx)?].map(low);
        let tsc = self.guest.limits.tsc;
        let mut answer = cpuid::answer([leaf, subleaf], tsc, &self.topology, |leaf, subleaf| host.cpuid(leaf, subleaf));
        if leaf == cpuid::FEATURES {
            let osxsave = self.vcpu.read(Register::Cr4)? & Cr4::OSXSAVE.bits() != 0;
            cpuid::show_state(&mut answer, osxsave, self.apic_base & APIC_ENABLE != 0);
        }
        self.vcpu.set_gpr(Gpr::Rax, answer.eax.into())?;
        self.vcpu.set_gpr(Gpr::Rbx, answer.ebx.into())?;
        self.vcpu.set_gpr(Gpr::Rcx, answer.ecx.into())?;
        self.vcpu.set_gpr(Gpr::Rdx, answer.edx.into())?;
        Ok(self.vcpu.skip_instruction()?)
    }

    #[inline(never)]
    fn read_port(&mut self, access: &IoAccess, host: &mut impl Host) -> Result<(), End> {
        let mask = access.width.mask();
        let (mut shared, now) = self.guest.lock(host);
        let value = u64::from(shared.machine.port_read(access.port, access.width, now)) & mask;
        self.guest.release(shared, self.id, host);
        // A 32-bit result clears the upper half, a narrower one keeps the rest.
        let kept = if mask == 0xFFFF_FFFF { 0 } else { self.vcpu.gpr(Gpr::Rax)? & !mask };
        self.vcpu.set_gpr(Gpr::Rax, kept | value)?;
        Ok(self.vcpu.skip_instruction()?)
    }

    #[inline(never)]
    fn write_port(&mut self, access: &IoAccess, host: &mut impl Host) -> Result<(), End> {
        let value = low(self.vcpu.gpr(Gpr::Rax)? & access.width.mask());
        self.vcpu.skip_instruction()?;
        let (mut shared, now) = self.guest.lock(host);
        shared.machine.port_write(access.port, access.width, value, now);
        let busy = shared.drain_console(host);
        let asked = shared.take_request();
        self.guest.release(shared, self.id, host);
        if busy {
            self.guest.preempt(self.id);
        }
        asked
    }

    #[inline(never)]
    fn string_port(&mut self, access: &IoAccess, host: &mut impl Host) -> Result<(), End> {
        let IoAccess { port, width, write, repeat, segment, address_bytes, .. } = *access;
        let access = StringIo { port, width, write, repeat, segment, address_bytes };
        let (mut shared, now) = self.guest.lock(host);
        let physical_bits = self.guest.limits.address_bits;
        let mut registers = Registers { vcpu: &mut self.vcpu, physical_bits };
        let mut wires = Wires { machine: &mut shared.machine, by: self.id, now };
        let result = bulkhead_emulate::string_io(&mut registers, &mut self.memory, &mut wires, access);
        let busy = shared.drain_console(host);
        let asked = shared.take_request();
        self.guest.release(shared, self.id, host);
        if busy {
            self.guest.preempt(self.id);
        }
        self.finish(result)?;
        asked
    }

    #[inline(never)]
    fn rdmsr(&mut self, host: &impl Host) -> Result<(), Refusal> {
        let index = low(self.vcpu.gpr(Gpr::Rcx)?);
        let value = self.read_msr(index, host)?;
        self.vcpu.set_gpr(Gpr::Rax, value & 0xFFFF_FFFF)?;
        self.vcpu.set_gpr(Gpr::Rdx, value >> 32)?;
        Ok(self.vcpu.skip_instruction()?)
    }

    #[inline(never)]
    fn wrmsr(&mut self, host: &mut impl Host) -> Result<(), Refusal> {
        let [index, low, high] =
            [self.vcpu.gpr(Gpr::Rcx)?, self.vcpu.gpr(Gpr::Rax)?, self.vcpu.gpr(Gpr::Rdx)?].map(low);
        self.write_msr(index, u64::from(high) << 32 | u64::from(low), host)?;
        Ok(self.vcpu.skip_instruction()?)
    }

    /// The guest's instruction is over, so that a value that is refused has no effect.
    #[cold]
    fn register_written(&mut self, register: u8, value: u32, host: &mut impl Host) -> Result<(), End> {
        match self.write_msr(msr::X2APIC_BASE + u32::from(register), value.into(), host) {
            Err(Refusal::Backend(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    #[cold]
    fn refuse(&mut self, refusal: Refusal) -> Result<(), End> {
        match refusal {
            Refusal::Backend(error) => return Err(error.into()),
            Refusal::Unknown => self.counters.unknown_msr = self.counters.unknown_msr.wrapping_add(1),
            Refusal::Illegal => {}
        }
        // No event is being delivered at an instruction's exit.
        self.due = Some(Event::GP);
        Ok(())
    }

    #[inline(never)]
    fn hypercall(&mut self) -> Result<(), End> {
        let user = self.vcpu.privilege()? == 3;
        self.vcpu.set_gpr(Gpr::Rax, if user { NOT_PERMITTED } else { NO_SUCH_CALL })?;
        Ok(self.vcpu.skip_instruction()?)
    }

    fn xsetbv(&mut self, host: &mut impl Host) -> Result<(), End> {
        let [index, low, high] = [Gpr::Rcx, Gpr::Rax, Gpr::Rdx].map(|gpr| self.vcpu.gpr(gpr));
        let value = high? << 32 | low? & 0xFFFF_FFFF;
        match check_xcr0(value, self.guest.limits.xcr0) {
            Ok(xcr0) if index? & 0xFFFF_FFFF == 0 => {
                host.set_xcr0(xcr0.bits());
                Ok(self.vcpu.skip_instruction()?)
            }
            _ => {
                self.due = Some(Event::GP);
                Ok(())
            }
        }
    }

    fn write_control(&mut self, number: u8, value: u64, host: &mut impl Host) -> Result<(), End> {
        if number == 8 {
            return match u8::try_from(value) {
                Ok(priority @ 0..=15) => {
                    let (mut shared, _) = self.guest.lock_at(0);
                    shared.machine.interrupts_mut().set_cr8(self.id, priority);
                    self.guest.release(shared, self.id, host);
                    Ok(self.vcpu.skip_instruction()?)
                }
                _ => self.raise(Vector::GP, Some(0)),
            };
        }
        let old = self.mode()?;
        let new = match number {
            0 => old.with_cr0(value),
            _ => old.with_cr4(value, self.guest.limits.cr4),
        };
        let Ok(new) = new else { return self.raise(Vector::GP, Some(0)) };
        if new.loads_pdptes(&old) && self.vcpu.caches_pdptes() && !self.load_pdptes(new.cr3)? {
            return self.raise(Vector::GP, Some(0));
        }
        if number == 0 {
            self.vcpu.write(Register::Cr0, new.cr0.bits())?;
            self.vcpu.write(Register::Efer, new.efer.bits())?;
        } else {
            self.vcpu.write(Register::Cr4, new.cr4.bits())?;
        }
        Ok(self.vcpu.skip_instruction()?)
    }

    /// Loads the four page-directory-pointer entries; `false` if one is malformed. SDM vol. 3A 4.4.1 "PDPTE Registers".
    fn load_pdptes(&mut self, cr3: u64) -> Result<bool, BackendError> {
        const RESERVED: u64 = 0x1E6;
        let table = Gpa::new(cr3 & 0xFFFF_FFE0);
        let beyond = !((1_u64 << self.guest.limits.address_bits) - 1);
        for (register, offset) in PDPTES.into_iter().zip((0..32).step_by(8)) {
            // Outside RAM a read is all ones, which is malformed.
            let entry = self.memory.read_u64(table.wrapping_add(offset)).unwrap_or(u64::MAX);
            if entry & 1 != 0 && entry & (RESERVED | beyond) != 0 {
                return Ok(false);
            }
            self.vcpu.write(register, entry)?;
        }
        Ok(true)
    }

    /// Gives back an exception that was intercepted so that it can not recur without end inside one instruction.
    fn reflect(&mut self, vector: Vector, error: Option<u32>, debug_status: u64) -> Result<(), End> {
        if vector == Vector::DB {
            // The processor leaves DR6 and DR7.GD to whoever intercepts. SDM vol. 3C 28.1 "Architectural State before a
            // VM Exit".
            const CAUSES: u64 = 0xE00F;
            let status = self.vcpu.read(Register::Dr6)? & !0xF | debug_status & CAUSES;
            self.vcpu.write(Register::Dr6, status)?;
            let control = self.vcpu.read(Register::Dr7)?;
            self.vcpu.write(Register::Dr7, control & !(1 << 13))?;
        }
        self.raise(vector, error)
    }

    #[cold]
    fn lmsw(&mut self, value: Option<u16>, host: &mut impl Host) -> Result<(), End> {
        let value = match value {
            Some(value) => value.into(),
            None => {
                let (mut shared, now) = self.guest.lock(host);
                let physical_bits = self.guest.limits.address_bits;
                let mut registers = Registers { vcpu: &mut self.vcpu, physical_bits };
                let mut wires = Wires { machine: &mut shared.machine, by: self.id, now };
                let source = bulkhead_emulate::source(&mut registers, &mut self.memory, &mut wires);
                self.guest.release(shared, self.id, host);
                match source {
                    Ok(Some(value)) => value,
                    Ok(None) => return Ok(()),
                    Err(stop) => return self.finish(Err(stop)),
                }
            }
        };
        // LMSW sets PE but does not clear it (SDM vol. 2A "LMSW").
        let old = self.vcpu.read(Register::Cr0)?;
        self.write_control(0, (old & !0xE) | value & 0xF, host)
    }

    #[inline(never)]
    fn nested(&mut self, fault: &NestedFault, host: &mut impl Host) -> Result<(), End> {
        if fault.malformed {
            return Err(End::Killed(Reason::NestedTables));
        }
        if self.is_ram(fault.gpa) {
            // What was being delivered is delivered again.
            return if host.populate(fault.gpa) { Ok(()) } else { Err(End::Killed(Reason::NestedTables)) };
        }
        if fault.table_walk {
            return self.walk_leaves_ram(fault);
        }
        if fault.execute {
            // Nothing answers a fetch: all ones, which no processor knows as an instruction.
            return self.raise(Vector::UD, None);
        }
        if self.due.is_some() {
            return Err(End::Killed(Reason::Delivery));
        }
        self.emulate(fault, host)
    }

    /// Carries out the instruction that touched a device.
    #[inline(never)]
    fn emulate(&mut self, fault: &NestedFault, host: &mut impl Host) -> Result<(), End> {
        let hint = fault.gva.map(|gva| Hint { gva, gpa: fault.gpa, write: fault.write });
        let (mut shared, now) = self.guest.lock(host);
        let physical_bits = self.guest.limits.address_bits;
        let mut registers = Registers { vcpu: &mut self.vcpu, physical_bits };
        let mut wires = Wires { machine: &mut shared.machine, by: self.id, now };
        let result = bulkhead_emulate::mmio(&mut registers, &mut self.memory, &mut wires, hint, &mut self.decoded);
        self.guest.release(shared, self.id, host);
        self.counters.emulated = self.counters.emulated.wrapping_add(1);
        self.finish(result)
    }

    /// The guest's page tables lead outside its RAM, where all entries read as ones: a reserved bit is set.
    #[cold]
    fn walk_leaves_ram(&mut self, fault: &NestedFault) -> Result<(), End> {
        let user = self.vcpu.privilege()? == 3;
        let mut code = error::PRESENT | error::RESERVED;
        for (holds, bit) in [(fault.write, error::WRITE), (fault.execute, error::FETCH), (user, error::USER)] {
            code |= if holds { bit } else { 0 };
        }
        self.vcpu.write(Register::Cr2, fault.gva.unwrap_or(Gva::new(0)).as_u64())?;
        self.raise(Vector::PF, Some(code))
    }

    fn is_ram(&self, gpa: Gpa) -> bool {
        ram_ranges(self.guest.limits.memory)
            .iter()
            .any(|range| gpa.as_u64().checked_sub(range.start.as_u64()).is_some_and(|offset| offset < range.bytes))
    }

    /// What becomes of an emulated instruction.
    fn finish(&mut self, result: Result<Outcome, Stop<BackendError>>) -> Result<(), End> {
        match result {
            Ok(Outcome::Done { length: 0 }) => Ok(self.vcpu.skip_instruction()?),
            Ok(Outcome::Done { length }) => Ok(self.vcpu.skip_bytes(length)?),
            Ok(Outcome::Again) => Ok(()),
            Err(Stop::Exception { vector, error, cr2 }) => {
                if let Some(address) = cr2 {
                    self.vcpu.write(Register::Cr2, address.as_u64())?;
                }
                self.raise(vector, Some(error))
            }
            // A user program of the guest's must not be able to end it.
            Err(Stop::Unsupported { .. }) if self.vcpu.privilege()? == 3 => self.raise(Vector::UD, None),
            Err(Stop::Unsupported { bytes, length }) => Err(End::Killed(Reason::Instruction { bytes, length })),
            Err(Stop::Unreachable { .. }) => Err(End::Killed(Reason::Delivery)),
            Err(Stop::Cpu(error)) => Err(error.into()),
        }
    }
}

/// The low half of a register.
const fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
