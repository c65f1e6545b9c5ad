//! A window of 4-KiB pages beside the one-to-one mapping, for scenarios about page tables.
//!
//! The window is the 2 MiB at 1 GiB (linear); its 512 entries are a scenario's to fill. SDM vol. 3A 4.5 "4-Level Paging
//! and 5-Level Paging".

use crate::cpu;
use core::arch::global_asm;

/// First linear address of the window.
pub const WINDOW: u64 = 0x4000_0000;
/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const W: u64 = 1 << 1;
/// Reachable from ring 3.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Not executable (with EFER.NXE).
pub const NX: u64 = 1 << 63;

global_asm!(
    ".section .bss.window, \"aw\", @nobits",
    ".balign 4096",
    ".global window_table",
    ".global window_table",
    "window_table: .skip 4096",
    ".text",
);

unsafe extern "C" {
    static mut window_table: [u64; 512];
    static mut boot_pdpt: [u64; 512];
    static mut boot_pd: [u64; 2048];
}

/// Sets entry `index` of the window; `entry` is the frame's address with flag bits. The linear address of the page.
pub fn set(index: usize, entry: u64) -> u64 {
    assert!(index < 512, "the window has 512 pages");
    let address = WINDOW + index as u64 * 4096;
    let table = &raw mut window_table;
    // SAFETY: both tables are static and no reference to them exists. The directory entry at 1 GiB maps nothing that Rust
    // code uses, so that what the window maps to is the scenario's own affair.
    unsafe {
        (&raw mut boot_pd).cast::<u64>().add(512).write_volatile(table as u64 | P | W | U);
        table.cast::<u64>().add(index).write_volatile(entry);
    }
    cpu::invlpg(address);
    address
}

/// Entry `index` of the window as it is now, with what the processor wrote to it.
#[must_use]
pub fn get(index: usize) -> u64 {
    assert!(index < 512, "the window has 512 pages");
    // SAFETY: static table; the processor may write to it, hence volatile.
    unsafe { (&raw const window_table).cast::<u64>().add(index).read_volatile() }
}

/// Sets entry `index` (from 4 on) of the table of 1-GiB pages. The linear address of the page.
pub fn set_gigabyte(index: usize, entry: u64) -> u64 {
    assert!((4..512).contains(&index), "the first 4 GiB are in use");
    // SAFETY: static table; what lies above 4 GiB is the scenario's own affair.
    unsafe { (&raw mut boot_pdpt).cast::<u64>().add(index).write_volatile(entry) };
    flush();
    (index as u64) << 30
}

/// Lets ring 3 at the one-to-one mapping, or keeps it out of all but the window.
pub fn image_user(user: bool) {
    for index in (0..2048).filter(|index| *index != 512) {
        // SAFETY: static table; only the user bit changes, and ring 0 does not need it.
        unsafe {
            let entry = (&raw mut boot_pd).cast::<u64>().add(index);
            entry.write_volatile(if user { entry.read_volatile() | U } else { entry.read_volatile() & !U });
        }
    }
    flush();
}

/// Forgets all translations.
fn flush() {
    // SAFETY: the same tables again.
    unsafe { cpu::set_cr3(cpu::cr3()) };
}
