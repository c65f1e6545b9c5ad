//! Instructions and hardware registers of the host.
//!
//! Every function here is as safe to call as its signature says: what a caller could get wrong is `unsafe` and states
//! what the caller must see to. Nothing here decides anything.
#![no_std]

#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod apic;
pub mod barrier;
pub mod calibrate;
pub mod clock;
pub mod compartment;
pub mod cpu;
pub mod descriptors;
pub mod frame;
pub mod heap;
pub mod layout;
pub mod legacy;
pub mod ports;
pub mod probe;
pub mod ram;
pub mod region;
pub mod serial;
pub mod startup;
pub mod switch;
pub mod switched;
pub mod tables;
pub mod trap;
pub mod xstate;
