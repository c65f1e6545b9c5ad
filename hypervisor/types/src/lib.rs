//! The words every other crate speaks in.
//!
//! Addresses are newtypes, one for each space: an address of one space can not be used in another without saying so,
//! and arithmetic that could wrap is checked. Nothing here knows a processor, a device or a guest's behaviour.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod addr;
mod barrier;
mod id;
pub mod manifest;
mod memory;
mod time;
mod width;

pub use addr::{Frame, Gpa, Gva, Hpa, Hva, PAGE_BITS, PAGE_SIZE};
pub use barrier::Barriers;
pub use id::{GuestId, MAX_CPUS, MAX_TASKS, MAX_VCPUS, VcpuId};
pub use memory::{GuestMemory, MemoryError};
pub use time::{Frequency, Ticks};
pub use width::Width;
