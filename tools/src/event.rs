//! What the hypervisor reports on its channel, one line each.

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched its machine off.
    PowerOff,
    /// It asked for a reset, and its manifest says to stop then.
    Reset,
    /// It wrote this to the test exit; 0 is success.
    TestExit(u64),
    /// It took a triple fault.
    TripleFault,
    /// An operator switched it off.
    Stopped,
    /// The hypervisor ended it, for this reason.
    Killed(String),
}

impl End {
    /// Whether the guest ended well.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::TestExit(0) | Self::Stopped)
    }

    fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "power-off" => Some(Self::PowerOff),
            "reset" => Some(Self::Reset),
            "test-exit" => number(rest).map(Self::TestExit),
            "triple-fault" => Some(Self::TripleFault),
            "stopped" => Some(Self::Stopped),
            "killed" => Some(Self::Killed(rest.to_owned())),
            _ => None,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power-off"),
            Self::Reset => f.write_str("reset"),
            Self::TestExit(code) => write!(f, "test-exit {code}"),
            Self::TripleFault => f.write_str("triple-fault"),
            Self::Stopped => f.write_str("stopped"),
            Self::Killed(reason) => write!(f, "killed {reason}"),
        }
    }
}

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest runs.
    Started {
        /// Its number, from 1.
        guest: u8,
    },
    /// A guest has ended.
    Ended {
        /// Its number, from 1.
        guest: u8,
        /// Its name.
        name: String,
        /// How.
        end: End,
    },
    /// The isolation audit ran.
    Audit {
        /// Whether all was in order.
        ok: bool,
        /// What it said.
        text: String,
    },
    /// All guests have ended.
    Done,
    /// The machine lacks something, and this says what.
    Preflight(String),
    /// The hypervisor itself died.
    Panic(String),
    /// A benchmark's result.
    Bench {
        /// What was measured.
        name: String,
        /// Ticks.
        ticks: u64,
    },
}

impl Event {
    /// The report that `line` is, if it is one.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("event ")?;
        let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match kind {
            "guest" => Self::of_guest(rest),
            "audit" => Some(Self::Audit { ok: rest == "ok" || rest.starts_with("ok "), text: rest.to_owned() }),
            "machine" => (rest == "done").then_some(Self::Done),
            "preflight" => Some(Self::Preflight(rest.to_owned())),
            "panic" => Some(Self::Panic(rest.to_owned())),
            "bench" => Self::of_bench(rest),
            _ => None,
        }
    }

    /// The benchmark result `NAME TICKS`.
    pub fn of_bench(text: &str) -> Option<Self> {
        let (name, ticks) = text.trim().rsplit_once(' ')?;
        Some(Self::Bench { name: name.trim().to_owned(), ticks: number(ticks)? })
    }

    fn of_guest(text: &str) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let guest = words.next()?.parse().ok()?;
        let name = words.next()?.to_owned();
        match words.next()? {
            "started" => Some(Self::Started { guest }),
            "ended" => Some(Self::Ended { guest, name, end: End::parse(words.next()?)? }),
            _ => None,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::{End, Event};

    #[test]
    fn each_report_is_understood() {
        let ended = |end| Some(Event::Ended { guest: 2, name: "hello".into(), end });
        let cases = [
            ("event guest 1 linux started", Some(Event::Started { guest: 1 })),
            ("event guest 2 hello ended power-off", ended(End::PowerOff)),
            ("event guest 2 hello ended test-exit 0x1f", ended(End::TestExit(31))),
            ("event guest 2 hello ended triple-fault", ended(End::TripleFault)),
            (
                "event guest 2 hello ended killed EPT violation at 0x1",
                ended(End::Killed("EPT violation at 0x1".into())),
            ),
            ("event audit ok frames=3", Some(Event::Audit { ok: true, text: "ok frames=3".into() })),
            ("event audit FAILED frame 7", Some(Event::Audit { ok: false, text: "FAILED frame 7".into() })),
            ("event machine done", Some(Event::Done)),
            ("event preflight no VMX", Some(Event::Preflight("no VMX".into()))),
            ("event panic at a.rs:1", Some(Event::Panic("at a.rs:1".into()))),
            ("event bench cpuid 240", Some(Event::Bench { name: "cpuid".into(), ticks: 240 })),
            ("event guest x hello started", None),
            ("an event machine done", None),
        ];
        for (line, want) in cases {
            assert_eq!(Event::parse(line), want, "{line}");
        }
    }
}
