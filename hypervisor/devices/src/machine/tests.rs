use super::{Machine, MachineConfig, Request, earlier};
use crate::layout;
use bulkhead_types::{Frequency, Gpa, Ticks, VcpuId, Width};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::string::String;
use std::vec::Vec;

const BOOT: VcpuId = VcpuId::BOOT;
const HZ: u64 = 10_000_000;
const CONFIG: MachineConfig = MachineConfig {
    tsc: Frequency::hertz(HZ),
    memory: 256 << 20,
    wall_clock: 1_700_000_000,
    cpus: 1,
    test_exit: true,
    test_device: true,
};

/// When the devices or the processor's local APIC want to act.
fn deadline(machine: &Machine) -> Option<Ticks> {
    earlier(machine.deadline(), machine.interrupts().deadline(BOOT))
}

/// A machine and the time in it.
struct Bench {
    machine: Machine,
    now: Ticks,
}

impl Bench {
    fn new() -> Self {
        Self { machine: Machine::new(&CONFIG), now: Ticks::ZERO }
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.machine.port_write(port, Width::Byte, value.into(), self.now);
    }

    fn inb(&mut self, port: u16) -> u8 {
        u8::try_from(self.machine.port_read(port, Width::Byte, self.now)).unwrap()
    }

    fn read(&mut self, port: u16, width: Width) -> u32 {
        self.machine.port_read(port, width, self.now)
    }

    fn write(&mut self, port: u16, width: Width, value: u32) {
        self.machine.port_write(port, width, value, self.now);
    }

    /// PICs at vectors 0x20 and 0x28, all lines open but none in service.
    fn init_pics(&mut self) {
        for (port, base, wire) in [(0x20, 0x20, 4), (0xA0, 0x28, 2)] {
            self.outb(port, 0x11);
            self.outb(port + 1, base);
            self.outb(port + 1, wire);
            self.outb(port + 1, 1);
            self.outb(port + 1, 0);
        }
    }

    /// The vector that the processor would take now.
    fn interrupt(&mut self) -> Option<u8> {
        let interrupts = self.machine.interrupts_mut();
        if interrupts.has_interrupt(BOOT) { interrupts.acknowledge(BOOT) } else { None }
    }

    fn end_of_interrupt(&mut self) {
        self.outb(0x20, 0x20);
        self.outb(0xA0, 0x20);
    }

    fn output(&mut self) -> String {
        core::iter::from_fn(|| self.machine.console_output()).map(char::from).collect()
    }
}

#[test]
fn unclaimed_ports_and_addresses_read_as_ones() {
    let mut bench = Bench::new();
    for port in [0x80, 0xED, 0xE9, 0x402, 0x70, 0x2F8, 0xCFB, 0xFFFF] {
        bench.outb(port, 0);
        assert_eq!(bench.inb(port), 0xFF, "{port:#x}");
    }
    assert_eq!(bench.read(0x1000, Width::Dword), u32::MAX);
    assert_eq!(bench.read(0xFFFF, Width::Word) & 0xFF, 0xFF);
    assert_eq!(bench.machine.mmio_read(BOOT, Gpa::new(0xD000_0000), Width::Word, Ticks::ZERO), 0xFFFF);
    assert_eq!(bench.machine.take_request(), None);
}

#[test]
fn wide_access_is_split_into_bytes() {
    let mut bench = Bench::new();
    bench.outb(layout::COM1 + 3, 0x80);
    bench.write(layout::COM1, Width::Word, 0x1234);
    assert_eq!(bench.read(layout::COM1, Width::Word), 0x1234);
    assert_eq!((bench.inb(layout::COM1), bench.inb(layout::COM1 + 1)), (0x34, 0x12));
    assert_eq!(bench.read(layout::COM1 + 3, Width::Dword), 0xB060_0080);
}

#[test]
fn wide_registers_are_read_whole() {
    let mut bench = Bench::new();
    bench.write(0xCF8, Width::Dword, 0x8000_0000);
    assert_eq!(bench.read(0xCF8, Width::Dword), 0x8000_0000);
    assert_eq!(bench.read(0xCFC, Width::Dword), 0x0D57_8086);
    assert_eq!(bench.read(0xCFE, Width::Word), 0x0D57);
    assert_eq!(bench.inb(0xCFD), 0x80);
    assert_eq!(bench.inb(0xCF8), 0xFF, "narrow accesses are not for the address register");
    assert_eq!(bench.read(0xCFE, Width::Dword), 0xFFFF_0D57);
    bench.now = Ticks::new(HZ);
    assert_eq!(bench.read(layout::ACPI_PM + 8, Width::Dword), 3_579_545);
    bench.write(layout::FW_CFG, Width::Word, 3);
    let size = [0; 8].map(|_: u8| bench.inb(layout::FW_CFG + 1));
    assert_eq!(u64::from_le_bytes(size), CONFIG.memory);
}

