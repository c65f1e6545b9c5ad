//! The hypervisor's image: what its entry code calls, and what a panic does.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use bulkhead_kernel::{backtrace, guest, start};

/// Called by the entry code (`boot/entry.S`), with interrupts off, on the start-up stack: what the loader said.
#[expect(unsafe_code, reason = "the one name that assembly calls; nothing else in the image has it")]
// SAFETY: `entry.S` is the only caller, and declares it so.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, info: u64) -> ! {
    start::start(magic, bulkhead_types::Hpa::new(info), guest::program)
}

/// A panic is a bug of the hypervisor: it says where and stops the machine.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    backtrace::panicked(info)
}
