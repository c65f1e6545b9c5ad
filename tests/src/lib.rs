//! What the tree must look like: architecture tests over its own sources.
//!
//! Each module has one kind of rule as a function from sources to violations (so that the rule itself is tested on a
//! broken sample), and `tests/architecture.rs` applies them to the workspace.
#![forbid(unsafe_code)]

pub mod attacks;
pub mod cases;
pub mod claims;
pub mod events;
pub mod layers;
pub mod lexer;
pub mod size;
pub mod tree;
pub mod twice;
pub mod unsafety;
pub mod words;
