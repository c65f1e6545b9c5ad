//! The tables of attacks: `tests/hostile.toml` by programs, `tests/lies.toml` by boot images that lie.

use super::lies::{self, FieldLie, Lie};
use super::table::{Case, Expected, GuestCase};
use crate::emulator::Kind;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::workspace::Workspace;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

pub const TABLE: &str = "tests/hostile.toml";
const LIES: &str = "tests/lies.toml";
const WITNESS: &str = "witness";
/// The name of an attack's one attacker.
pub const ATTACKER: &str = "attacker";
/// The name of a third guest.
const THIRD: &str = "third";
/// Seed of the witness's words.
const SEED: u64 = 77;
/// The attack that is none: it only computes.
const SPIN: &str = "spin";
/// Seconds of the host, for each of the machine's processors: it carries them out one after the other.
pub const TIMEOUT: u64 = 60;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "attack")]
    attacks: Vec<Attack>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lies {
    #[serde(rename = "field")]
    fields: Vec<FieldLie>,
}

/// A row of the table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Attack {
    /// Its name within its family.
    pub name: String,
    /// The program that it is in.
    pub family: String,
    /// What it attacks.
    pub on: String,
    /// More words for its command line.
    #[serde(default)]
    cmdline: String,
    /// Its memory.
    #[serde(default = "default_memory")]
    memory: String,
    /// Whether its memory is mapped when first touched.
    #[serde(default)]
    lazy: bool,
    /// Its processors, if not one.
    pub vcpus: Option<u16>,
    /// Pieces of its console beside the protocol's.
    #[serde(default)]
    lines: Vec<String>,
    /// What a line of the hypervisor must have, on which machines.
    #[serde(default)]
    says_on: BTreeMap<Kind, String>,
    /// How it ends: `held` (by test exit 0, having said so), else as in the case table; `never` if it goes on for ever,
    /// `anyhow` if that is not said.
    #[serde(default = "held")]
    pub ends: String,
    /// How it ends on machines where it ends otherwise.
    #[serde(default)]
    ends_on: BTreeMap<Kind, String>,
    /// Least counts of its exits, by kind.
    #[serde(default)]
    pub least: BTreeMap<String, u64>,
    /// Times that it is made anew.
    #[serde(default)]
    pub restarts: u16,
    /// Whether the witness measures its share of the CPU.
    #[serde(default)]
    pub share: bool,
    /// Of what the witness has beside guests that only compute, in thousandths, what it must have beside this one: more, if this
    /// one leaves most of its own part.
    #[serde(default = "kept")]
    pub keeps: u64,
    /// Whether a third guest computes beside the two, for as long as a flood takes.
    #[serde(default)]
    third: bool,
    /// What is changed in the pack; the program is `memory`, and has no say in it.
    lie: Option<Lie>,
    /// Lies in one field of a boot image, instead of a program.
    #[serde(skip)]
    field: Option<FieldLie>,
    /// Machines that it does not apply to, and why.
    #[serde(default)]
    pub not_on: BTreeMap<Kind, String>,
}

fn default_memory() -> String {
    "8M".to_owned()
}

/// All, less 1 %.
const fn kept() -> u64 {
    990
}

fn held() -> String {
    "held".to_owned()
}

impl Attack {
    /// The attack by the boot images of `field`.
    fn by_image(field: FieldLie) -> Self {
        Self {
            name: format!("{}-{}", field.of.name(), field.field),
            family: "lie".to_owned(),
            on: format!("the loader, by {} of {}", field.field, field.of.name()),
            ends: field.verdict(),
            field: Some(field),
            ..Self::default()
        }
    }

    /// Its name among all.
    pub fn full_name(&self) -> String {
        format!("hostile {}-{}", self.family, self.name)
    }

    /// The attack as it is on this machine.
    pub fn at(&self, machine: Kind) -> Self {
        let ends = self.ends_on.get(&machine).unwrap_or(&self.ends).clone();
        Self { ends, ..self.clone() }
    }

    /// What must come of it, in words.
    pub fn verdict(&self) -> String {
        let mut words = vec![self.ends.clone()];
        words.extend(self.ends_on.iter().map(|(machine, ends)| format!("on {machine} {ends}")));
        words.extend(self.least.iter().map(|(kind, least)| format!("{kind} at least {least}")));
        words.extend(self.share.then(|| match self.is_measure() {
            true => "share measured".to_owned(),
            false => format!("share at least {}/1000 of that beside {}", self.keeps, self.measure()),
        }));
        words.join(", ")
    }

    /// The machine: the witness, then the attackers.
    pub fn manifest(&self, workspace: &Workspace) -> Outcome<String> {
        let share = u8::from(self.share);
        let mut text = format!(
            r#"zones = [{{ name = "witness" }}, {{ name = "attacker" }}]
            [[guest]]
            name = "{WITNESS}"
            zone = "witness"
            kernel = "@suite/witness"
            cmdline = "seed={SEED} until-told share={share}"
            memory = "4M"
            test-exit = true
            "#
        );
        let what = match &self.field {
            Some(field) => field.manifest(workspace)?,
            None => self.program(),
        };
        let third =
            format!("kernel = \"@hostile/flood\"\ncmdline = \"attack={SPIN}\"\nmemory = \"{}\"\n", default_memory());
        for (name, _) in self.attackers() {
            let what = if name == THIRD { &third } else { &what };
            text.push_str(&format!(
                "\n[[guest]]\nname = \"{name}\"\nzone = \"attacker\"\ntest-exit = true\ntest-device = true\n{what}"
            ));
        }
        Ok(text)
    }

