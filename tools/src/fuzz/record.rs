//! `tests/fuzz/RECORD.toml`: the targets, and how often each was executed.
//!
//! Only whole lines `NAME = EXECUTIONS` of its table `[executions]` are changed; the rest is for people.

use crate::failure::{Failure, Outcome};
use crate::files;
use crate::workspace::Workspace;
use std::path::PathBuf;

const FILE: &str = "tests/fuzz/RECORD.toml";
const TABLE: &str = "[executions]";

/// The file, by lines.
pub struct Record {
    path: PathBuf,
    lines: Vec<String>,
}

impl Record {
    /// Reads it.
    pub fn read(workspace: &Workspace) -> Outcome<Self> {
        let path = workspace.path(FILE);
        Ok(Self { lines: files::read_text(&path)?.lines().map(str::to_owned).collect(), path })
    }

    /// Names of the targets and their executions, as listed.
    pub fn targets(&self) -> impl Iterator<Item = (&str, u64)> {
        let table = self.lines.iter().skip_while(|line| *line != TABLE).skip(1);
        table.take_while(|line| !line.starts_with('[')).filter_map(|line| entry(line))
    }

    /// Whether there is such a target.
    pub fn has(&self, target: &str) -> bool {
        self.targets().any(|(name, _)| name == target)
    }

    /// Adds `executions` to those of `target`, and writes the file.
    pub fn add(&mut self, target: &str, executions: u64) -> Outcome<()> {
        let table = self.lines.iter_mut().skip_while(|line| *line != TABLE);
        for line in table {
            if let Some((name, so_far)) = entry(line).filter(|(name, _)| *name == target) {
                *line = format!("{name} = {}", so_far.saturating_add(executions));
                return files::write(&self.path, (self.lines.join("\n") + "\n").as_bytes());
            }
        }
        Err(Failure::usage(format!("{target} is not in {FILE}")))
    }
}

fn entry(line: &str) -> Option<(&str, u64)> {
    let (name, executions) = line.split_once(" = ")?;
    Some((name, executions.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::Record;

    fn record(text: &str) -> Record {
        Record { path: "/dev/null".into(), lines: text.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn executions_add_up_and_the_rest_stays() {
        let text = "# x\n[executions]\na = 1\nb = 20\n\n[[finding]]\nc = 5\n";
        let mut record = record(text);
        assert_eq!(record.targets().collect::<Vec<_>>(), [("a", 1), ("b", 20)]);
        record.add("b", 5).unwrap();
        assert!(record.add("d", 5).is_err());
        assert_eq!(record.lines.join("\n") + "\n", text.replace("b = 20", "b = 25"));
    }
}
