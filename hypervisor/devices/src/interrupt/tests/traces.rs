//! Random traces: whatever a guest does, these hold.

use super::{
    APIC_BASE, BOOT, DIVIDE, EOI, Guest, ICR, IRR, ISR, LEVEL, LVT_LINT0, LVT_TIMER, MASKED, PPR, SVR, TSC_DEADLINE,
};
use crate::interrupt::PicPair;
use bulkhead_types::{Ticks, Width};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use proptest::test_runner::Config;
use std::vec;
use std::vec::Vec;

#[derive(Clone, Debug)]
enum Step {
    Line(u8, bool),
    Edge(u8),
    PicRead(u16),
    PicWrite(u16, u8),
    IoApic(u8, u32),
    IoApicRaw(u64, Width, u64),
    Local(u32, u32),
    LocalRead(u32),
    LocalRaw(u64, Width, u64),
    Msr(u32, u64),
    MsrRead(u32),
    Pass(u64),
    Take,
    Eoi,
    Cr8(u8),
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Dword), Just(Width::Qword)]
}

/// Values that mean something to most registers: vectors, modes, masks; and arbitrary ones.
fn value() -> impl Strategy<Value = u32> {
    let meaningful = (any::<u8>(), 0_u32..8, 0_u32..4, prop::bool::weighted(0.2), 0_u32..4).prop_map(
        |(vector, mode, destination, masked, high)| {
            // Fixed mode more often than the others.
            let mode = if mode > 4 { 0 } else { mode << 8 };
            u32::from(vector)
                | mode
                | (destination & 1) << 11
                | (destination >> 1) << 15
                | u32::from(masked) << 16
                | high << 17
        },
    );
    prop_oneof![4 => meaningful, 1 => any::<u32>(), 1 => 0_u32..4, 1 => Just(0x1FF)]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![0x800_u32..0x840, Just(APIC_BASE), Just(TSC_DEADLINE), any::<u32>()]
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop::sample::select(PicPair::PORTS.to_vec());
    let base = prop::sample::select(vec![0xFEE0_0100_u64, 0xFEE0_0900, 0xFEE0_0D00]);
    prop_oneof![
        6 => (0_u8..26, any::<bool>()).prop_map(|(line, level)| Step::Line(line, level)),
        3 => (0_u8..26).prop_map(Step::Edge),
        2 => port.clone().prop_map(Step::PicRead),
        4 => (port, any::<u8>()).prop_map(|(port, value)| Step::PicWrite(port, value)),
        8 => (0_u8..0x44, value()).prop_map(|(register, value)| Step::IoApic(register, value)),
        1 => (0_u64..0x80, width(), any::<u64>()).prop_map(|(at, width, value)| Step::IoApicRaw(at, width, value)),
        8 => (0_u32..0x42, value()).prop_map(|(register, value)| Step::Local(register, value)),
        2 => (0_u32..0x42).prop_map(Step::LocalRead),
        2 => (ICR..=DIVIDE, value()).prop_map(|(register, value)| Step::Local(register, value)),
        1 => Just(Step::Local(SVR, 0x1FF)),
        1 => (any::<u64>(), width(), any::<u64>()).prop_map(|(at, width, value)| Step::LocalRaw(at % 0x1100, width, value)),
        3 => (msr(), any::<u32>()).prop_map(|(index, value)| Step::Msr(index, u64::from(value))),
        2 => (msr(), any::<u64>()).prop_map(|(index, value)| Step::Msr(index, value)),
        2 => (0x800_u32..0x840, value()).prop_map(|(index, value)| Step::Msr(index, u64::from(value))),
        1 => base.prop_map(|value| Step::Msr(APIC_BASE, value)),
        1 => msr().prop_map(Step::MsrRead),
        2 => prop_oneof![0_u64..1000, 0_u64..1 << 40, any::<u64>()].prop_map(Step::Pass),
        8 => Just(Step::Take),
        4 => Just(Step::Eoi),
        1 => any::<u8>().prop_map(Step::Cr8),
    ]
}

impl Guest {
    fn step(&mut self, step: &Step) {
        let now = self.now();
        match *step {
            Step::Line(line, level) => self.irq.set_line(line, level),
            Step::Edge(line) => self.edge(line),
            Step::PicRead(port) => drop(self.irq.pic_read(port)),
            Step::PicWrite(port, value) => self.irq.pic_write(port, value),
            Step::IoApic(register, value) => self.io_apic_write(register, value),
            Step::IoApicRaw(at, width, value) => {
                self.irq.io_apic_write(at, width, value);
                let _ = self.irq.io_apic_read(at, width);
            }
            Step::Local(register, value) => self.write(register, value),
            Step::LocalRead(register) => drop(self.read(register)),
            Step::LocalRaw(at, width, value) => {
                self.irq.lapic_mmio_write(BOOT, at, width, value, now);
                assert!(self.irq.lapic_mmio_read(BOOT, at, width, now) <= width.mask());
            }
            Step::Msr(index, value) => drop(self.wrmsr(index, value)),
            Step::MsrRead(index) => drop(self.rdmsr(index)),
            Step::Pass(ticks) => {
                self.now = self.now.saturating_add(ticks);
                self.irq.advance(BOOT, self.now());
                let ahead = self.irq.deadline(BOOT).is_none_or(|at| at > self.now() || at == Ticks::new(u64::MAX));
                assert!(ahead, "advance leaves nothing due");
            }
            Step::Take => drop(self.take()),
            Step::Eoi => {
                self.write(EOI, 0);
                let _ = self.x2write(EOI, 0);
            }
            Step::Cr8(value) => self.irq.set_cr8(BOOT, value),
        }
    }

