//! The shape of a manifest file.

use super::diagnostic::Diagnostic;
use super::near::nearest;
use serde::Deserialize;
use toml::Spanned;

/// A manifest as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// `[[zone]]`
    #[serde(default, rename = "zone", alias = "zones")]
    pub zones: Vec<Zone>,
    /// `[[guest]]`
    #[serde(default, rename = "guest", alias = "guests")]
    pub guests: Vec<Spanned<Guest>>,
    /// Whether the audit runs after each guest's end.
    #[serde(default = "yes")]
    pub audit: bool,
    /// The control line; without one there is none.
    pub control: Option<Control>,
}

/// The control line as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// What its peer has to know: 64 hexadecimal digits.
    pub key: Spanned<String>,
}

/// A zone as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Zone {
    /// Its name.
    pub name: Spanned<String>,
    /// What is done when a CPU goes between a guest of it and one of another zone; everything if it does not say.
    pub barriers: Option<Vec<Barrier>>,
}

/// A barrier between zones, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Barrier {
    Ibpb,
    L1d,
    Verw,
    Ssbd,
}

/// A guest as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Guest {
    /// Its name.
    pub name: Spanned<String>,
    /// Name of its zone; without one it is a zone of its own.
    pub zone: Option<Spanned<String>>,
    /// Kernel file or reference.
    pub kernel: Spanned<String>,
    /// Initial RAM disk.
    pub initrd: Option<Spanned<String>>,
    /// Boot modules.
    #[serde(default)]
    pub modules: Vec<Module>,
    /// Kernel command line.
    pub cmdline: Option<Spanned<String>>,
    /// RAM, like `256M`.
    pub memory: Option<Spanned<String>>,
    /// Virtual CPUs.
    pub vcpus: Option<Spanned<u16>>,
    /// Its weight among those that want to run.
    pub share: Option<Spanned<u32>>,
    /// The most that it gets of one processor, like `50%`.
    pub cap: Option<Spanned<String>>,
    /// What it can save up below its cap, like `200ms`.
    pub burst: Option<Spanned<String>>,
    /// What is reserved for it.
    pub reservation: Option<Spanned<Reservation>>,
    /// Numbers of the processors that it may use.
    pub cpus: Option<Spanned<Vec<u8>>>,
    /// Times that it is made anew after it has ended.
    #[serde(default)]
    pub restarts: u16,
    /// How long after its start it is stopped, like `60s`.
    pub lease: Option<Spanned<String>>,
    /// Map RAM on first touch.
    #[serde(default)]
    pub lazy: bool,
    /// How to take the kernel.
    #[serde(default)]
    pub load: Load,
    /// The test exit.
    #[serde(default)]
    pub test_exit: bool,
    /// The MMIO test device.
    #[serde(default)]
    pub test_device: bool,
}

/// Time that is reserved for a guest: so much in each period.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Reservation {
    /// Like `10ms`.
    pub period: Spanned<String>,
    /// Like `2ms`.
    pub budget: Spanned<String>,
}

/// A boot module as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Module {
    /// File or reference.
    pub path: Spanned<String>,
    /// Its command line.
    pub cmdline: Option<Spanned<String>>,
}

/// How to take the kernel: `"detect"` or `{ flat = 0x7c00 }`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// By what it is.
    #[default]
    Detect,
    /// As bytes at this guest-physical address.
    Flat(u64),
}

fn yes() -> bool {
    true
}

/// Reads the text.
pub fn parse(text: &str) -> Result<File, Diagnostic> {
    toml::from_str(text).map_err(|e| {
        let span = e.span().unwrap_or(0..0);
        let message = e.message().lines().next().unwrap_or("wrong").to_owned();
        Diagnostic { hint: hint(&message, text.get(span.clone()).unwrap_or_default()), span, message }
    })
}

/// What to do about serde's message.
fn hint(message: &str, found: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") || message.starts_with("unknown variant") {
        let word = quoted.next()?;
        let known: Vec<&str> = quoted.collect();
        return Some(match nearest(word, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("what can be there: {}", known.join(", ")),
        });
    }
    if message.starts_with("missing field") {
        return quoted.next().map(|field| format!("add a line `{field} = …`"));
    }
    if message.starts_with("invalid type: integer") && message.contains("expected a string") {
        return Some(format!("write it in quotes, a size with its unit: \"{found}M\" or \"256M\""));
    }
    None
}
