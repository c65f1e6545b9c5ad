//! The monitor beside a guest that floods the console, in line mode.
//!
//! No row of the screen is of both. Two processors: the monitor is on the first, and the guest is on either.

use super::commands::Terminal;
use super::control::expect;
use super::tally::Row;
use crate::emulator::{Kind, Place, RunFolder};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::machine::Builder;
use crate::manifest::{self, ImageRef};
use crate::workspace::Workspace;
use bulkhead_control::monitor::COMMANDS;
use bulkhead_control::screen::COLUMNS;
use bulkhead_types::manifest::{ConsoleMode, LoadAs};

const MACHINE: &str = "tests/manifests/control.toml";
/// So often `help` is asked for.
const ROUNDS: usize = 40;
const NAME: &str = "rows of the monitor beside a flood";
/// What each row of the guest begins with.
const PREFIX: &str = "[flood] ";

/// Writes # to COM1 without end, whenever there is room; entered in real mode.
const FLOOD: [u8; 15] = [
    0xBA, 0xFD, 0x03, // mov dx, 3FDh
    0xEC, // in al, dx
    0xA8, 0x20, // test al, 20h
    0x74, 0xFB, // jz back to the in
    0xB2, 0xF8, // mov dl, 0F8h
    0xB0, b'#', // mov al, '#'
    0xEE, // out dx, al
    0xEB, 0xF1, // jmp to the first
];

/// The row, on QEMU.
pub fn row<'a>(workspace: &'a Workspace, builder: &'a Builder) -> Row<'a> {
    Row::new(NAME, || verdict(workspace, builder))
}

fn verdict(workspace: &Workspace, builder: &Builder) -> Outcome<String> {
    let mut machine = manifest::read(&workspace.path(MACHINE))?;
    machine.console = ConsoleMode::Lines;
    machine.guests.truncate(1);
    let folder = RunFolder::new(workspace)?;
    let kernel = folder.file("flood.bin");
    files::write(&kernel, &FLOOD)?;
    let flood = machine.guests.first_mut().ok_or_else(|| Failure::failed("no guest"))?;
    (flood.name, flood.load) = ("flood".to_owned(), LoadAs::Flat { at: 0x8000 });
    flood.kernel = ImageRef::File(kernel);
    let running = builder.start_at(&Place { cpus: 2, ..Place::of(Kind::Qemu) }, &machine)?;
    let mut terminal = Terminal::new(&running)?;
    terminal.wait(PREFIX, 0)?;
    terminal.send(b"\x1dm")?;
    terminal.wait("bulkhead> ", 0)?;
    (0..ROUNDS).try_for_each(|_| terminal.ask("help", "Tab completes"))?;
    let rows = shown(&terminal.come());
    check(&rows)?;
    Ok(format!("{} rows beside {ROUNDS} times `help`", rows.len()))
}

/// Each row is the guest's or the monitor's, and all of the monitor's are there.
fn check(rows: &[String]) -> Outcome<()> {
    let full = format!("{PREFIX}{}", "#".repeat(COLUMNS - 1 - PREFIX.len()));
    let mixed = rows.iter().filter(|row| row.contains('#') && **row != full);
    let mixed: Vec<&str> = mixed.map(String::as_str).collect();
    expect(mixed.is_empty(), &format!("{} rows of {} are mixed: {mixed:#?}", mixed.len(), rows.len()))?;
    for (name, arguments, what) in COMMANDS {
        let row = format!("{name:<8} {arguments:<13} {what}");
        let times = rows.iter().filter(|shown| shown.trim_end() == row.trim_end()).count();
        expect(times == ROUNDS, &format!("`{row}` is shown {times} times, not {ROUNDS}"))?;
    }
    Ok(())
}

/// All rows that a terminal of 80 columns has shown and gone on from: what is erased or written over was not to be read.
fn shown(come: &str) -> Vec<String> {
    let (mut rows, mut row, mut column) = (Vec::new(), Vec::new(), 0_usize);
    let mut rest = come.chars();
    while let Some(char) = rest.next() {
        match char {
            '\r' => column = 0,
            '\n' => rows.push(std::mem::take(&mut row).into_iter().collect()),
            '\x1b' => {
                let sequence: String = rest.by_ref().skip(1).take_while(|char| !char.is_ascii_alphabetic()).collect();
                match sequence.parse::<usize>() {
                    Ok(left) => column = column.saturating_sub(left),
                    Err(_) => row.truncate(column),
                }
            }
            char if char.is_control() => {}
            char => {
                if column == COLUMNS {
                    rows.push(std::mem::take(&mut row).into_iter().collect());
                    column = 0;
                }
                row.resize(row.len().max(column + 1), ' ');
                row.splice(column..=column, [char]);
                column += 1;
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::{PREFIX, check, shown};

    #[test]
    fn a_row_of_both_is_found() {
        let rows = shown("\rbulkhead> \x1b[K\r\x1b[K[flood] #\r\nhel");
        assert_eq!(rows, ["[flood] #"]);
        // The monitor's row was left, and the guest's goes on in a row of its own.
        let mixed = format!("version{PREFIX}{}\r\n", "#".repeat(71));
        assert_eq!(shown(&mixed), [format!("version{PREFIX}{}", "#".repeat(65)), "#".repeat(6)]);
        assert!(check(&shown(&mixed)).is_err_and(|failure| failure.message.contains("2 rows of 2 are mixed")));
    }
}
