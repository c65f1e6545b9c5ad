//! Names for the addresses of the hypervisor's backtraces.

use addr2line::Loader;
use std::path::Path;

/// `line`, and if it shows an address as `at 0x…`, the functions there: the innermost inlined one first, each with its
/// source line.
pub fn symbolize(line: &str, loader: Option<&Loader>) -> String {
    let mut out = line.to_owned();
    if let Some((address, loader)) = address(line).zip(loader) {
        // A return address may belong to the next line already: look at the call before it.
        let address = address.saturating_sub(1);
        let mut frames = frames(address, loader);
        if frames.is_empty() {
            frames.extend(
                loader.find_symbol(address).map(|name| addr2line::demangle_auto(name.into(), None).into_owned()),
            );
        }
        for frame in frames {
            out.push_str("\n      ");
            out.push_str(&frame);
        }
    }
    out
}

/// The debug information of the hypervisor's image, if it can be read.
pub fn load(image: &Path) -> Option<Loader> {
    Loader::new(image).ok()
}

fn address(line: &str) -> Option<u64> {
    let rest = line.trim_start().strip_prefix("at 0x")?;
    let hex = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(hex, 16).ok()
}

fn frames(address: u64, loader: &Loader) -> Vec<String> {
    let mut out = Vec::new();
    let Ok(mut frames) = loader.find_frames(address) else { return out };
    while let Ok(Some(frame)) = frames.next() {
        let function = frame.function.as_ref().and_then(|f| f.demangle().ok().map(std::borrow::Cow::into_owned));
        let mut text = function.unwrap_or_else(|| "?".to_owned());
        if let Some((file, line)) = frame.location.and_then(|place| place.file.zip(place.line)) {
            text.push_str(&format!(" ({}:{line})", short(file)));
        }
        out.push(text);
    }
    out
}

/// A source file's path without what is the same for all of its kind.
fn short(file: &str) -> &str {
    let marks = ["/hypervisor/", "/boot/", "/rust/library/", "/registry/src/"];
    let found = marks.iter().find_map(|mark| file.rfind(mark).map(|at| at + 1));
    found.and_then(|at| file.get(at..)).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::{address, load, short, symbolize};

    #[test]
    fn only_lines_of_a_backtrace_have_an_address() {
        assert_eq!(address("  at 0xffffffff80200010"), Some(0xffff_ffff_8020_0010));
        assert_eq!(address("at 0x10 (more)"), Some(0x10));
        for line in ["rip 0x10", "at 10", "at 0x", ""] {
            assert_eq!(address(line), None, "{line}");
        }
    }

    #[test]
    fn functions_of_a_real_program_get_their_names() {
        let program = std::env::current_exe().unwrap();
        let loader = load(&program).unwrap();
        let file = std::fs::read(&program).unwrap();
        let entry = u64::from_le_bytes(file[24..32].try_into().unwrap());
        let line = symbolize(&format!("  at {:#x}", entry + 1), Some(&loader));
        assert!(line.ends_with("\n      _start"), "{line}");
    }

    #[test]
    fn paths_are_short() {
        assert_eq!(short("/a/b/hypervisor/kernel/src/main.rs"), "hypervisor/kernel/src/main.rs");
        assert_eq!(short("/usr/lib/rust/library/core/src/a.rs"), "rust/library/core/src/a.rs");
        assert_eq!(short("a.rs"), "a.rs");
    }
}
