//! Words that do not belong where they are.

use crate::lexer::{Kind, lex, without_tests};
use crate::tree::{File, is_test, rust};

/// Folders that know no vendor, neither in code nor in prose.
pub const VENDOR_NEUTRAL: [&str; 5] =
    ["hypervisor/types", "hypervisor/paging", "hypervisor/devices", "hypervisor/emulate", "hypervisor/core"];

/// Of the page-table crate, the files that hold the vendors' entry formats side by side, and name them.
const FORMATS: [&str; 2] = ["hypervisor/paging/src/format.rs", "hypervisor/paging/src/lib.rs"];

/// The vendors, and words of one vendor's extension.
const VENDOR: [&str; 20] = [
    "intel",
    "amd",
    "vmx",
    "vtx",
    "vt-x",
    "svm",
    "amd-v",
    "vmcs",
    "vmcb",
    "ept",
    "npt",
    "vpid",
    "asid",
    "vmread",
    "vmwrite",
    "vmrun",
    "vmcall",
    "vmmcall",
    "eventinj",
    "exitintinfo",
];
/// Where prose may name a maker: the title of a data sheet.
const DATA_SHEET: &str = "data sheet";

/// Folders of the backends, which know no device.
pub const BACKENDS: [&str; 2] = ["hypervisor/vmx", "hypervisor/svm"];

/// Words of devices.
const DEVICES: [&str; 9] = ["uart", "pit", "pic", "rtc", "cmos", "hpet", "ioapic", "fwcfg", "virtio"];

/// The words that an identifier is made of, in lower case: `NestedEptRoot` and `nested_ept_root` alike.
fn parts(identifier: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous = ' ';
    for c in identifier.chars() {
        if c == '_' || (c.is_uppercase() && !previous.is_uppercase()) {
            words.push(String::new());
        }
        if let Some(last) = words.last_mut().filter(|_| c != '_') {
            last.extend(c.to_lowercase());
        }
        previous = c;
    }
    words
}

fn identifiers_with(files: &[File], folders: &[&str], wrong: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let inside = |file: &&File| folders.iter().any(|folder| file.is_in(folder)) && !is_test(file, files);
    for file in rust(files).filter(inside) {
        let (tokens, _) = without_tests(&lex(&file.text).tokens);
        for token in tokens.iter().filter(|t| t.kind == Kind::Word) {
            if parts(token.text).iter().any(|part| wrong.contains(&part.as_str())) {
                found.push(format!("{}:{}: {}", file.path, token.line, token.text));
            }
        }
    }
    found
}

/// The vendor's word in a comment or literal, if there is one.
fn vendor_in(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
    let found = words.find_map(|word| VENDOR.into_iter().find(|vendor| *vendor == word));
    found.filter(|_| !text.contains(DATA_SHEET))
}

/// Identifiers, comments and literals in vendor-neutral code that name a vendor.
#[must_use]
pub fn vendors(files: &[File]) -> Vec<String> {
    let mut found = identifiers_with(files, &VENDOR_NEUTRAL, &VENDOR);
    let inside = |file: &&File| VENDOR_NEUTRAL.iter().any(|folder| file.is_in(folder)) && !is_test(file, files);
    for file in rust(files).filter(inside) {
        let source = lex(&file.text);
        let (tokens, _) = without_tests(&source.tokens);
        let literals = tokens.iter().filter(|token| token.kind == Kind::Literal).map(|token| (token.text, token.line));
        let comments = source.comments.iter().map(|comment| (comment.text, comment.line));
        for (text, line) in literals.chain(comments) {
            found.extend(vendor_in(text).map(|word| format!("{}:{line}: {word}", file.path)));
        }
    }
    found.retain(|place| !FORMATS.iter().any(|format| place.starts_with(format)));
    found
}

/// Identifiers in a backend that name a device.
#[must_use]
pub fn devices(files: &[File]) -> Vec<String> {
    identifiers_with(files, &BACKENDS, &DEVICES)
}

/// Text that speaks of the place where it was written, or of hosts that only some machine knows.
#[must_use]
pub fn places(files: &[File]) -> Vec<String> {
    // Put together here, so that this file does not have them.
    let machine = ["work", "root", "home", "Users"].map(|folder| format!("/{folder}/"));
    let hosts = [
        ["static.crates", "io"],
        ["index.crates", "io"],
        ["deb.debian", "org"],
        ["registry.npmjs", "org"],
        ["pypi", "org"],
    ];
    let hosts = hosts.map(|host| host.join("."));
    let wrong: Vec<&String> = machine.iter().chain(&hosts).collect();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path != "Cargo.lock") {
        for (number, line) in file.text.lines().enumerate() {
            for word in wrong.iter().filter(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    found
}

/// Hypervisor sources that do not begin with a short line of documentation.
#[must_use]
pub fn undocumented(files: &[File]) -> Vec<String> {
    let wrong = |file: &&File| {
        let first = file.text.lines().next().unwrap_or_default();
        !first.starts_with("//! ") || first.chars().count() > 121
    };
    let documented =
        |file: &&File| file.is_in("hypervisor") || file.is_in("boot") || file.is_in("guests") || file.is_in("tools");
    rust(files)
        .filter(documented)
        .filter(|file| !file.path.ends_with("tests.rs") && !file.path.contains("/tests/"))
        .filter(wrong)
        .map(|file| file.path.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{devices, parts, places, undocumented, vendors};
    use crate::tree::File;

    fn file(path: &str, text: &str) -> [File; 1] {
        [File { path: path.to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn identifiers_fall_into_words() {
        assert_eq!(parts("NestedEptRoot"), ["", "nested", "ept", "root"]);
        assert_eq!(parts("VMX_BASIC"), ["", "vmx", "", "basic"]);
        assert_eq!(parts("except"), ["except"]);
    }

    #[test]
    fn a_vendor_in_the_core_is_found() {
        for text in ["fn read_vmcs() {}", "// as VT-x has it", "let x = \"SVM\";", "/// [`Ept`]", "// Intel's"] {
            assert_eq!(vendors(&file("hypervisor/core/src/a.rs", text)).len(), 1, "{text}");
        }
        for text in ["//! Intel 8259A data sheet", "// SDM vol. 3C 25.8", "fn except() {}", "#[cfg(test)] fn vmx() {}"]
        {
            assert_eq!(vendors(&file("hypervisor/core/src/a.rs", text)).len(), 0, "{text}");
        }
        assert_eq!(vendors(&file("hypervisor/paging/src/format.rs", "struct Ept;")).len(), 0);
        assert_eq!(vendors(&file("hypervisor/vmx/src/a.rs", "fn read_vmcs() {}")).len(), 0);
    }

    #[test]
    fn a_device_in_a_backend_is_found() {
        assert_eq!(devices(&file("hypervisor/vmx/src/a.rs", "use x::Uart;")).len(), 1);
        assert_eq!(devices(&file("hypervisor/vmx/src/a.rs", "use x::topic;")).len(), 0);
    }

    #[test]
    fn a_machine_path_is_found() {
        assert_eq!(places(&file("README.md", &["see", " /ro", "ot/x"].concat())).len(), 1);
        assert_eq!(places(&file("README.md", "see root/x")).len(), 0);
    }

    #[test]
    fn a_file_without_documentation_is_found() {
        assert_eq!(undocumented(&file("hypervisor/core/src/a.rs", "use x;")).len(), 1);
    }
}
