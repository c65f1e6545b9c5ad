//! The guest's machine: a small PC, device by device.
#![no_std]
#![forbid(unsafe_code)]

pub mod interrupt;
pub mod layout;
