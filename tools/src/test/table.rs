//! The case tables in `tests/`: each guest, what it must print and how it must end.
//!
//! A case has either `kernel` (one guest called `guest`, with test exit and test device) or `manifest`, and then one
//! `[[case.guest]]` for each guest that is looked at. `lines` are pieces of the guest's console, in this order. `never`
//! are pieces that must not be there. `log` are pieces of the hypervisor's own lines, in this order. `type` are pairs: when the first has come (behind the one before it), the second
//! is typed. `ends` is how the guest must end, or `time-out`. `timeout` is in seconds.
//!
//! `fair`: all guests count what they ran, which is held against the manifest and the hypervisor's account. `minutes`: the
//! account by the minute has so many lines at least, and they add up.
//!
//! Each case runs on each machine, with the same expectations. `not-on.MACHINE` is why it can not apply to a machine.
//! A guest of the suite that leaves a check out says so (`skip NAME`); `skips.MACHINE` has each such name and why it is
//! left out there. One that is said but not listed fails the case, and so does one that is listed but not said.
//! `most.MACHINE`: the most exits that it may have made there, by kind.

use crate::emulator::Kind;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::run::OneGuest;
use crate::workspace::Workspace;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The table of the suite, and the one of guests that are not ours.
pub const TABLES: [&str; 2] = ["tests/cases.toml", "tests/foreign.toml"];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default, rename = "case")]
    cases: Vec<Case>,
}

/// One case.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name, unique.
    pub name: String,
    /// Kernel of its only guest.
    pub kernel: Option<String>,
    /// Initial RAM disk of its only guest.
    pub initrd: Option<String>,
    /// Boot modules of its only guest: a file, and behind a blank the command line.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Memory of its only guest.
    pub memory: Option<String>,
    /// Command line of its only guest.
    pub cmdline: Option<String>,
    /// Address of its only guest's flat kernel.
    pub flat: Option<u64>,
    /// Whether its only guest's memory is mapped when first touched.
    #[serde(default)]
    pub lazy: bool,
    /// Machine of several guests.
    pub manifest: Option<String>,
    /// Virtual CPUs of its only guest, if not one.
    pub vcpus: Option<u16>,
    /// Processors of the machine, if not one.
    pub cpus: Option<u16>,
    /// What must be seen of its only guest.
    #[serde(flatten)]
    pub expected: Expected,
    /// Pieces of the hypervisor's own lines, in this order.
    #[serde(default)]
    pub log: Vec<String>,
    /// What must be seen of the manifest's guests.
    #[serde(default, rename = "guest")]
    pub guests: Vec<GuestCase>,
    /// Machines that it does not apply to, and why.
    #[serde(default, rename = "not-on")]
    pub not_on: BTreeMap<Kind, String>,
    /// Seconds.
    pub timeout: u64,
    /// Whether its guests count, and had what they should; all time adds up.
    #[serde(default)]
    pub fair: bool,
    /// Lines that the account by the minute has at least; all time adds up.
    #[serde(default)]
    pub minutes: usize,
    /// Most times that the first processor may wait for something to do.
    pub waits: Option<u64>,
    /// Left out by `--quick`.
    #[serde(default)]
    pub slow: bool,
}

/// What must be seen of one guest of a manifest.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestCase {
    /// Its name.
    pub name: String,
    /// What must be seen.
    #[serde(flatten)]
    pub expected: Expected,
}

/// What must be seen of a guest.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Expected {
    /// Pieces of its console, in this order.
    #[serde(default)]
    pub lines: Vec<String>,
    /// Pieces that must not be there.
    #[serde(default)]
    pub never: Vec<String>,
    /// What is waited for, and what is typed then.
    #[serde(default, rename = "type")]
    pub typed: Vec<(String, String)>,
    /// Checks that it leaves out on a machine, and why.
    #[serde(default)]
    pub skips: BTreeMap<Kind, BTreeMap<String, String>>,
    /// Most exits of a kind that it may have made on a machine.
    #[serde(default)]
    pub most: BTreeMap<Kind, BTreeMap<String, u64>>,
    /// How it must end; any way if it is not said.
    pub ends: Option<String>,
}

impl Case {
    /// The guests that are looked at: their names and what is expected.
    pub fn expectations(&self) -> Vec<(&str, &Expected)> {
        match self.manifest {
            Some(_) => self.guests.iter().map(|g| (g.name.as_str(), &g.expected)).collect(),
            None => vec![("guest", &self.expected)],
        }
    }

    /// The arguments of its one-guest machine.
    pub fn one_guest(&self) -> OneGuest {
        OneGuest {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            modules: self.modules.clone(),
            cmdline: self.cmdline.clone(),
            memory: self.memory.clone(),
            flat: self.flat,
            lazy: self.lazy,
            vcpus: self.vcpus,
            test_device: true,
        }
    }

