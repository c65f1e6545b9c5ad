//! The serial line's channels: one byte stream each for the hypervisor and every guest.
//!
//! DLE (0x10) and then 0x40+N says that what follows belongs to channel N: 0 is the hypervisor, N the Nth guest. DLE DLE
//! is the byte 0x10 itself. Output starts on channel 0.

const DLE: u8 = 0x10;
const CHANNEL_BASE: u8 = 0x40;

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct Demux {
    channel: u8,
    escaped: bool,
}

impl Demux {
    /// Takes `bytes` apart and hands each run of one channel's bytes to `sink`.
    pub fn push(&mut self, bytes: &[u8], mut sink: impl FnMut(u8, &[u8])) {
        let mut run = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (self.escaped, byte) {
                (false, DLE) => self.escaped = true,
                (false, _) => run.push(byte),
                (true, DLE) => {
                    run.push(DLE);
                    self.escaped = false;
                }
                (true, _) => {
                    if !run.is_empty() {
                        sink(self.channel, &run);
                        run.clear();
                    }
                    self.channel = byte.saturating_sub(CHANNEL_BASE);
                    self.escaped = false;
                }
            }
        }
        if !run.is_empty() {
            sink(self.channel, &run);
        }
    }
}

/// Puts a stream together.
#[derive(Debug, Default)]
pub struct Mux {
    /// Nothing is taken for granted of where the other end begins.
    channel: Option<u8>,
}

impl Mux {
    /// Forgets which channel the other end listens on: it may have chosen another one itself.
    pub const fn forget(&mut self) {
        self.channel = None;
    }

    /// The bytes to send so that `bytes` arrive on `channel`.
    pub fn frame(&mut self, channel: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 2);
        if self.channel != Some(channel) {
            out.extend([DLE, CHANNEL_BASE.saturating_add(channel)]);
            self.channel = Some(channel);
        }
        for &byte in bytes {
            if byte == DLE {
                out.push(DLE);
            }
            out.push(byte);
        }
        out
    }
}

/// Longest line in bytes; a longer one comes in pieces.
const LONGEST: usize = 4096;

/// Gathers bytes into lines, without their line ends.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Hands each line that `bytes` complete to `sink`.
    pub fn push(&mut self, bytes: &[u8], mut sink: impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.partial.push(byte);
            }
            if byte == b'\n' || self.partial.len() == LONGEST {
                let line = String::from_utf8_lossy(&self.partial);
                sink(line.trim_end_matches('\r'));
                self.partial.clear();
            }
        }
    }

    /// What has come of a line that is not complete.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }
}

#[cfg(test)]
mod tests {
    use super::{Demux, Lines, Mux};

    fn apart(chunks: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        let mut demux = Demux::default();
        let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
        for chunk in chunks {
            demux.push(chunk, |channel, bytes| match out.last_mut() {
                Some((last, run)) if *last == channel => run.extend(bytes),
                _ => out.push((channel, bytes.to_vec())),
            });
        }
        out
    }

    #[test]
    fn channels_are_told_apart_wherever_the_stream_is_cut() {
        let stream = b"log\n\x10\x41one\x10\x10\x10\x42two\x10\x40\n";
        let want: Vec<(u8, Vec<u8>)> =
            vec![(0, b"log\n".to_vec()), (1, b"one\x10".to_vec()), (2, b"two".to_vec()), (0, b"\n".to_vec())];
        for cut in 0..=stream.len() {
            let (a, b) = stream.split_at(cut);
            assert_eq!(apart(&[a, b]), want, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_framed_comes_back() {
        let mut mux = Mux::default();
        let mut stream = mux.frame(3, b"a\x10b");
        stream.extend(mux.frame(3, b"c"));
        stream.extend(mux.frame(0, b"\x10"));
        assert_eq!(apart(&[&stream]), vec![(3, b"a\x10bc".to_vec()), (0, b"\x10".to_vec())]);
        mux.forget();
        assert_eq!(mux.frame(0, b"a"), b"\x10\x40a");
    }

    #[test]
    fn lines_lose_their_ends_only() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in [&b"a\r"[..], b"\nb", b"b\n\nrest"] {
            lines.push(chunk, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["a", "bb", ""]);
        assert_eq!(lines.partial(), b"rest");
        lines.push(&vec![b'x'; 3 * super::LONGEST], |line| seen.push(line.to_owned()));
        assert_eq!((seen.len(), seen[3].len(), lines.partial().len()), (6, super::LONGEST, 4));
    }
}
