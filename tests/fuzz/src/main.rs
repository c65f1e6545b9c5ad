//! The targets under libFuzzer. `hv fuzz` builds it with coverage and calls it.
//!
//! The environment says what is to be done: BULKHEAD_FUZZ_TARGET names the target. With BULKHEAD_FUZZ_UNPACK, its corpus
//! is written to that folder, one file for each input and
//! regression, and the
//! length of the longest input worth trying to standard output; with BULKHEAD_FUZZ_PACK, the inputs of that folder become its
//! corpus. With neither, the arguments are libFuzzer's.
#![no_main]
#![allow(clippy::expect_used, reason = "a fuzzer that can not start says so by dying")]

use bulkhead_fuzz::{TARGETS, Target, corpus};
use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;
use std::{env, fs};

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = env::var("BULKHEAD_FUZZ_TARGET").unwrap_or_default();
        let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
            eprintln!("there is no target `{name}`");
            exit(2);
        };
        if let Some(folder) = env::var_os("BULKHEAD_FUZZ_UNPACK") {
            unpack(target, Path::new(&folder));
            exit(0);
        }
        if let Some(folder) = env::var_os("BULKHEAD_FUZZ_PACK") {
            pack(target, Path::new(&folder));
            exit(0);
        }
        let _ = TARGET.set(*target);
    },
    |data: &[u8]| if let Some(target) = TARGET.get() { (target.run)(data) }
);

fn unpack(target: &Target, folder: &Path) {
    let packed = fs::read(corpus::path(target.name)).unwrap_or_default();
    let mut inputs = corpus::regressions(target.name);
    inputs.extend(corpus::unpack(&packed).expect("a corpus is whole").into_iter().map(<[u8]>::to_vec));
    for (number, input) in inputs.iter().enumerate() {
        fs::write(folder.join(format!("kept-{number:04}")), input).expect("the folder can be written");
    }
    println!("{}", target.longest);
}

fn pack(target: &Target, folder: &Path) {
    let files = fs::read_dir(folder).expect("the folder can be read").flatten();
    let inputs = files.map(|file| fs::read(file.path()).expect("an input can be read")).collect();
    fs::write(corpus::path(target.name), corpus::pack(inputs)).expect("the corpus can be written");
}
