//! How large things are.

use crate::lexer::{lex, without_tests};
use crate::tree::{File, is_test};
use std::collections::BTreeSet;

/// Lines that the privileged core is to come down to.
pub const CORE_GOAL: usize = 10_000;
/// Most lines of a source file.
pub const FILE_LIMIT: usize = 800;

/// Whether a file is linked into the hypervisor's image. (The boot sector of the direct disk runs before it and is gone.)
#[must_use]
pub fn is_core(file: &File, files: &[File]) -> bool {
    let source = file.is(".rs") || file.is(".S") || file.is(".s") || file.is(".asm");
    let privileged = file.is_in("hypervisor") || file.is_in("boot");
    source && privileged && !file.is_in("boot/direct") && !file.is("build.rs") && !is_test(file, files)
}

/// Lines of code of a file: without tests, comments and blank lines.
#[must_use]
pub fn code_lines(file: &File) -> usize {
    if !file.is(".rs") {
        let code = |line: &&str| {
            !["", "#", "//", ";", "/*", "*"]
                .iter()
                .any(|c| if c.is_empty() { line.is_empty() } else { line.starts_with(c) })
        };
        return file.text.lines().map(str::trim).filter(code).count();
    }
    let source = lex(&file.text);
    let (tokens, _) = without_tests(&source.tokens);
    let lines: BTreeSet<_> = tokens.iter().flat_map(|t| t.line..=t.last_line()).collect();
    lines.len()
}

/// Source files that are too long, with all their lines.
#[must_use]
pub fn too_long(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is(".rs") || file.is(".S") || file.is(".s"))
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LIMIT)
        .map(|(file, lines)| format!("{}: {lines} lines", file.path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{code_lines, is_core, too_long};
    use crate::tree::File;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn only_code_counts() {
        let text = "//! Doc\n\nfn a() {\n    // why\n    b(\"x\n\ny\");\n}\n/* c\n d */\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
        assert_eq!(code_lines(&file("hypervisor/x/src/lib.rs", text)), 5);
        assert_eq!(code_lines(&file("boot/a.S", "# c\n\nnop\n// d\n  hlt\n")), 2);
    }

    #[test]
    fn the_core_is_what_is_linked() {
        let files = [
            file("hypervisor/x/src/lib.rs", "#[cfg(test)]\nmod tests;"),
            file("hypervisor/x/src/tests.rs", ""),
            file("hypervisor/x/tests/a.rs", ""),
            file("boot/entry.S", ""),
            file("tools/src/main.rs", ""),
        ];
        let core: Vec<_> = files.iter().map(|f| is_core(f, &files)).collect();
        assert_eq!(core, [true, false, false, true, false]);
    }

    #[test]
    fn long_files_are_named() {
        assert_eq!(
            too_long(&[file("a.rs", &"x\n".repeat(801)), file("b.rs", &"x\n".repeat(800))]),
            ["a.rs: 801 lines"]
        );
    }
}
