//! The rules of the architecture, applied to this tree.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests: a panic is a failed test")]

use bulkhead_tests::tree::{File, files, is_test, rust};
use bulkhead_tests::{attacks, cases, claims, events, layers, size, twice, unsafety, words};
use std::path::Path;

/// Numbers that may only go down; `UPDATE_RATCHET=1` writes them anew.
const RATCHET: &str = "tests/ratchet.toml";

#[track_caller]
fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

fn crates() -> Vec<layers::Crate> {
    layers::crates().expect("cargo metadata works in this tree")
}

#[test]
fn dependencies_point_one_way() {
    none("dependencies against the layers", &layers::wrong(&crates()));
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let files = files();
    let manifests: Vec<_> = crates().into_iter().map(|c| format!("{}/Cargo.toml", c.folder)).collect();
    let members = files.iter().filter(|f| manifests.contains(&f.path)).map(|f| (f.path.as_str(), f.text.as_str()));
    assert_eq!(members.clone().count(), manifests.len());
    none("crates without the workspace's lints", &layers::without_lints(members));
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let files = files();
    for krate in crates() {
        let root = ["lib.rs", "main.rs"].map(|name| format!("{}/src/{name}", krate.folder));
        let root = files.iter().find(|f| root.contains(&f.path));
        let may = unsafety::UNSAFE_CRATES.contains(&krate.folder.as_str());
        let forbids = root.is_some_and(unsafety::forbids);
        assert!(
            may || forbids,
            "{} neither forbids unsafe code nor is in the list of crates that may have it",
            krate.folder
        );
        assert!(!(may && forbids), "{} forbids unsafe code: take it from the list", krate.folder);
    }
}

#[test]
fn every_unsafe_block_is_argued() {
    let files = files();
    let found: Vec<_> = rust(&files).filter(|file| !is_test(file, &files)).flat_map(unsafety::unargued).collect();
    none("unsafe code without an argument", &found);
}

#[test]
fn the_core_names_no_vendor() {
    none("vendors in vendor-neutral code", &words::vendors(&files()));
}

#[test]
fn backends_name_no_device() {
    none("devices in a backend", &words::devices(&files()));
}

#[test]
fn nothing_stands_in_both_backends() {
    none("lines that stand in both backends", &twice::in_both(&files()));
}

#[test]
fn nothing_speaks_of_the_place_where_it_was_written() {
    none("machine paths and hosts", &words::places(&files()));
}

#[test]
fn every_file_says_what_it_is() {
    none("files that do not begin with a line of documentation", &words::undocumented(&files()));
}

#[test]
fn every_scenario_has_a_case() {
    none("the case table and the suite differ", &cases::wrong(&files()));
}

#[test]
fn each_attack_has_its_row_and_each_row_its_attack() {
    none("attacks that do not fit their table", &attacks::wrong(&files()));
}

#[test]
fn every_claim_names_what_there_is() {
    none("claims about security", &claims::wrong(&files()));
}

#[test]
fn every_kind_of_event_is_told() {
    none("events that nothing makes", &events::never_told(&files()));
}

#[test]
fn files_are_short() {
    let files = files();
    none("files above 800 lines", &size::too_long(&files));
    let mut lengths: Vec<_> = rust(&files).map(|f| f.text.lines().count()).collect();
    lengths.sort_unstable();
    println!("source files: {}, median {} lines", lengths.len(), lengths[lengths.len() / 2]);
}

/// Lines and unsafe blocks as the ratchet file has them; it is written anew if asked.
fn ratchet(files: &[File], now: [usize; 2]) -> [usize; 2] {
    if std::env::var_os("UPDATE_RATCHET").is_some() {
        let [lines, blocks] = now;
        let text = format!(
            "# The privileged core's lines of code, and its unsafe blocks and impls: go down, not up.\n\
             core-lines = {lines}\nunsafe-blocks = {blocks}\n"
        );
        std::fs::write(bulkhead_tests::tree::root().join(Path::new(RATCHET)), text).expect("the tree can be written");
        return now;
    }
    let text = files.iter().find(|f| f.path == RATCHET).map(|f| f.text.as_str()).expect("the ratchet file is there");
    let table: toml::Table = text.parse().expect("the ratchet file is TOML");
    ["core-lines", "unsafe-blocks"].map(|key| {
        let number = table.get(key).and_then(toml::Value::as_integer);
        number.and_then(|n| usize::try_from(n).ok()).expect("each key of the ratchet file is a number")
    })
}

#[test]
fn the_core_stays_small() {
    let files = files();
    let core: Vec<_> = files.iter().filter(|f| size::is_core(f, &files)).collect();
    let lines: usize = core.iter().map(|f| size::code_lines(f)).sum();
    let blocks: usize = core.iter().filter(|f| f.is(".rs")).map(|f| unsafety::count(f)).sum();
    for krate in crates().iter().filter(|c| c.folder.starts_with("hypervisor/") || c.folder == "boot") {
        let own: usize = core.iter().filter(|f| f.is_in(&krate.folder)).map(|f| size::code_lines(f)).sum();
        println!("  {own:5} lines of {}", krate.folder);
    }
    println!("privileged core: {lines} lines of code (the goal is {})", size::CORE_GOAL);
    println!("privileged core: {blocks} unsafe blocks and impls");
    let [most_lines, most_blocks] = ratchet(&files, [lines, blocks]);
    let more = [("lines", lines, most_lines), ("unsafe blocks", blocks, most_blocks)];
    for (what, now, most) in more {
        assert!(now <= most, "{now} {what}, {most} before: find another way, or argue for a new number in {RATCHET}");
    }
    assert!(
        blocks == most_blocks,
        "{blocks} unsafe blocks, {most_blocks} before: well done; write the new number (UPDATE_RATCHET=1)"
    );
}
