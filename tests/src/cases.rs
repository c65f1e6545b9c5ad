//! The case table and the suite belong together.

use crate::tree::File;
use std::collections::BTreeSet;
use toml::{Table, Value};

/// All strings under a key called `kernel` of a document, at any depth.
fn kernels(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) => {
            if let Some(Value::String(kernel)) = table.get("kernel") {
                into.insert(kernel.clone());
            }
            table.values().for_each(|v| kernels(v, into));
        }
        Value::Array(values) => values.iter().for_each(|v| kernels(v, into)),
        _ => {}
    }
}

/// What does not fit: documents that do not parse, scenarios that no case runs, cases without scenario or manifest.
#[must_use]
pub fn wrong(files: &[File]) -> Vec<String> {
    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    for file in files.iter().filter(|f| f.is(".toml") && f.is_in("tests")) {
        match file.text.parse::<Table>() {
            Ok(table) => {
                kernels(&Value::Table(table.clone()), &mut used);
                let cases = table.get("case").and_then(Value::as_array).into_iter().flatten();
                for manifest in cases.filter_map(|case| case.get("manifest")?.as_str()) {
                    if !files.iter().any(|f| f.path == manifest) {
                        found.push(format!("{}: no {manifest}", file.path));
                    }
                }
            }
            Err(error) => found.push(format!("{}: {}", file.path, error.message())),
        }
    }
    let scenario = |file: &File| {
        file.path.strip_prefix("guests/suite/src/bin/")?.strip_suffix(".rs").map(|name| format!("@suite/{name}"))
    };
    let scenarios: BTreeSet<_> = files.iter().filter_map(scenario).collect();
    let ours = used.iter().filter(|kernel| kernel.starts_with("@suite/"));
    found.extend(ours.filter(|kernel| !scenarios.contains(*kernel)).map(|kernel| format!("no scenario {kernel}")));
    // The benchmark is run by `hv bench`.
    let unused = scenarios.iter().filter(|name| !used.contains(*name) && *name != "@suite/bench_exits");
    found.extend(unused.map(|name| format!("no case runs {name}")));
    found
}

#[cfg(test)]
mod tests {
    use super::wrong;
    use crate::tree::File;

    #[test]
    fn what_does_not_fit_is_found() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let files = [
            file(
                "tests/cases.toml",
                "[[case]]\nname = \"a\"\nkernel = \"@suite/gone\"\n[[case]]\nname = \"b\"\nmanifest = \"tests/m.toml\"\n",
            ),
            file("tests/other.toml", "= 1"),
            file("guests/suite/src/bin/new.rs", ""),
        ];
        let found = wrong(&files);
        assert_eq!(found.len(), 4, "{found:?}");
        for piece in ["no tests/m.toml", "no scenario @suite/gone", "no case runs @suite/new", "tests/other.toml"] {
            assert!(found.iter().any(|f| f.contains(piece)), "{piece}: {found:?}");
        }
    }
}
