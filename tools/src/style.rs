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
