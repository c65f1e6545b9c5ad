//! The control line and the monitor.

use crate::Feed;
use bulkhead_control::fake::Fake;
use bulkhead_control::frame::{Decoder, MOST, Received, encode};
use bulkhead_control::line::{Kind, Line, Purpose, Step, VERSION, derive, plain, seal};
use bulkhead_control::monitor::Monitor;
use bulkhead_control::screen::{COLUMNS, Rows};
use bulkhead_control::{Action, Machine as _, Operation, Source};

const KEY: [u8; 32] = [7; 32];

fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for byte in bytes {
        if let Received::Frame(frame) = decoder.push(*byte) {
            assert!(frame.len() <= MOST);
            frames.push(frame.to_vec());
        }
    }
    frames
}

/// A frame comes whole after anything, wherever zeros are; what a decoder makes of garbage, encoded again, comes back.
fn framing(feed: &mut Feed<'_>) {
    let length = usize::from(feed.u16()) % 700;
    let frame = feed.bytes(length);
    let garbage = feed.rest();
    let encoded = encode(frame).expect("it is short enough");
    assert!(encoded[1..encoded.len() - 1].iter().all(|byte| *byte != 0));
    let after = frames(&[garbage, &encoded].concat());
    assert_eq!(after.last().map(Vec::as_slice), Some(frame));
    for decoded in frames(garbage) {
        let again = encode(&decoded).expect("it came out of a decoder");
        assert_eq!(frames(&again), [decoded]);
    }
}

/// Bytes to a line with a session. Nothing but the one right frame, which nobody sends here, has an operation performed;
/// the session goes on.
fn session(feed: &mut Feed<'_>) {
    let mut line = Line::new(KEY, [1; 16], 1);
    let mut machine = Fake::new(&["a"]);
    let mut send = |bytes: &[u8]| {
        let mut sent = Vec::new();
        let mut performed = 0;
        for byte in bytes {
            match line.receive(*byte, 0) {
                Step::Nothing => {}
                Step::Send(bytes) | Step::Welcome(bytes) => sent.extend(bytes),
                Step::Request(operation) => {
                    performed += 1;
                    let copy = postcard::to_allocvec(&operation).expect("it was decoded");
                    let operation: Operation<'_> = postcard::from_bytes(&copy).expect("it was encoded");
                    let response = machine.perform(&operation, Source::Line);
                    sent.extend(line.respond(&response));
                }
            }
        }
        (frames(&sent), performed)
    };
    let hello = plain(&[&[Kind::Hello as u8], &VERSION.to_le_bytes(), &[5; 16]]).expect("it is short");
    let (challenge, _) = send(&hello);
    let own = challenge[0][3..].try_into().expect("a nonce");
    let proof = derive(&KEY, Purpose::Client, &[5; 16], &own);
    assert_eq!(send(&plain(&[&[Kind::Proof as u8], &proof]).expect("it is short")).0.len(), 1);
    let key = derive(&KEY, Purpose::Session, &[5; 16], &own);
    if feed.flag() {
        // Frames of any kind, whole.
        while !feed.is_empty() {
            let (kind, length) = (feed.u8() & 7, usize::from(feed.u8()));
            let frame = plain(&[&[kind], feed.bytes(length)]).expect("it is short");
            assert_eq!(send(&frame).1, 0, "what is not sealed is not done");
        }
    } else if feed.flag() {
        // Any payload, sealed: total, and one answer.
        let frame = seal(&key, Kind::Request, 0, feed.rest());
        let (answers, _) = send(&frame.unwrap_or_default());
        assert!(answers.len() <= 1);
        return;
    } else {
        assert_eq!(send(feed.rest()).1, 0, "garbage is not done");
        assert_eq!(send(&[0]).1, 0, "nor what it leaves open, which the next frame's first byte ends");
    }
    let pause = postcard::to_allocvec(&Operation::Act { guest: "a", action: Action::Pause }).expect("it encodes");
    let frame = seal(&key, Kind::Request, 0, &pause).expect("it is short");
    let (answers, performed) = send(&frame);
    assert_eq!((answers.len(), performed), (1, 1), "the session goes on");
    assert_eq!(send(&frame).1, 0, "once");
}

/// The control line.
pub fn line(data: &[u8]) {
    let mut feed = Feed::new(data);
    if feed.flag() { framing(&mut feed) } else { session(&mut feed) }
}

/// Keys to the monitor; a guest's output beside it.
pub fn monitor(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut machine = Fake::new(&["linux", "lab-1", "lab-2"]);
    let mut monitor = Monitor::new(feed.flag().then_some(1));
    let length = usize::from(feed.u8());
    let mut out = String::new();
    for key in feed.bytes(length) {
        let focus = monitor.focus();
        if let Some((guest, byte)) = monitor.key(*key, &mut machine, &mut out) {
            assert_eq!((Some(guest), byte), (focus, *key), "what is typed to a guest goes there");
        }
    }
    assert!(out.chars().all(|char| char.is_ascii_graphic() || " \r\n\x07\x1b".contains(char)), "{out:?}");
    let (mut rows, mut shown) = (Rows::new(), Vec::new());
    let live = feed.flag();
    for byte in feed.rest() {
        rows.push(*byte, "g", live, &mut |byte| shown.push(byte));
    }
    rows.end("g", &mut |byte| shown.push(byte));
    let shown = String::from_utf8(shown).expect("ASCII");
    for row in shown.split_terminator("\r\n") {
        assert!(row.starts_with("[g] "), "{row:?}");
        let mut column = 0;
        for char in row.chars() {
            assert!((' '..='~').contains(&char) || char == '\x08', "{row:?}");
            column = if char == '\x08' { column - 1 } else { column + 1 };
            assert!(column >= 4 || char != '\x08', "{row:?}");
            assert!(column < COLUMNS);
        }
    }
}
