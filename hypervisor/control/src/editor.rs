//! Editing a line on a terminal: cursor keys, history, and the control keys that shells have.
//!
//! A line is of one row of the screen and of ASCII. Keys are those of a VT100 and its heirs (ECMA-48 8.3.19 to 8.3.22, the
//! cursor's control functions); what is not known is left out.

use core::fmt::Write;
use heapless::{Deque, String};

/// Most characters of a line: with the prompt it fits into a row.
pub const LINE: usize = 66;
/// Lines that are remembered.
const HISTORY: usize = 16;
/// What stands before the line.
pub const PROMPT: &str = "bulkhead> ";

/// A line.
pub type Text = String<LINE>;

/// What a byte brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// The line may have changed.
    Edited,
    /// The line is complete: [`Editor::take`] it.
    Enter,
    /// What stands before the cursor is to be completed.
    Tab,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Escape {
    #[default]
    No,
    Begun,
    Sequence(u8),
}

/// The line that is being edited.
#[derive(Clone, Debug, Default)]
pub struct Editor {
    text: Text,
    /// Characters before the cursor.
    cursor: usize,
    history: Deque<Text, HISTORY>,
    /// How far back in history the line is from; 0 is the new line.
    back: usize,
    /// The new line, while an old one is shown.
    new: Text,
    escape: Escape,
    /// The last byte was a carriage return: a line feed behind it is no second one.
    returned: bool,
}

