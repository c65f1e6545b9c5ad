//! Several processors: who receives what, and how they are started.

use super::{APIC_BASE, BOOT, ESR, ICR, ICR_HIGH, InterruptSystem, LDR, LEVEL, LVT_LINT0, MASKED, SVR, TPR, TSC};
use bulkhead_types::{Ticks, VcpuId, Width};
use std::vec::Vec;

const NOW: Ticks = Ticks::new(1000);
const INIT: u32 = 5 << 8;
const NMI: u32 = 4 << 8;
const LOWEST: u32 = 1 << 8;
const SMI: u32 = 2 << 8;
const LOGICAL: u32 = 1 << 11;
const TO_SELF: u32 = 1 << 18;
const TO_ALL: u32 = 2 << 18;
const TO_OTHERS: u32 = 3 << 18;

fn cpu(number: u8) -> VcpuId {
    VcpuId::new(number).unwrap()
}

fn startup(vector: u8) -> u32 {
    6 << 8 | u32::from(vector)
}

struct Machine {
    irq: InterruptSystem,
    cpus: u8,
}

impl Machine {
    /// All started and with their local APICs enabled.
    fn new(cpus: u8) -> Self {
        let mut machine = Self { irq: InterruptSystem::new(cpus, TSC), cpus };
        machine.write(0, ICR, TO_OTHERS | INIT);
        machine.write(0, ICR, TO_OTHERS | startup(8));
        for number in 0..cpus {
            let started = machine.irq.take_startup(cpu(number));
            assert_eq!(started, (number != 0).then_some(8));
            assert_eq!(machine.irq.take_init(cpu(number)), number != 0);
            machine.write(number, SVR, 0x1FF);
            machine.write(number, LVT_LINT0, MASKED);
        }
        machine.irq.take_attention();
        machine
    }

    fn x2apic(mut self) -> Self {
        for number in 0..self.cpus {
            let base = self.irq.msr_read(cpu(number), APIC_BASE, NOW).unwrap();
            self.irq.msr_write(cpu(number), APIC_BASE, base | 1 << 10, NOW).unwrap();
        }
        self
    }

    fn read(&mut self, by: u8, register: u32) -> u32 {
        u32::try_from(self.irq.lapic_mmio_read(cpu(by), u64::from(register) << 4, Width::Dword, NOW)).unwrap()
    }

    fn write(&mut self, by: u8, register: u32, value: u32) {
        self.irq.lapic_mmio_write(cpu(by), u64::from(register) << 4, Width::Dword, value.into(), NOW);
    }

    fn send(&mut self, by: u8, destination: u8, command: u32) {
        self.write(by, ICR_HIGH, u32::from(destination) << 24);
        self.write(by, ICR, command);
    }

    fn send_x2apic(&mut self, by: u8, destination: u32, command: u32) {
        self.irq.msr_write(cpu(by), 0x800 + ICR, u64::from(destination) << 32 | u64::from(command), NOW).unwrap();
    }

    /// Who has an interrupt, which is ended, and was told of it. All that received had the same vector.
    fn heard(&mut self, vector: u8) -> Vec<u8> {
        let attention = self.irq.take_attention();
        let mut heard = Vec::new();
        for number in 0..self.cpus {
            if let Some(taken) = self.irq.acknowledge(cpu(number)) {
                assert_eq!(taken, vector);
                assert_ne!(attention & cpu(number).bit(), 0, "{number} was not told");
                if self.irq.lapic(cpu(number)).is_x2apic() {
                    self.irq.msr_write(cpu(number), 0x80B, 0, NOW).unwrap();
                } else {
                    self.write(number, super::EOI, 0);
                }
                heard.push(number);
            } else {
                assert_eq!(attention & cpu(number).bit(), 0, "{number} was told of nothing");
            }
        }
        heard
    }

    fn route(&mut self, input: u8, low: u32, destination: u8) {
        for (register, value) in [(1, u32::from(destination) << 24), (0, low)] {
            self.irq.io_apic_write(0, Width::Dword, u64::from(0x10 + 2 * input + register));
            self.irq.io_apic_write(0x10, Width::Dword, value.into());
        }
    }
}

#[test]
fn each_has_its_own_id_and_base() {
    let mut machine = Machine::new(8);
    for number in 0..8 {
        assert_eq!(machine.read(number, 2), u32::from(number) << 24);
        let base = machine.irq.msr_read(cpu(number), APIC_BASE, NOW).unwrap();
        assert_eq!(base, if number == 0 { 0xFEE0_0900 } else { 0xFEE0_0800 }, "the bootstrap flag is processor 0's");
    }
    let mut machine = machine.x2apic();
    for number in 0..8 {
        assert_eq!(machine.irq.msr_read(cpu(number), 0x802, NOW), Ok(number.into()));
        assert_eq!(machine.irq.msr_read(cpu(number), 0x80D, NOW), Ok(1 << number), "cluster 0");
    }
}

