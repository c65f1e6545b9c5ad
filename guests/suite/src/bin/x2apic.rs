//! The local APIC in x2APIC mode: registers, refusals, changes of mode.
//!
//! SDM vol. 3A 11.12 "Extended XAPIC (x2APIC)". The first part works the registers that a processor may keep by itself; the case
//! table says how many exits that may take where it does.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_rt::apic::register::{EOI, ERROR, IRR, ISR, LINT0, PPR, SPURIOUS, TMR, TPR};
use bulkhead_rt::memory::Region;
use bulkhead_rt::{apic, catch, check, check_eq, cpu, ioapic, pic, pit, scenario, segments, skip, time, trap};

scenario!(main);

const LOW: u8 = 0x41;
const HIGH: u8 = 0x91;
const DEVICE: u8 = 0x71;
const DEVICE_INPUT: u8 = 16;
const BASE: u32 = 0x1B;
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;
const SELF_IPI: u32 = 0x3F;
const ROUNDS: u32 = 1000;
const LONG: u64 = 500_000;

/// Reads a register, all 64 bits of it; the mode is known here, and so takes no exit to be asked.
fn get(register: u32) -> Option<u64> {
    cpu::rdmsr(0x800 + register).ok()
}

/// Writes a register; whether it was taken.
fn set(register: u32, value: u64) -> bool {
    cpu::wrmsr(0x800 + register, value).is_ok()
}

fn open() {
    cpu::enable_interrupts();
    cpu::disable_interrupts();
}

fn has(first: u32, vector: u8) -> bool {
    get(first + u32::from(vector / 32)).is_some_and(|word| word >> (vector % 32) & 1 != 0)
}

fn main() {
    pic::init(0x20);
    apic::enable();
    apic::write(LINT0, 0x700);
    for vector in [LOW, HIGH] {
        trap::on(vector, |_| _ = set(EOI, 0));
    }
    if !apic::enter_x2apic() {
        return skip!("x2APIC mode");
    }
    often();
    refused();
    illegal();
    disabled();
    level();
    faults();
    legacy();
    carried();
    flips();
}

/// Interrupts to itself, their ends, priorities by both ways, and reads of what changes by that.
fn often() {
    let before = trap::count(LOW) + trap::count(HIGH);
    let mut wrong = 0_u32;
    for round in 0..ROUNDS {
        let _ = (set(TPR, 0x50), set(SELF_IPI, LOW.into()));
        let held = has(IRR, LOW) && !has(ISR, LOW) && get(PPR) == Some(0x50) && cpu::cr8() == 5;
        let _ = set(SELF_IPI, HIGH.into());
        open();
        let first = trap::count(HIGH) == round + 1 && trap::count(LOW) == round;
        // SAFETY: CR8 is the task priority; what it lets in has handlers.
        unsafe { cpu::set_cr8(0) };
        open();
        wrong += u32::from(!held || !first || trap::count(LOW) != round + 1 || get(TPR) != Some(0));
    }
    check_eq!(wrong, 0, "priorities hold back and let in, each time");
    check_eq!(trap::count(LOW) + trap::count(HIGH) - before, 2 * ROUNDS, "each comes once");
}

/// What is not there, can not be read or written, or has reserved bits.
fn refused() {
    let unreadable = (0..0x100_u32).filter(|&register| {
        let there = matches!(register, 0x02 | 0x03 | 0x08 | 0x0A | 0x0D | 0x0F..=0x28 | 0x30 | 0x32..=0x39 | 0x3E);
        get(register).is_some() != there
    });
    check_eq!(unreadable.count(), 0, "each register that is there is read, and no other one");
    let read_only = [0x00, 0x02, 0x03, 0x0A, 0x0D, 0x0E, ISR, TMR, IRR, IRR + 7, 0x31, 0x39, 0x40, 0xFF];
    check!(read_only.iter().all(|&register| !set(register, 0)), "registers that can not be written");
    for (register, value) in
        [(TPR, 0x100), (TPR, 1 << 32), (EOI, 1), (EOI, 1 << 63), (SELF_IPI, 0x141), (SELF_IPI, 1 << 32)]
    {
        check!(!set(register, value), "reserved bits are refused");
    }
    // SAFETY: a value that is refused.
    let fault = catch(|| unsafe { cpu::set_cr8(16) });
    check_eq!(fault.map(|fault| fault.vector()), Some(13), "CR8 has four bits");
    check_eq!((get(0x02), get(0x0D), get(TPR)), (Some(0), Some(1), Some(0)), "and nothing came of it");
    check!(!has(IRR, LOW), "not an interrupt either");
}

/// SDM vol. 3A 11.5.3 "Error Handling".
fn illegal() {
    let _ = (set(ERROR, 0), set(ERROR, 0));
    check!(set(SELF_IPI, 5), "an illegal vector is written");
    let _ = set(ERROR, 0);
    check_eq!(get(ERROR), Some(0x60), "and is an error, sent and received");
    check_eq!(get(IRR), Some(0), "and not requested");
}

