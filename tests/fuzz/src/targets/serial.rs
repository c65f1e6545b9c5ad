//! The serial port.

use crate::Feed;
use bulkhead_devices::uart::Uart;
use std::collections::VecDeque;

/// Bytes both ways in order, and the interrupt line with its reason.
pub fn uart(data: &[u8]) {
    const LOOPBACK: u8 = 1 << 4;
    const OUT2: u8 = 1 << 3;
    const DIVISOR: u8 = 1 << 7;
    let mut feed = Feed::new(data);
    let mut chip = Uart::new();
    // What was sent and not yet taken, what came in and was not yet read; in loopback the two are not told apart.
    let (mut sent, mut received) = (VecDeque::new(), VecDeque::new());
    let (mut control, mut lines) = (0, 0);
    let (mut written, mut taken) = (0_u64, 0_u64);
    while !feed.is_empty() {
        match feed.u8() & 3 {
            0 => {
                let (offset, value) = (feed.u8() & 7, feed.u8());
                chip.write(offset, value);
                match offset {
                    0 if lines & DIVISOR == 0 && control & LOOPBACK == 0 => {
                        sent.push_back(value);
                        written += 1;
                    }
                    0 if lines & DIVISOR == 0 => received.push_back(value),
                    3 => lines = value,
                    4 => control = value,
                    _ => {}
                }
            }
            1 => {
                let offset = feed.u8() & 7;
                let ready = chip.clone().read(5) & 1 != 0;
                let value = chip.read(offset);
                if offset == 0 && lines & DIVISOR == 0 {
                    // Bytes may have been lost (an overrun, a cleared FIFO), but none is made up or moved.
                    let place = received.iter().position(|&byte| byte == value);
                    assert!(!ready || place.is_some(), "{value:#x} was read and never came");
                    assert!(ready || value == 0);
                    received.drain(..place.filter(|_| ready).map_or(0, |place| place + 1));
                }
                let quiet = chip.clone().read(2) & 1 != 0;
                let connected = control & (OUT2 | LOOPBACK) == OUT2;
                assert_eq!(chip.line(), connected && !quiet, "the line and the identification");
            }
            2 => {
                let (next, took) = (chip.output(), chip.pop_output());
                assert_eq!(next, took, "what is shown is what is taken");
                if let Some(byte) = took {
                    taken += 1;
                    let place = sent.iter().position(|&sent| sent == byte).expect("what comes out was sent");
                    sent.drain(..=place);
                }
            }
            _ => {
                let (byte, room) = (feed.u8(), chip.has_room());
                assert_eq!(chip.receive(byte), room);
                if room {
                    received.push_back(byte);
                }
            }
        }
    }
    let left = std::iter::from_fn(|| chip.pop_output()).count();
    assert!(left <= 256 && left <= sent.len(), "{left} bytes");
    assert_eq!(written, taken + left as u64 + chip.lost(), "what was neither taken nor left is counted as lost");
}
