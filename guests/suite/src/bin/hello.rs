//! Boot, print, end: the least a guest can do.
#![no_std]
#![no_main]

use bulkhead_rt::{boot_magic, check_eq, cmdline, memory_map, println, scenario};

scenario!(main);

fn main() {
    println!("hello from a guest");
    check_eq!(boot_magic(), 0x2BAD_B002, "multiboot magic");
    println!("command line: {}", cmdline());
    for (start, bytes, kind) in memory_map() {
        println!("memory {start:#x} {bytes:#x} {kind}");
    }
}
