//! Colours on a terminal, unless `NO_COLOR` is set.

use std::io::IsTerminal as _;

fn paint(code: &str, text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || !std::io::stderr().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

/// What went wrong.
pub fn error(text: &str) -> String {
    paint("1;31", text)
}

/// What to do next.
pub fn hint(text: &str) -> String {
    paint("1;36", text)
}

/// What went well.
pub fn good(text: &str) -> String {
    paint("32", text)
}

/// What is there in case it is wanted.
pub fn dim(text: &str) -> String {
    paint("2", text)
}

/// `text` without what a terminal would obey: no guest's line can move the cursor and pass for another's. Escape
/// sequences (ECMA-48 5.4 "Control sequences") go as a whole.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            '\t' => out.push(char),
            '\x1b' if rest.next_if_eq(&'[').is_some() => skip_sequence(&mut rest),
            '\u{9b}' => skip_sequence(&mut rest),
            _ if char.is_control() || is_format(char) => {}
            _ => out.push(char),
        }
    }
    out
}

/// Whether it is one of the characters that change how others look, or where: of no width, of another direction, tags
/// (Unicode's category Cf).
fn is_format(char: char) -> bool {
    matches!(char,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Parameter and intermediate bytes, then the final one.
fn skip_sequence(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while rest.next_if(|char| (' '..='?').contains(char)).is_some() {}
    let _ = rest.next_if(|char| ('@'..='~').contains(char));
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for (text, shown) in [
            ("plain\tänd ☃", "plain\tänd ☃"),
            ("\x1b[2J\x1b[01;01Hhv: all is well", "hv: all is well"),
            ("a\rb\x07\x08\x7fc\u{9b}31md\u{85}", "abcd"),
            ("\x1b[", ""),
            ("\u{202e}lla\u{200b} si\u{feff} well\u{2029}", "lla si well"),
            ("\x1b]0;title\x07", "]0;title"),
        ] {
            assert_eq!(harmless(text), shown, "{text:?}");
        }
    }
}
