//! What of `hv` reads bytes and text from outside, as it stands there.
//!
//! `hv` as a library would bring its whole command line into the fuzzer's build. These modules name others of `hv` by
//! `crate::`, which are at this crate's root.
#![allow(dead_code, unused_imports, reason = "parts of `hv`, which uses more of them")]

#[path = "../../../tools/src/event.rs"]
pub mod event;
#[path = "../../../tools/src/frames.rs"]
pub mod frames;
#[path = "../../../tools/src/manifest/mod.rs"]
pub mod manifest;
