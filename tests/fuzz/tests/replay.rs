//! Every corpus without the engine: what was once found stays fixed.
#![allow(clippy::expect_used, reason = "a test's own")]

use bulkhead_fuzz::{TARGETS, corpus};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_corpus_passes() {
    for target in TARGETS {
        let packed = fs::read(corpus::path(target.name)).expect("each target has a corpus");
        let inputs = corpus::unpack(&packed).expect("a corpus is whole");
        assert!(!inputs.is_empty(), "{} has no input", target.name);
        inputs.iter().for_each(|input| (target.run)(input));
    }
}

#[test]
fn what_once_failed_passes() {
    for target in TARGETS {
        corpus::regressions(target.name).iter().for_each(|input| (target.run)(input));
    }
}

#[test]
fn inputs_at_the_edges_pass() {
    for target in TARGETS {
        for length in [0, 1, 2, target.longest] {
            (target.run)(&vec![0; length]);
            (target.run)(&vec![0xFF; length]);
        }
    }
}

#[test]
fn record_and_corpora_are_of_these_targets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let record: toml::Table = fs::read_to_string(folder.join("RECORD.toml"))
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("the record is TOML");
    let executions = record.get("executions").and_then(toml::Value::as_table).expect("it has a table of executions");
    assert_eq!(executions.keys().cloned().collect::<BTreeSet<_>>(), targets);
    let findings = record.get("finding").and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |finding: &toml::Value| finding.get("target").and_then(toml::Value::as_str).map(str::to_owned);
    assert!(findings.iter().all(|finding| of(finding).is_some_and(|name| targets.contains(&name))));
    let files = fs::read_dir(folder.join("corpora")).expect("there are corpora").flatten();
    let stems = files.filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()));
    assert_eq!(stems.collect::<BTreeSet<_>>(), targets);
}
