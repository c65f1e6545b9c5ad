//! Model-specific registers: an allow-list. What is not on it is #GP in the guest, and a counter.

use crate::backend::{BackendError, Register, Vcpu};
use crate::control::check_pat;
use crate::cpu::VirtualCpu;
use crate::host::Host;
use crate::pvclock;
use bulkhead_arch::msr;
use bulkhead_devices::interrupt::InvalidMsr;
use bulkhead_types::{Gpa, GuestMemory, Ticks};

/// What the guest reads and writes without an exit: the processor, or the backend at a switch, keeps each guest's apart.
const DIRECT: [u32; 10] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::FMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
];
/// IA32_MISC_ENABLE: fast strings; no branch trace store, no event sampling.
const MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12;
/// HWCR: the time-stamp counter runs at the rate of P0. Kernels take its absence for a mistake of the firmware.
const HWCR_VALUE: u64 = 1 << 24;
/// What kernels set there against errata: CD on WBINVD, no filter of flushes, FERR emulation. Nothing comes of it.
const HWCR_DROPPED: u64 = 1 << 3 | 1 << 6 | 1 << 8;
const PLATFORM_ID: u32 = 0x17;
/// Microcode revision that is reported: some.
const MICROCODE: u64 = 1 << 32;

/// What a register access comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The register exists, but not with this value or this access: #GP.
    Illegal,
    /// There is no such register: #GP, and counted.
    Unknown,
    /// The processor refused.
    Backend(BackendError),
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<InvalidMsr> for Refusal {
    fn from(_: InvalidMsr) -> Self {
        Self::Illegal
    }
}

const fn is_x2apic_msr(index: u32) -> bool {
    matches!(index, msr::X2APIC_BASE..=msr::X2APIC_END)
}

