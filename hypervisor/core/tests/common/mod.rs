//! A processor and a host that follow a script, so that the run loop's dealings with time can be told to the tick.
//!
//! Time passes in the guest as the script says, and by [`COST`] with each look of the hypervisor at the clock. Interrupt
//! handlers take no time: delivery is noted down, and ended at the local APIC by the script.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use bulkhead_arch::{Gpr, Rflags, Segment, SegmentName, msr};
use bulkhead_core::exit::IoAccess;
use bulkhead_core::host::CpuidResult;
use bulkhead_core::{
    BackendError, Event, Exit, Guest, Host, Interruptibility, Limits, Register, Vcpu, VirtualCpu, Windows, Yield,
};
use bulkhead_devices::machine::MachineConfig;
use bulkhead_types::{Frequency, Gpa, GuestMemory, MemoryError, VcpuId, Width};
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;

pub const HZ: u64 = 10_000_000;
/// The host's clock when the guest is switched on.
pub const POWER_ON: u64 = 77_000_000;
/// A turn.
pub const SLICE: u64 = HZ / 100;
/// What every look at the clock costs.
pub const COST: u64 = 50;
/// The local APIC timer's vector in these tests.
pub const VECTOR: u8 = 0x40;
/// It in the timer's entry of the local vector table, for deadlines.
pub const DEADLINE: u64 = 2 << 17 | VECTOR as u64;

const X2APIC_BASE_VALUE: u64 = 0xFEE0_0D00;
const EOI: u32 = 0x80B;
const SPURIOUS: u32 = 0x80F;
pub const LVT_TIMER: u32 = 0x832;
pub const INITIAL_COUNT: u32 = 0x838;
pub const DIVIDE: u32 = 0x83E;

/// What the guest does next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Computes for so many ticks.
    Spin(u64),
    /// WRMSR.
    Write(u32, u64),
    /// WRMSR of IA32_TSC_DEADLINE, so many ticks from then on.
    Arm(u64),
    /// RDMSR; the value is noted down.
    Read(u32),
    /// RFLAGS.IF.
    Interrupts(bool),
    /// HLT.
    Halt,
    /// CPUID.
    Cpuid,
    /// The host is interrupted.
    Host,
    /// OUT of a byte to this port.
    Out(u16, u8),
    /// IN of a byte from this port; the value is noted down.
    In(u16),
}

/// The processor.
#[derive(Debug)]
pub struct FakeVcpu {
    clock: Rc<Cell<u64>>,
    script: VecDeque<Step>,
    gprs: HashMap<Gpr, u64>,
    rflags: u64,
    tsc_offset: u64,
    timer: u64,
    windows: Windows,
    injected: Option<Event>,
    reading: bool,
    /// An interrupt's handler is to end it.
    in_service: bool,
    /// When which event was delivered, by the host's clock.
    pub delivered: Vec<(u64, Event)>,
    /// What was read.
    pub values: Vec<u64>,
    /// How often it was entered.
    pub entries: usize,
    /// Its code segment and instruction pointer, if they were set.
    pub start: Option<(Segment, u64)>,
}

impl FakeVcpu {
    /// At reset, by this clock; then it follows `script`, and computes for ever.
    pub fn new(clock: &Rc<Cell<u64>>, script: impl Iterator<Item = Step>) -> Self {
        Self {
            clock: clock.clone(),
            script: script.collect(),
            gprs: HashMap::new(),
            rflags: 0,
            tsc_offset: 0,
            timer: 0,
            windows: Windows::default(),
            injected: None,
            reading: false,
            in_service: false,
            delivered: Vec::new(),
            values: Vec::new(),
            entries: 0,
            start: None,
        }
    }

    fn request(&mut self, index: u32, value: u64) {
        for (gpr, part) in [(Gpr::Rcx, u64::from(index)), (Gpr::Rax, value & 0xFFFF_FFFF), (Gpr::Rdx, value >> 32)] {
            self.gprs.insert(gpr, part);
        }
    }

