//! x86_64 bits: registers, model-specific registers, exceptions. Data only.
//!
//! Sources, pinned: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), order 325462-083US, March 2024;
//! AMD64 Architecture Programmer's Manual (APM), volume 2, 24593 revision 3.42, March 2024.
#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod exception;
pub mod msr;
pub mod registers;

pub use control::{Cr0, Cr4, Efer, Rflags, Xcr0};
pub use exception::Vector;
pub use registers::{Gpr, Segment, SegmentName};