    /// Whether the case is over when the time is.
    pub fn ends_by_time(&self) -> bool {
        self.expectations().iter().any(|(_, e)| e.ends.as_deref() == Some("time-out"))
    }

    fn wrong(&self) -> Option<String> {
        const ENDS: [&str; 5] = ["power-off", "reset", "triple-fault", "killed", "time-out"];
        if self.kernel.is_some() == self.manifest.is_some() {
            return Some("give either kernel or manifest".to_owned());
        }
        if self.manifest.is_some() && self.guests.is_empty() {
            return Some("give one [[case.guest]] at least".to_owned());
        }
        if self.kernel.is_some() && !self.guests.is_empty() {
            return Some("[[case.guest]] goes with manifest, not with kernel".to_owned());
        }
        self.expectations().into_iter().find_map(|(name, expected)| {
            let ends = expected.ends.as_deref()?;
            let code = ends.strip_prefix("test-exit ").is_some_and(|code| code.parse::<u64>().is_ok());
            (!code && !ends.starts_with("killed ") && !ENDS.contains(&ends))
                .then(|| format!("{name} can not end with {ends:?}"))
        })
    }
}

/// All cases of all tables that are there.
pub fn read(workspace: &Workspace) -> Outcome<Vec<Case>> {
    let mut all = Vec::new();
    for name in TABLES {
        let path = workspace.path(name);
        if path.is_file() {
            all.extend(parse(&files::read_text(&path)?, &path)?);
        }
    }
    let mut names = BTreeSet::new();
    match all.iter().find(|case| !names.insert(case.name.clone())) {
        Some(twice) => Err(Failure::usage(format!("two cases are called {}", twice.name)).hint("rename one")),
        None => Ok(all),
    }
}

fn parse(text: &str, path: &Path) -> Outcome<Vec<Case>> {
    let table: Table = toml::from_str(text)
        .map_err(|e| Failure::usage(format!("{}: {e}", path.display())).hint("see the head of the file"))?;
    match table.cases.iter().find_map(|case| case.wrong().map(|why| (case, why))) {
        Some((case, why)) => Err(Failure::usage(format!("{}: case {}: {why}", path.display(), case.name))),
        None => Ok(table.cases),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, read};
    use crate::emulator::Kind;
    use crate::workspace::Workspace;
    use std::path::Path;

    #[test]
    fn the_tables_of_the_repository_are_sound() {
        read(&Workspace::find().unwrap()).unwrap();
    }

    #[test]
    fn a_case_says_what_is_typed_and_how_it_ends() {
        let text = r##"
            [[case]]
            name = "shell"
            kernel = "@debian"
            lines = ["Linux version"]
            never = ["BUG"]
            type = [["# ", "poweroff -f\n"]]
            ends = "power-off"
            timeout = 60
            not-on.bochs = "no such device"
            skips.qemu = { "#AC" = "no alignment checks" }
            most.bochs = { msr = 10 }
        "##;
        let cases = parse(text, Path::new("t")).unwrap();
        let expectations = cases[0].expectations();
        let (name, expected) = expectations[0];
        assert_eq!((name, expected.ends.as_deref()), ("guest", Some("power-off")));
        assert_eq!(expected.typed, [("# ".to_owned(), "poweroff -f\n".to_owned())]);
        assert_eq!(cases[0].not_on[&Kind::Bochs], "no such device");
        assert_eq!(expected.skips[&Kind::Qemu]["#AC"], "no alignment checks");
        assert_eq!(expected.most[&Kind::Bochs]["msr"], 10);
    }

    #[test]
    fn wrong_cases_are_refused() {
        let wrong = [
            "name = \"a\"\ntimeout = 1",
            "name = \"a\"\nkernel = \"k\"\nmanifest = \"m\"\ntimeout = 1",
            "name = \"a\"\nkernel = \"k\"\nends = \"well\"\ntimeout = 1",
            "name = \"a\"\nkernel = \"k\"\nends = \"test-exit x\"\ntimeout = 1",
            "name = \"a\"\nmanifest = \"m\"\ntimeout = 1",
            "name = \"a\"\nkernel = \"k\"",
            "name = \"a\"\nkernel = \"k\"\ntimeout = 1\nlinse = []",
            "name = \"a\"\nkernel = \"k\"\ntimeout = 1\nnot-on.moon = \"no air\"",
        ];
        for text in wrong {
            assert!(parse(&format!("[[case]]\n{text}\n"), Path::new("t")).is_err(), "{text}");
        }
    }
}
