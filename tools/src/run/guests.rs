//! The guests that have been heard of, by number: those of the manifest, and those made since.

use crate::frames::Lines;
use bulkhead_control::screen::Rows;
use std::collections::BTreeMap;

/// What is known of one.
#[derive(Default)]
pub struct Guest {
    pub name: String,
    /// What it has written of its current line, as it is.
    pub lines: Lines,
    /// The same as it is shown while another is in front.
    pub rows: Rows,
}

/// All of them.
pub struct Guests(BTreeMap<u8, Guest>);

impl Guests {
    /// Those of the manifest, from number 1 on.
    pub fn new(names: Vec<String>) -> Self {
        Self((1..).zip(names).map(|(number, name)| (number, Guest { name, ..Guest::default() })).collect())
    }

    /// The guest with this number, which has written something.
    pub fn at(&mut self, number: u8) -> &mut Guest {
        self.0.entry(number).or_insert_with(|| Guest { name: format!("guest {number}"), ..Guest::default() })
    }

    /// The guest with this number, if it was heard of.
    pub fn get(&mut self, number: u8) -> Option<&mut Guest> {
        self.0.get_mut(&number)
    }

    /// Takes a line of the hypervisor's log, which tells names.
    pub fn hear(&mut self, line: &str) {
        let told = line.strip_prefix("event guest ").and_then(|rest| rest.strip_suffix(" started"));
        if let Some((number, name)) = told.and_then(|told| told.split_once(' '))
            && let Ok(number) = number.parse()
        {
            name.clone_into(&mut self.at(number).name);
        }
    }

    /// Numbers and names.
    pub fn list(&self) -> String {
        let all: Vec<String> = self.0.iter().map(|(number, guest)| format!("{number} {}", guest.name)).collect();
        all.join(", ")
    }
}
