//! The hypervisor image: start-up order and wiring.
//!
//! The loader's entry code (`boot/entry.S`) calls [`boot_main`]; [`start`] prepares the machine and enters the idle
//! compartment, in which [`dispatch`] makes the guests and gives them their turns; [`guest`] is what runs in a guest's own
//! compartment. Nothing here decides what a guest's exit means: that is the core's.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod audit;
mod backend;
mod backtrace;
mod console;
mod dispatch;
mod guest;
mod machine;
mod start;

/// Called by the entry code, with interrupts off, on the start-up stack: what the loader said, see `boot/entry.S`.
#[expect(unsafe_code, reason = "the one name that assembly calls; nothing else in the image has it")]
// SAFETY: `entry.S` is the only caller, and declares it so.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, info: u64) -> ! {
    start::start(magic, bulkhead_types::Hpa::new(info))
}

/// A panic is a bug of the hypervisor: it says where and stops the machine.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    backtrace::panicked(info)
}
