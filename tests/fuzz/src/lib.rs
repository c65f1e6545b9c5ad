//! Fuzz targets: what takes bytes from outside, with the properties that must hold.
//!
//! A [`Target`] is a function from bytes to nothing: it drives one thing of the hypervisor or of `hv` with them, and
//! panics where a promise is broken. The promises are more than "no panic": a model beside the thing, or two ways to the
//! same result. `src/main.rs` puts libFuzzer under it (feature `engine`); the test `replay` runs each corpus without it.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a target's panic is its report"
)]

pub mod corpus;
mod feed;
mod hv;
mod ram;
mod targets;

// See `hv`.
#[path = "../../../tools/src/failure.rs"]
#[allow(dead_code, reason = "a part of `hv`")]
mod failure;
#[path = "../../../tools/src/files.rs"]
#[allow(dead_code, reason = "a part of `hv`")]
mod files;
#[path = "../../../tools/src/style.rs"]
#[allow(dead_code, reason = "a part of `hv`")]
mod style;

// The model that the crate's own tests run.
#[path = "../../../hypervisor/sched/tests/model/promises.rs"]
mod sched;

pub use feed::Feed;

use targets::{
    boot_info, chips, console, control, emulate, exits, guest, guest_walk, interrupts, load, machine, manifest,
    page_tables, serial, timers,
};

/// Something that takes bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line, and of its corpus.
    pub name: &'static str,
    /// What is checked, in a few words.
    pub checks: &'static str,
    /// Longest input that is worth trying, in bytes.
    pub longest: usize,
    /// Runs it on one input; panics if a promise is broken.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, longest: usize, run: fn(&[u8]), checks: &'static str) -> Target {
    Target { name, checks, longest, run }
}

/// All targets.
pub const TARGETS: [Target; 32] = [
    target(
        "emulate",
        512,
        emulate::mmio,
        "a refused or faulting instruction changes nothing; the cache of decodings is exact",
    ),
    target("string-io", 256, emulate::string_io, "bounded; registers account for exactly the elements that were done"),
    target("guest-walk", 256, guest_walk::run, "accessed and dirty bits only; idempotent; rights are monotonic"),
    target("page-tables", 256, page_tables::run, "map, unmap and translate agree with a model, for all three formats"),
    target("machine", 512, machine::run, "deadlines lie ahead, their rate is bounded; `has_changed` tells the truth"),
    target("uart", 256, serial::uart, "every byte comes out once and in order; the line follows the identification"),
    target("pit", 256, timers::pit, "looking in between changes no reading; edges no closer than promised"),
    target("rtc", 256, timers::rtc, "looking in between changes no reading; the date is a date"),
    target("pm", 256, timers::pm, "the timer is the clock's; looking in between changes nothing; power-off only by S5"),
    target("i8042", 128, chips::keyboard, "at most one byte waits; resets only by its commands"),
    target("reset", 128, chips::reset, "resets only by its bits"),
    target("fw-cfg", 128, chips::fw_cfg, "agrees with a model"),
    target("pci", 128, chips::pci, "agrees with a model; nothing can be written"),
    target("test-device", 256, chips::test_device, "agrees with a model"),
    target("interrupts", 512, interrupts::run, "priorities; only what was asked for; no level is lost"),
    target("load-linux", 4096, load::linux, "writes in RAM only; entry in what was written; bounded"),
    target("load-elf", 4096, load::elf, "writes in RAM only; entry in what was written; bounded"),
    target("load-multiboot", 4096, load::multiboot, "writes in RAM only; entry in what was written; bounded"),
    target("load-multiboot2", 4096, load::multiboot2, "writes in RAM only; entry in what was written; bounded"),
    target("load-flat", 256, load::flat, "writes in RAM only; entry in what was written; bounded"),
    target("boot-multiboot2", 1024, boot_info::multiboot2, "bounded reads; what is found is free, aligned and usable"),
    target("boot-pvh", 1024, boot_info::pvh, "bounded reads; what is found is free, aligned and usable"),
    target("manifest", 1024, manifest::packed, "what passes keeps every limit, and comes back from its encoding"),
    target("exit-vmx", 256, exits::vmx, "total; reads defined fields only; a field that fails is an error"),
    target("exit-svm", 64, exits::svm, "total; no port access is 64 bits wide"),
    target("decode", 128, emulate::decode, "length 1 to 15; what follows does not matter; nothing is written"),
    target("guest", 512, guest::run, "an exit of any kind: bounded work, legal injections, no mode that entry refuses"),
    target(
        "sched",
        512,
        sched::run,
        "any operations: time adds up; caps, zones and CPUs are kept; none waits for nothing",
    ),
    target("console", 512, console::run, "framing comes back whole, however it is cut; reports are total"),
    target("control-line", 1024, control::line, "frames come whole after anything; nothing unsealed is done, or twice"),
    target("monitor", 512, control::monitor, "keys go where they belong; each row of a guest begins with its name"),
    target("manifest-toml", 1024, manifest::toml, "what `hv` takes, the hypervisor takes; a mistake has a place"),
];
