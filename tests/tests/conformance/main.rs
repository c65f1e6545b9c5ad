//! What a backend must do, written once.
//!
//! [`rules`] says it in words of no vendor, over a [`bench::Bench`]: a vCPU on a scripted processor. [`vmx`] and [`svm`]
//! are the benches of the two backends, SVM's with and without decode assists and next RIP. The same is asked of whole
//! machines by the guests of `cases.toml`, which run on both.
//!
//! A rule is worth what it catches: [`broken`] breaks a backend in one way at a time, and for each way some rule must fail
//! on every bench.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod bench;
mod broken;
mod rules;
mod svm;
mod vmx;

use bench::Bench;
use broken::Way;
use rules::RULES;

/// Names of the rules that a backend, broken in this way, does not keep.
fn failures<B: Bench>(way: Option<Way>) -> Vec<(&'static str, String)> {
    let check =
        |&(name, rule): &(&'static str, rules::Rule<B>)| rule(&mut B::default(), way).err().map(|why| (name, why));
    RULES::<B>().iter().filter_map(check).collect()
}

fn keeps_all<B: Bench>() {
    let failed = failures::<B>(None);
    assert!(failed.is_empty(), "{}: {failed:#?}", B::NAME);
}

#[test]
fn vt_x_keeps_every_rule() {
    keeps_all::<vmx::Vmx>();
}

#[test]
fn svm_keeps_every_rule() {
    keeps_all::<svm::Whole>();
}

#[test]
fn svm_without_decode_assists_and_next_rip_keeps_every_rule() {
    keeps_all::<svm::Bare>();
}

/// Prints the table; `cargo test -- --nocapture` shows it.
#[test]
fn every_way_to_break_a_backend_is_caught_on_every_bench() {
    fn caught<B: Bench>(way: Way) -> Vec<&'static str> {
        let names: Vec<_> = failures::<B>(Some(way)).into_iter().map(|(name, _)| name).collect();
        assert!(!names.is_empty(), "{way:?} goes unnoticed on {}", B::NAME);
        names
    }
    for way in Way::ALL {
        let names = caught::<vmx::Vmx>(way);
        println!("{way:?}: {}", names.join(", "));
        assert_eq!(caught::<svm::Whole>(way), names, "{way:?}: SVM against VT-x");
        assert_eq!(caught::<svm::Bare>(way), names, "{way:?}: bare SVM against VT-x");
    }
}
