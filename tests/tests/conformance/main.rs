//! The conformance suite on scripted processors: VT-x, and SVM with and without decode assists and next RIP.
//!
//! What the rules are and how a bench is made is in `bulkhead_conformance`; the same suite runs on real processors
//! (`tests/conformance/image`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod ends;
mod faults;
mod svm;
mod vmx;

use bulkhead_conformance::{Bench, Verdict, Way, ask, caught};
use svm::Svm;
use vmx::Vmx;

/// A rule that can not be asked is as bad as one that is not kept: a script can say anything.
fn keeps_all(bench: &mut impl Bench) {
    let mut wrong = Vec::new();
    ask(bench, None, |rule, verdict| {
        if verdict != Verdict::Kept {
            wrong.push((rule, verdict));
        }
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn vt_x_keeps_every_rule() {
    keeps_all(&mut Vmx::default());
}

#[test]
fn svm_keeps_every_rule() {
    keeps_all(&mut Svm::new(true));
}

#[test]
fn svm_without_decode_assists_and_next_rip_keeps_every_rule() {
    keeps_all(&mut Svm::new(false));
}

/// Prints the table; `cargo test -- --nocapture` shows it.
#[test]
fn every_way_to_break_a_backend_is_caught_on_every_bench() {
    for way in Way::ALL {
        let names = caught(&mut Vmx::default(), way);
        println!("{way:?}: {}", names.join(", "));
        assert!(!names.is_empty(), "{way:?} goes unnoticed");
        assert_eq!(caught(&mut Svm::new(true), way), names, "{way:?}: SVM against VT-x");
        assert_eq!(caught(&mut Svm::new(false), way), names, "{way:?}: bare SVM against VT-x");
    }
}
