//! Violations planted in the dump of a small machine: each is found and named, and nothing in a clean one.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod machine;

use bulkhead_audit::{Dump, Format, Kind, Report, Secret, Violation};
use machine::{CHANNEL_AT, CODE_AT, FREE, Machine, RAM, RAM_AT, RW, WINDOW};

const BOTH: [Format; 2] = [Format::Ept, Format::Npt];
const SECRET: u64 = 0x8f3a_51c7_e29b_d064;

fn secret() -> [Secret; 1] {
    [Secret { guest: "one".to_owned(), what: "word".to_owned(), bytes: SECRET.to_le_bytes().to_vec() }]
}

/// Plants something; the audit must name it at this frame, in this compartment, and find nothing that is not of `kinds`.
fn planted(format: Format, kinds: &[Kind], compartment: &str, plant: impl Fn(&mut Machine) -> u64) {
    let mut machine = Machine::new(format);
    let in_ram = machine.guests[0].ram + 16;
    machine.set(in_ram, SECRET);
    let frame = plant(&mut machine);
    let Report { violations, .. } = machine.audit(&secret());
    let named = |v: &Violation| v.kind == kinds[0] && v.frame == frame && v.compartment == compartment;
    assert!(violations.iter().any(named), "{format:?}: {violations:#?}");
    assert!(violations.iter().all(|v| kinds.contains(&v.kind)), "{format:?}: {violations:#?}");
}

fn nested_access(format: Format) -> u64 {
    if format == Format::Ept { 0x37 } else { 7 }
}

#[test]
fn a_clean_dump_has_none() {
    for format in BOTH {
        let mut machine = Machine::new(format);
        let in_ram = machine.guests[0].ram + 16;
        machine.set(in_ram, SECRET);
        let report = machine.audit(&secret());
        assert_eq!(report.violations, [], "{format:?}");
        let roots: Vec<_> = report.compartments.iter().map(|c| (c.name.as_str(), c.nested.len())).collect();
        assert_eq!(roots, [("nobody (shared part alone)", 0), ("one", 1), ("two", 1), ("three", 1)]);
        assert!(report.compartments[1].nested.iter().all(|(_, found)| *found == format));
    }
}

#[test]
fn a_foreign_frame_in_nested_tables() {
    for format in BOTH {
        planted(format, &[Kind::Foreign(format)], "two", |m| {
            let foreign = m.guests[0].ram;
            m.map_for(1, format, 0x3000, foreign, nested_access(format));
            foreign
        });
    }
}

#[test]
fn a_foreign_frame_in_a_host_table() {
    planted(Format::Npt, &[Kind::Foreign(Format::Host)], "two", |m| {
        let foreign = m.guests[0].ram;
        m.map_for(1, Format::Host, RAM_AT + 0x10_0000, foreign, RW);
        foreign
    });
}

#[test]
fn a_page_that_is_writable_and_executable() {
    planted(Format::Npt, &[Kind::WritableExecutable], "one", |m| {
        let frame = m.guests[0].control;
        m.map_for(0, Format::Host, WINDOW, frame, 3);
        frame
    });
}

#[test]
fn a_direct_map() {
    let kinds = [Kind::DirectMap, Kind::StaleOwner, Kind::Foreign(Format::Host)];
    planted(Format::Npt, &kinds, "three", |m| {
        // 2 MiB of free memory, by one large page.
        let own = m.guests[2].ram;
        m.map_for(2, Format::Host, 0x40_0000, own, RW);
        let root = m.guests[2].root;
        let mut table = root;
        for _ in 0..2 {
            table = m.word(table) & 0x000F_FFFF_FFFF_F000;
        }
        m.set(table + 8, 0x20_0000 | RW | 0x80);
        0x20_0000
    });
}

#[test]
fn a_secret_in_a_freed_frame() {
    planted(Format::Npt, &[Kind::SecretInFree], "", |m| {
        let free = m.free;
        m.set(free + 24, SECRET);
        free
    });
}

#[test]
fn a_secret_in_the_shared_part_at_an_odd_address() {
    planted(Format::Npt, &[Kind::SecretInShared], "", |m| {
        let variables = m.variables;
        let at = usize::try_from(variables).unwrap() + 101;
        m.memory[at..at + 8].copy_from_slice(&SECRET.to_le_bytes());
        variables
    });
}

#[test]
fn a_secret_in_another_compartment() {
    planted(Format::Ept, &[Kind::SecretElsewhere], "", |m| {
        let state = m.guests[1].control;
        m.set(state + 0x800, SECRET);
        state
    });
}

#[test]
fn a_stale_frame_owner() {
    for owner in [FREE, RAM | 2] {
        planted(Format::Npt, &[Kind::StaleOwner], "one", |m| {
            let frame = m.guests[0].ram + 4096;
            m.own(frame, owner);
            frame
        });
    }
    planted(Format::Npt, &[Kind::StaleOwner], "two", |m| {
        let lost = m.free + 4096;
        m.own(lost, RAM | 2);
        lost
    });
}

#[test]
fn a_channel_in_a_third_compartment() {
    planted(Format::Npt, &[Kind::ChannelThird(Format::Host)], "three", |m| {
        let channel = m.channel;
        m.map_for(2, Format::Host, CHANNEL_AT, channel, RW);
        channel
    });
}

#[test]
fn a_nested_table_that_its_guest_writes() {
    for format in BOTH {
        planted(format, &[Kind::TableInGuest(format)], "one", |m| {
            let table = m.guests[0].nested;
            m.map_for(0, format, 0x3000, table, nested_access(format));
            table
        });
    }
}

#[test]
fn a_control_structure_that_its_guest_reaches() {
    for format in BOTH {
        planted(format, &[Kind::ControlInGuest(format)], "one", |m| {
            let control = m.guests[0].control;
            m.map_for(0, format, 0x3000, control, nested_access(format));
            control
        });
    }
}

#[test]
fn a_root_that_nobody_tells_of() {
    // A copy of guest 1's root, in the memory of guest 2: it needs no reference to be found.
    planted(Format::Npt, &[Kind::Misplaced, Kind::TableInGuest(Format::Npt)], "one", |m| {
        let (from, to) = (m.guests[0].root, m.guests[1].ram);
        (0..4096).step_by(8).for_each(|at| m.set(to + at, m.word(from + at)));
        to
    });
}

#[test]
fn a_guest_beyond_its_memory() {
    planted(Format::Ept, &[Kind::BeyondRam(Format::Ept), Kind::Alias(Format::Ept)], "one", |m| {
        let ram = m.guests[0].ram;
        m.map_for(0, Format::Ept, 0x9000, ram, 0x37);
        ram
    });
}

#[test]
fn what_is_no_dump_is_refused() {
    let program = machine::program(CODE_AT, &[0; 4096]);
    for file in [Vec::new(), b"\x7fELF".to_vec(), program] {
        assert!(Dump::new(file).is_err());
    }
}
