//! What the code that serves a guest can reach: a walk over the calls of the linked image.
//!
//! From the functions that run in a guest's compartment, every direct call and jump is followed, and as soon as one
//! indirect call is among them, every function whose address is taken anywhere: in the code, or in a table. Nothing is
//! left out by what a compiler or a reader believes. No way may lead to a panic or to the heap, but by the edges that
//! `tests/panics.toml` lists with an argument each; one that is not there any more has to go from the list.
//!
//! All indirect branches go through the thunks that can not be steered (retpolines), but for [`STEERABLE`].

use super::TestArgs;
use super::tally::{Tally, Verdict};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::workspace::Workspace;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::Instant;

const NAME: &str = "no panic can be reached from an exit";
const FILE: &str = "tests/panics.toml";
/// What runs in a guest's compartment, and what interrupts it.
const ENTRIES: [&str; 2] = ["bulkhead_kernel::guest::main::<", "trap_entry"];
/// What must not be reached.
const FORBIDDEN: [&str; 8] = [
    "core::panicking::",
    "::unwrap_failed",
    "::expect_failed",
    "core::str::slice_error_fail",
    "core::slice::index::slice_",
    "alloc::alloc::handle_alloc_error",
    "capacity_overflow",
    "core::alloc::global::GlobalAlloc>::",
];
const THUNK: &str = "__llvm_retpoline_";
/// Functions with an indirect branch of their own: entry code, and what enters a context for the first time.
const STEERABLE: [&str; 3] = ["long_mode", "secondary_long", "enter_context"];
/// Who calls what an indirect call calls.
const INDIRECT: &str = "an indirect call";

/// An edge that is allowed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// Beginning of the caller's name, or [`INDIRECT`].
    from: String,
    /// Beginning of the name of what is called.
    to: String,
    /// Why that can not happen, or does not matter.
    why: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default, rename = "exception")]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Default)]
struct Function {
    name: String,
    /// Functions that it calls or jumps to.
    calls: BTreeSet<u64>,
    /// Calls through a thunk.
    indirect: usize,
    /// Indirect branches that are no thunk's.
    steerable: usize,
}

/// The image's functions by address, and those whose address is taken.
#[derive(Debug, Default)]
struct Graph {
    functions: BTreeMap<u64, Function>,
    taken: BTreeSet<u64>,
}

/// Walks the image.
pub fn run(workspace: &Workspace, image: &Path, args: &TestArgs, tally: &mut Tally) {
    if !args.takes(NAME) {
        return;
    }
    let start = Instant::now();
    let verdict = verdict(workspace, image).unwrap_or_else(|failure| Verdict::Failed(failure.to_string()));
    tally.note(NAME, verdict, start.elapsed());
}

fn verdict(workspace: &Workspace, image: &Path) -> Outcome<Verdict> {
    let list: List = toml::from_str(&files::read_text(&workspace.path(FILE))?)
        .map_err(|e| Failure::usage(format!("{FILE}: {e}")).hint("each [[exception]] has from, to and why"))?;
    let graph = Graph::read(&files::read(image)?)?;
    let walk = graph.walk(&list.exceptions);
    println!(
        "    {} of {} functions can be reached from an exit, {} indirect calls among them, {} exceptions",
        walk.from.len(),
        graph.functions.len(),
        walk.indirect,
        list.exceptions.len()
    );
    let wrong = walk.wrong(&graph, &list.exceptions);
    Ok(if wrong.is_empty() { Verdict::Passed } else { Verdict::Failed(wrong.join("\n")) })
}

impl Graph {
    fn read(bytes: &[u8]) -> Outcome<Self> {
        let wrong = |e: object::Error| Failure::failed(format!("the hypervisor's image: {e}"));
        let file = object::File::parse(bytes).map_err(wrong)?;
        let mut graph = Self::default();
        for symbol in file.symbols().filter(|s| s.is_definition()) {
            let code = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
            if code.is_some_and(|s| s.kind() == SectionKind::Text) && symbol.kind() != SymbolKind::Section {
                let name = addr2line::demangle_auto(symbol.name().unwrap_or_default().into(), None).into_owned();
                graph.functions.insert(symbol.address(), Function { name, ..Function::default() });
            }
        }
        for section in file.sections() {
            let data = section.data().map_err(wrong)?;
            match section.kind() {
                SectionKind::Text => graph.read_code(section.address(), data),
                SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => {
                    let words = data.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                    graph.taken.extend(words.filter(|word| graph.functions.contains_key(word)));
                }
                _ => {}
            }
        }
        Ok(graph)
    }