#[test]
fn shorthands() {
    let mut machine = Machine::new(4);
    for (shorthand, heard) in [(TO_SELF, [2].as_slice()), (TO_ALL, &[0, 1, 2, 3]), (TO_OTHERS, &[0, 1, 3])] {
        machine.write(2, ICR, shorthand | 0x41);
        assert_eq!(machine.heard(0x41), heard);
    }
    machine.write(1, ICR, TO_OTHERS | NMI);
    let nmi: Vec<_> = (0..4).map(|number| machine.irq.take_nmi(cpu(number))).collect();
    assert_eq!(nmi, [true, false, true, true]);
    assert_eq!(machine.irq.take_attention(), 0b1101);
    machine.write(1, ICR, TO_OTHERS | SMI);
    assert!(
        (0..4).all(|number| machine.irq.acknowledge(cpu(number)).is_none() && !machine.irq.nmi_pending(cpu(number)))
    );
}

#[test]
fn physical_destinations() {
    let mut machine = Machine::new(4);
    for (destination, heard) in [(3, [3].as_slice()), (0, &[0]), (4, &[]), (0xFF, &[0, 1, 2, 3])] {
        machine.send(1, destination, 0x51);
        assert_eq!(machine.heard(0x51), heard, "{destination}");
    }
    let mut machine = machine.x2apic();
    for (destination, heard) in [(3, [3].as_slice()), (0xFF, &[]), (0x103, &[]), (u32::MAX, &[0, 1, 2, 3])] {
        machine.send_x2apic(1, destination, 0x51);
        assert_eq!(machine.heard(0x51), heard, "{destination:#x}");
    }
}

#[test]
fn logical_destinations() {
    let mut machine = Machine::new(4);
    for number in 0..4 {
        machine.write(number, LDR, 0x0100_0000 << number);
    }
    for (set, heard) in [(0b101, [0, 2].as_slice()), (0b1000, &[3]), (0x10, &[]), (0xFF, &[0, 1, 2, 3])] {
        machine.send(0, set, LOGICAL | 0x51);
        assert_eq!(machine.heard(0x51), heard, "flat {set:#x}");
    }
    for number in 0..4_u8 {
        machine.write(number, super::DFR, 0x0FFF_FFFF);
        machine.write(number, LDR, u32::from((number / 2) << 4 | 1 << (number % 2)) << 24);
    }
    for (set, heard) in [(0x03, [0, 1].as_slice()), (0x12, &[3]), (0xF1, &[0, 2]), (0x2F, &[])] {
        machine.send(0, set, LOGICAL | 0x51);
        assert_eq!(machine.heard(0x51), heard, "cluster {set:#x}");
    }
    let mut machine = machine.x2apic();
    for (set, heard) in [(0b1010, [1, 3].as_slice()), (0x1_0001, &[]), (u32::MAX, &[0, 1, 2, 3])] {
        machine.send_x2apic(0, set, LOGICAL | 0x51);
        assert_eq!(machine.heard(0x51), heard, "x2APIC {set:#x}");
    }
}

#[test]
fn lowest_priority_chooses_one_that_has_little_to_do() {
    let mut machine = Machine::new(4);
    for (number, priority) in [(0, 0x50), (1, 0x20), (2, 0x20), (3, 0x30)] {
        machine.write(number, TPR, priority);
    }
    let mut chosen = Vec::new();
    for _ in 0..4 {
        machine.send(0, 0xFF, LOWEST | 0x61);
        chosen.extend(machine.heard(0x61));
    }
    assert_eq!(chosen, [1, 2, 1, 2], "one each time, in turn");
    machine.write(1, SVR, 0xFF);
    machine.write(2, SVR, 0xFF);
    machine.send(0, 0xFF, LOWEST | 0x61);
    assert_eq!(machine.heard(0x61), [3], "disabled ones accept none");
    machine.route(20, LOWEST | 0x71, 0xFF);
    machine.irq.set_line(20, true);
    assert_eq!(machine.heard(0x71), [3], "of the I/O APIC too");
}

#[test]
fn devices_interrupt_the_processor_that_their_entry_names() {
    let mut machine = Machine::new(3);
    machine.route(20, LEVEL | 0x71, 2);
    machine.irq.set_line(20, true);
    assert_eq!(machine.heard(0x71), [2]);
    // Its end was broadcast, and the level is still there.
    assert_eq!(machine.heard(0x71), [2]);
    machine.irq.set_line(20, false);
    assert_eq!(machine.heard(0x71), [2], "what was sent is not taken back");
    assert_eq!(machine.heard(0x71), []);
}

