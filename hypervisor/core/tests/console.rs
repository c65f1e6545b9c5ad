//! A guest whose console is not taken from it as fast as it writes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(dead_code, reason = "what is in common is not all used here")]

mod common;

use bulkhead_core::host::CpuidResult;
use bulkhead_core::{Guest, Host, Limits, VirtualCpu, Yield};
use bulkhead_devices::machine::MachineConfig;
use bulkhead_types::{Frequency, Gpa, VcpuId};
use common::{FakeVcpu, HZ, NoMemory, POWER_ON, SLICE, Step};
use std::cell::Cell;
use std::rc::Rc;

const DATA: u16 = 0x3F8;
const STATUS: u16 = 0x3FD;

/// A host that has room for so many bytes.
struct Narrow {
    clock: Rc<Cell<u64>>,
    room: usize,
    taken: Vec<u8>,
}

impl Host for Narrow {
    fn tsc(&self) -> u64 {
        self.clock.get()
    }
    fn waited(&self) -> u64 {
        0
    }
    fn cpuid(&self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn console(&mut self, byte: u8) -> bool {
        let room = self.taken.len() < self.room;
        if room {
            self.taken.push(byte);
        }
        room
    }
    fn console_input(&mut self) -> Option<u8> {
        None
    }
    fn machine_check(&mut self) {}
    fn set_xcr0(&mut self, _: u64) {}
    fn clear_debug_addresses(&mut self) {}
    fn populate(&mut self, _: Gpa) -> bool {
        false
    }
    fn kick(&mut self, _: VcpuId) -> bool {
        false
    }
}

#[test]
fn a_full_console_ends_the_turn_once_and_what_is_written_on_is_lost() {
    let mut host = Narrow { clock: Rc::new(Cell::new(POWER_ON)), room: 100, taken: Vec::new() };
    let (tsc, memory) = (Frequency::hertz(HZ), 16 << 20);
    let config = MachineConfig { tsc, memory, wall_clock: 0, cpus: 1, test_exit: false, test_device: false };
    let guest = Guest::new(&config, Limits::of(&host, tsc, memory), POWER_ON);
    let bytes = (0..=u8::MAX).cycle().map(|byte| Step::Out(DATA, byte));
    let script = bytes.take(500).chain([Step::In(STATUS)]);
    let vcpu = FakeVcpu::new(&host.clock, script);
    let mut cpu = VirtualCpu::new(&guest, VcpuId::BOOT, vcpu, NoMemory).unwrap();
    let clock = Rc::clone(&host.clock);
    let turn = |host: &mut Narrow, cpu: &mut VirtualCpu<'_, FakeVcpu, NoMemory>| {
        let until = clock.get() + SLICE;
        assert_eq!(cpu.run(host, until), Yield::TurnOver);
        clock.get() >= until
    };
    assert!(!turn(&mut host, &mut cpu), "the host is to make room at once");
    assert_eq!((host.taken.len(), guest.console_lost()), (100, 0));
    assert_eq!(cpu.vcpu.entries, 100 + 241, "the transmitter has room for less than its FIFO");
    assert!(turn(&mut host, &mut cpu), "there is no room: the guest has its turn all the same");
    assert_eq!((host.taken.len(), guest.console_lost()), (100, 500 - 100 - 256));
    assert_eq!(cpu.vcpu.values, [0], "busy");
    host.room = usize::MAX;
    turn(&mut host, &mut cpu);
    let want: Vec<u8> = (0..=u8::MAX).cycle().take(100 + 256).collect();
    assert_eq!(host.taken, want, "what was taken is whole");
}

#[test]
fn a_transmitter_that_has_room_again_says_so() {
    let mut host = Narrow { clock: Rc::new(Cell::new(POWER_ON)), room: 0, taken: Vec::new() };
    let (tsc, memory) = (Frequency::hertz(HZ), 16 << 20);
    let config = MachineConfig { tsc, memory, wall_clock: 0, cpus: 1, test_exit: false, test_device: false };
    let guest = Guest::new(&config, Limits::of(&host, tsc, memory), POWER_ON);
    let script = (0..241).map(|_| Step::Out(DATA, b'x')).chain([Step::In(STATUS), Step::Host, Step::In(STATUS)]);
    let vcpu = FakeVcpu::new(&host.clock, script);
    let mut cpu = VirtualCpu::new(&guest, VcpuId::BOOT, vcpu, NoMemory).unwrap();
    for room in [0, 0, 250] {
        host.room = room;
        cpu.run(&mut host, POWER_ON + SLICE);
    }
    assert_eq!((cpu.vcpu.values.as_slice(), host.taken.len(), guest.console_lost()), ([0, 0x60].as_slice(), 241, 0));
}