    fn read_code(&mut self, start: u64, code: &[u8]) {
        let starts: Vec<u64> = self.functions.keys().copied().collect();
        let owner = |at: u64| starts.partition_point(|start| *start <= at).checked_sub(1).and_then(|i| starts.get(i));
        let thunks: BTreeSet<u64> =
            self.functions.iter().filter(|(_, f)| f.name.starts_with(THUNK)).map(|(at, _)| *at).collect();
        let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let Some(own) = owner(instruction.ip()) else { continue };
            // A panic does not come back: what it takes the address of is called by nothing else.
            let panics = self.functions.get(own).is_some_and(|f| is_forbidden(&f.name));
            let mut target = None;
            for operand in 0..instruction.op_count() {
                match instruction.op_kind(operand) {
                    OpKind::NearBranch64 => target = owner(instruction.near_branch64()),
                    _ if panics => {}
                    OpKind::Immediate32to64 | OpKind::Immediate64 | OpKind::Immediate32 => {
                        self.take(instruction.immediate(operand));
                    }
                    OpKind::Memory if instruction.is_ip_rel_memory_operand() => {
                        self.take(instruction.ip_rel_memory_address());
                    }
                    OpKind::Memory => self.take(instruction.memory_displacement64()),
                    _ => {}
                }
            }
            let steered = matches!(instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp) && target.is_none();
            let Some(function) = self.functions.get_mut(own) else { continue };
            function.steerable += usize::from(steered);
            match target.filter(|target| *target != own) {
                Some(thunk) if thunks.contains(thunk) => function.indirect += 1,
                Some(target) => drop(function.calls.insert(*target)),
                None => {}
            }
        }
    }

    /// Notes an address that code names, if it is a function's.
    fn take(&mut self, address: u64) {
        // An address is written sign-extended from 32 bits in places.
        let extended = if address >> 31 == 1 { address | u64::from(u32::MAX) << 32 } else { address };
        self.taken.extend([address, extended].into_iter().filter(|a| self.functions.contains_key(a)));
    }

    fn name(&self, address: u64) -> &str {
        self.functions.get(&address).map_or("?", |f| f.name.as_str())
    }

    fn walk(&self, exceptions: &[Exception]) -> Walk {
        let mut walk = Walk { used: vec![false; exceptions.len()], ..Walk::default() };
        let entries = self.functions.iter().filter(|(_, f)| ENTRIES.iter().any(|entry| f.name.starts_with(entry)));
        let mut next: VecDeque<u64> = entries.map(|(at, _)| *at).collect();
        walk.entries = next.len();
        walk.from.extend(next.iter().map(|at| (*at, None)));
        while let Some(at) = next.pop_front() {
            let Some(function) = self.functions.get(&at).filter(|f| !is_forbidden(&f.name)) else { continue };
            let mut edges: Vec<(&str, Option<u64>, u64)> =
                function.calls.iter().map(|to| (function.name.as_str(), Some(at), *to)).collect();
            if function.indirect != 0 && walk.indirect == 0 {
                edges.extend(self.taken.iter().map(|to| (INDIRECT, None, *to)));
            }
            walk.indirect += function.indirect;
            for (caller, from, to) in edges {
                let allowed = exceptions
                    .iter()
                    .position(|e| caller.starts_with(&e.from) && self.name(to).starts_with(&e.to) && !e.why.is_empty());
                if let Some(used) = allowed.and_then(|index| walk.used.get_mut(index)) {
                    *used = true;
                } else if let std::collections::btree_map::Entry::Vacant(new) = walk.from.entry(to) {
                    new.insert(from);
                    next.push_back(to);
                }
            }
        }
        walk
    }
}

/// What was reached, and from where.
#[derive(Debug, Default)]
struct Walk {
    from: BTreeMap<u64, Option<u64>>,
    entries: usize,
    indirect: usize,
    used: Vec<bool>,
}