    /// A local APIC register, in whatever mode it is.
    fn local(&mut self, register: u32) -> Option<u32> {
        if self.irq.lapic_base(BOOT).is_some() {
            return Some(self.read(register));
        }
        self.x2read(register).ok().and_then(|value| u32::try_from(value).ok())
    }

    /// What must hold in every state. Looks at a copy.
    fn check(&self) {
        let mut look = Self { irq: self.irq.clone(), now: self.now };
        let summary = look.irq.has_interrupt(BOOT);
        let taken = look.irq.acknowledge(BOOT);
        assert_eq!(summary, taken.is_some());

        let mut look = Self { irq: self.irq.clone(), now: self.now };
        look.check_priorities();
        look.check_levels();
        look.check_initialized_pic();
    }

    fn check_priorities(&mut self) {
        let Some(priority) = self.local(PPR) else { return };
        let mut in_service = Vec::new();
        for index in 0..8 {
            let word = self.local(ISR + index).unwrap();
            in_service.extend((0..32).filter(|bit| word & 1 << bit != 0).map(|bit| index * 32 + bit));
        }
        assert!(in_service.iter().all(|vector| *vector >= 16), "no illegal vector in service");
        let classes: Vec<u32> = in_service.iter().map(|vector| vector / 16).collect();
        assert!(classes.windows(2).all(|pair| pair[0] < pair[1]), "one in service for each class: {in_service:x?}");
        let highest = classes.last().copied().unwrap_or(0);
        let task = u32::from(self.irq.cr8(BOOT));
        assert_eq!(priority / 16, highest.max(task));
        for index in 0..8 {
            let illegal = if index == 0 { 0xFFFF } else { 0 };
            assert_eq!(self.local(IRR + index).unwrap() & illegal, 0);
        }
        // The highest request is taken exactly if it is above the processor priority.
        let mut requests = (0..8).rev().map(|index| (index, self.local(IRR + index).unwrap()));
        let highest = requests.find(|(_, word)| *word != 0).map(|(index, word)| index * 32 + 31 - word.leading_zeros());
        assert_eq!(self.irq.lapic(BOOT).has_interrupt(), highest.is_some_and(|vector| vector / 16 > priority / 16));
    }

    /// No level-triggered request is lost: one that waits is one that the local APIC does not take now.
    fn check_levels(&mut self) {
        let before = self.remote_irrs();
        self.irq.io_apic.send_pending(&mut |message| self.irq.lapics.send(None, message));
        assert_eq!(self.remote_irrs(), before, "could have been accepted, and was not sent");
    }

    fn remote_irrs(&mut self) -> Vec<u8> {
        let mut inputs = Vec::new();
        for input in 0..24 {
            let low = self.io_apic_read(0x10 + 2 * input);
            let level = low & LEVEL != 0 && low & 0x600 == 0;
            if low & 1 << 14 != 0 {
                assert!(level, "an edge-triggered input has no remote IRR");
                inputs.push(input);
            }
        }
        inputs
    }

    /// Whatever state the PICs were left in, initializing them makes them work.
    fn check_initialized_pic(&mut self) {
        for line in 0..16 {
            self.irq.set_line(line, false);
        }
        if self.irq.lapic_base(BOOT).is_none() {
            return;
        }
        self.write(SVR, 0x1FF);
        self.write(LVT_LINT0, 0x700);
        self.write(LVT_TIMER, MASKED);
        self.init_pics(0x01);
        self.irq.pic_write(0x4D0, 0);
        self.irq.pic_write(0x4D1, 0);
        self.edge(13);
        assert_eq!(self.take(), Some(0x2D));
        self.irq.pic_write(0x20, 0x20);
        self.irq.pic_write(0xA0, 0x20);
        self.edge(7);
        assert_eq!(self.take(), Some(0x27));
    }
}

proptest! {
    #![proptest_config(Config { cases: 300, ..Config::default() })]

    #[test]
    fn no_trace_breaks_the_rules(steps in prop::collection::vec(step(), 1..120)) {
        let mut guest = Guest::new();
        guest.check();
        for step in &steps {
            guest.step(step);
            guest.check();
        }
    }
}
