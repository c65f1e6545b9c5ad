//! The targets, by what they drive.

pub mod boot_info;
pub mod chips;
pub mod console;
pub mod control;
pub mod emulate;
pub mod exits;
pub mod guest;
pub mod guest_walk;
pub mod interrupts;
pub mod load;
pub mod machine;
pub mod manifest;
pub mod page_tables;
pub mod serial;
pub mod timers;
