//! Rust source as tokens and comments, with their lines.
//!
//! As much of The Rust Reference, 2 "Lexical structure", as is needed to tell code from strings and comments.

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Identifier or keyword.
    Word,
    /// One character of punctuation.
    Sign,
    /// String, character, number or lifetime.
    Literal,
}

/// A token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its text.
    pub text: &'a str,
    /// Line of its first character, from 1.
    pub line: usize,
}

impl Token<'_> {
    /// Line of its last character.
    #[must_use]
    pub fn last_line(&self) -> usize {
        self.line + newlines(self.text)
    }
}

/// A comment; one that starts with `//` ends with its line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Comment<'a> {
    /// Its text, with the slashes.
    pub text: &'a str,
    /// Line of its first character, from 1.
    pub line: usize,
}

/// A source file, taken apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Source<'a> {
    /// Its tokens, in order.
    pub tokens: Vec<Token<'a>>,
    /// Its comments, in order.
    pub comments: Vec<Comment<'a>>,
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|b| *b == b'\n').count()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the prefix of `text` whose characters fit.
fn run(text: &str, fits: impl Fn(char) -> bool) -> usize {
    text.find(|c| !fits(c)).unwrap_or(text.len())
}

/// Length of a block comment, with those inside it.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a literal between `quote`s that starts at `text`, with escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// Length of a string literal with its prefix (`r`, `b`, `br`, `c`, `cr`), if `text` starts with one.
fn string(text: &str) -> Option<usize> {
    let prefix = run(text, |c| matches!(c, 'r' | 'b' | 'c'));
    if !matches!(text.get(..prefix)?, "" | "r" | "b" | "br" | "c" | "cr") {
        return None;
    }
    let rest = text.get(prefix..)?;
    let hashes = run(rest, |c| c == '#');
    if text.get(..prefix)?.contains('r') {
        let body = rest.get(hashes..)?.strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = body.find(&end).map_or(body.len(), |at| at + end.len());
        return Some(prefix + hashes + 1 + length);
    }
    rest.starts_with('"').then(|| prefix + quoted(rest, '"'))
}

/// Length of the lifetime or character literal that starts at `text` with a single quote.
fn single_quote(text: &str) -> usize {
    let mut after = text.chars().skip(1);
    let lifetime = after.next().is_some_and(is_word) && after.next() != Some('\'');
    if lifetime { 1 + run(text.get(1..).unwrap_or_default(), is_word) } else { quoted(text, '\'') }
}

/// The token that starts at `text` (no blank, no comment): its kind and length.
fn token(text: &str) -> (Kind, usize) {
    if let Some(length) = string(text) {
        return (Kind::Literal, length);
    }
    if text.starts_with("b'") {
        return (Kind::Literal, 1 + quoted(text.get(1..).unwrap_or_default(), '\''));
    }
    match text.chars().next() {
        Some('\'') => (Kind::Literal, single_quote(text)),
        Some(c) if c.is_ascii_digit() => (Kind::Literal, run(text, is_word)),
        Some(c) if is_word(c) => (Kind::Word, run(text, is_word)),
        first => (Kind::Sign, first.map_or(1, char::len_utf8)),
    }
}

/// Takes `text` apart.
#[must_use]
pub fn lex(text: &str) -> Source<'_> {
    let mut source = Source::default();
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let blank = run(rest, char::is_whitespace);
        let comment = rest.starts_with("//") || rest.starts_with("/*");
        let length = if blank > 0 {
            blank
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if comment {
            block_comment(rest)
        } else {
            token(rest).1
        };
        let (piece, behind) = rest.split_at(length);
        if comment && blank == 0 {
            source.comments.push(Comment { text: piece, line });
        } else if blank == 0 {
            source.tokens.push(Token { kind: token(rest).0, text: piece, line });
        }
        line += newlines(piece);
        rest = behind;
    }
    source
}

