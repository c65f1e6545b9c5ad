//! Policy: what an exit means and what becomes of it. Names no processor vendor.
#![no_std]
#![forbid(unsafe_code)]

mod adapter;
pub mod audit;
pub mod backend;
pub mod barrier;
pub mod control;
pub mod counters;
mod cpu;
pub mod cpuid;
pub mod dump;
pub mod end;
pub mod event;
pub mod exit;
mod exits;
pub mod frames;
pub mod guest;
pub mod host;
pub mod injection;
pub mod load;
mod msr;
mod mtrr;
mod pvclock;
pub mod reset;
#[cfg(test)]
mod search;

pub use adapter::paging_state;
pub use backend::{BackendError, Interruptibility, Register, Vcpu, Windows};
pub use bulkhead_devices::interrupt::Requests;
pub use cpu::VirtualCpu;
pub use end::{End, Reason};
pub use event::Event;
pub use exit::{Exit, IoAccess, NestedFault};
pub use guest::{Guest, Limits, Yield};
pub use host::Host;