impl Walk {
    fn wrong(&self, graph: &Graph, exceptions: &[Exception]) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.entries < ENTRIES.len() {
            wrong.push(format!("{} of the entries {ENTRIES:?} are in the image", self.entries));
        }
        for at in self.from.keys().filter(|at| is_forbidden(graph.name(**at))) {
            wrong.push(format!("{} is reached:{}", graph.name(*at), self.path(graph, *at)));
        }
        let unused = exceptions.iter().zip(&self.used).filter(|(_, used)| !**used);
        wrong.extend(unused.map(|(e, _)| format!("{FILE}: there is no way from {} to {} any more", e.from, e.to)));
        let steerable = graph.functions.values().filter(|f| f.steerable != 0 && !STEERABLE.contains(&f.name.as_str()));
        let steerable = steerable.filter(|f| !f.name.starts_with(THUNK));
        wrong.extend(steerable.map(|f| format!("{} has {} indirect branches without a thunk", f.name, f.steerable)));
        wrong
    }

    fn path(&self, graph: &Graph, to: u64) -> String {
        let mut path = String::new();
        let mut at = to;
        while let Some(from) = self.from.get(&at) {
            let Some(caller) = from else { break };
            path.push_str(&format!("\n    from {}", graph.name(*caller)));
            at = *caller;
        }
        let entry = ENTRIES.iter().any(|entry| graph.name(at).starts_with(entry));
        if entry { path } else { format!("{path}\n    from {INDIRECT}") }
    }
}

fn is_forbidden(name: &str) -> bool {
    FORBIDDEN.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::{Exception, Function, Graph, INDIRECT};

    const ENTRY: &str = "bulkhead_kernel::guest::main::<x>";
    const PANIC: &str = "core::panicking::panic";

    /// main -> a; main calls indirectly; b's address is taken, and it can panic; c can too, and nobody calls it.
    fn graph() -> Graph {
        let function = |name: &str, calls: &[u64], indirect| Function {
            name: name.to_owned(),
            calls: calls.iter().copied().collect(),
            indirect,
            steerable: 0,
        };
        let functions = [
            (1, function(ENTRY, &[2], 1)),
            (2, function("a", &[], 0)),
            (3, function("b", &[5], 0)),
            (4, function("c", &[5], 0)),
            (5, function(PANIC, &[], 0)),
            (6, function("trap_entry", &[], 0)),
        ];
        Graph { functions: functions.into_iter().collect(), taken: [3].into() }
    }

    fn wrong(graph: &Graph, exceptions: &[(&str, &str)]) -> Vec<String> {
        let exception =
            |(from, to): &(&str, &str)| Exception { from: (*from).into(), to: (*to).into(), why: "so".into() };
        let exceptions: Vec<_> = exceptions.iter().map(exception).collect();
        graph.walk(&exceptions).wrong(graph, &exceptions)
    }

    #[test]
    fn a_panic_behind_an_indirect_call_is_found_with_its_way() {
        let found = wrong(&graph(), &[]);
        assert_eq!(found, [format!("{PANIC} is reached:\n    from b\n    from {INDIRECT}")]);
    }

    #[test]
    fn an_exception_takes_one_edge_away_and_must_be_needed() {
        assert_eq!(wrong(&graph(), &[("b", PANIC)]), Vec::<String>::new());
        assert_eq!(wrong(&graph(), &[(INDIRECT, "b")]), Vec::<String>::new());
        let unused = wrong(&graph(), &[("b", PANIC), ("c", PANIC)]);
        assert_eq!(unused, ["tests/panics.toml: there is no way from c to core::panicking::panic any more"]);
    }

    #[test]
    fn without_indirect_calls_what_is_taken_is_not_reached() {
        let mut graph = graph();
        graph.functions.get_mut(&1).unwrap().indirect = 0;
        assert_eq!(wrong(&graph, &[]), Vec::<String>::new());
        graph.functions.get_mut(&2).unwrap().steerable = 1;
        assert_eq!(wrong(&graph, &[]), ["a has 1 indirect branches without a thunk"]);
        graph.functions.remove(&6);
        assert!(wrong(&graph, &[]).concat().contains("entries"));
    }
}
