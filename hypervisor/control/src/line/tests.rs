//! What the line takes, and what it does not.

extern crate std;

use super::{KEPT, Kind, Line, Purpose, Refused, Step, VERSION, derive, open, plain, seal, versioned};
use crate::fake::Fake;
use crate::frame::{Decoder, Received};
use crate::mac::Key;
use crate::{Machine as _, Operation, Refusal, Response, Source, State};
use proptest::prelude::{any, prop_assert_eq, proptest};
use std::vec;
use std::vec::Vec;

const KEY: Key = [7; 32];
/// In ticks.
const SECOND: u64 = 1000;

/// A machine at the end of a line.
struct End {
    line: Line,
    machine: Fake,
    welcomes: usize,
    now: u64,
}

impl End {
    fn new() -> Self {
        Self { line: Line::new(KEY, [1; 16], SECOND), machine: Fake::new(&["a", "b"]), welcomes: 0, now: 0 }
    }

    /// Sends these bytes; the frames that come back.
    fn send(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        for byte in bytes {
            match self.line.receive(*byte, self.now) {
                Step::Nothing => {}
                Step::Send(bytes) => sent.extend(bytes),
                Step::Welcome(bytes) => {
                    self.welcomes += 1;
                    sent.extend(bytes);
                }
                Step::Request(operation) => {
                    // What is done comes before what is said of it.
                    let mut copy = [0; 4096];
                    let encoded = postcard::to_slice(&operation, &mut copy).unwrap();
                    let operation = postcard::from_bytes(encoded).unwrap();
                    let response = self.machine.perform(&operation, Source::Line);
                    sent.extend(self.line.respond(&response));
                }
            }
        }
        frames(&sent)
    }

    /// The key of a new session of a client with this key, and its proof.
    fn connect(&mut self, key: &Key, nonce: u8) -> (Key, Vec<Vec<u8>>, Vec<u8>) {
        let challenge = self.send(&hello(nonce));
        let (version, own) = versioned(&challenge[0][1..]).unwrap();
        assert_eq!((challenge[0][0], version), (Kind::Challenge as u8, VERSION));
        let proof = derive(key, Purpose::Client, &[nonce; 16], &own);
        let proof = plain(&[&[Kind::Proof as u8], &proof]).unwrap();
        let answers = self.send(&proof);
        (derive(key, Purpose::Session, &[nonce; 16], &own), answers, proof.to_vec())
    }

    fn state(&mut self, guest: &str) -> State {
        self.machine.find(guest).unwrap().guest.state
    }
}

fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for byte in bytes {
        match decoder.push(*byte) {
            Received::Frame(frame) => frames.push(frame.to_vec()),
            Received::Nothing => {}
            Received::Garbage => panic!("the hypervisor sends garbage"),
        }
    }
    frames
}

fn hello(nonce: u8) -> Vec<u8> {
    plain(&[&[Kind::Hello as u8], &VERSION.to_le_bytes(), &[nonce; 16]]).unwrap().to_vec()
}

fn request(key: &Key, number: u32, operation: &Operation<'_>) -> Vec<u8> {
    let mut payload = [0; 2304];
    let payload = postcard::to_slice(operation, &mut payload).unwrap();
    seal(key, Kind::Request, number, payload).unwrap().to_vec()
}

const PAUSE: Operation<'_> = Operation::Act { guest: "a", action: crate::Action::Pause };
const RESUME: Operation<'_> = Operation::Act { guest: "a", action: crate::Action::Resume };

#[test]
fn who_has_the_key_is_welcome_and_hears_that_the_other_has_it_too() {
    let mut end = End::new();
    let (key, answers, _) = end.connect(&KEY, 5);
    assert_eq!((end.welcomes, answers.len(), answers[0][0]), (1, 1, Kind::Welcome as u8));
    assert_eq!((answers[0].len(), &answers[0][1..17]), (1 + 16 + 32, &[1; 16][..]), "the boot");
    let answer = end.send(&request(&key, 0, &PAUSE));
    let (number, payload) = open(&key, Kind::Response, &answer[0]).unwrap();
    assert_eq!((number, postcard::from_bytes(payload)), (0, Ok(Response::Done)));
    assert_eq!(end.state("a"), State::Paused);
    assert_eq!(end.line.refused(), Refused::default());
}

#[test]
fn each_challenge_is_fresh() {
    let mut end = End::new();
    let nonces: Vec<_> = (0..50).map(|_| end.send(&hello(1)).remove(0)).collect();
    let mut different = nonces.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), nonces.len());
    // And another one each time the machine starts.
    let mut other = End::new();
    other.line = Line::new(KEY, [2; 16], SECOND);
    assert_ne!(other.send(&hello(1))[0], nonces[0]);
}