    fn pass(&self, ticks: u64) {
        self.clock.set(self.clock.get() + ticks);
    }

    fn tsc(&self) -> u64 {
        self.clock.get().wrapping_add(self.tsc_offset)
    }
}

impl Vcpu for FakeVcpu {
    fn activate(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn deactivate(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, BackendError> {
        self.entries += 1;
        if let Some(event) = self.injected.take() {
            self.delivered.push((self.clock.get(), event));
            self.in_service = matches!(event, Event::Interrupt(_));
        }
        let end = self.clock.get() + self.timer;
        loop {
            if self.in_service {
                self.in_service = false;
                self.request(EOI, 0);
                return Ok(Exit::WriteMsr);
            }
            if self.windows.interrupt && self.rflags & Rflags::IF.bits() != 0 {
                return Ok(Exit::InterruptWindow);
            }
            let left = end - self.clock.get();
            let step = self.script.pop_front().unwrap_or(Step::Spin(u64::MAX));
            match step {
                Step::Spin(ticks) if ticks > left => {
                    self.script.push_front(Step::Spin(ticks - left));
                    self.pass(left);
                    return Ok(Exit::Timer);
                }
                Step::Spin(ticks) => self.pass(ticks),
                _ if left == 0 => {
                    self.script.push_front(step);
                    return Ok(Exit::Timer);
                }
                Step::Interrupts(on) => self.rflags = if on { Rflags::IF.bits() } else { 0 },
                Step::Write(index, value) => {
                    self.request(index, value);
                    return Ok(Exit::WriteMsr);
                }
                Step::Arm(ticks) => {
                    self.request(msr::TSC_DEADLINE, self.tsc().wrapping_add(ticks));
                    return Ok(Exit::WriteMsr);
                }
                Step::Read(index) => {
                    self.request(index, 0);
                    self.reading = true;
                    return Ok(Exit::ReadMsr);
                }
                Step::Halt => return Ok(Exit::Halt),
                Step::Cpuid => return Ok(Exit::Cpuid),
                Step::Host => return Ok(Exit::Host),
                Step::Out(port, value) => {
                    self.request(0, value.into());
                    return Ok(byte_at(port, true));
                }
                Step::In(port) => {
                    self.request(0, 0);
                    self.reading = true;
                    return Ok(byte_at(port, false));
                }
            }
        }
    }

    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        Ok(self.gprs.get(&gpr).copied().unwrap_or(0))
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), BackendError> {
        self.gprs.insert(gpr, value);
        Ok(())
    }

    fn read(&self, register: Register) -> Result<u64, BackendError> {
        Ok(if register == Register::Rflags { self.rflags } else { 0 })
    }

    fn write(&mut self, register: Register, value: u64) -> Result<(), BackendError> {
        if let (Register::Rip, Some((_, rip))) = (register, &mut self.start) {
            *rip = value;
        }
        Ok(())
    }

    fn segment(&self, _: SegmentName) -> Result<Segment, BackendError> {
        Ok(Segment { selector: 0, base: 0, limit: 0, attributes: 0 })
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) -> Result<(), BackendError> {
        if name == SegmentName::Cs {
            self.start = Some((value, 0xFFF0));
        }
        Ok(())
    }

    fn privilege(&self) -> Result<u8, BackendError> {
        Ok(0)
    }

    fn skip_instruction(&mut self) -> Result<(), BackendError> {
        if std::mem::take(&mut self.reading) {
            let value = self.gpr(Gpr::Rdx)? << 32 | self.gpr(Gpr::Rax)?;
            self.values.push(value);
        }
        Ok(())
    }

    fn skip_bytes(&mut self, _: u8) -> Result<(), BackendError> {
        Ok(())
    }

    fn inject(&mut self, event: Event) -> Result<(), BackendError> {
        self.injected = Some(event);
        Ok(())
    }

    fn take_interrupted(&mut self) -> Option<Event> {
        None
    }

    fn interruptibility(&self) -> Result<Interruptibility, BackendError> {
        Ok(Interruptibility::default())
    }

    fn set_interruptibility(&mut self, _: Interruptibility) -> Result<(), BackendError> {
        Ok(())
    }

    fn request_windows(&mut self, windows: Windows) -> Result<(), BackendError> {
        self.windows = windows;
        Ok(())
    }

    fn flush_nested(&mut self) {}

    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), BackendError> {
        self.tsc_offset = offset;
        Ok(())
    }