#[test]
fn pics_go_to_whoever_lets_them_in() {
    let mut machine = Machine::new(3);
    for (port, words) in [(0x20, [0x11, 0x20, 4, 1, 0]), (0xA0, [0x11, 0x28, 2, 1, 0])] {
        machine.irq.pic_write(port, words[0]);
        words[1..].iter().for_each(|&word| machine.irq.pic_write(port + 1, word));
    }
    machine.route(0, 7 << 8, 1);
    machine.irq.set_line(4, true);
    assert_eq!(machine.irq.take_attention(), cpu(1).bit());
    assert!(!machine.irq.has_interrupt(BOOT) && machine.irq.has_interrupt(cpu(1)));
    machine.write(2, LVT_LINT0, 7 << 8);
    assert!(machine.irq.has_interrupt(cpu(2)), "both could");
    assert_eq!(machine.irq.acknowledge(cpu(2)), Some(0x24));
    assert_eq!(machine.irq.acknowledge(cpu(1)), None, "once");
}

#[test]
fn starting_a_processor() {
    let mut machine = Machine { irq: InterruptSystem::new(2, TSC), cpus: 2 };
    let (boot, other) = (BOOT, cpu(1));
    assert!(machine.irq.lapic(other).is_parked() && !machine.irq.lapic(boot).is_parked());
    machine.send(0, 1, NMI);
    assert!(!machine.irq.nmi_pending(other), "it waits for nothing but its start");
    machine.send(0, 1, INIT);
    assert_eq!((machine.irq.take_init(other), machine.irq.take_startup(other)), (true, None));
    machine.send(0, 1, startup(0x9A));
    machine.send(0, 1, startup(0x9B));
    assert_eq!((machine.irq.take_init(other), machine.irq.take_startup(other)), (false, Some(0x9A)));
    assert!(!machine.irq.lapic(other).is_parked());
    machine.send(0, 1, startup(0x9C));
    assert_eq!(machine.irq.take_startup(other), None, "it runs");
    machine.send(0, 0, startup(0x9C));
    assert_eq!(machine.irq.take_startup(boot), None, "so does the bootstrap processor");
}

#[test]
fn what_a_processor_writes_before_it_takes_its_init_is_gone() {
    const TASK_PRIORITY: u32 = 8;
    let mut machine = Machine::new(2);
    machine.send(0, 1, INIT);
    machine.write(1, SVR, 0x1FF);
    machine.write(1, TASK_PRIORITY, 0x50);
    machine.send(0, 1, startup(9));
    assert!(machine.irq.take_init(cpu(1)));
    assert_eq!((machine.read(1, SVR), machine.read(1, TASK_PRIORITY)), (0xFF, 0));
    assert_eq!(machine.irq.take_startup(cpu(1)), Some(9), "that it was called is not");
}

#[test]
fn init_resets_a_local_apic_but_its_mode() {
    let mut machine = Machine::new(2).x2apic();
    machine.send_x2apic(0, 1, 0x41);
    machine.send_x2apic(0, 1, INIT);
    assert!(machine.irq.lapic(cpu(1)).is_parked());
    assert!(machine.irq.take_init(cpu(1)));
    machine.send_x2apic(0, 1, startup(1));
    assert_eq!(machine.irq.take_startup(cpu(1)), Some(1));
    assert_eq!(machine.irq.acknowledge(cpu(1)), None, "forgotten");
    assert_eq!(machine.irq.msr_read(cpu(1), 0x802, NOW), Ok(1), "still in x2APIC mode, with its id");
    assert_eq!(machine.irq.msr_read(cpu(1), 0x80F, NOW), Ok(0xFF), "disabled by software");
    assert_eq!(machine.irq.msr_read(cpu(1), 0x832, NOW), Ok(MASKED.into()));
    // INIT level de-assert is nothing.
    machine.send_x2apic(0, 1, INIT | 1 << 15);
    assert!(!machine.irq.take_init(cpu(1)));
    machine.send_x2apic(1, 0, INIT);
    assert!(machine.irq.take_init(BOOT) && !machine.irq.lapic(BOOT).is_parked(), "a reset of the machine");
}

#[test]
fn a_timer_interrupts_its_own_processor() {
    let mut machine = Machine::new(2);
    machine.write(1, super::LVT_TIMER, 0x44);
    machine.write(1, super::DIVIDE, 0xB);
    machine.write(1, super::INITIAL, 500);
    let due = machine.irq.deadline(cpu(1)).unwrap();
    assert_eq!((due, machine.irq.deadline(BOOT)), (NOW.after(500), None));
    machine.irq.advance(BOOT, due);
    assert!(!machine.irq.has_interrupt(cpu(1)));
    machine.irq.advance(cpu(1), due);
    assert_eq!(machine.irq.acknowledge(cpu(1)), Some(0x44));
    assert!(!machine.irq.has_interrupt(BOOT));
}

#[test]
fn an_illegal_vector_is_an_error_of_both_sides() {
    let mut machine = Machine::new(2);
    machine.send(0, 1, 0x0F);
    for (number, error) in [(0, 1 << 5), (1, 1 << 6)] {
        machine.write(number, ESR, 0);
        assert_eq!(machine.read(number, ESR), error);
    }
}