#[test]
fn without_the_key_nothing_is_done() {
    let mut end = End::new();
    let (key, answers, _) = end.connect(&[8; 32], 5);
    assert!(answers.is_empty());
    assert!(end.send(&request(&key, 0, &PAUSE)).is_empty());
    assert_eq!((end.state("a"), end.welcomes, end.machine.performed), (State::Running, 0, 0));
    assert_eq!(end.line.refused(), Refused { unproved: 2, ..Refused::default() });
}

#[test]
fn an_earlier_session_can_not_be_played_again() {
    let mut end = End::new();
    let (key, _, proof) = end.connect(&KEY, 5);
    let first = request(&key, 0, &PAUSE);
    end.send(&first);
    end.connect(&KEY, 5);
    let performed = end.machine.performed;
    assert!(end.send(&first).is_empty() && end.send(&proof).is_empty());
    end.send(&hello(5));
    assert!(end.send(&proof).is_empty() && end.send(&first).is_empty());
    assert_eq!((end.machine.performed, end.welcomes, end.line.refused().unproved), (performed, 2, 4));
}

#[test]
fn requests_count() {
    let mut end = End::new();
    let (key, ..) = end.connect(&KEY, 5);
    let requests = [request(&key, 0, &PAUSE), request(&key, 1, &RESUME), request(&key, 2, &PAUSE)];
    let first = end.send(&requests[0]);
    assert!(end.send(&requests[2]).is_empty());
    // The last one again: the same answer, and nothing is done.
    let performed = end.machine.performed;
    assert_eq!(end.send(&requests[0]), first);
    assert_eq!(end.machine.performed, performed);
    end.send(&requests[1]);
    assert!(end.send(&requests[0]).is_empty());
    assert_eq!(end.state("a"), State::Running);
    assert_eq!(end.line.refused(), Refused { replayed: 2, skipped: 1, ..Refused::default() });
}

#[test]
fn a_stranger_does_not_end_a_session() {
    let mut end = End::new();
    let (key, ..) = end.connect(&KEY, 5);
    let first = end.send(&request(&key, 0, &PAUSE));
    end.connect(&[9; 32], 6);
    assert_eq!(end.send(&request(&key, 0, &PAUSE)), first, "the answer is kept, too");
    assert_eq!(end.send(&request(&key, 1, &RESUME)).len(), 1);
    assert_eq!(end.state("a"), State::Running);
}

#[test]
fn a_session_ends_without_new_requests() {
    let mut end = End::new();
    let (key, ..) = end.connect(&KEY, 5);
    let requests: Vec<_> =
        (0..4).map(|number| request(&key, number, if number % 2 == 0 { &PAUSE } else { &RESUME })).collect();
    for request in requests.iter().take(3) {
        end.now += KEPT * SECOND;
        assert_eq!(end.send(request).len(), 1, "each has its time");
    }
    // What came before does not make it last, nor does a hello or garbage.
    end.now += KEPT * SECOND;
    assert_eq!(end.send(&requests[2]).len(), 1);
    end.send(&hello(6));
    end.send(&[0, 9, 9, 0]);
    end.now += 1;
    let performed = end.machine.performed;
    assert!(end.send(&requests[3]).is_empty() && end.send(&requests[2]).is_empty(), "it was held back too long");
    assert_eq!((end.machine.performed, end.state("a")), (performed, State::Paused));
    assert_eq!(end.line.refused(), Refused { replayed: 1, unproved: 2, garbled: 1, ..Refused::default() });
    // Nor can a session be had that nobody has asked anything in.
    let (key, ..) = end.connect(&KEY, 7);
    end.now += KEPT * SECOND + 1;
    assert!(end.send(&request(&key, 0, &RESUME)).is_empty());
    let (key, ..) = end.connect(&KEY, 8);
    assert_eq!(end.send(&request(&key, 0, &RESUME)).len(), 1);
}

#[test]
fn what_the_hypervisor_said_is_no_request() {
    let mut end = End::new();
    let (key, ..) = end.connect(&KEY, 5);
    let mut payload = [0; 64];
    let payload = postcard::to_slice(&PAUSE, &mut payload).unwrap();
    assert!(end.send(&seal(&key, Kind::Response, 0, payload).unwrap()).is_empty());
    assert_eq!(end.state("a"), State::Running);
}

#[test]
fn an_operation_of_a_later_version_is_refused_and_the_session_goes_on() {
    let mut end = End::new();
    let (key, ..) = end.connect(&KEY, 5);
    let answer = end.send(&seal(&key, Kind::Request, 0, &[250, 1, 2]).unwrap());
    let (_, payload) = open(&key, Kind::Response, &answer[0]).unwrap();
    assert_eq!(postcard::from_bytes(payload), Ok(Response::Refused(Refusal::Unknown)));
    assert_eq!(end.send(&request(&key, 1, &PAUSE)).len(), 1);
}

