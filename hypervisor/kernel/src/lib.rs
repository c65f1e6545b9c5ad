//! The hypervisor: start-up order and wiring.
//!
//! [`start`] prepares the machine and enters the idle compartment, in which `dispatch` makes the guests and gives them
//! their turns; [`guest`] is what runs in a guest's own compartment. Nothing here decides what a guest's exit means: that
//! is the core's.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod audit;
pub mod backend;
pub mod backtrace;
pub mod console;
mod create;
mod dispatch;
mod entries;
pub mod guest;
mod lives;
mod lost;
pub mod machine;
pub mod make;
mod operator;
mod parcel;
mod processors;
pub mod start;
mod tally;
pub mod task;
