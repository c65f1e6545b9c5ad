//! Each kind of event is told by something.

use crate::tree::File;

/// Where the kinds are.
const KINDS: &str = "hypervisor/control/src/response.rs";
/// Who tells events.
const TELLERS: [&str; 2] = ["hypervisor/kernel/src", "hypervisor/control/src/event.rs"];

/// Kinds of events that the hypervisor never makes; to look for one is not to make it.
#[must_use]
pub fn never_told(files: &[File]) -> Vec<String> {
    let kinds = files.iter().find(|f| f.path == KINDS).and_then(|f| f.text.split("pub enum EventKind {").nth(1));
    let Some(kinds) = kinds.and_then(|rest| rest.split("\n}").next()) else {
        return vec![format!("no kinds in {KINDS}")];
    };
    let code = |f: &File| f.text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    let tellers = files.iter().filter(|f| TELLERS.iter().any(|teller| f.path == *teller || f.is_in(teller)));
    let told: Vec<String> = tellers.map(code).collect();
    let lines = || told.iter().flat_map(|text| text.lines()).filter(|line| !line.contains("matches!"));
    let names = kinds.lines().filter_map(|line| line.trim().split(['(', ',']).next());
    let names = names.filter(|name| name.starts_with(char::is_uppercase));
    let is = |line: &str, name: &str| {
        let after = |rest: &str| !rest.starts_with(char::is_alphanumeric);
        line.split(&format!("EventKind::{name}")).skip(1).any(after)
    };
    names.filter(|name| !lines().any(|line| is(line, name))).map(|name| format!("EventKind::{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{KINDS, never_told};
    use crate::tree::File;

    #[test]
    fn a_kind_that_is_only_looked_for_is_found() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let kinds = "pub enum EventKind {\n    /// It is.\n    Told(u8),\n    /// It is not.\n    Tol,\n    Seen,\n    Tried,\n}";
        let kernel = "event(EventKind::Told(1));\nmatches!(kind, EventKind::Seen)\n";
        let files = [
            file(KINDS, kinds),
            file("hypervisor/kernel/src/a.rs", kernel),
            file("hypervisor/control/src/event.rs", "#[cfg(test)]\nEventKind::Tried"),
        ];
        assert_eq!(never_told(&files), ["EventKind::Tol", "EventKind::Seen", "EventKind::Tried"]);
        assert_eq!(never_told(&[]), [format!("no kinds in {KINDS}")]);
    }
}
