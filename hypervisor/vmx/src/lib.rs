//! The VT-x backend of [`bulkhead_core::Vcpu`].
//!
//! Pure parts, tested on the host: [`fields`], [`capabilities`], [`controls`], [`setup`], [`exit`], [`explain`]
//! and the vCPU itself, all written against the traits of [`vmcs`]. What executes instructions: [`hardware`],
//! `instructions`, `entry`, the only modules with unsafe code.
//!
//! Manual: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), order 325462-083US, March 2024; sections
//! and tables are cited by its numbers.
#![no_std]

#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod capabilities;
pub mod controls;
mod entry;
pub mod exit;
pub mod explain;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod fields;
pub mod hardware;
pub mod host;
mod instructions;
mod lent;
pub mod setup;
mod state;
pub mod switched;
mod vcpu;
pub mod vmcs;

pub use bulkhead_hw::region::Region;
pub use capabilities::{Capabilities, Missing};
pub use hardware::{Hardware, enable, probe};
pub use instructions::error_name;
pub use vcpu::{Resources, VmxVcpu};
