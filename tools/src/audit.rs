//! `hv audit`: who reaches what in a dump of `hv run --dump`.
//!
//! All of the work is in the crate `bulkhead-audit`, which knows nothing of the hypervisor's sources. Status 0: clean;
//! 1: violations; 2: wrong arguments, or a file that is no dump.

use crate::failure::{FAILED, Failure, OK, Outcome};
use crate::workspace::Workspace;
use crate::{cargo, files, manifest};
use bulkhead_audit::{Dump, Expected, ExpectedGuest, Image, Report, Secret, audit, witness};
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;

/// Arguments of `hv audit`.
#[derive(Args, Debug, Clone, Default)]
pub struct AuditArgs {
    /// The dump: an ELF core, as QEMU writes it.
    pub dump: PathBuf,
    /// The machine's manifest; without one, names and memory sizes of the guests are not checked.
    pub manifest: Option<PathBuf>,
    /// The hypervisor of the dump, if it is not the one that this tree builds.
    #[arg(long, value_name = "ELF")]
    pub hypervisor: Option<PathBuf>,
    /// Bytes that only this guest may hold, 8 or more. May be given more than once.
    #[arg(long = "secret", value_name = "GUEST=HEX")]
    pub secrets: Vec<String>,
    /// This guest is the suite's `witness` with this seed: all its words are secrets.
    #[arg(long = "witness", value_name = "GUEST=SEED")]
    pub witnesses: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Audits the dump that `args` name; the exit status.
pub fn run(args: &AuditArgs) -> Outcome<u8> {
    let workspace = Workspace::find()?;
    let unreadable = |what: &PathBuf, why: &dyn std::fmt::Display| {
        Failure::usage(format!("{}: {why}", what.display())).hint("make a dump with `./hv run --on qemu --dump FILE`")
    };
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| unreadable(path, &e));
    let dump = Dump::new(read(&args.dump)?).map_err(|e| unreadable(&args.dump, &e))?;
    let elf = match &args.hypervisor {
        Some(path) => path.clone(),
        None => cargo::hypervisor(&workspace)?,
    };
    let image = Image::new(&files::read(&elf)?).map_err(|e| unreadable(&elf, &e))?;
    let mut expected = Expected::default();
    if let Some(path) = &args.manifest {
        let guests = manifest::read(path)?.guests;
        expected.guests = guests.into_iter().map(|g| ExpectedGuest { name: g.name, memory: g.memory }).collect();
    }
    let secrets = secrets(args)?;
    let known = |name: &str| expected.guests.is_empty() || expected.guests.iter().any(|g| g.name == name);
    if let Some(secret) = secrets.iter().find(|secret| !known(&secret.guest)) {
        return Err(
            Failure::usage(format!("the manifest has no guest {}", secret.guest)).hint("give --secret GUEST=HEX")
        );
    }
    let report = audit(&dump, &image, &expected, &secrets).map_err(|e| unreadable(&args.dump, &e))?;
    if args.json {
        print_json(&report)
    } else {
        print(&report, secrets.len(), args.manifest.is_some())
    }
    Ok(if report.violations.is_empty() { OK } else { FAILED })
}

fn secrets(args: &AuditArgs) -> Outcome<Vec<Secret>> {
    let wrong = |text: &str| {
        Failure::usage(format!("`{text}` is no secret"))
            .hint("give --secret GUEST=HEX (8 bytes or more), --witness GUEST=SEED")
    };
    let mut found = Vec::new();
    for text in &args.secrets {
        let (guest, hex) = text.split_once('=').ok_or_else(|| wrong(text))?;
        let bytes = bytes(hex).filter(|bytes| bytes.len() >= 8).ok_or_else(|| wrong(text))?;
        found.push(Secret { guest: guest.to_owned(), what: "secret".to_owned(), bytes });
    }
    for text in &args.witnesses {
        let (guest, seed) = text.split_once('=').ok_or_else(|| wrong(text))?;
        found.extend(witness(guest, seed.parse().map_err(|_| wrong(text))?));
    }
    Ok(found)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect();
    digits?.chunks(2).map(|pair| <[u8; 2]>::try_from(pair).ok().map(|[high, low]| high << 4 | low)).collect()
}

/// `println!` that does not mind if nobody reads on: the exit status tells the verdict.
macro_rules! outln {
    ($($text:tt)*) => { drop(writeln!(std::io::stdout(), $($text)*)) };
}

fn print(report: &Report, secrets: usize, manifest: bool) {
    for compartment in &report.compartments {
        outln!("{}: host root {:#x}", compartment.name, compartment.root);
        for (root, format) in &compartment.nested {
            outln!("  {} root {root:#x}", format.name());
        }
        for ((how, owner), bytes) in &compartment.reach {
            outln!("  {:>9.2} MiB by {how:<11} of {owner}", to_mib(*bytes));
        }
    }
    for root in &report.dormant {
        outln!("dormant: tables at {root:#x} in free memory, which nothing names");
    }
    if !manifest {
        outln!("without a manifest: names and memory sizes of the guests are not checked");
    }
    for violation in &report.violations {
        outln!("violation: {violation}");
    }
    outln!(
        "audit {}: {} host roots, {} tables, {} frames of RAM, {secrets} secrets, {} violations",
        if report.violations.is_empty() { "ok" } else { "FAILED" },
        report.compartments.len(),
        report.tables,
        report.frames,
        report.violations.len()
    );
}

fn to_mib(bytes: u64) -> f64 {
    // Exact: a number of pages, far below 2^53.
    u32::try_from(bytes >> 12).map_or(f64::INFINITY, |pages| f64::from(pages) / 256.0)
}

fn print_json(report: &Report) {
    let compartments: Vec<_> = report
        .compartments
        .iter()
        .map(|c| {
            let nested: Vec<_> = c
                .nested
                .iter()
                .map(|(root, format)| serde_json::json!({"root": root, "format": format.name()}))
                .collect();
            let reach: Vec<_> = c
                .reach
                .iter()
                .map(|((how, owner), bytes)| serde_json::json!({"by": how, "owner": owner, "bytes": bytes}))
                .collect();
            serde_json::json!({"name": c.name, "guest": c.guest, "root": c.root, "nested": nested, "reach": reach})
        })
        .collect();
    let violations: Vec<_> = report.violations.iter().map(|v| serde_json::json!({
        "kind": v.kind.to_string(), "compartment": v.compartment, "at": v.at, "frame": v.frame, "frames": v.count,
        "owner": v.owner.to_string(), "note": v.note,
    })).collect();
    let whole = serde_json::json!({
        "compartments": compartments, "dormant": report.dormant, "tables": report.tables, "frames": report.frames,
        "violations": violations,
    });
    outln!("{whole:#}");
}