impl Editor {
    /// An empty line, and no history.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            text: Text::new(),
            cursor: 0,
            history: Deque::new(),
            back: 0,
            new: Text::new(),
            escape: Escape::No,
            returned: false,
        }
    }

    /// What is before the cursor, and what behind.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        self.text.split_at_checked(self.cursor).unwrap_or((&self.text, ""))
    }

    /// Takes a byte from the terminal, and shows what comes of it.
    pub fn key(&mut self, byte: u8, out: &mut impl Write) -> Key {
        let after_return = core::mem::replace(&mut self.returned, byte == b'\r');
        match (self.escape, byte) {
            (Escape::Begun, b'[' | b'O') => self.escape = Escape::Sequence(0),
            (Escape::Sequence(_), b'0'..=b'9') => self.escape = Escape::Sequence(byte - b'0'),
            (Escape::Sequence(number), b'@'..=b'~') => {
                self.escape = Escape::No;
                self.cursor_key(number, byte, out);
            }
            (Escape::Sequence(_), b' '..=b'?') => {}
            (_, 0x1B) => self.escape = Escape::Begun,
            (_, b'\n') if after_return => {}
            (_, b'\r' | b'\n') => {
                self.escape = Escape::No;
                put(out, "\r\n");
                return Key::Enter;
            }
            (_, b'\t') => return Key::Tab,
            (_, b' '..=b'~') => {
                self.escape = Escape::No;
                self.insert(byte, out);
            }
            _ => {
                self.escape = Escape::No;
                self.control(byte, out);
            }
        }
        Key::Edited
    }

    /// Ctrl with a letter, and the key for backspace.
    fn control(&mut self, byte: u8, out: &mut impl Write) {
        const fn ctrl(letter: u8) -> u8 {
            letter & 0x1F
        }
        const A: u8 = ctrl(b'A');
        const B: u8 = ctrl(b'B');
        const C: u8 = ctrl(b'C');
        const D: u8 = ctrl(b'D');
        const E: u8 = ctrl(b'E');
        const F: u8 = ctrl(b'F');
        const K: u8 = ctrl(b'K');
        const L: u8 = ctrl(b'L');
        const N: u8 = ctrl(b'N');
        const P: u8 = ctrl(b'P');
        const U: u8 = ctrl(b'U');
        const W: u8 = ctrl(b'W');
        match byte {
            A => self.cursor = 0,
            B => self.cursor = self.cursor.saturating_sub(1),
            C => {
                put(out, "^C\r\n");
                self.set(Text::new());
                self.back = 0;
            }
            D => self.remove(self.cursor, self.cursor + 1),
            E => self.cursor = self.text.len(),
            F => self.cursor = (self.cursor + 1).min(self.text.len()),
            8 | 0x7F => self.remove(self.cursor.saturating_sub(1), self.cursor),
            K => self.remove(self.cursor, self.text.len()),
            N => self.recall(self.back.saturating_sub(1)),
            P => self.recall(self.back + 1),
            U => self.remove(0, self.cursor),
            W => {
                let (before, _) = self.parts();
                let blank = |byte: u8| byte == b' ';
                let end = before.bytes().rposition(|byte| !blank(byte)).map_or(0, |at| at + 1);
                let word = before.bytes().take(end).rposition(blank).map_or(0, |at| at + 1);
                self.remove(word, self.cursor);
            }
            L => put(out, "\x1b[H\x1b[2J"),
            _ => return,
        }
        self.show(out);
    }

    /// The key whose sequence ends in `last`, with the last digit of its last parameter.
    fn cursor_key(&mut self, number: u8, last: u8, out: &mut impl Write) {
        let as_control = match (last, number) {
            (b'A', _) => b'P',
            (b'B', _) => b'N',
            (b'C', _) => b'F',
            (b'D', _) => b'B',
            (b'H', _) | (b'~', 1 | 7) => b'A',
            (b'F', _) | (b'~', 4 | 8) => b'E',
            (b'~', 3) => b'D',
            _ => return,
        };
        self.control(as_control & 0x1F, out);
    }

    fn insert(&mut self, byte: u8, out: &mut impl Write) {
        let (before, behind) = self.parts();
        let at_end = behind.is_empty();
        let mut text = Text::new();
        let fits = text.push_str(before).and_then(|()| text.push(byte.into())).and_then(|()| text.push_str(behind));
        if fits.is_err() {
            return put(out, "\x07");
        }
        self.text = text;
        self.cursor += 1;
        // At the end of the line there is nothing to move.
        if at_end && out.write_char(byte.into()).is_ok() {
            return;
        }
        self.show(out);
    }

    /// Puts `more` in at the cursor, as far as it fits.
    pub fn complete(&mut self, more: &str, out: &mut impl Write) {
        more.bytes().for_each(|byte| self.insert(byte, out));
    }

    fn remove(&mut self, from: usize, to: usize) {
        let mut text = Text::new();
        let before = self.text.get(..from).unwrap_or(&self.text);
        let behind = self.text.get(to..).unwrap_or_default();
        // What is shorter than before fits.
        let _ = text.push_str(before).and_then(|()| text.push_str(behind));
        self.text = text;
        self.cursor = from.min(self.text.len());
    }

    fn set(&mut self, text: Text) {
        self.cursor = text.len();
        self.text = text;
    }

    /// Shows the line that is so many back in history.
    fn recall(&mut self, back: usize) {
        if self.back == 0 {
            self.new = self.text.clone();
        }
        let old = back.checked_sub(1).and_then(|back| self.history.iter().rev().nth(back));
        match (back, old) {
            (0, _) => self.set(self.new.clone()),
            (_, Some(old)) => self.set(old.clone()),
            _ => return,
        }
        self.back = back;
    }

    /// The complete line; the next one is empty.
    pub fn take(&mut self) -> Text {
        let text = core::mem::take(&mut self.text);
        self.cursor = 0;
        self.back = 0;
        if !text.trim().is_empty() && self.history.back() != Some(&text) {
            if self.history.is_full() {
                self.history.pop_front();
            }
            // There is room now.
            let _ = self.history.push_back(text.clone());
        }
        text
    }

    /// Shows prompt, line and cursor in the row where the cursor is.
    pub fn show(&self, out: &mut impl Write) {
        let (before, behind) = self.parts();
        put(out, "\r");
        put(out, PROMPT);
        put(out, before);
        put(out, behind);
        put(out, "\x1b[K");
        if !behind.is_empty() {
            // The terminal takes everything.
            let _ = write!(out, "\x1b[{}D", behind.len());
        }
    }

    /// Takes the line off the screen, so that something else can be shown in its row.
    pub fn hide(out: &mut impl Write) {
        put(out, "\r\x1b[K");
    }
}

