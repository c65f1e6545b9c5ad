//! What stands in both backends.

use crate::lexer::{lex, without_tests};
use crate::tree::{File, is_test, rust};
use crate::words::BACKENDS;
use std::collections::HashMap;

/// So many lines of code in a row are no chance.
const RUN: usize = 6;
/// Fewest characters of a line that says something.
const THIN: usize = 10;

/// The lines of code of a file with their numbers: each as its tokens, so that neither comments nor layout count. Imports,
/// attributes and what is nearly nothing but brackets are left out.
fn lines(file: &File) -> Vec<(usize, String)> {
    let source = lex(&file.text);
    let (tokens, _) = without_tests(&source.tokens);
    tokens
        .chunk_by(|a, b| a.line == b.line)
        .filter(|line| !line.iter().any(|token| token.text == "use" || token.text == "mod"))
        .filter(|line| line.first().is_some_and(|first| first.text != "#"))
        .filter_map(|line| {
            let text: String = line.iter().flat_map(|token| [token.text, " "]).collect();
            line.first().filter(|_| text.len() >= THIN).map(|first| (first.line, text))
        })
        .collect()
}

fn runs(folder: &str, files: &[File]) -> Vec<(Vec<String>, String)> {
    let own = rust(files).filter(|file| file.is_in(folder) && !is_test(file, files));
    own.flat_map(|file| {
        let lines = lines(file);
        let place = |run: &[(usize, String)]| format!("{}:{}", file.path, run.first().map_or(0, |(line, _)| *line));
        let text = |run: &[(usize, String)]| run.iter().map(|(_, text)| text.clone()).collect();
        lines.windows(RUN).map(|run| (text(run), place(run))).collect::<Vec<_>>()
    })
    .collect()
}

/// Places where the same lines stand in both backends.
#[must_use]
pub fn in_both(files: &[File]) -> Vec<String> {
    let [first, second] = BACKENDS.map(|folder| runs(folder, files));
    let known: HashMap<_, _> = first.into_iter().collect();
    let again = |(run, here): (Vec<String>, String)| known.get(&run).map(|there| format!("{there} and {here}"));
    second.into_iter().filter_map(again).collect()
}

#[cfg(test)]
mod tests {
    use super::in_both;
    use crate::tree::File;

    fn files(first: &str, second: &str) -> [File; 2] {
        [("hypervisor/vmx/src/a.rs", first), ("hypervisor/svm/src/b.rs", second)]
            .map(|(path, text)| File { path: path.to_owned(), text: text.to_owned() })
    }

    #[test]
    fn six_lines_in_both_are_found_whatever_their_layout() {
        let lines = "let a = 1;\nlet b = 2;\nlet c = 3;\nlet d = 4;\nlet e = 5;\nlet f = 6;\n";
        let laid_out = lines.replace("let e", "// why\n}\n    let   e");
        assert_eq!(in_both(&files(lines, &laid_out)), ["hypervisor/vmx/src/a.rs:1 and hypervisor/svm/src/b.rs:1"]);
        assert!(in_both(&files(lines, &lines.replace('5', "6"))).is_empty());
        assert!(in_both(&files(lines, &format!("#[cfg(test)]\nmod tests {{\n{lines}}}"))).is_empty());
    }
}