impl<V: Vcpu, M: GuestMemory> VirtualCpu<'_, V, M> {
    /// Opens the registers that need no exit.
    pub(crate) fn allow_direct_msrs(&mut self) {
        for index in DIRECT {
            self.vcpu.allow_msr(index, true);
        }
        if self.guest.limits.rdtscp {
            self.vcpu.allow_msr(msr::TSC_AUX, true);
        }
        // Read with the offset added by the processor; written by us.
        self.vcpu.allow_msr(msr::TSC, false);
    }

    /// RDMSR.
    pub(crate) fn read_msr(&mut self, index: u32, host: &impl Host) -> Result<u64, Refusal> {
        match index {
            msr::APIC_BASE => Ok(self.apic_base),
            index if is_x2apic_msr(index) => self.read_interrupt_msr(index, host),
            msr::TSC_DEADLINE => {
                let deadline = self.read_interrupt_msr(index, host)?;
                Ok(if deadline == 0 { 0 } else { deadline.wrapping_add(self.tsc_adjust) })
            }
            msr::TSC => Ok(self.guest.time(host.tsc()).as_u64().wrapping_add(self.tsc_adjust)),
            msr::TSC_ADJUST => Ok(self.tsc_adjust),
            msr::EFER => Ok(self.vcpu.read(Register::Efer)?),
            msr::PAT => Ok(self.vcpu.read(Register::Pat)?),
            // Machine checks without banks, no debug features, one microcode.
            msr::MCG_CAP | msr::MCG_STATUS | msr::DEBUGCTL | PLATFORM_ID => Ok(0),
            MISC_ENABLE => Ok(MISC_ENABLE_VALUE),
            msr::BIOS_SIGN_ID => Ok(MICROCODE),
            msr::SYSCFG | msr::INT_PENDING | msr::PERF_EVENT_SELECT0..=msr::PERF_COUNTER3
                if self.guest.limits.configuration =>
            {
                Ok(0)
            }
            msr::HWCR if self.guest.limits.configuration => Ok(HWCR_VALUE),
            pvclock::SYSTEM_TIME => Ok(self.clock),
            pvclock::WALL_CLOCK => Ok(0),
            pvclock::STEAL_TIME => Ok(self.stolen.register()),
            _ => self.mtrrs.read(index).ok_or(Refusal::Unknown),
        }
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64, host: &mut impl Host) -> Result<(), Refusal> {
        match index {
            // SDM vol. 3A 11.4.4 "Local APIC Status and Location": no more address bits than the processor has.
            msr::APIC_BASE if value >> self.guest.limits.address_bits != 0 => Err(Refusal::Illegal),
            msr::APIC_BASE => {
                self.write_interrupt_msr(index, host, |_| value)?;
                self.apic_base = value;
                Ok(())
            }
            index if is_x2apic_msr(index) => self.write_interrupt_msr(index, host, |_| value),
            msr::TSC_DEADLINE => {
                let ahead = self.tsc_adjust;
                // Zero disarms; a deadline that has passed fires at once, also one before the machine's first tick.
                let deadline = |now| if value == 0 { 0 } else { machine_time(value, ahead, now).as_u64().max(1) };
                self.write_interrupt_msr(index, host, deadline)
            }
            msr::TSC => self.set_tsc_adjust(value.wrapping_sub(self.guest.time(host.tsc()).as_u64()), host),
            msr::TSC_ADJUST => self.set_tsc_adjust(value, host),
            msr::EFER => {
                let mode = self.mode()?.with_efer(value).map_err(|_| Refusal::Illegal)?;
                Ok(self.vcpu.write(Register::Efer, mode.efer.bits())?)
            }
            msr::PAT => {
                check_pat(value).map_err(|_| Refusal::Illegal)?;
                Ok(self.vcpu.write(Register::Pat, value)?)
            }
            msr::MCG_STATUS | msr::DEBUGCTL if value == 0 => Ok(()),
            // Writing the revision register selects it for reading (SDM vol. 3A 10.11.7); other bits have no effect.
            msr::BIOS_SIGN_ID => Ok(()),
            MISC_ENABLE if value == MISC_ENABLE_VALUE => Ok(()),
            msr::SYSCFG | msr::INT_PENDING | msr::PERF_EVENT_SELECT0..=msr::PERF_COUNTER3
                if self.guest.limits.configuration && value == 0 =>
            {
                Ok(())
            }
            msr::HWCR if self.guest.limits.configuration && value & !HWCR_DROPPED == HWCR_VALUE => Ok(()),
            pvclock::SYSTEM_TIME => self.set_clock(value),
            pvclock::WALL_CLOCK => {
                let seconds = self.guest.wall_clock;
                let written = pvclock::write_wall_clock(&mut self.memory, Gpa::new(value), seconds);
                written.map_err(|_| Refusal::Illegal)
            }
            pvclock::STEAL_TIME => {
                let set = self.stolen.set(&mut self.memory, value, host.waited(), self.guest.limits.tsc);
                set.ok_or(Refusal::Illegal)
            }
            msr::SYSCFG | msr::INT_PENDING | msr::HWCR | msr::PERF_EVENT_SELECT0..=msr::PERF_COUNTER3
                if self.guest.limits.configuration =>
            {
                Err(Refusal::Illegal)
            }
            msr::MCG_CAP | msr::MCG_STATUS | msr::DEBUGCTL | MISC_ENABLE => Err(Refusal::Illegal),
            _ if self.mtrrs.read(index).is_some() => {
                self.mtrrs.write(index, value, self.guest.limits.address_bits).ok_or(Refusal::Illegal)
            }
            _ => Err(Refusal::Unknown),
        }
    }

    /// Reads a register of the vCPU's local APIC.
    fn read_interrupt_msr(&self, index: u32, host: &impl Host) -> Result<u64, Refusal> {
        let (mut shared, now) = self.guest.lock(host);
        Ok(shared.machine.read_interrupt_msr(self.id, index, now)?)
    }

    /// Writes a register of the vCPU's local APIC, by what time it is.
    fn write_interrupt_msr(
        &self,
        index: u32,
        host: &mut impl Host,
        value: impl Fn(Ticks) -> u64,
    ) -> Result<(), Refusal> {
        let (mut shared, now) = self.guest.lock(host);
        let written = shared.machine.interrupts_mut().msr_write(self.id, index, value(now), now);
        self.guest.release(shared, self.id, host);
        Ok(written?)
    }

    /// Tells the guest how its time-stamp counter becomes time, at the address in `value` if bit 0 is set.
    fn set_clock(&mut self, value: u64) -> Result<(), Refusal> {
        const ON: u64 = 1;
        if value & ON != 0 {
            let (count, tsc) = (self.tsc_adjust, self.guest.limits.tsc);
            let written = pvclock::write_system_time(&mut self.memory, Gpa::new(value & !ON), count, tsc);
            written.map_err(|_| Refusal::Illegal)?;
        }
        self.clock = value;
        Ok(())
    }

    /// Sets what the vCPU's time-stamp counter is ahead. A deadline that is armed stays as it was written, and so comes
    /// at another time.
    fn set_tsc_adjust(&mut self, value: u64, host: &mut impl Host) -> Result<(), Refusal> {
        let armed = self.read_msr(msr::TSC_DEADLINE, host)?;
        self.tsc_adjust = value;
        self.apply_tsc_offset()?;
        self.set_clock(self.clock)?;
        if armed == 0 { Ok(()) } else { self.write_msr(msr::TSC_DEADLINE, armed, host) }
    }
}

/// The machine's time at which a time-stamp counter that is `ahead` of it reaches `tsc`, `now` at the earliest: an
/// unsigned comparison, as the processor makes it.
const fn machine_time(tsc: u64, ahead: u64, now: Ticks) -> Ticks {
    now.after(tsc.saturating_sub(now.as_u64().wrapping_add(ahead)))
}
