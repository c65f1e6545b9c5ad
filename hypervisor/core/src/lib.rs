//! Policy: what an exit means and what becomes of it. Names no processor vendor.
#![no_std]
#![forbid(unsafe_code)]

pub mod backend;
pub mod event;
pub mod exit;
pub mod frames;

pub use backend::{BackendError, Interruptibility, Register, Vcpu, Windows};
pub use event::Event;
pub use exit::{Exit, IoAccess, NestedFault};
