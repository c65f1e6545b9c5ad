//! `hv ctl top`: what the guests use, on the whole terminal.

use super::link::Link;
use super::{AllStats, guests, stats};
use crate::failure::{Failure, Outcome};
use crate::style::harmless;
use bulkhead_control::Guest;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stdout};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// What is on the screen.
pub struct Screen {
    guests: Vec<Guest>,
    now: AllStats,
    /// Ticks that guests, and nobody, had used at the look before, and the ticks at that time.
    before: BTreeMap<u16, (u64, u64)>,
    idle: u64,
    total: u64,
    ticks: u64,
}

impl Screen {
    /// What `link` tells now, compared with `last`.
    pub fn look(link: &mut Link, last: Option<Self>) -> Outcome<Self> {
        let (guests, now) = (guests(link)?, stats(link)?);
        let Some(last) = last else {
            return Ok(Self { guests, now, before: BTreeMap::new(), idle: 0, total: 0, ticks: 0 });
        };
        let before = last.now.guests.iter().map(|one| (one.id, (one.used, one.exits))).collect();
        let whole = last.now.whole;
        Ok(Self { guests, now, before, idle: whole.idle, total: whole.total, ticks: whole.at.ticks })
    }

    /// Draws it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let [head, table, foot] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
        let whole = &self.now.whole;
        let (total, idle) = (whole.total.saturating_sub(self.total), whole.idle.saturating_sub(self.idle));
        let running = self.guests.iter().filter(|guest| guest.state == bulkhead_control::State::Running).count();
        let title = format!(
            "Bulkhead  {}  {} guests, {running} running  CPUs {}% busy",
            super::show::utc(whole.at),
            self.guests.len(),
            percent(total.saturating_sub(idle), total)
        );
        frame.render_widget(Paragraph::new(Line::styled(title, Style::new().add_modifier(Modifier::BOLD))), head);
        let names = ["id", "name", "zone", "state", "cpu %", "MiB", "exits/look", "KiB out", "KiB in"];
        let header = Row::new(names).style(Style::new().add_modifier(Modifier::REVERSED));
        let widths = [3, 20, 12, 9, 7, 8, 11, 9, 9].map(Constraint::Length);
        frame.render_widget(Table::new(self.rows(), widths).header(header), table);
        frame.render_widget(Paragraph::new("q quits"), foot);
    }

    /// The guests, who uses most comes first.
    fn rows(&self) -> Vec<Row<'static>> {
        let elapsed = self.now.whole.at.ticks.saturating_sub(self.ticks);
        let mut rows: Vec<_> = self.now.guests.iter().collect();
        let used = |one: &bulkhead_control::Usage| {
            let (used, exits) = self.before.get(&one.id).copied().unwrap_or_default();
            (one.used.saturating_sub(used), one.exits.saturating_sub(exits))
        };
        rows.sort_by_key(|one| (std::cmp::Reverse(used(one).0), one.id));
        let row = |one: &bulkhead_control::Usage| {
            let guest = self.guests.iter().find(|guest| guest.id == one.id);
            let state = guest.map_or_else(String::new, |guest| guest.state.to_string());
            let color = match state.as_str() {
                "running" => Color::Green,
                "failed" => Color::Red,
                _ => Color::Yellow,
            };
            let (ticks, exits) = used(one);
            Row::new(vec![
                Cell::new(one.id.to_string()),
                Cell::new(harmless(&one.name)),
                Cell::new(guest.map_or_else(String::new, |guest| harmless(&guest.zone))),
                Cell::new(state).style(Style::new().fg(color)),
                Cell::new(percent(ticks, elapsed)),
                Cell::new((one.memory >> 20).to_string()),
                Cell::new(exits.to_string()),
                Cell::new((one.written >> 10).to_string()),
                Cell::new((one.read >> 10).to_string()),
            ])
        };
        rows.into_iter().map(row).collect()
    }
}

/// With one digit behind the point.
fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Shows it until q is pressed.
pub fn top(link: &mut Link) -> Outcome<()> {
    if !stdout().is_terminal() {
        return Err(Failure::usage("top needs a terminal").hint("use `hv ctl stats`, with --watch or --json"));
    }
    let mut screen = Screen::look(link, None)?;
    let mut terminal = ratatui::init();
    let outcome = loop {
        if let Err(e) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(Failure::failed(format!("the terminal: {e}")));
        }
        match wait_for_quit() {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(e) => break Err(Failure::failed(format!("the terminal: {e}"))),
        }
        match Screen::look(link, Some(screen)) {
            Ok(next) => screen = next,
            Err(failure) => break Err(failure),
        }
    };
    ratatui::restore();
    outcome
}

/// Waits for the next look; whether the user wants to quit.
fn wait_for_quit() -> std::io::Result<bool> {
    let until = Instant::now() + INTERVAL;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if event::poll(left)?
            && let Event::Key(key) = event::read()?
        {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
