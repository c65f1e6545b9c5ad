//! The guest's machine: a small PC, device by device.
//!
//! Each chip is one module: plain data that is driven by register accesses and the guest's time, with interrupt lines to
//! read out. Nothing here holds a clock, a lock or guest memory, and nothing allocates but [`acpi`], which runs once,
//! before the guest does. [`machine::Machine`] puts the chips together; [`layout`] says where they are.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
mod bits;
pub mod firmware;
pub mod fw_cfg;
pub mod i8042;
pub mod interrupt;
pub mod layout;
pub mod machine;
pub mod pci;
pub mod pit;
pub mod pm;
pub mod reset;
pub mod rtc;
pub mod test_device;
pub mod uart;

pub use machine::{Machine, MachineConfig, Request};
