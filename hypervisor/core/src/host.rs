//! What policy needs of the host, beside a vCPU: time, CPUID, a console, memory on demand.

use bulkhead_types::{Gpa, VcpuId};

/// CPUID's four results.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The host as the run loop of one vCPU sees it.
pub trait Host {
    /// The host's time-stamp counter, in ticks.
    fn tsc(&self) -> u64;

    /// In how many of these ticks the vCPU could have run and had no processor, since it was made and up to its turn's begin.
    fn waited(&self) -> u64;

    /// What the processor itself answers to CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;

    /// Takes a byte of the guest's console. `false`: it has no room, and may have some at the guest's next turn. One vCPU of
    /// a guest does so at a time; the same holds for input.
    fn console(&mut self, byte: u8) -> bool;

    /// A byte for the guest's console, if one has come in.
    fn console_input(&mut self) -> Option<u8>;

    /// Handles the machine check that ended an entry, as if it had come outside.
    fn machine_check(&mut self);

    /// Sets XCR0 for the guest; the value has been checked.
    fn set_xcr0(&mut self, value: u64);

    /// Sets DR0 to DR3 of the vCPU, whose turn it is, to 0.
    fn clear_debug_addresses(&mut self);

    /// Gives the guest the page of its RAM at `gpa`, if it was left unmapped until first touched. `false` if it was
    /// mapped already, or can not be.
    fn populate(&mut self, gpa: Gpa) -> bool;

    /// Has another vCPU of the guest look at its machine soon: interrupts it if it runs, wakes it if it waits. What it is
    /// to find there is there already, see [`crate::guest`]. Whether the turn of this vCPU must end for that.
    fn kick(&mut self, vcpu: VcpuId) -> bool;
}
