//! Powers off when its power button is pressed; `ignores`: never.
//!
//! The one that ignores it makes the most of the interrupt.
//!
//! ACPI specification 6.5, sections 4.8.2.2.1.1 "Fixed Power Button" and 4.8.3.1 "PM1 Event Grouping". The system control
//! interrupt comes by input 9 of the I/O APIC, level-triggered, until the status is cleared.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::exit::power_off;
use bulkhead_rt::{apic, check_eq, cpu, has_word, ioapic, pic, port, println, scenario, trap};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

scenario!(main);

const STATUS: u16 = 0x600;
const ENABLE: u16 = 0x602;
const BUTTON: u16 = 1 << 8;
const INPUT: u8 = 9;
const VECTOR: u8 = 0x59;

/// Status bits that the handler saw.
static SEEN: AtomicU32 = AtomicU32::new(0);

fn main() {
    pic::init(0x20);
    apic::enable();
    ioapic::set_entry(INPUT, ioapic::LEVEL | u64::from(VECTOR));
    check_eq!(port::read16(STATUS) & BUTTON, 0, "nobody has pressed it yet");
    if has_word("ignores") {
        ignore();
    }
    trap::on(VECTOR, |_| {
        SEEN.store(port::read16(STATUS).into(), Relaxed);
        port::write16(STATUS, BUTTON);
        apic::end_of_interrupt();
    });
    port::write16(ENABLE, BUTTON);
    println!("listens, and obeys");
    while trap::count(VECTOR) == 0 {
        cpu::wait_for_interrupt();
    }
    check_eq!(SEEN.load(Relaxed) & u32::from(BUTTON), u32::from(BUTTON), "the button's status is set");
    check_eq!(port::read16(STATUS) & BUTTON, 0, "and clear when it was written");
    cpu::enable_interrupts();
    (0..1000).for_each(|_| cpu::pause());
    cpu::disable_interrupts();
    check_eq!(trap::count(VECTOR), 1, "one press is one interrupt");
    println!("PASS");
    power_off();
}

/// Leaves the status set, so that the level stays, and enables and disables the event all the time.
fn ignore() -> ! {
    trap::on(VECTOR, |_| {
        // It comes again behind each instruction of the loop below.
        if trap::count(VECTOR).is_multiple_of(64) {
            port::write16(ENABLE, 0);
        }
        apic::end_of_interrupt();
    });
    port::write16(ENABLE, BUTTON);
    println!("listens, and ignores");
    cpu::enable_interrupts();
    // It comes round after more exits than a turn has: were it in step with its turns, each would end with the event off.
    loop {
        for times in 1..100 {
            port::write16(ENABLE, 0);
            (0..times).for_each(|_| port::write16(ENABLE, BUTTON));
        }
    }
}
