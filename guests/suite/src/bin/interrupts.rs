//! Interrupts: local APIC priorities, NMI, PIC, I/O APIC, shadows, and events that fault while they are delivered.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::apic::register::{LINT0, PPR, TPR};
use bulkhead_rt::cpu::{self, Machine, is_tcg, machine};
use bulkhead_rt::memory::Region;
use bulkhead_rt::{
    apic, catch, check, check_eq, check_or_defect, ioapic, paging, pic, pit, port, scenario, segments, skip, time, trap,
};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

scenario!(main);

const LOW: u8 = 0x41;
const MIDDLE: u8 = 0x61;
const HIGH: u8 = 0x91;
const DEVICE: u8 = 0x71;
const TIMER: u8 = 0x81;
/// Input of the test device.
const DEVICE_INPUT: u8 = 16;

/// Microseconds to wait for what should come soon: time may be a busy host's.
const LONG: u64 = 500_000;

/// Vectors in the order of their handlers, a byte each, the last one lowest.
static LOG: AtomicU64 = AtomicU64::new(0);

fn log(vector: u8) {
    LOG.store(LOG.load(Relaxed) << 8 | u64::from(vector), Relaxed);
}

fn take_log() -> u64 {
    LOG.swap(0, Relaxed)
}

/// Lets what is pending in.
fn open() {
    cpu::enable_interrupts();
    cpu::disable_interrupts();
}

fn main() {
    pic::init(0x20);
    apic::enable();
    apic::write(LINT0, 0x700);
    for vector in [LOW, MIDDLE, HIGH] {
        trap::on(vector, |frame| {
            log(frame.vector as u8);
            apic::end_of_interrupt();
        });
    }
    local();
    non_maskable();
    shadows();
    legacy();
    edge();
    level();
    faults_in_delivery();
    fresh_stacks();
    if apic::enter_x2apic() {
        check!(apic::x2apic(), "x2APIC mode");
        local();
    } else {
        skip!("x2APIC mode");
    }
}

/// SDM vol. 3A 11.8 "Handling Interrupts".
fn local() {
    apic::send_self(LOW);
    check!(apic::requested(LOW) && !apic::in_service(LOW), "a self-IPI is requested");
    check_eq!(take_log(), 0, "and waits for IF");
    open();
    check_eq!(take_log(), 0x41, "and is delivered once");
    check!(!apic::requested(LOW) && !apic::in_service(LOW), "and is over");
    for vector in [LOW, HIGH, MIDDLE] {
        apic::send_self(vector);
    }
    open();
    check_eq!(take_log(), 0x91_6141, "highest vector first");
    apic::send_self(LOW);
    apic::send_self(LOW);
    open();
    check_eq!(take_log(), 0x41, "one request register: two become one");
    apic::write(TPR, 0x60);
    check_eq!(apic::read(PPR), 0x60, "processor priority follows the task priority");
    check_eq!(cpu::cr8(), 6, "CR8 is the task priority");
    for vector in [LOW, MIDDLE, HIGH] {
        apic::send_self(vector);
    }
    open();
    check_eq!(take_log(), 0x91, "task priority holds lower classes back");
    cpu::enable_interrupts();
    // SAFETY: CR8 is the task priority; what it lets in has handlers.
    unsafe { cpu::set_cr8(0) };
    cpu::disable_interrupts();
    check_eq!(take_log(), 0x6141, "lowering CR8 lets them in");
    // SAFETY: CR8 is the task priority, and interrupts are off.
    unsafe { cpu::set_cr8(3) };
    check_eq!(apic::read(TPR), 0x30, "and writes the register");
    apic::write(TPR, 0);
    nested();
}

/// A handler that lets others in: only a higher class gets through.
fn nested() {
    trap::on(MIDDLE, |_| {
        log(MIDDLE);
        check!(apic::in_service(MIDDLE), "in service while its handler runs");
        apic::send_self(LOW);
        apic::send_self(HIGH);
        open();
        log(0xEE);
        apic::end_of_interrupt();
    });
    apic::send_self(MIDDLE);
    open();
    check_eq!(take_log(), 0x6191_EE41, "a handler is interrupted by a higher class only");
    trap::on(MIDDLE, |frame| {
        log(frame.vector as u8);
        apic::end_of_interrupt();
    });
}