#[test]
fn requests() {
    let cases: [(u16, Width, u32, Option<Request>); 9] = [
        (0xCF9, Width::Byte, 0x02, None),
        (0xCF9, Width::Byte, 0x06, Some(Request::Reset)),
        (0x92, Width::Byte, 0x03, Some(Request::Reset)),
        (0x64, Width::Byte, 0xFE, Some(Request::Reset)),
        (0x604, Width::Word, 0x3401, Some(Request::PowerOff)),
        (0x604, Width::Word, 0x2001, None),
        (0xF4, Width::Byte, 0x10, Some(Request::TestExit(0x10))),
        (0xF4, Width::Word, 0x1234_5678, Some(Request::TestExit(0x5678))),
        (0xF4, Width::Dword, 0x1234_5678, Some(Request::TestExit(0x1234_5678))),
    ];
    for (port, width, value, request) in cases {
        let mut bench = Bench::new();
        bench.write(port, width, value);
        assert_eq!(bench.machine.take_request(), request, "{port:#x} {value:#x}");
        assert_eq!(bench.machine.take_request(), None);
    }
    let mut bench = Bench::new();
    bench.outb(0xF4, 1);
    bench.outb(0xCF9, 6);
    assert_eq!(bench.machine.take_request(), Some(Request::TestExit(1)), "the first counts");
}

#[test]
fn test_features_only_where_granted() {
    let mut machine = Machine::new(&MachineConfig { test_exit: false, test_device: false, ..CONFIG });
    machine.port_write(layout::TEST_EXIT, Width::Dword, 1, Ticks::ZERO);
    assert_eq!(machine.take_request(), None);
    machine.mmio_write(BOOT, layout::TEST_DEVICE, Width::Dword, 1, Ticks::ZERO);
    assert_eq!(machine.mmio_read(BOOT, layout::TEST_DEVICE, Width::Dword, Ticks::ZERO), 0xFFFF_FFFF);
}

#[test]
fn console_output_and_interrupt() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(layout::COM1 + 4, 0x0B);
    bench.outb(layout::COM1 + 1, 0x02);
    assert_eq!(bench.interrupt(), Some(0x24));
    assert_eq!(bench.inb(layout::COM1 + 2), 0x02);
    assert_eq!(bench.machine.console_output(), None);
    for byte in *b"hello" {
        bench.outb(layout::COM1, byte);
    }
    bench.end_of_interrupt();
    assert_eq!(bench.interrupt(), Some(0x24), "empty again");
    assert_eq!(bench.output(), "hello");
}

#[test]
fn console_input_interrupt() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(layout::COM1 + 4, 0x08);
    bench.outb(layout::COM1 + 2, 0x01);
    bench.outb(layout::COM1 + 1, 0x01);
    let taken: Vec<u8> = (0..100).take_while(|&byte| bench.machine.console_input(byte)).collect();
    assert_eq!(taken.len(), 16);
    assert_eq!(bench.interrupt(), Some(0x24));
    assert_eq!([0; 16].map(|_: u8| bench.inb(layout::COM1)), taken[..]);
    bench.end_of_interrupt();
    assert_eq!(bench.interrupt(), None);
}

#[test]
fn pit_interrupts_at_its_deadline() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(0x43, 0x34);
    bench.outb(0x40, 0x9B);
    bench.outb(0x40, 0x2E);
    assert_eq!(bench.interrupt(), Some(0x20), "OUT rises as mode 2 is set");
    bench.end_of_interrupt();
    for _ in 0..50 {
        let due = bench.machine.deadline().unwrap();
        bench.machine.advance(BOOT, Ticks::new(due.as_u64() - 1));
        assert_eq!(bench.interrupt(), None);
        bench.machine.advance(BOOT, due);
        assert_eq!(bench.interrupt(), Some(0x20));
        bench.end_of_interrupt();
        assert_eq!(bench.interrupt(), None, "one edge, one interrupt");
        bench.now = due;
    }
    // 50 periods of 11,931 clocks, and the clock that loads the count.
    assert_eq!(bench.now.as_u64(), (596_551 * HZ).div_ceil(1_193_182));
    bench.now = Ticks::new(bench.now.as_u64() + 100 * HZ);
    bench.machine.advance(BOOT, bench.now);
    assert_eq!(bench.interrupt(), Some(0x20), "missed edges are one");
    bench.end_of_interrupt();
    assert_eq!(bench.interrupt(), None);
    assert!(bench.machine.deadline().unwrap() > bench.now);
}