/// SDM vol. 3A 11.4.7.2 "Local APIC State After It Has Been Software Disabled".
fn disabled() {
    let came = trap::count(HIGH);
    let _ = (set(SELF_IPI, HIGH.into()), set(SPURIOUS, 0xFF), set(SELF_IPI, LOW.into()));
    check!(has(IRR, HIGH) && !has(IRR, LOW), "disabled by software it keeps what it has, and takes no more");
    let _ = set(SPURIOUS, 0x1FF);
    open();
    check_eq!(trap::count(HIGH) - came, 1, "which comes");
    let _ = set(LINT0, 0x700);
    let _ = set(SELF_IPI, LOW.into());
    check!(has(IRR, LOW), "enabled again it takes them");
    open();
}

fn level() {
    // SAFETY: the registers of the test device; no RAM is there.
    const LINE: Region = unsafe { Region::new(0xFED8_0000, 4096) };
    trap::on(DEVICE, |_| {
        if trap::count(DEVICE) == 3 {
            LINE.write32(0x800, 0);
        }
        let _ = set(EOI, 0);
    });
    ioapic::set_entry(DEVICE_INPUT, ioapic::LEVEL | u64::from(DEVICE));
    LINE.write32(0x800, 1);
    check!(has(IRR, DEVICE) && has(TMR, DEVICE), "a level is requested as one");
    (0..5).for_each(|_| open());
    check_eq!(trap::count(DEVICE), 3, "it comes again at each end until it is lowered");
    check_eq!(ioapic::entry(DEVICE_INPUT) & ioapic::REMOTE_IRR, 0, "and the I/O APIC knows of the last one");
    ioapic::set_entry(DEVICE_INPUT, ioapic::MASKED);
    let _ = set(SELF_IPI, DEVICE.into());
    open();
    check!(trap::count(DEVICE) == 4 && !has(ISR, DEVICE), "its vector as an edge");
}

/// A delivery that does not get through the gate.
fn faults() {
    for _ in 0..100 {
        trap::set_gate_kind(LOW, segments::CODE, 0x0E, 0);
        let _ = set(SELF_IPI, LOW.into());
        let caught = catch(open);
        let in_service = has(ISR, LOW) && !has(IRR, LOW);
        trap::set_gate_kind(LOW, segments::CODE, 0x8E, 0);
        let _ = set(EOI, 0);
        if caught.map(|fault| fault.vector()) != Some(11) || !in_service {
            check!(false, "an absent gate is #NP, and the interrupt is in service");
        }
    }
    check!(!has(ISR, LOW), "and ends");
}

/// The PICs' interrupts, by LINT0, beside those of the local APIC, and while it halts.
fn legacy() {
    trap::on(0x20, |_| pic::end_of_interrupt(0));
    let (low, line) = (trap::count(LOW), trap::count(0x20));
    pit::start(0, 1000);
    check!(time::wait_until(LONG, || pic::requests() & 1 != 0), "a line of the PICs is requested");
    pic::set_mask(!1);
    let _ = set(SELF_IPI, LOW.into());
    open();
    open();
    check_eq!((trap::count(LOW) - low, trap::count(0x20) - line), (1, 1), "both come");
    pit::start(0, 1000);
    cpu::wait_for_interrupt();
    check_eq!(trap::count(0x20) - line, 2, "and end a halt");
    let _ = set(SELF_IPI, LOW.into());
    cpu::wait_for_interrupt();
    check_eq!(trap::count(LOW) - low, 2, "as one to itself does");
    pic::set_mask(0xFFFF);
}

/// Writes IA32_APIC_BASE with these bits for the mode; whether it was taken.
fn mode(bits: u64) -> bool {
    let base = cpu::rdmsr(BASE).unwrap_or(0) & !(ENABLE | X2APIC);
    cpu::wrmsr(BASE, base | bits).is_ok()
}

/// 11.12.5 "x2APIC State Transitions": into the mode all is kept, out of it nothing.
fn carried() {
    check!(!mode(ENABLE) && !mode(X2APIC), "from x2APIC mode there is no way to xAPIC mode");
    check!(mode(0) && mode(ENABLE), "but by switching it off");
    apic::enable();
    trap::on(HIGH, |_| {
        apic::send_self(LOW);
        let entered = apic::enter_x2apic();
        check!(entered && has(ISR, HIGH) && has(IRR, LOW), "what is in service and requested goes along");
        check_eq!((get(TPR), get(PPR)), (Some(0x30), Some(0x90)), "so do the priorities");
        let _ = set(EOI, 0);
    });
    let (low, high) = (trap::count(LOW), trap::count(HIGH));
    apic::write(TPR, 0x30);
    apic::send_self(HIGH);
    open();
    open();
    check_eq!((trap::count(LOW) - low, trap::count(HIGH) - high), (1, 1), "and ends there");
    trap::on(HIGH, |_| _ = set(EOI, 0));
    let _ = (set(SELF_IPI, LOW.into()), mode(0), mode(ENABLE));
    apic::enable();
    open();
    check_eq!(trap::count(LOW) - low, 1, "a local APIC that was off has forgotten");
    check!(apic::enter_x2apic() && get(TPR) == Some(0) && !has(IRR, LOW), "also back in x2APIC mode");
}

/// All modes in turn, with an interrupt requested and one in service each time.
fn flips() {
    let came = trap::count(LOW);
    for _ in 0..50 {
        let _ = (set(SELF_IPI, HIGH.into()), mode(0));
        open();
        let _ = mode(ENABLE);
        apic::enable();
        apic::send_self(LOW);
        let _ = apic::enter_x2apic();
        open();
    }
    check_eq!(trap::count(LOW) - came, 50, "what is sent before a change to x2APIC mode comes behind it");
}
