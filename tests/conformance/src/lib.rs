//! What a backend must do, written once.
//!
//! [`rules`] says it in words of no vendor, over a [`Bench`]: a vCPU on a processor of which the rule says what becomes of
//! its next entry. On a scripted processor (`tests/tests/conformance`) the bench makes the processor say so; on a real one
//! ([`real`]) it gives the guest the code and the state that lead there, and looks at what became of the guest.
//! [`vmx`] and [`svm`] stand between a backend and its processor, real or not, and note what it was told at each entry.
//!
//! A rule is worth what it catches: [`broken`] breaks a backend in one way at a time, and for each way some rule must fail
//! on every bench.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bench;
pub mod broken;
pub mod guest;
pub mod real;
pub mod rules;
pub mod svm;
pub mod vmx;

pub use bench::{Bench, Failure};
pub use broken::{Broken, Way};

use alloc::string::String;
use alloc::vec::Vec;
use rules::RULES;

/// What became of one rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is kept.
    Kept,
    /// It is not, and how that shows.
    Broken(String),
    /// It could not be asked of this processor, and why.
    Skipped(&'static str),
}

/// Asks every rule of the backend of `bench`, which is broken in this way or whole, and passes the verdicts on.
pub fn ask<B: Bench>(bench: &mut B, way: Option<Way>, mut verdict: impl FnMut(&'static str, Verdict)) {
    for (name, rule) in RULES::<B>() {
        verdict(
            name,
            match rule(bench, way) {
                Ok(()) => Verdict::Kept,
                Err(Failure::Wrong(how)) => Verdict::Broken(how),
                Err(Failure::CanNot(why)) => Verdict::Skipped(why),
            },
        );
    }
}

/// Names of the rules that catch a backend which is broken in this way.
pub fn caught<B: Bench>(bench: &mut B, way: Way) -> Vec<&'static str> {
    let mut names = Vec::new();
    ask(bench, Some(way), |name, verdict| {
        if matches!(verdict, Verdict::Broken(_)) {
            names.push(name);
        }
    });
    names
}
