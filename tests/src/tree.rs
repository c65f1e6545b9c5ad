//! The files and crates of the workspace.

use std::fs;
use std::path::{Path, PathBuf};

/// A text file of the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Path from the root, with slashes.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl File {
    /// Whether its name ends so.
    #[must_use]
    pub fn is(&self, ending: &str) -> bool {
        self.path.ends_with(ending)
    }

    /// Whether it lies below this folder.
    #[must_use]
    pub fn is_in(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Root of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// All text files below the root, sorted by path; without build products and the version control's own.
#[must_use]
pub fn files() -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if ["target", "build", ".git", "corpus", "artifacts"].iter().any(|left_out| name == *left_out) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let (Ok(text), Ok(relative)) = (fs::read_to_string(&path), path.strip_prefix(&root)) {
                found.push(File { path: relative.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The Rust files among `files`.
pub fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.is(".rs"))
}

/// Whether a file consists of tests only: it lies in a folder called `tests`, or is a module that is declared for tests.
#[must_use]
pub fn is_test(file: &File, files: &[File]) -> bool {
    if file.path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "fuzz" || part == "benches") {
        return true;
    }
    // A module file is declared in the folder above (or its own, next to it), in lib.rs, main.rs, mod.rs or FOLDER.rs.
    let Some((folder, name)) = file.path.rsplit_once('/') else { return false };
    let module = name.strip_suffix(".rs").unwrap_or(name);
    let parent = format!("{folder}.rs");
    let declared = rust(files).any(|other| {
        let beside = other
            .path
            .rsplit_once('/')
            .is_some_and(|(f, n)| f == folder && matches!(n, "lib.rs" | "main.rs" | "mod.rs"));
        (beside || other.path == parent)
            && crate::lexer::without_tests(&crate::lexer::lex(&other.text).tokens).1.contains(&module)
    });
    // A folder of modules belongs to the module of its name.
    declared || files.iter().any(|f| f.path == parent && f.path != file.path && is_test(f, files))
}

#[cfg(test)]
mod tests {
    use super::{File, is_test};

    #[test]
    fn test_files_are_known_by_their_declaration() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let files = [
            file("a/src/lib.rs", "mod real; #[cfg(test)] mod check;"),
            file("a/src/real.rs", "#[cfg(test)] mod inner;"),
            file("a/src/check.rs", ""),
            file("a/src/real/inner.rs", ""),
            file("a/src/check/deep.rs", ""),
            file("a/tests/x.rs", ""),
        ];
        let tests: Vec<_> = files.iter().map(|f| is_test(f, &files)).collect();
        assert_eq!(tests, [false, false, true, true, true, true]);
    }
}
