//! The isolation audit on the running machine: each compartment is walked from inside.

use crate::backend::Virtualization;
use crate::dispatch::{CROSSINGS, leave_zone, park_unless};
use crate::entries;
use crate::log;
use crate::machine::{FRAMES, Facts, SLOTS, State, slot};
use crate::task::Command;
use bulkhead_core::audit::{Compartment as View, Holds, Region, Violation, Walked, audit, compare};
use bulkhead_core::frames::{Part, Use};
use bulkhead_hw::compartment::Compartment;
use bulkhead_hw::layout;
use bulkhead_hw::startup::shared_tables;
use bulkhead_paging::{Entry, Ept, Format, Host, LEVELS, Npt};
use bulkhead_types::{GuestId, Hpa, Hva, PAGE_SIZE, VcpuId};
use core::sync::atomic::{AtomicU64, Ordering};

/// What the walks of one audit add up to.
static TABLES: AtomicU64 = AtomicU64::new(0);
static LEAVES: AtomicU64 = AtomicU64::new(0);
static PAGES: AtomicU64 = AtomicU64::new(0);
static VIOLATIONS: AtomicU64 = AtomicU64::new(0);

/// Audits all compartments, called in the idle one; prints each violation, and the verdict.
pub fn audit_all(facts: &Facts, idle: &Compartment) {
    for sum in [&TABLES, &LEAVES, &PAGES, &VIOLATIONS] {
        sum.store(0, Ordering::Relaxed);
    }
    park_unless(None);
    audit_here(facts, GuestId::IDLE, idle, false);
    let mut compartments = 1;
    for slot in SLOTS.iter().filter(|slot| slot.state() != State::Absent) {
        if let Some(task) = slot.task(VcpuId::BOOT)
            && task.context.is_set()
        {
            task.enter(Command::Audit);
            compartments += 1;
        }
    }
    if let Some(frames) = FRAMES.get() {
        let listed = |id| entries::get(id).is_some() && slot(id).is_some_and(|slot| slot.state() != State::Absent);
        let violations = compare(&frames.lock(), listed, &mut |violation| log!("audit violation {violation}"));
        VIOLATIONS.fetch_add(violations, Ordering::Relaxed);
    }
    let [tables, leaves, pages, violations] =
        [&TABLES, &LEAVES, &PAGES, &VIOLATIONS].map(|sum| sum.load(Ordering::Relaxed));
    // The walks read what is other zones'.
    leave_zone();
    let crossings = CROSSINGS.load(Ordering::Relaxed);
    log!("log {crossings} changes of zone, each with the barriers {}", facts.barriers.barriers);
    let verdict = if violations == 0 { "ok" } else { "FAILED" };
    log!(
        "event audit {verdict} compartments={compartments} tables={tables} leaves={leaves} frames={pages} violations={violations}"
    );
}

/// Tables, frames and violations of the last audit.
pub fn sums() -> [u64; 3] {
    [&TABLES, &PAGES, &VIOLATIONS].map(|sum| sum.load(Ordering::Relaxed))
}

/// Audits the compartment that is current.
pub fn audit_here(facts: &Facts, id: GuestId, compartment: &Compartment, nested: bool) {
    let Some(frames) = FRAMES.get() else { return };
    let regions = regions(facts);
    let view = View {
        guest: id,
        host_root: compartment.root(),
        nested_root: nested.then(|| compartment.nested_root()),
        shared_slot: layout::SHARED_INDEX,
        shared_table: shared_table(facts),
        layout: &regions,
    };
    let tables = (compartment.tables(), shared_tables(&facts.shared));
    let mut say = |violation: &Violation| log!("audit violation {violation}");
    let walked = match facts.capabilities {
        Virtualization::Vmx(_) => audit::<Ept>(&view, &mut frames.lock(), &tables, &mut say),
        Virtualization::Svm(_) => audit::<Npt>(&view, &mut frames.lock(), &tables, &mut say),
    };
    add(walked);
}

fn add(walked: Walked) {
    TABLES.fetch_add(walked.tables, Ordering::Relaxed);
    LEAVES.fetch_add(walked.leaves, Ordering::Relaxed);
    PAGES.fetch_add(walked.frames, Ordering::Relaxed);
    VIOLATIONS.fetch_add(walked.violations, Ordering::Relaxed);
}

fn shared_table(facts: &Facts) -> Hpa {
    match Host::decode(facts.shared.entry, LEVELS) {
        Entry::Table { table, .. } => table,
        // Never written so; every compartment then differs from it.
        _ => Hpa::new(0),
    }
}

/// All that a compartment's host tables may map.
fn regions(facts: &Facts) -> [Region; 10] {
    let image = layout::image();
    let between = |(start, end): (Hva, Hva), holds| Region { start, bytes: end.as_u64() - start.as_u64(), holds };
    let part = |bounds, part| between(bounds, Holds::Hypervisor(part));
    let states = facts.shared.states * 4;
    let frame_table = (layout::FRAME_TABLE, layout::FRAME_TABLE.wrapping_add(states.next_multiple_of(PAGE_SIZE)));
    let tables_end = layout::SHARED_TABLES.wrapping_add(facts.shared.count * PAGE_SIZE);
    let local_apic = facts.local_apic.map_or(
        Region { start: layout::LOCAL_APIC, bytes: 0, holds: Holds::Own(Use::State) },
        |page| Region { start: layout::LOCAL_APIC, bytes: PAGE_SIZE, holds: Holds::Device(page) },
    );
    [
        part(image.text, Part::Text),
        part(image.rodata, Part::Rodata),
        part(image.data, Part::Data),
        part(frame_table, Part::FrameTable),
        part((layout::SHARED_TABLES, tables_end), Part::Tables),
        local_apic,
        between((layout::WINDOW, layout::TABLES), Holds::Own(Use::State)),
        between((layout::TABLES, layout::WINDOW_END), Holds::Own(Use::Tables)),
        between((layout::RAM, layout::IMAGES), Holds::Own(Use::Ram)),
        between((layout::IMAGES, layout::CONSTRUCTION), Holds::Own(Use::Image)),
    ]
}
