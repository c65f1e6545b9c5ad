//! Random operations beside a model of the promises. `tests/fuzz` runs the same model on its own inputs.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test; its numbers are small")]

mod promises;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};
use proptest::proptest;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_operations_keep_the_promises(data in vec(any::<u8>(), 0..1500)) {
        promises::run(&data);
    }
}
