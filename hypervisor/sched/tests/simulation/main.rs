//! The scheduler on a simulated machine: what it promises, over ten seconds of a machine with 1 MHz of ticks.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test; its numbers are small"
)]

mod attacks;
mod caps;
mod cost;
mod life;
mod lives;
mod machine;

mod reservations;
mod shares;
mod wakes;
mod zones;

use machine::{END, GONE, HOG, Load, Machine, SLICE, near, params};
