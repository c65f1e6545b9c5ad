//! `hv ctl top`: what the guests use, on the whole terminal.
//!
//! Three threads tell what is new: one asks the machine, one reads the keyboard, one waits for signals. So a key is heard
//! while the machine does not answer, and whatever ends us, the terminal is put back first.

use super::link::Link;
use super::{AllStats, guests, stats};
use crate::failure::{Failure, Outcome};
use crate::style::harmless;
use crate::terminal;
use bulkhead_control::{Guest, Usage};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stdout};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// Between two looks.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// A column: its name, its width, and whether it is a number. On a narrow terminal the last of [`SPARE`] go first.
const COLUMNS: [(&str, u16, bool); 9] = [
    ("id", 2, true),
    ("name", 16, false),
    ("zone", 10, false),
    ("state", 8, false),
    ("cpu %", 6, true),
    ("MiB", 6, true),
    ("exits/look", 10, true),
    ("KiB out", 7, true),
    ("KiB in", 7, true),
];
/// Columns that can go.
const SPARE: [&str; 5] = ["zone", "MiB", "exits/look", "KiB out", "KiB in"];

/// What the machine told.
pub struct Look {
    guests: Vec<Guest>,
    stats: AllStats,
}

impl Look {
    /// Asks for it.
    pub fn take(link: &mut Link) -> Outcome<Self> {
        Ok(Self { guests: guests(link)?, stats: stats(link)? })
    }
}

/// What is on the screen.
pub struct Screen {
    now: Look,
    /// Ticks that guests, and nobody, had used at the look before, and the ticks at that time.
    before: BTreeMap<u16, (u64, u64)>,
    idle: u64,
    total: u64,
    ticks: u64,
    /// The first row that is shown of all guests, and how many there is room for.
    first: usize,
    room: usize,
    /// What is waited for.
    word: Option<String>,
}

impl Screen {
    /// The first look.
    pub fn new(now: Look) -> Self {
        Self { now, before: BTreeMap::new(), idle: 0, total: 0, ticks: 0, first: 0, room: 0, word: None }
    }

    /// The next look, compared with the one before.
    pub fn update(&mut self, now: Look) {
        let before = std::mem::replace(&mut self.now, now).stats;
        self.before = before.guests.iter().map(|one| (one.id, (one.used, one.exits))).collect();
        (self.idle, self.total, self.ticks) = (before.whole.idle, before.whole.total, before.whole.at.ticks);
        self.word = None;
    }