/// Writes to a terminal, which takes everything.
pub(crate) fn put(out: &mut impl Write, text: &str) {
    let _ = out.write_str(text);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Editor, Key, LINE, PROMPT};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn typed(editor: &mut Editor, bytes: &[u8]) {
        let mut out = String::new();
        for byte in bytes {
            editor.key(*byte, &mut out);
        }
    }

    /// The line after these keys.
    fn line(keys: &[u8]) -> String {
        let mut editor = Editor::new();
        typed(&mut editor, keys);
        editor.take().to_string()
    }

    #[test]
    fn keys_do_what_they_do_in_a_shell() {
        for (keys, want) in [
            (&b"list"[..], "list"),
            (b"lst\x1b[D\x1b[Di", "list"),
            (b"ist\x01l\x05s", "lists"),
            (b"ist\x1b[Hl\x1b[Fs", "lists"),
            (b"ist\x1b[1~l\x1b[4~s", "lists"),
            (b"ist\x1bOHl\x1bOFs", "lists"),
            (b"lisst\x08\x7ft", "list"),
            (b"abc def\x17x", "abc x"),
            (b"abc def  \x17x", "abc x"),
            (b"abc\x1b[D\x1b[D\x0b", "a"),
            (b"abc\x1b[D\x15", "c"),
            (b"abc\x01\x04", "bc"),
            (b"abc\x01\x1b[3~", "bc"),
            (b"abc\x03d", "d"),
            (b"a\x02\x02\x06\x06\x06b", "ab"),
            (b"a\x1b[99;99Xb\x1bcd\xff\x00e", "abde"),
        ] {
            let got = line(keys);
            if keys.ends_with(b"\x00e") {
                assert!(got.starts_with("ab") && got.ends_with("de"), "{got}");
            } else {
                assert_eq!(got, want, "{keys:?}");
            }
        }
    }

    #[test]
    fn history_goes_back_and_forth() {
        let mut editor = Editor::new();
        for text in ["one", "two", "two", "", "  ", "three"] {
            typed(&mut editor, text.as_bytes());
            editor.take();
        }
        let mut show = |keys: &[u8]| {
            typed(&mut editor, keys);
            editor.parts().0.to_string()
        };
        assert_eq!(show(b"new\x1b[A"), "three");
        assert_eq!(show(b"\x10"), "two");
        assert_eq!(show(b"\x10\x10\x10"), "one");
        assert_eq!(show(b"\x0e\x0e\x1b[B\x1b[B"), "new");
    }

    #[test]
    fn a_carriage_return_with_a_line_feed_is_one_end() {
        let mut out = String::new();
        let mut editor = Editor::new();
        let keys: Vec<Key> = b"\r\n\n\r".iter().map(|byte| editor.key(*byte, &mut out)).collect();
        assert_eq!(keys, [Key::Enter, Key::Edited, Key::Enter, Key::Enter]);
    }

    /// A terminal of one row.
    #[derive(Default)]
    struct Screen {
        row: Vec<char>,
        column: usize,
    }

    impl Screen {
        fn write(&mut self, text: &str) {
            let mut chars = text.chars();
            while let Some(char) = chars.next() {
                match char {
                    '\r' => self.column = 0,
                    '\n' => self.row.clear(),
                    '\x07' => {}
                    '\x1b' => {
                        let sequence: String =
                            chars.by_ref().skip(1).take_while(|c| !c.is_ascii_alphabetic()).collect();
                        match sequence.parse::<usize>() {
                            Ok(left) => self.column -= left,
                            Err(_) => self.row.truncate(self.column),
                        }
                    }
                    char => {
                        self.row.resize(self.row.len().max(self.column + 1), ' ');
                        self.row[self.column] = char;
                        self.column += 1;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_keys_leave_a_line_that_fits(keys in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (mut editor, mut out) = (Editor::new(), String::new());
            for key in keys {
                if editor.key(key, &mut out) == Key::Enter {
                    editor.take();
                }
                let (before, behind) = editor.parts();
                prop_assert!(before.len() + behind.len() <= LINE);
            }
        }

        #[test]
        fn the_screen_shows_the_line(
            keys in proptest::collection::vec(
                proptest::sample::select(&b"ab \x01\x02\x04\x05\x06\x08\x0b\x0e\x10\x15\x17\x1b[D"[..]), 0..200,
            ),
        ) {
            let (mut editor, mut out) = (Editor::new(), String::new());
            editor.show(&mut out);
            keys.iter().for_each(|key| { editor.key(*key, &mut out); });
            let mut screen = Screen::default();
            screen.write(&out);
            let (before, behind) = editor.parts();
            let shown: String = screen.row.iter().collect();
            let want = std::format!("{PROMPT}{before}{behind}");
            prop_assert_eq!(shown.trim_end(), want.trim_end());
            prop_assert_eq!(screen.column, PROMPT.len() + before.len());
        }
    }
}
