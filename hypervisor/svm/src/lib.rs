//! The SVM backend of [`bulkhead_core::Vcpu`].
//!
//! Pure parts, tested on the host: [`fields`], [`capabilities`], [`exit`], [`inject`] and the vCPU
//! itself, written against [`vmcb::Processor`]. What executes instructions: [`hardware`] and `entry`, the only modules
//! with unsafe code.
//!
//! Manual: AMD64 Architecture Programmer's Manual (APM), volume 2, 24593 revision 3.42, March 2024.
#![no_std]

#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod capabilities;
mod entry;
pub mod exit;
pub mod explain;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod fields;
pub mod hardware;
pub mod inject;
mod setup;
mod state;
mod step;
pub mod switched;
mod vcpu;
pub mod vmcb;

pub use bulkhead_hw::region::Region;
pub use capabilities::{Capabilities, Missing};
pub use hardware::{Hardware, enable, probe};
pub use vcpu::{Resources, SvmVcpu};
