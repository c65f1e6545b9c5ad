//! The audit for outsiders: who reaches what in a memory dump.
//!
//! This crate shares no code with the hypervisor. It has its own walker of the three page-table formats, written by the
//! manuals: 4-level paging (SDM vol. 3, 4.5 "4-Level Paging and 5-Level Paging"), EPT (SDM vol. 3, 29.3 "The Extended
//! Page Table Mechanism (EPT)") and nested paging (APM vol. 2, 15.25 "Nested Paging").
//!
//! **What it is given.** The dump: RAM by physical address and CR3 and CR4 of each processor. The hypervisor's ELF: its
//! code, by which roots are known. What the manifest says: names and memory sizes of the guests. And two facts of the
//! hypervisor's layout ([`layout`]): what all address spaces share hangs on the last entry of the root, and the frame
//! table is in there, at a known address, in a known format.
//!
//! **How roots are found.** A host root is a frame under which the hypervisor's code is executable at its linked
//! address, *and holds the bytes of the ELF there*: under any other value of CR3 the processor could not execute the
//! next instruction. All of RAM is searched for such frames, so one that nobody tells of is found too. One that lies in
//! free memory, and whose address is in no CR3 and in no word of the hypervisor's data and state, is *dormant*: shown,
//! not judged. A nested root is what a VMCB names (any frame that passes the consistency checks of VMRUN and is not in a
//! guest's RAM), or what an EPT pointer names: a VMCS has no public format, so every aligned word of the hypervisor's
//! data and state that is a valid EPTP, and names a frame for page tables, counts. Page tables that no root leads to
//! are reported, so that a root which was missed does not go unseen.
//!
//! **What it does not show.** One moment, not all of them. Translations that a processor has cached. Bugs in the
//! emulator that wrote the dump. What a device could reach by DMA. Secrets in the registers of the processor itself,
//! or transformed in any way: only the bytes as given are searched for.
#![forbid(unsafe_code)]

mod audit;
mod dump;
mod format;
mod image;
pub mod layout;
mod owner;
mod roots;
mod secret;
mod violation;
mod walk;

pub use audit::{Compartment, Expected, ExpectedGuest, Report, audit};
pub use dump::{Dump, DumpError};
pub use format::Format;
pub use image::Image;
pub use owner::{Owner, Use};
pub use secret::{Secret, witness};
pub use violation::{Kind, Violation};

/// Bytes of a frame.
pub const PAGE: u64 = 4096;
