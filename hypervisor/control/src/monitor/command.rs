//! The monitor's commands: their names, what they take, and what is wrong with a typed line.

use crate::{Action, Operation};
use core::cmp::Reverse;
use core::fmt;

/// Name, arguments, what it does.
pub const COMMANDS: [(&str, &str, &str); 19] = [
    ("list", "", "the guests, and what each does"),
    ("start", "GUEST", "let a stopped guest run"),
    ("stop", "GUEST", "ask a guest to switch itself off"),
    ("pause", "GUEST", "let a guest run no further"),
    ("resume", "GUEST", "let a paused guest run on"),
    ("reset", "GUEST", "start a guest anew"),
    ("kill", "GUEST", "switch a guest off at once"),
    ("destroy", "GUEST", "forget a stopped guest, and free its memory"),
    ("console", "GUEST", "connect to a guest's console; Ctrl-] m comes back"),
    ("stats", "[GUEST]", "what guests have used, or why one left how often"),
    ("top", "", "what each guest has used since the last `top`"),
    ("log", "[NUMBER]", "the last events, or those from a number on"),
    ("trace", "GUEST on|off", "write a guest's exits to the log, or no more"),
    ("audit", "", "walk all page tables, compare with the frame table"),
    ("dump", "GUEST", "write a guest's registers to the log"),
    ("inject", "GUEST nmi", "give a guest an NMI"),
    ("memmap", "", "who has which memory"),
    ("version", "", "what this hypervisor is, and what it runs on"),
    ("help", "[COMMAND]", "this list, or one line of it"),
];

/// A line that makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// An operation with one response.
    Do(Operation<'a>),
    /// Connect to this guest's console.
    Console(&'a str),
    /// What guests used since the last time.
    Top,
    /// Events from this number on; the last ones if there is none.
    Log(Option<u64>),
    /// The commands, or this one.
    Help(Option<&'a str>),
    /// An empty line.
    Nothing,
}

/// What is wrong with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake<'a> {
    /// There is no such command.
    Unknown(&'a str),
    /// It takes other arguments: those of this row of the table.
    Usage(usize),
}

impl fmt::Display for Mistake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => {
                let same = |name: &str| name.bytes().zip(word.bytes()).take_while(|(a, b)| a == b).count();
                let alike = COMMANDS.iter().map(|(name, ..)| *name).filter(|name| same(name) >= 2);
                match alike.max_by_key(|name| (same(name), Reverse(name.len().abs_diff(word.len())))) {
                    Some(name) => write!(f, "there is no command `{word}`: did you mean `{name}`?"),
                    None => write!(f, "there is no command `{word}`: `help` lists them"),
                }
            }
            Self::Usage(row) => match COMMANDS.get(*row) {
                Some((name, "", _)) => write!(f, "`{name}` takes no arguments"),
                Some((name, arguments, what)) => write!(f, "write `{name} {arguments}`: {what}"),
                None => Ok(()),
            },
        }
    }
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, to be shown as one line.
pub fn parse(line: &str) -> Result<Command<'_>, Mistake<'_>> {
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else { return Ok(Command::Nothing) };
    let (first, second, more) = (words.next(), words.next(), words.next());
    let row = COMMANDS.iter().position(|(known, ..)| *known == name).ok_or(Mistake::Unknown(name))?;
    let command = match (name, first, second, more) {
        ("list", None, ..) => Command::Do(Operation::List(0)),
        ("stats", None, ..) => Command::Do(Operation::Stats(0)),
        ("stats", Some(guest), None, _) => Command::Do(Operation::Exits(guest)),
        ("top", None, ..) => Command::Top,
        ("log", None, ..) => Command::Log(None),
        ("log", Some(from), None, _) => Command::Log(Some(from.parse().map_err(|_| Mistake::Usage(row))?)),
        ("audit", None, ..) => Command::Do(Operation::Audit),
        ("memmap", None, ..) => Command::Do(Operation::Memory(0)),
        ("version", None, ..) => Command::Do(Operation::Version),
        ("help", command, None, _) => Command::Help(command),
        ("console", Some(guest), None, _) => Command::Console(guest),
        (_, Some(guest), second, None) => {
            let action = action(name, second).ok_or(Mistake::Usage(row))?;
            Command::Do(Operation::Act { guest, action })
        }
        _ => return Err(Mistake::Usage(row)),
    };
    Ok(command)
}

fn action(name: &str, argument: Option<&str>) -> Option<Action> {
    match (name, argument) {
        ("start", None) => Some(Action::Start),
        ("stop", None) => Some(Action::Stop),
        ("pause", None) => Some(Action::Pause),
        ("resume", None) => Some(Action::Resume),
        ("reset", None) => Some(Action::Reset),
        ("kill", None) => Some(Action::Kill),
        ("destroy", None) => Some(Action::Destroy),
        ("dump", None) => Some(Action::Dump),
        ("inject", Some("nmi")) => Some(Action::Nmi),
        ("trace", Some("on")) => Some(Action::Trace(true)),
        ("trace", Some("off")) => Some(Action::Trace(false)),
        _ => None,
    }
}
