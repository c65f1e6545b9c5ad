//! Two vCPUs of one guest: start, interrupts from one to the other, waking, the end.
//!
//! The host here does what a kernel does: it notes whether a vCPU waits, ends that when it is kicked, and does not let it
//! wait if it is called.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(dead_code, reason = "what is in common is not all used here")]

mod common;

use bulkhead_arch::msr;
use bulkhead_core::host::CpuidResult;
use bulkhead_core::{End, Event, Guest, Host, Limits, VirtualCpu, Yield};
use bulkhead_devices::machine::MachineConfig;
use bulkhead_types::{Frequency, Gpa, VcpuId};
use common::{FakeVcpu, HZ, LVT_TIMER, NoMemory, POWER_ON, SLICE, Step};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const ICR: u32 = 0x830;
const SVR: u32 = 0x80F;
const OTHER: u64 = 1 << 32;
const INIT: u64 = 5 << 8;
const STARTUP: u64 = 6 << 8 | 0x9A;
const SEND: Step = Step::Write(ICR, OTHER | 0x51);

/// The host of both: a clock, who was kicked, and how often the debug addresses were cleared.
#[derive(Clone, Default)]
struct Both {
    clock: Rc<Cell<u64>>,
    kicked: Rc<RefCell<Vec<u8>>>,
    cleared: Rc<Cell<u32>>,
}

impl Host for Both {
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
    fn clear_debug_addresses(&mut self) {
        self.cleared.set(self.cleared.get() + 1);
    }
    fn populate(&mut self, _: Gpa) -> bool {
        false
    }
    fn kick(&mut self, vcpu: VcpuId) -> bool {
        self.kicked.borrow_mut().push(vcpu.number());
        false
    }
}

impl Both {
    fn kicks(&self) -> Vec<u8> {
        self.kicked.take()
    }

    fn turn(&mut self, cpu: &mut VirtualCpu<'_, FakeVcpu, NoMemory>) -> Yield {
        let until = self.clock.get() + SLICE;
        cpu.run(self, until)
    }
}