/// SDM vol. 3A 6.7 "Nonmaskable Interrupt (NMI)".
fn non_maskable() {
    const NMI: u32 = 0x4400;
    const TRAP: u64 = 0x100;
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    static DEEPEST: AtomicU32 = AtomicU32::new(0);
    trap::on(2, |_| {
        let depth = DEPTH.fetch_add(1, Relaxed) + 1;
        DEEPEST.fetch_max(depth, Relaxed);
        if trap::count(2) == 1 {
            apic::send(NMI);
            let _ = cpu::cpuid(0, 0);
        }
        DEPTH.fetch_sub(1, Relaxed);
    });
    apic::send(NMI);
    time::wait_until(LONG, || trap::count(2) == 2);
    check_eq!(trap::count(2), 2, "NMI comes with IF clear, and a second one behind it");
    check_eq!(DEEPEST.load(Relaxed), 1, "and not inside its handler");
    apic::send(NMI);
    time::wait_until(LONG, || trap::count(2) == 3);
    check_eq!(trap::count(2), 3, "a third one");
    // A hypervisor may step over the IRET that ends a handler; nobody must see it.
    check_eq!((cpu::rflags() & TRAP, trap::count(1)), (0, 0), "behind it there is no trap flag and no trap");
    trap::on(2, |frame| frame.cs = 0x1000);
    let caught = catch(|| {
        apic::send(NMI);
        time::wait_until(LONG, || false);
    });
    check_eq!(caught.map(|e| e.code()), Some((13, 0x1000)), "an IRET from its handler that faults");
    check_eq!(caught.map(|e| e.frame.rflags & TRAP), Some(0), "saves no trap flag");
    trap::on(2, |_| ());
    apic::send(NMI);
    time::wait_until(LONG, || trap::count(2) == 5);
    check_eq!(trap::count(2), 5, "and NMIs come again behind it");
    trap::off(2);
}

static DISTANCE: AtomicU64 = AtomicU64::new(0);

/// With a pending interrupt, runs the lines; distance of the interrupted instruction from label 2 (MAX: none).
macro_rules! interrupted_at {
    ($($line:literal),+) => {{
        trap::on(LOW, |frame| {
            DISTANCE.store(frame.rip.wrapping_sub(frame.rdi), Relaxed);
            apic::end_of_interrupt();
        });
        DISTANCE.store(u64::MAX, Relaxed);
        apic::send_self(LOW);
        // SAFETY: the lines end with interrupts off and leave RBX and the stack as they were.
        unsafe {
            asm!("push rbx", "lea rdi, [rip + 2f]", $($line),+, "pop rbx", out("rax") _, out("rcx") _, out("rdx") _, out("rdi") _)
        };
        DISTANCE.load(Relaxed)
    }};
}

/// SDM vol. 2B "STI": interrupts are let in behind the next instruction. An instruction that a hypervisor carries out
/// ends the shadow like any other.
fn shadows() {
    check_eq!(interrupted_at!("sti", "2: cli"), u64::MAX, "STI, CLI lets nothing in");
    open();
    check_eq!(interrupted_at!("sti", "nop", "2: cli"), 0, "STI, NOP lets it in behind NOP");
    check_eq!(interrupted_at!("sti", "cpuid", "2: cli"), 0, "STI, CPUID lets it in behind CPUID");
    check_eq!(interrupted_at!("sti", "in al, 0x61", "2: cli"), 0, "STI, IN lets it in behind IN");
    check_eq!(interrupted_at!("sti", "hlt", "2: cli"), 0, "STI, HLT lets it in behind HLT");
    check_eq!(interrupted_at!("pushfq", "or qword ptr [rsp], 0x200", "popfq", "2: cli"), 0, "POPF lets it in at once");
    trap::on(LOW, |frame| {
        log(frame.vector as u8);
        apic::end_of_interrupt();
    });
}

/// The interval timer through the PICs.
fn legacy() {
    pit::start(0, 1000);
    check!(time::wait_until(LONG, || pic::requests() & 1 != 0), "a masked line is requested");
    trap::on(0x20, |_| {
        check_eq!(pic::in_service(), 1, "line 0 is in service while its handler runs");
        pic::end_of_interrupt(0);
    });
    open();
    check_eq!(trap::count(0x20), 0, "and not delivered");
    pic::set_mask(!1);
    open();
    check_eq!(trap::count(0x20), 1, "unmasking delivers it");
    check_eq!((pic::in_service(), pic::requests() & 1), (0, 0), "and it is over");
    pic::set_mask(0xFFFF);
}

