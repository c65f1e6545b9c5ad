//! Runtime of the test guests: entry, print, check, exit.
//!
//! A guest is a multiboot 1 kernel of one segment at 1 MiB. The same file boots in Bulkhead, in QEMU by `-kernel` and
//! through GRUB, so that what a scenario expects can be held against other machines. It is entered in 32-bit mode,
//! sets up long mode with the first 4 GiB mapped one to one (2-MiB pages), its own descriptor tables and one stack, and
//! calls the scenario. There is one processor until the scenario starts the others ([`smp`]), and no interrupt is enabled until it enables it.
//!
//! What is printed on COM1 is the protocol: `ok NAME` or `FAIL FILE:LINE NAME` for each check, `skip NAME` for
//! what this machine can not show (the case table says why), and `PASS` as the last line if nothing failed. The exit code (0 or 1) goes to port 0xF4.
#![no_std]
#![allow(clippy::indexing_slicing, reason = "a panic ends a test guest as a failure, which is right")]
#![allow(clippy::cast_possible_truncation, reason = "a guest of 64 bits, whose own objects lie below 4 GiB")]
#![allow(clippy::result_large_err, reason = "a caught exception is a whole register state, and nothing here is hot")]

pub mod apic;
mod boot;
pub mod cpu;
pub mod exit;
pub mod ioapic;
pub mod memory;
pub mod modes;
pub mod paging;
pub mod pic;
pub mod pit;
pub mod port;
pub mod report;
pub mod segments;
pub mod serial;
pub mod smp;
pub mod time;
pub mod trap;
pub mod user;

pub use boot::{boot_magic, cmdline, has_word, memory_map, word_value};
pub use exit::exit;
pub use trap::{Exception, catch};

/// Makes `$main` (a function without arguments) the scenario of this guest.
#[macro_export]
macro_rules! scenario {
    ($main:path) => {
        // SAFETY: the runtime declares exactly this symbol with this signature and no other crate defines it.
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() {
            $main();
        }
    };
}
