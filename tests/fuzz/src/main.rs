//! The engine
#![no_main]
use bulkhead_fuzz::TARGETS;
use std::sync::OnceLock;
static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("BULKHEAD_FUZZ").unwrap();
        let t = TARGETS.iter().find(|t| t.name == name).unwrap();
        RUN.set(t.run).ok();
    },
    |data: &[u8]| { RUN.get().unwrap()(data) }
);
