//! What is wrong in a manifest, and where: file, line and column, the line itself, and a hint.

use crate::failure::Failure;
use std::ops::Range;
use std::path::Path;

/// Something wrong at a place of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Bytes of the text that it is about.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Something wrong at `span`.
    pub fn new(span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { span, message: message.into(), hint: Some(hint.into()) }
    }

    /// The failure to report, for the `text` of the file at `path`.
    pub fn against(self, text: &str, path: &Path) -> Failure {
        let before = text.get(..self.span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line_number = before.matches('\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let marked = text.get(self.span.clone()).unwrap_or_default().lines().next().unwrap_or_default();
        let gutter = line_number.to_string();
        let mut message = format!("{}:{line_number}:{column}: {}", path.display(), self.message);
        if !line.trim().is_empty() {
            let margin = " ".repeat(gutter.len());
            let indent: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let carets = "^".repeat(marked.chars().count().max(1));
            message.push_str(&format!("\n {gutter} | {line}\n {margin} | {indent}{carets}"));
        }
        let failure = Failure::usage(message);
        match self.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Diagnostic;
    use std::path::Path;

    #[test]
    fn the_place_is_shown_in_its_line() {
        let failure = Diagnostic::new(8..11, "wrong", "write it right").against("a = 1\nb=xyz\n", Path::new("f"));
        assert_eq!(failure.message, "f:2:3: wrong\n 2 | b=xyz\n   |   ^^^");
        let failure = Diagnostic::new(0..0, "empty", "").against("", Path::new("f"));
        assert_eq!(failure.message, "f:1:1: empty");
    }
}
