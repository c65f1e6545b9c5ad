//! The guest's machine: a small PC, device by device.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod bits;
pub mod interrupt;
pub mod layout;
pub mod pit;
pub mod pm;
pub mod uart;
