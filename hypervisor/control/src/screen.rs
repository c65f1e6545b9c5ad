//! A guest's console on the monitor's terminal: nothing of it can look like the monitor, or like another guest.
//!
//! Each row on the screen begins with the guest's name, also where a long line goes on in the next row. Of what moves the
//! cursor only the backspace is left, within the guest's own part of the row. Control sequences (ECMA-48 5.4 "Control
//! sequences") are left out as a whole; what is no character of ASCII is a question mark, since the second half of ISO 8859
//! begins with controls too.

use heapless::Vec;

/// Columns of the narrowest terminal on which a row is a row.
pub const COLUMNS: usize = 80;
const ESCAPE: u8 = 0x1B;
const BACKSPACE: u8 = 8;
/// Longest control sequence that is left out; what follows is shown.
const SEQUENCE: u8 = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Skip {
    #[default]
    No,
    Begun,
    Sequence(u8),
}

/// One guest's rows.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    row: Vec<u8, COLUMNS>,
    /// How much of the row is on the screen, behind the name; nothing at all if there is none.
    shown: Option<usize>,
    skip: Skip,
}

impl Rows {
    /// An empty row.
    #[must_use]
    pub const fn new() -> Self {
        Self { row: Vec::new(), shown: None, skip: Skip::No }
    }

    /// Takes a byte that the guest of this name wrote. Rows go to `out` when they are complete; if `live`, each byte does.
    pub fn push(&mut self, byte: u8, name: &str, live: bool, out: &mut impl FnMut(u8)) {
        match (self.skip, byte) {
            (Skip::Begun, b'[') => self.skip = Skip::Sequence(0),
            (Skip::Sequence(length), b' '..=b'?') if length < SEQUENCE => self.skip = Skip::Sequence(length + 1),
            (Skip::Sequence(_), b'@'..=b'~') => self.skip = Skip::No,
            (_, ESCAPE) => self.skip = Skip::Begun,
            _ => {
                self.skip = Skip::No;
                self.put(byte, name, out);
            }
        }
        if live {
            self.show(name, out);
        }
    }

    fn put(&mut self, byte: u8, name: &str, out: &mut impl FnMut(u8)) {
        match byte {
            b'\n' => self.end(name, out),
            BACKSPACE => {
                if self.row.pop().is_some() && self.shown.is_some_and(|shown| shown > self.row.len()) {
                    self.shown = Some(self.row.len());
                    out(BACKSPACE);
                }
            }
            b'\t' => {
                for _ in 0..8 - self.row.len() % 8 {
                    self.keep(b' ', name, out);
                }
            }
            b' '..=b'~' => self.keep(byte, name, out),
            0x80.. => self.keep(b'?', name, out),
            _ => {}
        }
    }

    fn keep(&mut self, byte: u8, name: &str, out: &mut impl FnMut(u8)) {
        // One column stays free: terminals differ in what they do behind the last one.
        if name.len() + 3 + self.row.len() + 1 >= COLUMNS {
            self.end(name, out);
        }
        // There is room now.
        let _ = self.row.push(byte);
    }

    /// Ends the row, if there is anything in it.
    pub fn end(&mut self, name: &str, out: &mut impl FnMut(u8)) {
        if self.row.is_empty() && self.shown.is_none() {
            return;
        }
        self.show(name, out);
        b"\r\n".iter().for_each(|byte| out(*byte));
        self.row.clear();
        self.shown = None;
    }

    /// Shows what there is of the row.
    pub fn show(&mut self, name: &str, out: &mut impl FnMut(u8)) {
        if self.shown.is_none() && !self.row.is_empty() {
            ["[", name, "] "].into_iter().flat_map(str::bytes).for_each(&mut *out);
            self.shown = Some(0);
        }
        if let Some(shown) = &mut self.shown {
            self.row.iter().skip(*shown).for_each(|byte| out(*byte));
            *shown = self.row.len();
        }
    }

    /// Leaves the row to another: it is shown again from its beginning when more of it comes.
    pub fn leave(&mut self, out: &mut impl FnMut(u8)) {
        if self.shown.take().is_some() {
            b"\r\n".iter().for_each(|byte| out(*byte));
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{COLUMNS, Rows};
    use proptest::prelude::{any, prop_assert, proptest};
    use std::string::String;
    use std::vec::Vec;

    fn shown(bytes: &[u8], live: bool) -> String {
        let (mut rows, mut out) = (Rows::new(), Vec::new());
        bytes.iter().for_each(|byte| rows.push(*byte, "g", live, &mut |byte| out.push(byte)));
        rows.end("g", &mut |byte| out.push(byte));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_shown_and_controls_are_not() {
        for (text, want) in [
            (&b"hello\r\nworld\n\n"[..], "[g] hello\r\n[g] world\r\n"),
            (b"\x1b[2J\x1b[1;1Hbulkhead> ok\n", "[g] bulkhead> ok\r\n"),
            (b"\x1b]0;title\x07x\n", "[g] ]0;titlex\r\n"),
            (b"a\x9b31mb\n", "[g] a?31mb\r\n"),
            (b"a\tb\n", "[g] a       b\r\n"),
        ] {
            assert_eq!(shown(text, false), want);
            assert_eq!(shown(text, true), want);
        }
        assert_eq!(shown(b"ab\x08\x08\x08\x08c\n", true), "[g] ab\x08\x08c\r\n");
    }

    #[test]
    fn a_row_that_was_left_begins_again() {
        let (mut rows, mut out) = (Rows::new(), Vec::new());
        b"login: ".iter().for_each(|byte| rows.push(*byte, "g", true, &mut |byte| out.push(byte)));
        rows.leave(&mut |byte| out.push(byte));
        rows.push(b'x', "g", true, &mut |byte| out.push(byte));
        assert_eq!(out, b"[g] login: \r\n[g] login: x");
    }

    proptest! {
        #[test]
        fn each_row_begins_with_the_name(bytes in proptest::collection::vec(any::<u8>(), 0..600), live in any::<bool>()) {
            let out = shown(&bytes, live);
            // A backspace stays within the row: what is left of it is never less than the prefix.
            for row in out.split_terminator("\r\n") {
                prop_assert!(row.starts_with("[g] "), "{row:?}");
                let mut column = 0;
                for char in row.chars() {
                    prop_assert!((' '..='~').contains(&char) || char == '\x08', "{row:?}");
                    column = if char == '\x08' { column - 1 } else { column + 1 };
                    prop_assert!(column < COLUMNS && (column >= 4 || char != '\x08'), "{row:?}");
                }
            }
        }
    }
}