/// What `f` makes of two vCPUs, in x2APIC mode once they run. The first one starts the second one with its first turn,
/// then follows `scripts[0]`; the other follows `scripts[1]` when it is started.
fn with(scripts: [&[Step]; 2], f: impl FnOnce(&mut Both, &mut [VirtualCpu<'_, FakeVcpu, NoMemory>; 2])) {
    let mut host = Both::default();
    host.clock.set(POWER_ON);
    let (tsc, memory) = (Frequency::hertz(HZ), 16 << 20);
    let config = MachineConfig { tsc, memory, wall_clock: 0, cpus: 2, test_exit: false, test_device: false };
    let guest = Guest::new(&config, Limits::of(&host, tsc, memory), POWER_ON);
    let open = |base| [Step::Write(msr::APIC_BASE, base), Step::Write(SVR, 0x1FF), Step::Interrupts(true)];
    let start = [Step::Write(ICR, OTHER | INIT), Step::Write(ICR, OTHER | STARTUP), Step::Host];
    let scripts = [
        [open(0xFEE0_0D00).as_slice(), &start, scripts[0]].concat(),
        [open(0xFEE0_0C00).as_slice(), scripts[1]].concat(),
    ];
    let cpu = |number: u8| {
        let vcpu = FakeVcpu::new(&host.clock, scripts[usize::from(number)].iter().copied());
        VirtualCpu::new(&guest, VcpuId::new(number).unwrap(), vcpu, NoMemory).unwrap()
    };
    let mut cpus = [cpu(0), cpu(1)];
    f(&mut host, &mut cpus);
}

#[test]
fn a_processor_waits_for_its_start_and_begins_where_it_is_told() {
    with([&[], &[]], |host, cpus| {
        assert_eq!(host.turn(&mut cpus[1]), Yield::Waiting { until: None });
        assert!(!cpus[1].guest.is_called(cpus[1].id));
        assert_eq!(cpus[1].vcpu.entries, 0, "it executes nothing");
        assert_eq!(host.turn(&mut cpus[0]), Yield::TurnOver);
        assert_eq!(host.cleared.get(), 0, "INIT is not taken yet");
        assert_eq!(host.kicks(), [1], "once: it has not looked between INIT and start-up");
        assert_eq!(host.turn(&mut cpus[1]), Yield::TurnOver);
        let (code, rip) = cpus[1].vcpu.start.unwrap();
        assert_eq!(host.cleared.get(), 1);
        assert_eq!((code.selector, code.base, code.limit, rip), (0x9A00, 0x9_A000, 0xFFFF, 0));
        assert!(cpus[1].vcpu.entries > 0);
    });
}

#[test]
fn an_interrupt_wakes_the_other() {
    with([&[SEND, Step::Host], &[Step::Halt]], |host, cpus| {
        host.turn(&mut cpus[0]);
        assert_eq!(host.turn(&mut cpus[1]), Yield::Waiting { until: None });
        host.kicks();
        host.turn(&mut cpus[0]);
        assert_eq!(host.kicks(), [1]);
        assert!(cpus[0].guest.is_called(cpus[1].id));
        host.turn(&mut cpus[1]);
        let events: Vec<_> = cpus[1].vcpu.delivered.iter().map(|&(_, event)| event).collect();
        assert_eq!(events, [Event::Interrupt(0x51)]);
        assert!(cpus[0].vcpu.delivered.is_empty());
    });
}

#[test]
fn the_end_of_the_guest_is_that_of_each() {
    with([&[Step::Write(ICR, INIT | 1 << 18)], &[Step::Halt]], |host, cpus| {
        host.turn(&mut cpus[0]);
        assert_eq!(host.turn(&mut cpus[1]), Yield::Waiting { until: None });
        host.kicks();
        assert_eq!(host.turn(&mut cpus[0]), Yield::Ended(End::Reset));
        assert_eq!(host.kicks(), [1]);
        assert_eq!(host.turn(&mut cpus[1]), Yield::Ended(End::Reset));
    });
}

#[test]
fn each_minds_its_own_timer() {
    let arm = [Step::Write(LVT_TIMER, 2 << 17 | 0x41), Step::Write(msr::TSC_DEADLINE, HZ), Step::Halt];
    with([&[Step::Halt], &arm], |host, cpus| {
        host.turn(&mut cpus[0]);
        assert_eq!(host.turn(&mut cpus[1]), Yield::Waiting { until: Some(POWER_ON + HZ) });
        assert_eq!(host.turn(&mut cpus[0]), Yield::Waiting { until: None });
        host.clock.set(POWER_ON + HZ);
        host.turn(&mut cpus[1]);
        assert_eq!(cpus[1].vcpu.delivered.len(), 1);
    });
}

/// All interleavings of turns in which one sends three interrupts and the other halts three times.
#[test]
fn no_order_of_sends_and_waits_loses_a_wake_up() {
    let send = [SEND, Step::Host];
    for order in 0..1_u32 << 12 {
        with([&[send, send, send].concat(), &[Step::Halt; 3]], |host, cpus| {
            // It accepts none before it has enabled its local APIC.
            host.turn(&mut cpus[0]);
            let first = matches!(host.turn(&mut cpus[1]), Yield::Waiting { .. });
            host.kicks();
            let mut waits = [false, first];
            for turn in 0..24 {
                let number = if turn < 12 { order >> turn & 1 } else { turn & 1 } as usize;
                if !waits[number] {
                    let over = host.turn(&mut cpus[number]);
                    waits[number] = matches!(over, Yield::Waiting { .. }) && !cpus[0].guest.is_called(cpus[number].id);
                }
                host.kicks().into_iter().for_each(|kicked| waits[usize::from(kicked)] = false);
            }
            let before = cpus[1].vcpu.delivered.len();
            assert!((1..=3).contains(&before), "{before} of 3, order {order:#b}");
            host.turn(&mut cpus[1]);
            assert_eq!(cpus[1].vcpu.delivered.len(), before, "it slept over one, order {order:#b}");
        });
    }
}
