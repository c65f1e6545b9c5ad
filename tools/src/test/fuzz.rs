//! Each fuzz target: its corpus, and a few seconds of new inputs.

use super::TestArgs;
use super::tally::{Tally, Verdict};
use crate::failure::Outcome;
use crate::fuzz::Record;
use crate::fuzz::engine::{Engine, Ran};
use crate::workspace::Workspace;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long each target is fuzzed.
const BRIEF: Duration = Duration::from_secs(2);

/// Fuzzes each target briefly, two at a time. Without it (`--quick`) the corpora are run by the host tests alone.
pub fn run(workspace: &Workspace, args: &TestArgs, tally: &mut Tally) -> Outcome<()> {
    let record = Record::read(workspace)?;
    let name = |target: &str| format!("fuzz {target}");
    let targets: Vec<_> = record.targets().map(|(target, _)| target).filter(|t| args.takes(&name(t))).collect();
    if args.quick || targets.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    let engine = Engine::build(workspace)?;
    eprintln!("built the fuzz targets in {:.1} s", started.elapsed().as_secs_f64());
    let (queue, done) = (Mutex::new(targets.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(target) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let start = Instant::now();
                    let ran = engine.empty(target, "brief");
                    let ran = ran.and_then(|_| engine.run(target, BRIEF, None, "brief", &mut |_| {}));
                    if let Ok(mut done) = done.lock() {
                        done.push((*target, ran, start.elapsed()));
                    }
                }
            });
        }
    });
    for (target, ran, took) in done.into_inner().unwrap_or_default() {
        tally.note(&name(target), verdict(target, ran), took);
    }
    Ok(())
}

fn verdict(target: &str, ran: Outcome<Ran>) -> Verdict {
    match ran {
        Ok(Ran { crash: Some(crash), .. }) => Verdict::Failed(crash.text(target)),
        Ok(Ran { executions: 0, .. }) => Verdict::Failed("nothing was executed".to_owned()),
        Ok(_) => Verdict::Passed,
        Err(failure) => Verdict::Failed(failure.to_string()),
    }
}