    fn set_timer(&mut self, ticks: u64) -> Result<(), BackendError> {
        self.timer = ticks;
        Ok(())
    }

    fn allow_msr(&mut self, _: u32, _: bool) {}

    fn explain_entry_failure(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }

    fn dump(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

/// The exit of OUT or IN with a byte.
fn byte_at(port: u16, write: bool) -> Exit {
    let (width, string, repeat) = (Width::Byte, false, false);
    Exit::Io(IoAccess { port, width, write, string, repeat, segment: None, address_bytes: None })
}

/// No RAM.
#[derive(Debug)]
pub struct NoMemory;

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

/// The host: a clock.
struct Clock(Rc<Cell<u64>>);

impl Host for Clock {
    fn tsc(&self) -> u64 {
        self.0.set(self.0.get() + COST);
        self.0.get()
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
        false
    }

    fn kick(&mut self, _: VcpuId) -> bool {
        false
    }
}

/// A guest, and the one who gives it its turns.
pub struct Bench {
    pub cpu: VirtualCpu<'static, FakeVcpu, NoMemory>,
    host: Clock,
}

impl Bench {
    /// A guest in x2APIC mode that takes interrupts and then follows `script`; after its end it computes for ever.
    pub fn new(script: &[Step]) -> Self {
        let clock = Rc::new(Cell::new(POWER_ON));
        let start =
            [Step::Write(msr::APIC_BASE, X2APIC_BASE_VALUE), Step::Write(SPURIOUS, 0x1FF), Step::Interrupts(true)];
        let vcpu = FakeVcpu::new(&clock, start.iter().chain(script).copied());
        let tsc = Frequency::hertz(HZ);
        let memory = 16 << 20;
        let config = MachineConfig { tsc, memory, wall_clock: 0, cpus: 1, test_exit: false, test_device: false };
        let host = Clock(clock);
        let limits = Limits::of(&host, tsc, memory);
        // A few of them are made, and each is small.
        let guest = Box::leak(Box::new(Guest::new(&config, limits, POWER_ON)));
        let cpu = VirtualCpu::new(guest, VcpuId::BOOT, vcpu, NoMemory).unwrap();
        Self { cpu, host }
    }

    /// Now, by the host's clock.
    pub fn now(&self) -> u64 {
        self.host.0.get()
    }

    /// One turn.
    pub fn turn(&mut self) -> Yield {
        let until = self.now() + SLICE;
        self.cpu.run(&mut self.host, until)
    }

    /// Turns until `ticks` have passed; a guest that waits is woken at the moment it named.
    pub fn run(&mut self, ticks: u64) {
        let end = self.now() + ticks;
        while self.now() < end {
            match self.turn() {
                Yield::TurnOver => {}
                Yield::Waiting { until } => self.host.0.set(until.unwrap_or(end).max(self.now())),
                Yield::Ended(why) => panic!("ended: {why:?}"),
            }
        }
    }

    /// When the timer's interrupts were delivered.
    pub fn interrupts(&self) -> Vec<u64> {
        let timer = |&&(_, event): &&(u64, Event)| event == Event::Interrupt(VECTOR);
        self.cpu.vcpu.delivered.iter().filter(timer).map(|&(at, _)| at).collect()
    }
}
