//! The n-th thing that the run loop asks of the processor or of the host's memory fails, for every n: the guest ends, and
//! the next guest does not notice.
//!
//! The guest is the real [`Guest`] on the VT-x backend; its exits are one of each kind that the loop goes on from.

use crate::faults::{Faults, How};
use crate::vmx::Vmx;
use bulkhead_conformance::bench::Bench;
use bulkhead_core::host::CpuidResult;
use bulkhead_core::{End, Guest, Host, Limits, Reason, Vcpu, VirtualCpu, Yield};
use bulkhead_devices::machine::MachineConfig;
use bulkhead_types::{Frequency, Gpa, GuestMemory, MemoryError, VcpuId};
use bulkhead_vmx::fields as field;
use std::cell::Cell;

const VALID: u64 = 1 << 31;
/// A read of memory, at a linear address.
const READ: u64 = 1 | 1 << 7 | 1 << 8;

/// Exits as the processor reports them: reason, qualification, interruption, and the event whose delivery ended.
const EXITS: [[u64; 4]; 15] = [
    // CPUID, RDMSR and WRMSR of a register that is not there, XSETBV, WBINVD, MONITOR.
    [10, 0, 0, 0],
    [31, 0, 0, 0],
    [32, 0, 0, 0],
    [55, 0, 0, 0],
    [54, 0, 0, 0],
    [39, 0, 0, 0],
    // OUT and IN.
    [30, 0x3F8 << 16, 0, 0],
    [30, 0x71 << 16 | 1 << 3, 0, 0],
    // MOV to CR4 and CR8.
    [28, 4, 0, 0],
    [28, 8, 0, 0],
    // Memory that is not there yet; again, while an interrupt and then an NMI is delivered.
    [48, READ, 0, 0],
    [48, READ, 0, VALID | 0x20],
    [48, READ, 0, VALID | 2 << 8 | 2],
    // #DB.
    [0, 1, VALID | 3 << 8 | 1, 0],
    // The timer.
    [52, 0, 0, 0],
];
const TRIPLE_FAULT: [u64; 4] = [2, 0, 0, 0];

#[derive(Debug)]
struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { gpa, bytes: into.len() })
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { gpa, bytes: from.len() })
    }
    fn zero(&mut self, gpa: Gpa, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError { gpa, bytes: 0 })
    }
}

/// A host whose memory ends.
struct Scarce {
    clock: Cell<u64>,
    /// Pages that can still be given.
    pages: usize,
}

impl Host for Scarce {
    fn tsc(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
    fn waited(&self) -> u64 {
        0
    }
    fn cpuid(&self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn console(&mut self, _: u8) -> bool {
        true
    }
    fn console_input(&mut self) -> Option<u8> {
        None
    }
    fn machine_check(&mut self) {}
    fn set_xcr0(&mut self, _: u64) {}
    fn clear_debug_addresses(&mut self) {}
    fn populate(&mut self, _: Gpa) -> bool {
        let left = self.pages.checked_sub(1);
        self.pages = left.unwrap_or(0);
        left.is_some()
    }
    fn kick(&mut self, _: VcpuId) -> bool {
        false
    }
}

/// How the guest ends with these faults and so many pages.
fn end(faults: &Faults, pages: usize) -> End {
    let mut bench = Vmx::default();
    bench.faults = faults.clone();
    let mut host = Scarce { clock: Cell::new(0), pages };
    let mut vcpu = bench.vcpu().unwrap();
    for [reason, qualification, interruption, vectoring] in EXITS.into_iter().chain([TRIPLE_FAULT]) {
        vcpu.processor().processor.script_exit(&[
            (field::EXIT_REASON.encoding(), reason),
            (field::EXIT_QUALIFICATION.encoding(), qualification),
            (field::EXIT_INTERRUPTION.encoding(), interruption),
            (field::IDT_VECTORING.encoding(), vectoring),
            (field::EXIT_INSTRUCTION_LENGTH.encoding(), 2),
            (field::GUEST_PHYSICAL_ADDRESS.encoding(), 0x2000),
        ]);
    }
    let (tsc, memory) = (Frequency::hertz(1_000_000), 1 << 20);
    let config = MachineConfig { tsc, memory, wall_clock: 0, cpus: 1, test_exit: false, test_device: false };
    let limits = Limits::of(&host, tsc, memory);
    if let Err(error) = vcpu.activate() {
        return End::Killed(Reason::Backend(error));
    }
    let guest = Guest::new(&config, limits, 0);
    let mut cpu = match VirtualCpu::new(&guest, VcpuId::BOOT, vcpu, NoMemory) {
        Ok(cpu) => cpu,
        Err(error) => return End::Killed(Reason::Backend(error)),
    };
    match cpu.run(&mut host, 1 << 30) {
        Yield::Ended(end) => end,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guest_ends_at_every_fault_and_the_next_one_does_not_notice() {
    for how in [How::Valid, How::Invalid] {
        // Those of the making of a vCPU are asked by the rules.
        let made = (0..).find(|&number| made(number, how)).unwrap();
        let mut number = made;
        loop {
            let faults = Faults::default();
            faults.set(Some(number), how);
            let end = end(&faults, 3);
            if !faults.fired() {
                assert_eq!(end, End::TripleFault, "whole");
                break;
            }
            assert!(matches!(end, End::Killed(Reason::Backend(_))), "fault {number} ({how:?}): {end:?}");
            assert_eq!(self::end(&Faults::default(), 3), End::TripleFault, "the next guest");
            number += 1;
        }
        println!("{how:?}: {} faults end the guest", number - made);
        assert!(number - made > EXITS.len(), "each exit has at least one");
    }
}

/// Whether a vCPU can be made if this one fails.
fn made(number: usize, how: How) -> bool {
    let mut bench = Vmx::default();
    bench.faults.set(Some(number), how);
    bench.vcpu().is_ok()
}

#[test]
fn the_guest_ends_when_there_is_no_memory() {
    for pages in 0..3 {
        assert_eq!(end(&Faults::default(), pages), End::Killed(Reason::NestedTables), "{pages} pages");
        assert_eq!(end(&Faults::default(), 3), End::TripleFault, "the next guest");
    }
}
