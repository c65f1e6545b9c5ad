//! A command of `hv` on a terminal of its own (pty(7)), and what is on its screen.
//!
//! Only what ratatui sends is obeyed: characters, carriage return and line feed, positions, erasing (ECMA-48 8.3.21 "CUP",
//! 8.3.39 "ED", 8.3.41 "EL"). Colours are left out.

use super::control::expect;
use crate::failure::{Failure, Outcome};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a command, or a guest whose console it shows, may have done to the terminal, how it is undone, and what it is.
pub const MODES: [(&str, &str, &str); 9] = [
    ("\x1b[?1049h", "\x1b[?1049l", "alternate screen"),
    ("\x1b[?25l", "\x1b[?25h", "cursor"),
    ("\x1b[?7l", "\x1b[?7h", "end of the row"),
    ("\x1b[1;15r", "\x1b[r", "scroll region"),
    ("\x1b[8m", "\x1b[0m", "hidden text"),
    ("\x1b(0", "\x1b(B", "character set"),
    ("\x1b[?1003h", "\x1b[?1003l", "mouse's reports"),
    ("\x1b[?2004h", "\x1b[?2004l", "brackets around what is pasted"),
    // What is open is ended before anything else is understood.
    ("\x1b]0;", "\x1b\\", "string"),
];

/// The command on its terminal; it is ended when this is dropped.
pub struct Pty {
    child: Child,
    ours: File,
    its: File,
    before: Termios,
    size: (usize, usize),
    come: Arc<Mutex<Vec<u8>>>,
}

fn fail(error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("the pseudo-terminal: {error}"))
}

impl Pty {
    /// Starts it on a terminal of so many columns and rows.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Outcome<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let ours = openpt(flags).map_err(fail)?;
        grantpt(&ours).and_then(|()| unlockpt(&ours)).map_err(fail)?;
        let its = File::from(ioctl_tiocgptpeer(&ours, flags).map_err(fail)?);
        let ours = File::from(ours);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&its, size).map_err(fail)?;
        let before = tcgetattr(&its).map_err(fail)?;
        let end = || its.try_clone().map(Stdio::from).map_err(fail);
        // In a session of its own, whose terminal this is: what looks at /dev/tty finds no other.
        let mut alone = Command::new("setsid");
        alone.arg("--ctty").arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            alone.current_dir(folder);
        }
        alone.stdin(end()?).stdout(end()?).stderr(end()?);
        let child = alone.spawn().map_err(|e| Failure::failed(format!("setsid: {e}")))?;
        let (come, mut from) = (Arc::new(Mutex::new(Vec::new())), ours.try_clone().map_err(fail)?);
        let all = Arc::clone(&come);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend(buffer.get(..count).unwrap_or_default());
            }
        });
        Ok(Self { child, ours, its, before, size: (columns.into(), rows.into()), come })
    }

    /// Types them.
    pub fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.ours.write_all(bytes).map_err(fail)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Outcome<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.ok_or_else(|| fail("no process"))?, signal).map_err(fail)
    }

    /// All that has come.
    fn come(&self) -> String {
        String::from_utf8_lossy(&self.come.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The rows of the screen.
    pub fn screen(&self) -> Vec<String> {
        drawn(&self.come(), self.size)
    }

    /// Waits until these characters have come.
    pub fn wait_for(&self, text: &str) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        while !self.come().contains(text) {
            expect(Instant::now() < end, &format!("no {text:?} has come, but {:?}", self.come()))?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until a row has `text` in it.
    pub fn wait(&self, text: &str) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        while !self.screen().iter().any(|row| row.contains(text)) {
            expect(Instant::now() < end, &format!("no `{text}` is on the screen:\n{}", self.screen().join("\n")))?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits so long for its end; the terminal must be as it was then.
    pub fn end(mut self, patience: Duration) -> Outcome<ExitStatus> {
        let end = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().map_err(fail)? {
                break status;
            }
            expect(Instant::now() < end, &format!("it has not ended after {patience:?}"))?;
            thread::sleep(Duration::from_millis(10));
        };
        let now = tcgetattr(&self.its).map_err(fail)?;
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        expect(modes(&now) == modes(&self.before), &format!("the terminal was {:?}, and is {now:?}", self.before))?;
        // What it wrote last may still be on its way.
        thread::sleep(Duration::from_millis(100));
        let come = self.come();
        for (begin, end, what) in MODES {
            expect(come.rfind(begin) <= come.rfind(end), &format!("the {what} is not put back"))?;
        }
        Ok(status)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// What a screen of this size shows after these characters.
fn drawn(come: &str, (columns, rows): (usize, usize)) -> Vec<String> {
    let (mut grid, mut row, mut column) = (vec![vec![' '; columns]; rows], 0_usize, 0_usize);
    let mut rest = come.chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            '\x1b' if rest.next_if_eq(&'[').is_some() => {
                let mut parameters = String::new();
                while let Some(char) = rest.next_if(|char| (' '..='?').contains(char)) {
                    parameters.push(char);
                }
                let numbers: Vec<usize> = parameters.split(';').map(|number| number.parse().unwrap_or(0)).collect();
                let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
                match rest.next() {
                    Some('H') => (row, column) = (number(0).max(1) - 1, number(1).max(1) - 1),
                    Some('J') if number(0) == 2 => grid.iter_mut().flatten().for_each(|cell| *cell = ' '),
                    Some('J') => {
                        grid.iter_mut().flatten().skip(row * columns + column).for_each(|cell| *cell = ' ');
                    }
                    Some('K') => {
                        grid.get_mut(row).into_iter().flatten().skip(column).for_each(|cell| *cell = ' ');
                    }
                    _ => {}
                }
            }
            '\r' => column = 0,
            '\n' => row += 1,
            char if char.is_control() => {}
            char => {
                if let Some(cell) = grid.get_mut(row).and_then(|row| row.get_mut(column)) {
                    *cell = char;
                }
                column += 1;
            }
        }
    }
    grid.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Pty, drawn};
    use rustix::process::Signal;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_screen_is_what_a_terminal_shows() {
        let come = "\x1b[?1049hold\x1b[2J\x1b[2;3Hab\x1b[1mc\r\nnext\x1b[1;1H\x1b[31mtop\x1b[3;2Hx\x1b[K";
        assert_eq!(drawn(come, (10, 4)), ["top", "  abc", "nx", ""]);
    }

    #[test]
    fn a_terminal_that_is_left_raw_is_found() {
        let run = |script: &str| Pty::start(Command::new("sh").args(["-c", script]), 80, 24).unwrap();
        let good = run("echo a; echo bc >/dev/tty; sleep 0.2; exit 3");
        good.wait("bc").unwrap();
        assert_eq!(good.end(Duration::from_secs(5)).unwrap().code(), Some(3));
        assert!(run("stty raw").end(Duration::from_secs(5)).is_err());
        assert!(
            run("printf '\\033[?1049h'").end(Duration::from_secs(5)).unwrap_err().message.contains("alternate screen")
        );
        let long = run("echo here; exec sleep 9");
        long.wait("here").unwrap();
        assert!(run("sleep 9").end(Duration::from_millis(100)).is_err());
        long.signal(Signal::TERM).unwrap();
        assert_eq!(long.end(Duration::from_secs(5)).unwrap().code(), None);
    }
}