    fn program(&self) -> String {
        let Self { family, name, cmdline, memory, lazy, vcpus, restarts, .. } = self;
        let (family, name) = if self.lie.is_some() { ("memory", "edge") } else { (family.as_str(), name.as_str()) };
        format!(
            "kernel = \"@hostile/{family}\"\ncmdline = \"attack={name} witness={SEED} {cmdline}\"\nmemory = \"{memory}\"\n\
             lazy = {lazy}\nvcpus = {}\nrestarts = {restarts}\n",
            vcpus.unwrap_or(1)
        )
    }

    /// The attackers by name, and what must be seen of them.
    pub fn attackers(&self) -> Vec<(String, Expected)> {
        if let Some(field) = &self.field {
            return field.told().into_iter().map(|(name, _, expected)| (name, expected)).collect();
        }
        let mut lines = if self.lie.is_some() { Vec::new() } else { vec![format!("attack {}", self.name)] };
        lines.extend(self.lines.iter().cloned());
        let ends = match self.ends.as_str() {
            "held" => {
                lines.push(format!("held {}", self.name));
                Some("test-exit 0")
            }
            "never" => Some("time-out"),
            "anyhow" => None,
            other => Some(other),
        };
        let ends = ends.map(str::to_owned);
        let never = vec!["broke ".to_owned()];
        let attacker = Expected { lines, never, ends, ..Expected::default() };
        let third = Expected {
            lines: vec![format!("held {SPIN}")],
            ends: Some("test-exit 0".to_owned()),
            ..Expected::default()
        };
        let third = self.third.then(|| (THIRD.to_owned(), third));
        [(ATTACKER.to_owned(), attacker)].into_iter().chain(third).collect()
    }

    /// The row beside which the witness has what it must have beside this one, too: its guests only compute.
    pub fn measure(&self) -> &'static str {
        if self.third { "flood-spin-of-three" } else { "flood-spin" }
    }

    /// Whether it is such a row.
    pub fn is_measure(&self) -> bool {
        self.share && self.full_name().ends_with(self.measure())
    }

    /// What it keeps on a machine of so many processors: where each guest has its own, none has what another one leaves.
    pub fn keeps_of(&self, cpus: u16) -> u64 {
        if u64::from(cpus) < self.computing() { self.keeps } else { self.keeps.min(kept()) }
    }

    /// Guests of its machine that compute, the witness among them.
    pub fn computing(&self) -> u64 {
        if self.third { 3 } else { 2 }
    }

    /// The case that the runner of the case table takes.
    pub fn case(&self) -> Case {
        let witness = Expected {
            lines: vec!["unchanged".to_owned()],
            never: vec!["FAIL".to_owned()],
            ends: Some("test-exit 0".to_owned()),
            ..Expected::default()
        };
        let guests = [(WITNESS.to_owned(), witness)].into_iter().chain(self.attackers());
        Case {
            name: self.full_name(),
            manifest: Some(TABLE.to_owned()),
            guests: guests.map(|(name, expected)| GuestCase { name, expected }).collect(),
            timeout: TIMEOUT,
            ..Case::default()
        }
    }

    /// Tells its lies in `pack`, that of its machine.
    pub fn lie(&self, pack: &mut [u8]) -> Outcome<()> {
        let told = match (&self.lie, &self.field) {
            (Some(lie), _) => lies::tell(lie, pack),
            (None, Some(field)) => field.tell(pack),
            (None, None) => Some(()),
        };
        told.ok_or_else(|| Failure::usage(format!("{}: there is no place for its lie", self.full_name())))
    }

    /// What the hypervisor's lines should say of it, or of its lies, and do not.
    pub fn unsaid(&self, on: Kind, lines: &[String]) -> Option<String> {
        let says = self.says_on.get(&on).filter(|text| !lines.iter().any(|line| line.contains(text.as_str())));
        let unsaid = says.map(|text| format!("the hypervisor does not say `{text}`"));
        unsaid.or_else(|| self.field.as_ref()?.unsaid(lines))
    }
}

/// All attacks of both tables.
pub fn read(workspace: &Workspace) -> Outcome<Vec<Attack>> {
    let table: Table = read_table(workspace, TABLE)?;
    let lies: Lies = read_table(workspace, LIES)?;
    Ok(table.attacks.into_iter().chain(lies.fields.into_iter().map(Attack::by_image)).collect())
}

fn read_table<T: DeserializeOwned>(workspace: &Workspace, name: &str) -> Outcome<T> {
    let path = workspace.path(name);
    toml::from_str(&files::read_text(&path)?).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::{Attack, Lies, read};
    use crate::workspace::Workspace;
    use std::collections::BTreeSet;

    #[test]
    fn attacks_have_names_of_their_own() {
        let attacks = read(&Workspace::find().unwrap()).unwrap();
        let names: BTreeSet<String> = attacks.iter().map(Attack::full_name).collect();
        assert_eq!(names.len(), attacks.len());
    }

    #[test]
    fn each_lie_has_its_place_and_each_refusal_its_sentence() {
        let lies: Lies = super::read_table(&Workspace::find().unwrap(), super::LIES).unwrap();
        let wrong: Vec<_> = lies.fields.iter().filter_map(|field| field.wrong()).collect();
        assert_eq!(wrong, Vec::<String>::new());
    }
}
