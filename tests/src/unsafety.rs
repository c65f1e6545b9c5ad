//! Where unsafe code may be, and that each piece of it is argued.

use crate::lexer::{Comment, Kind, Source, Token, lex, without_tests};
use crate::tree::File;

/// Crates that may have unsafe code. Every other one forbids it in its root.
pub const UNSAFE_CRATES: [&str; 9] = [
    "hypervisor/hw",
    "hypervisor/vmx",
    "hypervisor/svm",
    "hypervisor/kernel",
    "guests/rt",
    "guests/suite",
    "guests/hostile",
    "guests/linux-init",
    "tests/conformance/image",
];

/// Fewest words of an argument ("as the caller vouches" is one, in a function whose caller does).
const WORDS: usize = 3;

/// A place where the promise to uphold an invariant is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// `unsafe { ... }`, and `#[unsafe(...)]`.
    Block,
    /// `unsafe impl`.
    Impl,
    /// `unsafe fn`: its documentation says what the caller upholds.
    Function,
}

/// The unsafe places of a file and their lines.
#[must_use]
pub fn places(tokens: &[Token<'_>]) -> Vec<(Place, usize)> {
    let next = tokens.iter().skip(1).map(Some).chain([None]);
    let previous = [None].into_iter().chain(tokens.iter().map(Some));
    let around = previous.zip(tokens).zip(next);
    around
        .filter(|((_, token), _)| token.kind == Kind::Word && token.text == "unsafe")
        .filter_map(|((before, token), after)| {
            let place = match after?.text {
                "{" => Place::Block,
                "(" if before.is_some_and(|b| b.text == "[") => Place::Block,
                "impl" => Place::Impl,
                "fn" => Place::Function,
                // A function's type, a trait or an extern block promises nothing here.
                "extern" if is_function(tokens, token.line) => Place::Function,
                _ => return None,
            };
            Some((place, token.line))
        })
        .collect()
}

/// Whether the `unsafe extern` of this line begins a function with a body, not a block of declarations or a type.
fn is_function(tokens: &[Token<'_>], line: usize) -> bool {
    let mut behind = tokens.iter().skip_while(|t| t.line < line || t.text != "unsafe").skip(2);
    let abi = behind.next();
    let function = if abi.is_some_and(|t| t.kind == Kind::Literal) { behind.next() } else { abi };
    function.is_some_and(|t| t.text == "fn") && behind.next().is_some_and(|t| t.kind == Kind::Word)
}

/// The comment lines that end right above `line`, or in it, over attributes and the start of the same statement.
fn argument<'a>(source: &Source<'a>, line: usize) -> Vec<&'a str> {
    const REACH: usize = 12;
    let above = |comment: &&Comment<'_>| comment.line <= line && line - comment.line <= REACH;
    let near: Vec<_> = source.comments.iter().filter(above).collect();
    let Some(mut at) = near.iter().rposition(|c| c.text.contains("SAFETY:") || c.text.contains("# Safety")) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    let mut expected = near.get(at).map_or(0, |c| c.line);
    while let Some(comment) = near.get(at).filter(|c| c.line == expected) {
        lines.push(comment.text);
        expected += 1;
        at += 1;
    }
    lines
}

/// Whether a `#[doc = "...# Safety..."]` stands above `line`: a macro's function.
fn documented_by_macro(source: &Source<'_>, line: usize) -> bool {
    let above = |token: &&Token<'_>| token.kind == Kind::Literal && token.line <= line && line - token.line <= 3;
    source.tokens.iter().filter(above).any(|token| token.text.contains("# Safety"))
}

/// Words of an argument, behind the heading.
fn words(lines: &[&str]) -> usize {
    let text = lines.join(" ");
    let body = text.split("SAFETY:").nth(1).or_else(|| text.split("# Safety").nth(1)).unwrap_or_default();
    body.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric)).count()
}

/// What is wrong with the arguments of a file.
#[must_use]
pub fn unargued(file: &File) -> Vec<String> {
    let source = lex(&file.text);
    let mut wrong = Vec::new();
    for (place, line) in places(&source.tokens) {
        let seen = words(&argument(&source, line));
        if seen < WORDS && !documented_by_macro(&source, line) {
            wrong.push(format!("{}:{line}: unsafe {place:?} with an argument of {seen} words", file.path));
        }
    }
    wrong
}

/// Number of unsafe blocks and impls of a file, without its tests.
#[must_use]
pub fn count(file: &File) -> usize {
    let source = lex(&file.text);
    let (tokens, _) = without_tests(&source.tokens);
    places(&tokens).into_iter().filter(|(place, _)| *place != Place::Function).count()
}

/// Whether the root file of a crate forbids unsafe code.
#[must_use]
pub fn forbids(root: &File) -> bool {
    let source = lex(&root.text);
    let words: Vec<_> = source.tokens.iter().map(|t| t.text).collect();
    words.windows(6).any(|w| w == ["#", "!", "[", "forbid", "(", "unsafe_code"])
}

#[cfg(test)]
mod tests {
    use super::{count, forbids, unargued};
    use crate::tree::File;

    fn file(text: &str) -> File {
        File { path: "hypervisor/hw/src/x.rs".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn an_argument_must_be_there_and_say_something() {
        let good = "// SAFETY: the page is mapped by the boot code and nobody else writes to it.\nlet x =\n    unsafe { y() };";
        assert_eq!(unargued(&file(good)), Vec::<String>::new());
        for bad in [
            "let x = unsafe { y() };",
            "// SAFETY: fine.\nunsafe { y() }",
            "// a long comment that says nothing of the kind that is asked for\nunsafe { y() }",
            "unsafe impl Sync for X {}",
            "/// Does it.\npub unsafe fn f() {}",
            "pub unsafe extern \"C\" fn f() {}",
        ] {
            assert_eq!(unargued(&file(bad)).len(), 1, "{bad}");
        }
        let function = "/// Does it.\n///\n/// # Safety\n/// The frame must be mapped and must belong to the caller alone.\npub unsafe fn f() {}";
        assert_eq!(unargued(&file(function)), Vec::<String>::new());
    }

    #[test]
    fn types_and_declarations_are_no_promise() {
        assert_eq!(
            unargued(&file(
                "unsafe extern \"C\" { fn f(); }\ntype F = unsafe extern \"C\" fn(u8);\nlet s = \"unsafe { }\";"
            )),
            Vec::<String>::new()
        );
    }

    #[test]
    fn blocks_of_tests_do_not_count() {
        assert_eq!(
            count(&file(
                "fn f() { unsafe { a() }; unsafe { b() } } unsafe impl Sync for X {}\n#[cfg(test)] mod tests { fn g() { unsafe { c() } } }"
            )),
            3
        );
    }

    #[test]
    fn forbidding_is_seen_in_code_only() {
        assert!(forbids(&file("//! Doc\n#![no_std]\n#![forbid(unsafe_code)]")));
        assert!(!forbids(&file("// #![forbid(unsafe_code)]\n")));
    }
}
