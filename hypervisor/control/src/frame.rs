//! Frames on the line: a receiver finds the next one whatever came before it.
//!
//! COBS (Cheshire and Baker, "Consistent Overhead Byte Stuffing", section III): the zero bytes of a frame are replaced by
//! the distance to the next one, so that a zero byte ends a frame and nothing else is one. A zero also goes before each
//! frame, so that what was cut short does not spoil what follows it.

use heapless::Vec;

/// Most bytes of a frame before it is encoded.
pub const MOST: usize = 2304;
/// Most bytes of an encoded frame, with the zeros around it.
pub const WIRE: usize = MOST + MOST.div_ceil(254) + 3;

/// Encodes `frame`, with a zero byte before and behind; `None` if it is longer than [`MOST`].
#[must_use]
pub fn encode(frame: &[u8]) -> Option<Vec<u8, WIRE>> {
    let mut out = Vec::new();
    if frame.len() > MOST {
        return None;
    }
    out.push(0).ok()?;
    let mut rest = frame;
    loop {
        let run = rest.iter().take(254).take_while(|byte| **byte != 0).count();
        let (these, behind) = rest.split_at_checked(run)?;
        out.push(u8::try_from(run + 1).ok()?).ok()?;
        out.extend_from_slice(these).ok()?;
        rest = match (run, behind) {
            (254, [_, ..]) => behind,
            (0..=253, [_, behind @ ..]) => behind,
            _ => break,
        };
    }
    out.push(0).ok()?;
    Some(out)
}

/// What a byte completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received<'a> {
    /// Nothing yet.
    Nothing,
    /// A frame.
    Frame(&'a [u8]),
    /// What was no frame: cut, garbled or too long.
    Garbage,
}

/// Takes frames out of a stream of bytes.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    frame: Vec<u8, MOST>,
    /// Bytes until the next code byte.
    left: u8,
    /// The code byte stands for a zero, too.
    zero: bool,
    /// There were bytes since the last zero.
    begun: bool,
    /// They are no frame.
    garbled: bool,
    /// The frame was handed out.
    done: bool,
}

impl Decoder {
    /// One that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { frame: Vec::new(), left: 0, zero: false, begun: false, garbled: false, done: false }
    }

    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Received<'_> {
        if core::mem::take(&mut self.done) {
            self.frame.clear();
        }
        if byte == 0 {
            return self.end();
        }
        let first = !core::mem::replace(&mut self.begun, true);
        if self.left == 0 {
            // A code byte; the one before it stood for a zero, unless it was the longest.
            self.garbled |= self.zero && !first && self.frame.push(0).is_err();
            self.left = byte - 1;
            self.zero = byte != u8::MAX;
        } else {
            self.garbled |= self.frame.push(byte).is_err();
            self.left -= 1;
        }
        Received::Nothing
    }

    fn end(&mut self) -> Received<'_> {
        let cut = core::mem::take(&mut self.left) != 0;
        let garbled = core::mem::take(&mut self.garbled) || cut;
        self.zero = false;
        self.done = true;
        match core::mem::take(&mut self.begun) {
            false => Received::Nothing,
            true if garbled => Received::Garbage,
            true => Received::Frame(&self.frame),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Decoder, MOST, Received, encode};
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use std::vec;
    use std::vec::Vec;

    fn decode(decoder: &mut Decoder, bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
        let (mut frames, mut garbage) = (Vec::new(), 0);
        for byte in bytes {
            match decoder.push(*byte) {
                Received::Nothing => {}
                Received::Frame(frame) => frames.push(frame.to_vec()),
                Received::Garbage => garbage += 1,
            }
        }
        (frames, garbage)
    }

    #[test]
    fn frames_are_encoded_as_the_paper_has_them() {
        for (frame, want) in [
            (vec![], vec![0, 1, 0]),
            (vec![0], vec![0, 1, 1, 0]),
            (vec![1, 0, 2], vec![0, 2, 1, 2, 2, 0]),
            (vec![7; 254], [vec![0, 255], vec![7; 254], vec![0]].concat()),
            (vec![7; 255], [vec![0, 255], vec![7; 254], vec![2, 7, 0]].concat()),
        ] {
            assert_eq!(encode(&frame).unwrap().as_slice(), want, "{frame:?}");
        }
        assert!(encode(&[1; MOST]).is_some() && encode(&[1; MOST + 1]).is_none());
    }

    #[test]
    fn what_is_too_long_is_garbage_and_the_next_comes_whole() {
        let mut decoder = Decoder::default();
        let mut stream = vec![0];
        for _ in 0..MOST {
            stream.extend([2, 9]);
        }
        stream.extend(encode(b"next").unwrap());
        assert_eq!(decode(&mut decoder, &stream), (vec![b"next".to_vec()], 1));
    }

    proptest! {
        #[test]
        fn frames_come_back(frames in proptest::collection::vec(proptest::collection::vec(0..3_u8, 0..700), 0..5)) {
            let stream: Vec<u8> = frames.iter().flat_map(|frame| encode(frame).unwrap()).collect();
            prop_assert_eq!(decode(&mut Decoder::default(), &stream), (frames, 0));
        }

        #[test]
        fn a_frame_comes_whole_after_anything(
            garbage in proptest::collection::vec(any::<u8>(), 0..600),
            frame in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut decoder = Decoder::default();
            decode(&mut decoder, &garbage);
            let (frames, _) = decode(&mut decoder, &encode(&frame).unwrap());
            prop_assert_eq!(frames.last(), Some(&frame));
        }

        #[test]
        fn a_cut_frame_is_no_longer_one(frame in proptest::collection::vec(1..255_u8, 1..200), cut in any::<usize>()) {
            let whole = encode(&frame).unwrap();
            // Without the zeros, and with at least the code byte.
            let cut = 2 + cut % (whole.len() - 3);
            let stream = [&whole[..cut], &[0]].concat();
            prop_assert_eq!(decode(&mut Decoder::default(), &stream), (vec![], 1));
        }
    }
}