/// The tokens without items that exist in tests only, and the names of modules in other files that do.
#[must_use]
pub fn without_tests<'a>(tokens: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut rest = tokens;
    while let Some((first, behind)) = rest.split_first() {
        let attribute = attribute(rest);
        if attribute.iter().any(|t| t.text == "cfg")
            && attribute.iter().any(|t| t.text == "test")
            && !attribute.iter().any(|t| t.text == "not")
        {
            let item = item(rest.get(attribute.len()..).unwrap_or_default());
            if let [.., name, end] = item
                && end.text == ";"
                && item.iter().any(|t| t.text == "mod")
            {
                modules.push(name.text);
            }
            rest = rest.get(attribute.len() + item.len()..).unwrap_or_default();
        } else {
            kept.push(*first);
            rest = behind;
        }
    }
    (kept, modules)
}

/// The outer attribute that `tokens` start with, or nothing.
fn attribute<'a, 'b>(tokens: &'b [Token<'a>]) -> &'b [Token<'a>] {
    match tokens {
        [hash, bracket, ..] if hash.text == "#" && bracket.text == "[" => {
            tokens.get(..1 + group(tokens.get(1..).unwrap_or_default())).unwrap_or_default()
        }
        _ => &[],
    }
}

/// Number of tokens of the bracketed group that `tokens` start with.
fn group(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// The item that `tokens` start with: up to its semicolon or closing brace.
fn item<'a, 'b>(tokens: &'b [Token<'a>]) -> &'b [Token<'a>] {
    let mut at = 0;
    while let Some(rest) = tokens.get(at..) {
        match rest.first().map(|t| t.text) {
            None => break,
            Some(";") => return tokens.get(..=at).unwrap_or(tokens),
            Some("{") => return tokens.get(..at + group(rest)).unwrap_or(tokens),
            Some("(" | "[") => at += group(rest),
            Some(_) => at += 1,
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::{Kind, lex, without_tests};

    fn words(text: &str) -> Vec<&str> {
        lex(text).tokens.into_iter().filter(|t| t.kind == Kind::Word).map(|t| t.text).collect()
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        let text = r##"let a = "unsafe \" unsafe"; // unsafe
            let b = r#"unsafe " unsafe"#; /* unsafe /* unsafe */ unsafe */ let c = b"unsafe"; let d = '"'; let e = '\''; f"##;
        assert_eq!(words(text), ["let", "a", "let", "b", "let", "c", "let", "d", "let", "e", "f"]);
    }

    #[test]
    fn lifetimes_are_not_characters() {
        assert_eq!(words("fn f<'a>(x: &'a str) -> char { 'x' }"), ["fn", "f", "x", "str", "char"]);
        assert_eq!(words("b'x' r b c br"), ["r", "b", "c", "br"]);
    }

    #[test]
    fn lines_are_counted() {
        let source = lex("a\n\"b\nb\"\n/* c\n c */ d");
        let lines: Vec<_> = source.tokens.iter().map(|t| (t.line, t.last_line())).collect();
        assert_eq!(lines, [(1, 1), (2, 3), (5, 5)]);
        assert_eq!(source.comments[0].line, 4);
    }

    #[test]
    fn test_items_are_left_out() {
        let text = "fn a() {} #[cfg(test)] mod b { fn c() {} } #[cfg(any(test, feature = \"x\"))] pub mod d; #[cfg(not(test))] fn e() {}
            #[cfg(test)] fn f(x: [u8; 2]) -> u8 { 1 } #[derive(Debug)] struct G;";
        let source = lex(text);
        let (kept, modules) = without_tests(&source.tokens);
        let kept: Vec<_> = kept.iter().filter(|t| t.kind == Kind::Word).map(|t| t.text).collect();
        assert_eq!(kept, ["fn", "a", "cfg", "not", "test", "fn", "e", "derive", "Debug", "struct", "G"]);
        assert_eq!(modules, ["d"]);
    }
}
