//! The table of attacks and the hostile guests belong together.

use crate::tree::File;
use std::collections::BTreeSet;
use toml::{Table, Value};

const TABLE: &str = "tests/hostile.toml";
const PROGRAMS: &str = "guests/hostile/src/bin/";

/// Each attack's family and name.
type Attacks = BTreeSet<(String, String)>;

/// The rows that a program carries out. What is changed in the pack is another thing, and has no program of its own.
fn rows(table: &Table) -> Attacks {
    let rows = table.get("attack").and_then(Value::as_array).into_iter().flatten();
    let rows = rows.filter(|row| row.get("lie").is_none());
    let word = |row: &Value, key| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    rows.map(|row| (word(row, "family"), word(row, "name"))).collect()
}

/// The attacks of a program: the first strings in the list that `run` is given.
fn attacks(file: &File) -> Option<Attacks> {
    let family = file.path.strip_prefix(PROGRAMS)?.strip_suffix(".rs")?;
    let list = file.text.split_once("run(&[")?.1.split_once("\n    ]);")?.0;
    let entries = list.lines().filter_map(|line| line.strip_prefix("        (\"")?.split_once('"'));
    Some(entries.map(|(name, _)| (family.to_owned(), name.to_owned())).collect())
}

/// Rows without an attack, attacks without a row, programs without a list.
#[must_use]
pub fn wrong(files: &[File]) -> Vec<String> {
    let table = files.iter().find(|f| f.path == TABLE).and_then(|f| f.text.parse::<Table>().ok());
    let Some(rows) = table.as_ref().map(rows) else { return vec![format!("no {TABLE}")] };
    let (mut found, mut there) = (Vec::new(), Attacks::new());
    for file in files.iter().filter(|f| f.path.starts_with(PROGRAMS)) {
        match attacks(file) {
            Some(attacks) if !attacks.is_empty() => there.extend(attacks),
            _ => found.push(format!("{}: no list of attacks", file.path)),
        }
    }
    found.extend(rows.difference(&there).map(|(family, name)| format!("row {family}-{name} has no attack")));
    found.extend(there.difference(&rows).map(|(family, name)| format!("attack {family}-{name} has no row")));
    found
}

#[cfg(test)]
mod tests {
    use super::wrong;
    use crate::tree::File;

    #[test]
    fn what_does_not_fit_is_found() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let program = "fn main() {\n    run(&[\n        (\"a\", a),\n        (\"b\", || {\n            x(\"c\")\n        }),\n    ]);\n}";
        let row = |name| format!("[[attack]]\nfamily = \"f\"\nname = \"{name}\"\n");
        let table = format!("{}{}{}lie = {{ header = [0, 0] }}\n", row("a"), row("gone"), row("told"));
        let files = [
            file("guests/hostile/src/bin/f.rs", program),
            file("guests/hostile/src/bin/empty.rs", "fn main() {}"),
            file("tests/hostile.toml", &table),
        ];
        let expected = [
            "guests/hostile/src/bin/empty.rs: no list of attacks",
            "row f-gone has no attack",
            "attack f-b has no row",
        ];
        assert_eq!(wrong(&files), expected);
        assert_eq!(wrong(&files[..2]), ["no tests/hostile.toml"]);
    }
}