#[test]
fn a_new_program_takes_the_timers_request_back() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(0x43, 0x34);
    bench.outb(0x40, 0x9C);
    bench.outb(0x40, 0x2E);
    let _ = bench.interrupt();
    bench.end_of_interrupt();
    // A period ends while the guest does not take interrupts; then it sets mode 0, whose output is low.
    bench.now = bench.machine.deadline().unwrap().after(5);
    bench.machine.advance(BOOT, bench.now);
    assert!(bench.machine.interrupts().has_interrupt(BOOT));
    bench.outb(0x43, 0x30);
    assert_eq!(bench.interrupt(), None);
    bench.outb(0x40, 0x9C);
    bench.outb(0x40, 0x2E);
    let due = bench.machine.deadline().unwrap();
    assert!(due.since(bench.now) >= HZ / 100);
    bench.machine.advance(BOOT, due);
    assert_eq!(bench.interrupt(), Some(0x20));
}

#[test]
fn a_late_turn_does_not_lose_the_timers_request() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(0x43, 0x36);
    bench.outb(0x40, 0x9C);
    bench.outb(0x40, 0x2E);
    let _ = bench.interrupt();
    bench.end_of_interrupt();
    // Three quarters of a period late: the square wave is low again.
    bench.now = bench.machine.deadline().unwrap().after(HZ * 3 / 400);
    bench.machine.advance(BOOT, bench.now);
    bench.outb(0x43, 0x00);
    let _ = [bench.inb(0x40), bench.inb(0x40)];
    bench.outb(0x43, 0xE2);
    assert_eq!(bench.inb(0x40) >> 7, 0, "output");
    assert_eq!(bench.interrupt(), Some(0x20));
    bench.end_of_interrupt();
    bench.now = bench.machine.deadline().unwrap();
    bench.machine.advance(BOOT, bench.now);
    assert_eq!(bench.interrupt(), Some(0x20), "the next edge is one");
}

#[test]
fn rtc_interrupt() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(0x70, 0x0B);
    bench.outb(0x71, 0x12);
    assert_eq!(bench.machine.deadline(), Some(Ticks::new(HZ)));
    bench.machine.advance(BOOT, Ticks::new(HZ));
    assert_eq!(bench.interrupt(), Some(0x28));
    bench.now = Ticks::new(HZ);
    bench.outb(0x70, 0x0C);
    assert_eq!(bench.inb(0x71) & 0x90, 0x90);
    bench.end_of_interrupt();
    bench.machine.advance(BOOT, Ticks::new(2 * HZ));
    assert_eq!(bench.interrupt(), Some(0x28));
}

#[test]
fn pm_timer_raises_the_sci() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(0x4D1, 0x02);
    bench.write(layout::ACPI_PM + 2, Width::Word, 1);
    let due = bench.machine.deadline().unwrap();
    bench.machine.advance(BOOT, due);
    assert_eq!(bench.interrupt(), Some(0x29));
    bench.now = due;
    bench.end_of_interrupt();
    assert_eq!(bench.interrupt(), Some(0x29), "a level");
    bench.write(layout::ACPI_PM, Width::Word, 1);
    bench.end_of_interrupt();
    assert_eq!(bench.interrupt(), None);
}

#[test]
fn power_button_raises_the_sci() {
    let mut bench = Bench::new();
    bench.init_pics();
    bench.outb(0x4D1, 0x02);
    assert!(!bench.machine.press_power_button());
    bench.write(layout::ACPI_PM + 2, Width::Word, 0x100);
    assert_eq!(bench.interrupt(), None, "a press that nobody heard is gone");
    let _ = bench.machine.take_changed();
    assert!(bench.machine.press_power_button() && bench.machine.press_power_button());
    assert!(bench.machine.take_changed());
    for _ in 0..3 {
        assert_eq!(bench.interrupt(), Some(0x29), "a level, as long as its status is set");
        bench.end_of_interrupt();
    }
    assert_eq!(bench.read(layout::ACPI_PM, Width::Word), 0x100);
    bench.write(layout::ACPI_PM, Width::Word, 0x100);
    bench.end_of_interrupt();
    assert_eq!(bench.interrupt(), None);
}

#[test]
fn test_device_raises_its_line() {
    let mut bench = Bench::new();
    let apic = |bench: &mut Bench, register, value| {
        bench.machine.mmio_write(BOOT, layout::LOCAL_APIC.wrapping_add(register), Width::Dword, value, Ticks::ZERO);
    };
    apic(&mut bench, 0xF0, 0x1FF);
    let io_apic = |bench: &mut Bench, register, value| {
        bench.machine.mmio_write(BOOT, layout::IO_APIC, Width::Dword, register, Ticks::ZERO);
        bench.machine.mmio_write(BOOT, layout::IO_APIC.wrapping_add(0x10), Width::Dword, value, Ticks::ZERO);
    };
    io_apic(&mut bench, 0x10 + 2 * u64::from(layout::TEST_DEVICE_LINE), 0x8055);
    let line = layout::TEST_DEVICE.wrapping_add(0x800);
    bench.machine.mmio_write(BOOT, line, Width::Dword, 1, Ticks::ZERO);
    assert_eq!(bench.interrupt(), Some(0x55));
    apic(&mut bench, 0xB0, 0);
    assert_eq!(bench.interrupt(), Some(0x55), "still high");
    bench.machine.mmio_write(BOOT, line, Width::Dword, 0, Ticks::ZERO);
    apic(&mut bench, 0xB0, 0);
    assert_eq!(bench.interrupt(), None);
}