#[test]
fn another_version_hears_ours_and_gets_no_session() {
    let mut end = End::new();
    let hello = plain(&[&[Kind::Hello as u8], &(VERSION + 1).to_le_bytes(), &[5; 16]]).unwrap();
    let challenge = end.send(&hello);
    let (version, own) = versioned(&challenge[0][1..]).unwrap();
    assert_eq!(version, VERSION);
    let proof = derive(&KEY, Purpose::Client, &[5; 16], &own);
    assert!(end.send(&plain(&[&[Kind::Proof as u8], &proof]).unwrap()).is_empty());
}

#[test]
fn what_was_refused_is_reported_and_not_more_often_than_that() {
    let mut end = End::new();
    assert_eq!(end.line.report(0, 100), None);
    end.send(&[0, 9, 9, 0]);
    assert_eq!(end.line.report(10, 100), Some(Refused { garbled: 1, ..Refused::default() }));
    end.send(&[0, 9, 9, 0, 9, 9, 0]);
    assert_eq!(end.line.report(100, 100), None);
    assert_eq!(end.line.report(110, 100), Some(Refused { garbled: 2, ..Refused::default() }));
    assert_eq!(end.line.report(1000, 100), None);
    let mut reports = Vec::new();
    for now in (2000..).step_by(10).take(12_000) {
        end.send(&[9, 9, 0]);
        reports.extend(end.line.report(now, 100));
    }
    // 120,000 ticks are twenty times sixty intervals.
    assert!((30..=36).contains(&reports.len()), "{}", reports.len());
    reports.extend(end.line.report(200_000, 100));
    assert_eq!(reports.iter().map(|refused| refused.garbled).sum::<u32>(), 12_000);
}

proptest! {
    /// Whatever one bit, or a cut, does to a frame of a session: nothing is done, it is counted, the next one arrives.
    #[test]
    fn a_changed_frame_changes_nothing(bit in any::<usize>(), cut in any::<bool>()) {
        let mut end = End::new();
        let (key, ..) = end.connect(&KEY, 5);
        let good = request(&key, 0, &PAUSE);
        let mut bad = good.clone();
        // Not the zeros around it: without them it is longer or shorter, but may be whole.
        let inner = (bad.len() - 2) * 8;
        let at = bit % inner + 8;
        if cut { bad.remove(at / 8); } else { bad[at / 8] ^= 1 << (at % 8); }
        end.send(&bad);
        prop_assert_eq!(end.machine.performed, 0);
        assert!(end.line.refused().total() > 0);
        prop_assert_eq!(end.send(&good).len(), 1);
        prop_assert_eq!(end.state("a"), State::Paused);
    }

    #[test]
    fn garbage_changes_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut end = End::new();
        let (key, ..) = end.connect(&KEY, 5);
        end.send(&bytes);
        prop_assert_eq!((end.machine.performed, end.welcomes), (0, 1));
        prop_assert_eq!(end.send(&request(&key, 0, &PAUSE)).len(), 1);
    }
}

#[test]
fn the_largest_answers_fit() {
    let names: Vec<std::string::String> = (0..64).map(|n| std::format!("{n:a>32}")).collect();
    let mut end = End::new();
    end.machine = Fake::new(&names.iter().map(std::string::String::as_str).collect::<Vec<_>>());
    let (key, ..) = end.connect(&KEY, 5);
    let asked = vec![
        Operation::List(0),
        Operation::Stats(0),
        Operation::Events(0),
        Operation::Memory(0),
        Operation::Chunk { offset: 0, bytes: &[0xFF; super::CHUNK] },
    ];
    end.machine.now.unix_ms = u64::MAX / 2;
    for (number, operation) in (0..).zip(&asked) {
        let answer = end.send(&request(&key, number, operation));
        let (_, payload) = open(&key, Kind::Response, &answer[0]).unwrap();
        let response: Response<'_> = postcard::from_bytes(payload).unwrap();
        assert_ne!(response, Response::Refused(Refusal::TooLong));
    }
    end.machine.find("1").unwrap().output = vec![0xFF; 5000];
    let answer = end.send(&request(&key, 5, &Operation::Read { guest: "1", from: 0 }));
    let (_, payload) = open(&key, Kind::Response, &answer[0]).unwrap();
    let Response::Output { bytes, .. } = postcard::from_bytes(payload).unwrap() else { panic!() };
    assert_eq!(bytes.len(), super::CHUNK);
}
