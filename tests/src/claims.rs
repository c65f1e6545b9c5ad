//! What SECURITY.md names has to be there.

use crate::tree::File;

/// The document.
const DOCUMENT: &str = "SECURITY.md";
/// Device models and the like: each says what a hostile guest may try.
const TABLE: [&str; 2] = ["hostile guest may", "A guest tries"];

/// All that stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Claims of the document that name no test, no case, no file and no command of this tree; files it lists that have no
/// table of threats.
#[must_use]
pub fn wrong(files: &[File]) -> Vec<String> {
    let Some(document) = files.iter().find(|f| f.path == DOCUMENT) else { return vec![format!("no {DOCUMENT}")] };
    let is_there = |name: &str| {
        let (function, case, row) =
            (format!("fn {name}"), format!("name = \"{name}\""), format!("const NAME: &str = \"{name}\";"));
        let command = name.split(' ').next() == Some("./hv");
        let folder = format!("{name}/");
        command
            || name == "code"
            || files.iter().any(|f| {
                f.path == name
                    || f.path.starts_with(&folder)
                    || f.is(".rs") && f.text.split(&function).skip(1).any(|rest| rest.starts_with(['(', '<']))
                    || f.is(".toml") && f.is_in("tests") && f.text.contains(&case)
                    || f.is_in("tools") && f.text.contains(&row)
            })
    };
    let mut found: Vec<String> =
        quoted(&document.text).filter(|name| !is_there(name)).map(|name| format!("there is no {name}")).collect();
    let touched = document.text.split("## What a guest can touch").nth(1).unwrap_or_default();
    for name in quoted(touched).filter(|name| name.ends_with(".rs")) {
        let says = |f: &&File| f.path == name && TABLE.iter().any(|words| f.text.contains(words));
        if !files.iter().any(|f| says(&f)) {
            found.push(format!("{name} does not say what a hostile guest may try"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::wrong;
    use crate::tree::File;

    #[test]
    fn a_claim_without_a_test_is_found() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let text = "`a_test` `a-case` `src/a.rs` `./hv audit` `gone`\n## What a guest can touch\n`src/a.rs` `src/b.rs`";
        let files = [
            file("SECURITY.md", text),
            file("src/a.rs", "//! | a hostile guest may |\nfn a_test() {}"),
            file("src/b.rs", ""),
            file("tests/c.toml", "name = \"a-case\""),
        ];
        assert_eq!(wrong(&files), ["there is no gone", "src/b.rs does not say what a hostile guest may try"]);
        assert_eq!(wrong(&files[1..]), ["no SECURITY.md"]);
    }
}
