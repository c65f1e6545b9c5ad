//! The emulator's view of a vCPU and of the devices.

use crate::backend::{BackendError, Register, Vcpu};
use crate::exits::paging_state;
use bulkhead_arch::{Gpr, Segment, SegmentName};
use bulkhead_devices::machine::Machine;
use bulkhead_emulate::{Bus, Cpu};
use bulkhead_paging::guest::PagingState;
use bulkhead_types::{Gpa, Ticks, Width};

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

/// A machine's devices at one moment.
pub(crate) struct Wires<'a> {
    pub(crate) machine: &'a mut Machine,
    pub(crate) now: Ticks,
}

impl Bus for Wires<'_> {
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.machine.mmio_read(gpa, width, self.now)
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        self.machine.mmio_write(gpa, width, value, self.now);
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.machine.port_read(port, width, self.now)
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.machine.port_write(port, width, value, self.now);
    }
}
