//! The hypervisor with the conformance suite in its guest's place.
//!
//! Start-up, the idle compartment and the guest's compartment are the hypervisor's own. In the latter, instead of one
//! guest that is served, the suite makes vCPUs, one after the other, on the same control pages ([`place`]), and asks every
//! rule of the backend whole, and then of the backend broken in each way. What comes of it goes to the log:
//!
//! | line | meaning |
//! |---|---|
//! | `conformance kept RULE` | |
//! | `conformance broken RULE: HOW` | |
//! | `conformance skipped RULE: WHY` | this processor can not be brought to it |
//! | `conformance way WAY caught by RULE, ..` | |
//! | `conformance way WAY unnoticed` | |
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod place;
mod vendor;

use bulkhead_conformance::real::Real;
use bulkhead_conformance::{Verdict, Way, ask, caught};
use bulkhead_hw::cpu;
use bulkhead_kernel::backend::Virtualization;
use bulkhead_kernel::guest::Me;
use bulkhead_kernel::task::{Command, State};
use bulkhead_kernel::{audit, backtrace, log, start};
use place::Place;
use vendor::{Svm, Vendor, Vmx};

/// Called by the entry code (`boot/entry.S`), with interrupts off, on the start-up stack: what the loader said.
#[expect(unsafe_code, reason = "the one name that assembly calls; nothing else in the image has it")]
// SAFETY: `entry.S` is the only caller, and declares it so.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, info: u64) -> ! {
    start::start(magic, bulkhead_types::Hpa::new(info), program)
}

/// A panic is a bug: it says where and stops the machine.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    backtrace::panicked(info)
}

fn program(capabilities: &Virtualization) -> extern "C" fn() -> ! {
    match capabilities {
        Virtualization::Vmx(_) => main::<Vmx>,
        Virtualization::Svm(_) => main::<Svm>,
    }
}

/// What the guest's compartment executes.
extern "C" fn main<V: Vendor>() -> ! {
    let Some(me) = Me::find() else { cpu::stop() };
    let Some(mut compartment) = me.take_compartment() else { cpu::stop() };
    let Me { facts, task, id, slot, name } = me;
    let Some(config) = facts.guest(id) else { cpu::stop() };
    log!("event guest {id} {} started", name);
    let asked = Place::<V>::new(facts, id, config.memory, &mut compartment).map(|place| suite(&mut Real::new(place)));
    match asked {
        Ok(well) => {
            log!("event guest {id} {} ended test-exit {}", name, u8::from(!well));
            slot.exit_by_test((!well).into());
        }
        Err(error) => {
            log!("event guest {id} {} ended killed can not start: {error}", name);
        }
    }
    task.become_next(State::Absent);
    loop {
        if task.command() == Command::Audit {
            audit::audit_here(facts, id, &compartment, true);
        }
        task.leave();
    }
}

/// Asks everything; whether all is well.
fn suite<V: Vendor>(bench: &mut Real<Place<'_, V>>) -> bool {
    let mut well = true;
    ask(bench, None, |rule, verdict| match verdict {
        Verdict::Kept => log!("conformance kept {rule}"),
        Verdict::Skipped(why) => log!("conformance skipped {rule}: {why}"),
        Verdict::Broken(how) => {
            log!("conformance broken {rule}: {how}");
            well = false;
        }
    });
    for way in Way::ALL {
        let names = caught(bench, way);
        if names.is_empty() {
            log!("conformance way {way:?} unnoticed");
            well = false;
        } else {
            log!("conformance way {way:?} caught by {}", names.join(", "));
        }
    }
    well
}
