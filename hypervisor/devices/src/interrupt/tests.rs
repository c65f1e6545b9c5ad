//! The interrupt system as a guest sees it: through its registers.

mod apic;
mod io_apic;
mod pic;
mod several;
mod timer;
mod traces;

use super::{InterruptSystem, InvalidMsr};
use bulkhead_types::{Frequency, Ticks, VcpuId, Width};

use std::vec::Vec;

const TSC: Frequency = Frequency::hertz(1_000_000_000);
const APIC_BASE: u32 = 0x1B;
const TSC_DEADLINE: u32 = 0x6E0;
const ENABLED: u64 = 0xFEE0_0900;

// Local APIC registers: offset / 16 in the page, index - 0x800 among the MSRs.
const TPR: u32 = 0x08;
const PPR: u32 = 0x0A;
const EOI: u32 = 0x0B;
const LDR: u32 = 0x0D;
const DFR: u32 = 0x0E;
const SVR: u32 = 0x0F;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const LVT_ERROR: u32 = 0x37;
const INITIAL: u32 = 0x38;
const CURRENT: u32 = 0x39;
const DIVIDE: u32 = 0x3E;
const SELF_IPI: u32 = 0x3F;

const BOOT: VcpuId = VcpuId::BOOT;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;

/// A system with a clock, and short names for what a guest does.
struct Guest {
    irq: InterruptSystem,
    now: u64,
}

impl Guest {
    fn new() -> Self {
        Self { irq: InterruptSystem::new(1, TSC), now: 1_000 }
    }

    fn with_x2apic() -> Self {
        let mut guest = Self::new();
        guest.wrmsr(APIC_BASE, ENABLED | 1 << 10).unwrap();
        guest
    }

    fn now(&self) -> Ticks {
        Ticks::new(self.now)
    }

    fn read(&mut self, register: u32) -> u32 {
        u32::try_from(self.irq.lapic_mmio_read(BOOT, u64::from(register) << 4, Width::Dword, self.now())).unwrap()
    }

    fn write(&mut self, register: u32, value: u32) {
        self.irq.lapic_mmio_write(BOOT, u64::from(register) << 4, Width::Dword, u64::from(value), self.now());
    }

    fn rdmsr(&mut self, index: u32) -> Result<u64, InvalidMsr> {
        self.irq.msr_read(BOOT, index, self.now())
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<(), InvalidMsr> {
        self.irq.msr_write(BOOT, index, value, self.now())
    }

    fn x2read(&mut self, register: u32) -> Result<u64, InvalidMsr> {
        self.rdmsr(0x800 + register)
    }

    fn x2write(&mut self, register: u32, value: u64) -> Result<(), InvalidMsr> {
        self.wrmsr(0x800 + register, value)
    }

    /// Time passes; the host wakes at every deadline. Returns the moments of timer interrupts.
    fn run(&mut self, ticks: u64) -> Vec<u64> {
        let end = self.now + ticks;
        let mut moments = Vec::new();
        while let Some(at) = self.irq.deadline(BOOT).map(Ticks::as_u64).filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.irq.advance(BOOT, self.now());
            while self.irq.acknowledge(BOOT).is_some() {
                moments.push(self.now);
                self.write(EOI, 0);
            }
        }
        self.now = end;
        self.irq.advance(BOOT, self.now());
        moments
    }

    fn self_ipi(&mut self, vector: u8) {
        self.write(ICR, 1 << 18 | u32::from(vector));
    }

    /// Writes the redirection entry of `input`, masked first, as systems do.
    fn route(&mut self, input: u8, low: u32, destination: u8) {
        self.io_apic_write(0x10 + 2 * input, MASKED);
        self.io_apic_write(0x11 + 2 * input, u32::from(destination) << 24);
        self.io_apic_write(0x10 + 2 * input, low);
    }

    fn io_apic_write(&mut self, register: u8, value: u32) {
        self.irq.io_apic_write(0x00, Width::Dword, u64::from(register));
        self.irq.io_apic_write(0x10, Width::Dword, u64::from(value));
    }

    fn io_apic_read(&mut self, register: u8) -> u32 {
        self.irq.io_apic_write(0x00, Width::Dword, u64::from(register));
        u32::try_from(self.irq.io_apic_read(0x10, Width::Dword)).unwrap()
    }

    /// Initializes both PICs with vectors from 0x20 and 0x28 on, and `icw4` for the first.
    fn init_pics(&mut self, icw4: u8) {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 0x04),
            (0x21, icw4),
            (0xA0, 0x11),
            (0xA1, 0x28),
            (0xA1, 0x02),
            (0xA1, 0x01),
        ] {
            self.irq.pic_write(port, value);
        }
    }

    /// A rising edge on `line`.
    fn edge(&mut self, line: u8) {
        self.irq.set_line(line, false);
        self.irq.set_line(line, true);
    }

    /// Takes an interrupt, if there is one; and has the summary told the truth?
    fn take(&mut self) -> Option<u8> {
        let announced = self.irq.has_interrupt(BOOT);
        let vector = self.irq.acknowledge(BOOT);
        assert_eq!(announced, vector.is_some());
        vector
    }
}