#[derive(Clone, Debug)]
enum Step {
    In(u16, Width),
    Out(u16, Width, u32),
    Read(u64, Width),
    Write(u64, Width, u64),
    Pass(u64),
    Deadline,
    Input(u8),
    Drain,
    Acknowledge,
    Press,
}

fn widths() -> impl Strategy<Value = Width> {
    prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Dword), Just(Width::Qword)]
}

use prop::strategy::Just;

fn ports() -> impl Strategy<Value = u16> {
    prop_oneof![
        any::<u16>(),
        0x20..0x22_u16,
        0x40..0x44_u16,
        0x60..0x72_u16,
        0xA0..0xA2_u16,
        0x3F8..0x400_u16,
        0x510..0x512_u16,
        0x600..0x610_u16,
        0xCF8..0xD00_u16,
    ]
}

fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..0x1000_u64).prop_map(|offset| layout::LOCAL_APIC.as_u64() + offset),
        (0..0x400_u64).prop_map(|offset| (layout::LOCAL_APIC.as_u64() + offset) & !0xF),
        (0..0x20_u64).prop_map(|offset| layout::IO_APIC.as_u64() + offset),
        (0..0x1000_u64).prop_map(|offset| layout::TEST_DEVICE.as_u64() + offset),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        (ports(), widths()).prop_map(|(port, width)| Step::In(port, width)),
        (ports(), widths(), any::<u32>()).prop_map(|(port, width, value)| Step::Out(port, width, value)),
        (addresses(), widths()).prop_map(|(gpa, width)| Step::Read(gpa, width)),
        (addresses(), widths(), any::<u64>()).prop_map(|(gpa, width, value)| Step::Write(gpa, width, value)),
        (0..1_u64 << 40).prop_map(Step::Pass),
        (0..100_000_u64).prop_map(Step::Pass),
        Just(Step::Deadline),
        any::<u8>().prop_map(Step::Input),
        prop_oneof![Just(Step::Drain), Just(Step::Acknowledge), Just(Step::Press)],
    ]
}

proptest! {
    #[test]
    fn any_trace_is_bounded(steps in prop::collection::vec(steps(), 1..300)) {
        let mut machine = Machine::new(&CONFIG);
        let mut now = Ticks::ZERO;
        for step in steps {
            match step {
                Step::In(port, width) => {
                    let value = machine.port_read(port, width, now);
                    prop_assert_eq!(u64::from(value) & !width.mask(), 0);
                }
                Step::Out(port, width, value) => machine.port_write(port, width, value, now),
                Step::Read(gpa, width) => {
                    let value = machine.mmio_read(BOOT, Gpa::new(gpa), width, now);
                    prop_assert_eq!(value & !width.mask(), 0);
                }
                Step::Write(gpa, width, value) => machine.mmio_write(BOOT, Gpa::new(gpa), width, value, now),
                Step::Pass(ticks) => now = now.after(ticks),
                Step::Deadline => now = deadline(&machine).map_or(now, |deadline| deadline.max(now)),
                Step::Input(byte) => {
                    let _ = machine.console_input(byte);
                }
                Step::Drain => while machine.console_output().is_some() {},
                Step::Acknowledge => {
                    let _ = machine.interrupts_mut().acknowledge(BOOT);
                }
                Step::Press => {
                    let _ = machine.press_power_button();
                }
            }
            machine.advance(BOOT, now);
            prop_assert!(deadline(&machine).is_none_or(|deadline| deadline > now), "nothing is due after an advance");
            let _ = machine.take_request();
        }
    }
}

#[test]
fn an_error_by_reading_does_not_go_unnoticed() {
    let mut bench = Bench::new();
    let lapic = |offset| Gpa::new(layout::LOCAL_APIC.as_u64() + offset);
    bench.machine.mmio_write(BOOT, lapic(0x370), Width::Dword, 0x40, bench.now);
    let _ = bench.machine.take_changed();
    let _ = bench.machine.mmio_read(BOOT, lapic(0x20), Width::Dword, bench.now);
    assert!(!bench.machine.take_changed());
    // There is no register here: the error interrupt comes.
    let _ = bench.machine.mmio_read(BOOT, lapic(0x40), Width::Dword, bench.now);
    assert!(bench.machine.take_changed() && bench.machine.interrupts().has_interrupt(BOOT));
}
