//! The serial line on the developer's side: what a guest prints, and what the hypervisor reports.

use crate::Feed;
use crate::hv::event::Event;
use crate::hv::frames::{Demux, Lines, Mux};

/// The bytes of each channel, in order.
fn apart(demux: &mut Demux, chunks: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
    let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
    for chunk in chunks {
        demux.push(chunk, |channel, bytes| match out.last_mut() {
            Some((last, run)) if *last == channel => run.extend(bytes),
            _ => out.push((channel, bytes.to_vec())),
        });
    }
    out
}

/// Framing there and back, cut anywhere; any stream; any report.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    let (mut mux, mut stream, mut sent) = (Mux::default(), Vec::new(), Vec::<(u8, Vec<u8>)>::new());
    for _ in 0..feed.u8() & 7 {
        let (channel, length) = (feed.u8() % 65, usize::from(feed.u8() & 31));
        let bytes = feed.bytes(length);
        stream.extend(mux.frame(channel, bytes));
        match sent.last_mut() {
            _ if bytes.is_empty() => {}
            Some((last, run)) if *last == channel => run.extend(bytes),
            _ => sent.push((channel, bytes.to_vec())),
        }
    }
    let cut = usize::from(feed.u16()) % (stream.len() + 1);
    let (first, second) = stream.split_at(cut);
    assert_eq!(apart(&mut Demux::default(), &[first, second]), sent, "what was framed comes back");
    // What a hypervisor gone mad sends: no byte is made up, and where it is cut does not matter.
    let wild = feed.rest();
    let whole = apart(&mut Demux::default(), &[wild]);
    assert!(whole.iter().map(|(_, run)| run.len()).sum::<usize>() <= wild.len());
    let (first, second) = wild.split_at(cut.min(wild.len()));
    assert_eq!(apart(&mut Demux::default(), &[first, second]), whole);
    let mut lines = Lines::default();
    lines.push(wild, |line| {
        assert!(!line.contains('\n'));
        let _ = Event::parse(line);
        let shown = crate::style::harmless(line);
        assert!(!shown.chars().any(|char| char.is_control() && char != '\t'), "{shown:?}");
    });
    let _ = Event::parse(&format!("event {}", String::from_utf8_lossy(wild)));
}