    /// Draws it.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, table, foot] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
        frame
            .render_widget(Paragraph::new(Line::styled(self.title(), Style::new().add_modifier(Modifier::BOLD))), head);
        // One row is the heading.
        self.room = usize::from(table.height.saturating_sub(1));
        self.first = self.first.min(self.now.stats.guests.len().saturating_sub(self.room));
        let columns = columns(frame.area().width);
        let names = columns.iter().map(|&(name, _, number)| cell(name.to_owned(), number));
        let header = Row::new(names).style(Style::new().add_modifier(Modifier::REVERSED));
        let widths = columns.iter().map(|(_, width, _)| Constraint::Length(*width));
        frame.render_widget(Table::new(self.rows(&columns), widths).header(header), table);
        frame.render_widget(Paragraph::new(self.foot()), foot);
    }

    fn title(&self) -> String {
        let whole = &self.now.stats.whole;
        let (total, idle) = (whole.total.saturating_sub(self.total), whole.idle.saturating_sub(self.idle));
        let running = self.now.guests.iter().filter(|guest| guest.state == bulkhead_control::State::Running).count();
        format!(
            "Bulkhead  {}  {} guests, {running} running  CPUs {}% busy",
            super::show::utc(whole.at),
            self.now.guests.len(),
            percent(total.saturating_sub(idle), total)
        )
    }

    fn foot(&self) -> String {
        let all = self.now.stats.guests.len();
        let last = all.min(self.first + self.room);
        match &self.word {
            Some(word) => format!("q quits; {word}"),
            None if all > self.room => {
                format!("q quits, arrow and page keys scroll: {} to {last} of {all}", self.first + 1)
            }
            None => "q quits".to_owned(),
        }
    }

    /// The guests on the screen, who uses most comes first.
    fn rows(&self, columns: &[(&'static str, u16, bool)]) -> Vec<Row<'static>> {
        let elapsed = self.now.stats.whole.at.ticks.saturating_sub(self.ticks);
        let mut rows: Vec<_> = self.now.stats.guests.iter().collect();
        let used = |one: &Usage| {
            let (used, exits) = self.before.get(&one.id).copied().unwrap_or_default();
            (one.used.saturating_sub(used), one.exits.saturating_sub(exits))
        };
        rows.sort_by_key(|one| (std::cmp::Reverse(used(one).0), one.id));
        let row = |one: &Usage| {
            let guest = self.now.guests.iter().find(|guest| guest.id == one.id);
            let (ticks, exits) = used(one);
            let text = |name| match name {
                "id" => one.id.to_string(),
                "name" => harmless(&one.name),
                "zone" => guest.map_or_else(String::new, |guest| harmless(&guest.zone)),
                "state" => guest.map_or_else(String::new, |guest| guest.state.to_string()),
                "cpu %" => percent(ticks, elapsed),
                "MiB" => (one.memory >> 20).to_string(),
                "exits/look" => exits.to_string(),
                "KiB out" => (one.written >> 10).to_string(),
                _ => (one.read >> 10).to_string(),
            };
            let color = match guest.map(|guest| guest.state) {
                Some(bulkhead_control::State::Running) => Color::Green,
                Some(bulkhead_control::State::Failed) => Color::Red,
                _ => Color::Yellow,
            };
            Row::new(columns.iter().map(|&(name, _, number)| {
                let cell = cell(text(name), number);
                if name == "state" { cell.style(Style::new().fg(color)) } else { cell }
            }))
        };
        rows.into_iter().skip(self.first).take(self.room).map(row).collect()
    }

    /// Obeys a key; whether to go on.
    pub fn key(&mut self, key: &KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let page = self.room.max(1);
        match key.code {
            _ if key.kind == KeyEventKind::Release => {}
            KeyCode::Char('c') if control => return false,
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Up | KeyCode::Char('k') => self.first = self.first.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.first = self.first.saturating_add(1),
            KeyCode::PageUp => self.first = self.first.saturating_sub(page),
            KeyCode::PageDown => self.first = self.first.saturating_add(page),
            KeyCode::Home => self.first = 0,
            KeyCode::End => self.first = usize::MAX,
            _ => {}
        }
        // Drawing brings it back to the last row that there is.
        true
    }
}

/// The columns that a terminal of this width has room for. What is left goes to names, which can have 32 characters.
fn columns(width: u16) -> Vec<(&'static str, u16, bool)> {
    let sum = |columns: &[(&str, u16, bool)]| columns.iter().map(|(_, width, _)| width + 1).sum::<u16>() - 1;
    let mut columns = COLUMNS.to_vec();
    for spare in SPARE.iter().rev() {
        if sum(&columns) > width {
            columns.retain(|(name, ..)| name != spare);
        }
    }
    for long in ["name", "zone"] {
        let more = width.saturating_sub(sum(&columns));
        if let Some((_, width, _)) = columns.iter_mut().find(|(name, ..)| *name == long) {
            *width = width.saturating_add(more).min(32);
        }
    }
    columns
}

fn cell(text: String, number: bool) -> Cell<'static> {
    let line = Line::from(text);
    Cell::new(if number { line.right_aligned() } else { line })
}

/// With one digit behind the point.
fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// What is new.
enum News {
    Look(Box<Outcome<Look>>),
    Word(String),
    Terminal(Event),
    /// A signal, or the terminal is gone.
    End,
}

/// Shows it until q is pressed.
pub fn top(mut link: Link) -> Outcome<()> {
    if !stdout().is_terminal() {
        return Err(Failure::usage("top needs a terminal").hint("use `hv ctl stats`, with --watch or --json"));
    }
    // What is wrong is said before the screen is cleared.
    let mut screen = Screen::new(Look::take(&mut link)?);
    let (sender, news) = channel();
    signals(sender.clone());
    let mut terminal = ratatui::init();
    keys(sender.clone());
    // It ends with us: an answer that does not come is not waited for.
    thread::spawn(move || looks(link, &sender));
    let outcome = loop {
        if let Err(e) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(Failure::failed(format!("the terminal: {e}")));
        }
        match news.recv() {
            Ok(News::Look(look)) => match *look {
                Ok(look) => screen.update(look),
                Err(failure) => break Err(failure),
            },
            Ok(News::Word(word)) => screen.word = Some(word),
            Ok(News::Terminal(Event::Key(key))) if !screen.key(&key) => break Ok(()),
            // Another size, for example: it is drawn anew.
            Ok(News::Terminal(_)) => {}
            Ok(News::End) | Err(_) => break Ok(()),
        }
    };
    ratatui::restore();
    outcome
}

/// Looks again and again.
fn looks(mut link: Link, news: &Sender<News>) {
    let words = news.clone();
    link.say = Box::new(move |word| {
        let _ = words.send(News::Word(word.to_owned()));
    });
    loop {
        link.rest(INTERVAL);
        let look = Look::take(&mut link);
        let failed = look.is_err();
        if news.send(News::Look(Box::new(look))).is_err() || failed {
            return;
        }
    }
}

fn keys(news: Sender<News>) {
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if news.send(News::Terminal(event)).is_err() {
                return;
            }
        }
        let _ = news.send(News::End);
    });
}

fn signals(news: Sender<News>) {
    let (signal, signals) = channel();
    terminal::forward_signals(signal);
    thread::spawn(move || {
        if signals.recv().is_ok() {
            let _ = news.send(News::End);
        }
    });
}
