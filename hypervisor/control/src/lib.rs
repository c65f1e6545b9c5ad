//! The monitor and the control line: what they say, and how it is kept whole.
//!
//! Both do the same things to the machine, through one enum: an [`Operation`] goes to a [`Machine`], which answers with a
//! [`Response`]. The [`monitor`] on COM1 makes operations of typed lines. The control [`line`](mod@line) on COM2 makes
//! them of frames that prove that their sender has the key of the manifest; `hv ctl` is at its other end.
//!
//! Nothing here touches a chip or a clock: bytes and moments are passed in, bytes come out. All buffers are of fixed size,
//! and the work for one byte is bounded.
//!
//! A hostile peer on the line, or a hostile guest, may try:
//!
//! | what | what comes of it |
//! |---|---|
//! | garbage, cut frames, frames that are too long | dropped up to the next zero byte, counted ([`line::Refused`]) |
//! | frames without the key, or changed on the way | dropped, counted; the tags are compared in constant time |
//! | frames of an earlier session, or again, or in another order | dropped, counted; the last one again: its answer again |
//! | to hold a frame back, and let it come later | after half a minute its session is over |
//! | to end a session by beginning another | the first one stands until the other has proved the key |
//! | a flood of any of these | one event a second tells the counts; a part of the time is listened to it ([`debt`]) |
//! | a flood of events by one guest | its bucket empties: the rest is counted, and told as one event |
//! | console output that looks like the monitor's | each row of it begins with the guest's name; controls are gone |
#![no_std]
#![forbid(unsafe_code)]

pub mod bucket;
pub mod debt;
pub mod editor;
pub mod event;
#[cfg(any(test, feature = "fake"))]
#[allow(clippy::indexing_slicing, reason = "a test's own")]
#[path = "tests/fake.rs"]
pub mod fake;
pub mod frame;
pub mod line;
pub mod mac;
pub mod monitor;
mod operation;
pub mod output;
mod response;
pub mod screen;
pub mod upload;

pub use operation::{Action, Operation, Source};
pub use response::{
    Ending, Event, EventKind, Events, Exits, Guest, Machine, Memory, Moment, Name, PAGE, Page, Refusal, Response,
    State, Stats, Usage,
};
