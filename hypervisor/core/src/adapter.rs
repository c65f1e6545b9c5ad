//! The emulator's view of a vCPU and of the devices.

use crate::backend::{BackendError, Register, Vcpu};
use bulkhead_arch::{Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentName};
use bulkhead_devices::machine::Machine;
use bulkhead_emulate::{Bus, Cpu};
use bulkhead_paging::guest::PagingState;
use bulkhead_types::{Gpa, Ticks, VcpuId, Width};

/// The entries that PAE paging caches.
pub(crate) const PDPTES: [Register; 4] = [Register::Pdpte0, Register::Pdpte1, Register::Pdpte2, Register::Pdpte3];

/// A vCPU's registers.
pub(crate) struct Registers<'a, V> {
    pub(crate) vcpu: &'a mut V,
    pub(crate) physical_bits: u32,
}

impl<V: Vcpu> Cpu for Registers<'_, V> {
    type Error = BackendError;

    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        self.vcpu.gpr(gpr)
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), BackendError> {
        self.vcpu.set_gpr(gpr, value)
    }

    fn rip(&self) -> Result<u64, BackendError> {
        self.vcpu.read(Register::Rip)
    }

    fn set_rflags(&mut self, value: u64) -> Result<(), BackendError> {
        self.vcpu.write(Register::Rflags, value)
    }

    fn segment(&self, name: SegmentName) -> Result<Segment, BackendError> {
        self.vcpu.segment(name)
    }

    fn paging(&self) -> Result<PagingState, BackendError> {
        paging_state(self.vcpu, self.physical_bits)
    }
}

/// The state that a page walk of the guest's goes by.
///
/// # Errors
/// If the processor refuses to read a register.
pub fn paging_state<V: Vcpu>(vcpu: &V, physical_bits: u32) -> Result<PagingState, BackendError> {
    let cr4 = Cr4::from_bits_truncate(vcpu.read(Register::Cr4)?);
    let efer = Efer::from_bits_truncate(vcpu.read(Register::Efer)?);
    let mut pdptes = [0; 4];
    if cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA) {
        for (entry, register) in pdptes.iter_mut().zip(PDPTES) {
            *entry = vcpu.read(register)?;
        }
    }
    Ok(PagingState {
        cr0: Cr0::from_bits_truncate(vcpu.read(Register::Cr0)?),
        cr3: vcpu.read(Register::Cr3)?,
        cr4,
        efer,
        rflags: Rflags::from_bits_retain(vcpu.read(Register::Rflags)?),
        pdptes,
        cpl: vcpu.privilege()?,
        physical_bits: u8::try_from(physical_bits).unwrap_or(52),
    })
}

/// A machine's devices at one moment, as one vCPU reaches them.
pub(crate) struct Wires<'a> {
    pub(crate) machine: &'a mut Machine,
    pub(crate) by: VcpuId,
    pub(crate) now: Ticks,
}

impl Bus for Wires<'_> {
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.machine.mmio_read(self.by, gpa, width, self.now)
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        self.machine.mmio_write(self.by, gpa, width, value, self.now);
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.machine.port_read(port, width, self.now)
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.machine.port_write(port, width, value, self.now);
    }
}