/// Edge-triggered inputs: the UART and the interval timer.
fn edge() {
    check_eq!(ioapic::inputs(), 24, "24 inputs");
    static IDENTIFICATION: AtomicU32 = AtomicU32::new(0);
    trap::on(DEVICE, |_| {
        IDENTIFICATION.store(u32::from(port::read8(0x3FA) & 0x0F), Relaxed);
        apic::end_of_interrupt();
    });
    bulkhead_rt::serial::drain();
    ioapic::set_entry(4, u64::from(DEVICE));
    port::write8(0x3FC, 0x0B);
    port::write8(0x3F9, 2);
    cpu::enable_interrupts();
    let came = time::wait_until(LONG, || trap::count(DEVICE) == 1);
    port::write8(0x3F9, 0);
    port::write8(0x3FC, 0x03);
    cpu::disable_interrupts();
    ioapic::set_entry(4, ioapic::MASKED);
    check!(came, "the UART's interrupt comes through the I/O APIC");
    check_eq!(IDENTIFICATION.load(Relaxed), 2, "and says that the transmitter is empty");
    trap::on(TIMER, |_| apic::end_of_interrupt());
    ioapic::set_entry(2, u64::from(TIMER));
    pit::start(2, 1193);
    for _ in 0..5 {
        cpu::wait_for_interrupt();
    }
    ioapic::set_entry(2, ioapic::MASKED);
    pit::start(0, 0);
    let came = trap::count(TIMER);
    // Where time is a busy host's, one more may come before it is masked.
    check!(came == 5 || is_tcg() && came > 5, "the interval timer comes through input 2");
}

/// A level-triggered input: the test device.
fn level() {
    if machine() != Machine::Virtual {
        return skip!("level-triggered input");
    }
    // SAFETY: the registers of the test device; no RAM is there.
    const LINE: Region = unsafe { Region::new(0xFED8_0000, 4096) };
    let first = trap::count(DEVICE);
    static FIRST: AtomicU32 = AtomicU32::new(0);
    FIRST.store(first, Relaxed);
    trap::on(DEVICE, |_| {
        log(u8::from(ioapic::entry(DEVICE_INPUT) & ioapic::REMOTE_IRR != 0));
        if trap::count(DEVICE) - FIRST.load(Relaxed) == 3 {
            LINE.write32(0x800, 0);
        }
        apic::end_of_interrupt();
    });
    ioapic::set_entry(DEVICE_INPUT, ioapic::LEVEL | ioapic::MASKED | u64::from(DEVICE));
    LINE.write32(0x800, 1);
    open();
    check_eq!(trap::count(DEVICE), first, "a masked level waits");
    ioapic::set_entry(DEVICE_INPUT, ioapic::LEVEL | u64::from(DEVICE));
    for _ in 0..5 {
        open();
    }
    check_eq!(trap::count(DEVICE) - first, 3, "a level comes again until it is lowered");
    check_eq!(take_log(), 0x01_0101, "remote IRR is set while it is in service");
    check_eq!(ioapic::entry(DEVICE_INPUT) & ioapic::REMOTE_IRR, 0, "and clear behind the end of interrupt");
    ioapic::set_entry(DEVICE_INPUT, ioapic::MASKED);
}

/// Faults while an interrupt is delivered: the fault comes instead, and the interrupt counts as taken.
fn faults_in_delivery() {
    trap::set_gate_kind(LOW, segments::CODE, 0x0E, 0);
    apic::send_self(LOW);
    let caught = catch(open);
    check_or_defect!(
        caught.map(|e| e.code()),
        Some((11, 0x41 * 8 + 3)),
        Some((11, 0x41 * 16 + 2)),
        "an absent gate is #NP with the external bit"
    );
    check!(apic::in_service(LOW), "and the interrupt is in service");
    apic::end_of_interrupt();
    let absent = paging::set(1, 0);
    segments::set_interrupt_stack(absent + 4096);
    trap::set_gate_kind(LOW, segments::CODE, 0x8E, 1);
    apic::send_self(LOW);
    let caught = catch(open);
    check_eq!(caught.map(|e| e.code()), Some((14, 2)), "an absent stack is #PF");
    check_eq!(caught.map(|e| e.cr2), Some(absent + 4088), "and CR2 has its address");
    apic::end_of_interrupt();
    trap::set_gate_kind(LOW, segments::CODE, 0x8E, 0);
    take_log();
}

/// Interrupts whose stack lies in RAM that was never touched: with lazy memory the hypervisor maps it in the middle of
/// the delivery and has to deliver again, once.
fn fresh_stacks() {
    trap::set_gate_kind(LOW, segments::CODE, 0x8E, 1);
    let before = trap::count(LOW);
    for page in 0..32 {
        segments::set_interrupt_stack(0x80_0000 + page * 8192 + 4096);
        apic::send_self(LOW);
        open();
    }
    trap::set_gate_kind(LOW, segments::CODE, 0x8E, 0);
    take_log();
    check_eq!(trap::count(LOW) - before, 32, "interrupts on fresh stacks come once each");
}
