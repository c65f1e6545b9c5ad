//! The list of guests against the frame table.

extern crate std;

use super::super::{Fault, compare};
use crate::frames::{FrameState, FrameTable, Owner, Ram, State};
use bulkhead_types::{Frame, GuestId};
use std::vec;
use std::vec::Vec;

#[test]
fn frames_of_a_guest_that_is_not_listed_are_found() {
    let mut states = vec![FrameState::new(Owner::Absent, false); 64];
    let mut table = FrameTable::new(&mut states);
    table.mark(Frame::new(0), 64, Owner::Free).unwrap();
    let [first, second] = [GuestId::new(1), GuestId::new(2)];
    let _ = table.allocate::<Ram>(first, 8, 1).unwrap();
    let _ = table.allocate::<State>(GuestId::IDLE, 4, 1).unwrap();
    let stray = table.allocate::<State>(second, 3, 1).unwrap();
    let mut found = Vec::new();
    assert_eq!(compare(&table, |_| true, &mut |violation| found.push(*violation)), 0);
    assert_eq!(compare(&table, |guest| guest == first, &mut |violation| found.push(*violation)), 1);
    let [violation] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((violation.guest, violation.fault), (second, Fault::Unlisted));
    assert_eq!((violation.frame, violation.count), (stray.start(), 3));
    // Once its frames are taken back there is nothing to find.
    table.reclaim(second);
    assert_eq!(compare(&table, |guest| guest == first, &mut |_| {}), 0);
}
