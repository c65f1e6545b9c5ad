//! Dependencies point one way.

use serde_json::Value;
use std::process::Command;

/// What each crate of the workspace may depend on, of the workspace. A crate that is not here is an error: decide where
/// it belongs and add it.
const MAY: [(&str, &[&str]); 23] = [
    ("bulkhead-types", &[]),
    ("bulkhead-arch", &["types"]),
    ("bulkhead-paging", &["types", "arch"]),
    ("bulkhead-devices", &["types", "arch"]),
    ("bulkhead-emulate", &["types", "arch", "paging"]),
    ("bulkhead-core", &["types", "arch", "paging", "devices", "emulate"]),
    ("bulkhead-sched", &[]),
    ("bulkhead-control", &["types"]),
    ("bulkhead-hw", &["types", "arch", "paging", "devices", "core"]),
    ("bulkhead-vmx", &["types", "arch", "core", "hw"]),
    ("bulkhead-svm", &["types", "arch", "emulate", "core", "hw"]),
    ("bulkhead-boot", &["types"]),
    (
        "bulkhead-kernel",
        &["types", "arch", "paging", "devices", "emulate", "core", "sched", "control", "hw", "vmx", "svm", "boot"],
    ),
    ("bulkhead-rt", &[]),
    ("bulkhead-suite", &["rt"]),
    ("bulkhead-hostile", &["rt"]),
    ("bulkhead-linux-init", &[]),
    ("bulkhead-audit", &[]),
    ("hv", &["types", "core", "control", "audit"]),
    ("bulkhead-tests", &[]),
    (
        "bulkhead-fuzz",
        &["types", "arch", "paging", "devices", "emulate", "sched", "core", "control", "vmx", "svm", "boot"],
    ),
    ("bulkhead-conformance", &["types", "arch", "core", "hw", "vmx", "svm"]),
    ("bulkhead-conformance-image", &["types", "core", "paging", "hw", "vmx", "svm", "kernel", "conformance"]),
];

/// A crate of the workspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its folder, from the root.
    pub folder: String,
    /// Names of what it depends on when it is built (not for tests only).
    pub dependencies: Vec<String>,
}

/// The crates of the workspace, as cargo sees them.
///
/// # Errors
/// What cargo said, or what of it was not understood.
pub fn crates() -> Result<Vec<Crate>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = crate::tree::root();
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(&root)
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let packages = metadata.get("packages").and_then(Value::as_array).ok_or("no packages")?;
    packages
        .iter()
        .map(|package| read(package, &root.to_string_lossy()).ok_or_else(|| "a package without name".to_owned()))
        .collect()
}

fn read(package: &Value, root: &str) -> Option<Crate> {
    let manifest = package.get("manifest_path")?.as_str()?;
    let folder = manifest.strip_prefix(root)?.trim_start_matches('/').strip_suffix("/Cargo.toml")?;
    let dependencies = package.get("dependencies")?.as_array()?.iter();
    let built = dependencies.filter(|d| d.get("kind").and_then(Value::as_str) != Some("dev"));
    Some(Crate {
        name: package.get("name")?.as_str()?.to_owned(),
        folder: folder.to_owned(),
        dependencies: built.filter_map(|d| Some(d.get("name")?.as_str()?.to_owned())).collect(),
    })
}

/// Dependencies that point the wrong way.
#[must_use]
pub fn wrong(crates: &[Crate]) -> Vec<String> {
    let mut found = Vec::new();
    for krate in crates {
        let Some((_, may)) = MAY.iter().find(|(name, _)| *name == krate.name) else {
            found.push(format!("{} has no place in the layers", krate.name));
            continue;
        };
        let inner = krate.dependencies.iter().filter_map(|d| d.strip_prefix("bulkhead-"));
        found.extend(inner.filter(|d| !may.contains(d)).map(|d| format!("{} depends on bulkhead-{d}", krate.name)));
    }
    found
}

/// Crates that do not take the workspace's lints: (manifest path, text) of each.
pub fn without_lints<'a>(manifests: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let takes = |text: &str| {
        let value: toml::Table = text.parse().unwrap_or_default();
        value.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
    };
    manifests.filter(|(_, text)| !takes(text)).map(|(path, _)| path.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Crate, without_lints, wrong};

    fn krate(name: &str, dependencies: &[&str]) -> Crate {
        Crate {
            name: name.to_owned(),
            folder: String::new(),
            dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
        }
    }

    #[test]
    fn a_dependency_upwards_is_found() {
        assert_eq!(
            wrong(&[krate("bulkhead-core", &["bulkhead-types", "bulkhead-vmx", "heapless"])]),
            ["bulkhead-core depends on bulkhead-vmx"]
        );
        assert_eq!(wrong(&[krate("bulkhead-new", &[])]), ["bulkhead-new has no place in the layers"]);
    }

    #[test]
    fn a_crate_of_its_own_lints_is_found() {
        let manifests = [("a", "[lints]\nworkspace = true\n"), ("b", "[lints.rust]\nx = \"allow\"\n"), ("c", "")];
        assert_eq!(without_lints(manifests.into_iter()), ["b", "c"]);
    }
}
