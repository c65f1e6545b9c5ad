//! The machine's description: a TOML file, or the arguments of a one-guest machine.
//!
//! [`toml_file`] reads the file, [`check`] turns it into a [`Machine`] or says where it is wrong, [`crate::pack`]
//! makes the hypervisor's pack of it.

mod check;
mod diagnostic;
mod near;
mod size;
mod time;
mod toml_file;

pub use check::{DEFAULT_MEMORY, check_memory};
pub use size::parse_size;
pub use time::parse_seconds;

use crate::failure::Outcome;
use bulkhead_types::manifest::{ConsoleMode, CpuTime, LoadAs, Zone};
use std::path::Path;

/// A machine, checked as far as that can be done without reading its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// How consoles share the serial line.
    pub console: ConsoleMode,
    /// Whether the isolation audit runs after each guest's end.
    pub audit: bool,
    /// The zones.
    pub zones: Vec<Zone>,
    /// Guests, in order.
    pub guests: Vec<Guest>,
    /// The key of the control line, if there is to be one.
    pub control: Option<[u8; 32]>,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Index of its zone.
    pub zone: u16,
    /// Its kernel.
    pub kernel: ImageRef,
    /// How to take the kernel.
    pub load: LoadAs,
    /// Boot modules, the initial RAM disk first.
    pub modules: Vec<Module>,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// Its part of the processors.
    pub cpu: CpuTime,
    /// Times that it is made anew after it has ended.
    pub restarts: u16,
    /// Seconds after its start at which it is stopped; 0 for never.
    pub lease: u64,
    /// Map RAM on first touch.
    pub lazy: bool,
    /// The test exit is there.
    pub test_exit: bool,
    /// The MMIO test device is there.
    pub test_device: bool,
}

/// A boot module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its content.
    pub image: ImageRef,
    /// Its command line.
    pub cmdline: String,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// A file.
    File(std::path::PathBuf),
    /// `@debian`: the kernel of Debian's cloud image package.
    Debian,
    /// `@debian-elf`: the same kernel unpacked, which is started by PVH.
    DebianElf,
    /// `@busybox`: an initial RAM disk with busybox.
    Busybox,
    /// `@xen`: the kernel of Debian's package of Xen, which is started by multiboot.
    Xen,
    /// `@suite/NAME`: a guest of the suite in `guests/`.
    Suite(String),
    /// `@hostile/NAME`: a family of hostile guests in `guests/`.
    Hostile(String),
}

/// Images by name.
const IMAGES: &str = "@debian, @debian-elf, @busybox, @xen, @suite/NAME and @hostile/NAME";

impl ImageRef {
    /// Reads `text` from a manifest or the command line; files are relative to `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        match text.strip_prefix('@') {
            None if text.is_empty() => Err("a file name is empty".to_owned()),
            None => Ok(Self::File(folder.join(text))),
            Some("debian") => Ok(Self::Debian),
            Some("debian-elf") => Ok(Self::DebianElf),
            Some("busybox") => Ok(Self::Busybox),
            Some("xen") => Ok(Self::Xen),
            Some(other) => match other.split_once('/') {
                Some(("suite", name)) if !name.is_empty() => Ok(Self::Suite(name.to_owned())),
                Some(("hostile", name)) if !name.is_empty() => Ok(Self::Hostile(name.to_owned())),
                _ => Err(format!("there is no image @{other}: there are {IMAGES}")),
            },
        }
    }
}

/// Reads and checks the manifest at `path`.
pub fn read(path: &Path) -> Outcome<Machine> {
    let text = crate::files::read_text(path)?;
    parse(&text, path)
}

/// Reads and checks the manifest `text` that comes from `path`.
pub fn parse(text: &str, path: &Path) -> Outcome<Machine> {
    let folder = path.parent().unwrap_or(Path::new("."));
    toml_file::parse(text)
        .and_then(|file| check::check(file, folder))
        .map_err(|diagnostic| diagnostic.against(text, path))
}

#[cfg(test)]
mod tests {
    use super::{ImageRef, Machine, parse};
    use bulkhead_types::Barriers;
    use bulkhead_types::manifest::LoadAs;
    use std::path::Path;

    fn read(text: &str) -> Result<Machine, (String, String)> {
        parse(text, Path::new("dir/m.toml")).map_err(|f| {
            assert_eq!(f.status, 2);
            (f.message.lines().next().unwrap_or_default().to_owned(), f.hint.unwrap_or_default())
        })
    }

    #[test]
    fn every_field_arrives() {
        let machine = read(
            r#"
            audit = false
            control = { key = "aBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaB" }
            [[zone]]
            name = "red"
            barriers = ["verw", "ibpb"]
            [[guest]]
            name = "a"
            zone = "red"
            kernel = "k"
            initrd = "@busybox"
            modules = [{ path = "m", cmdline = "x y" }]
            cmdline = "quiet"
            memory = "256M"
            load = { flat = 0x7c00 }
            lazy = true
            vcpus = 1
            lease = "90s"
            test-exit = true
            test-device = true
            [[guest]]
            name = "b"
            kernel = "@suite/hello"
            memory = "16M"
            "#,
        )
        .unwrap();
        let zones = machine.zones.iter().map(|zone| (zone.name.as_str(), zone.barriers.to_string()));
        assert!(zones.eq([("red", "ibpb+verw".to_owned()), ("b", Barriers::ALL.to_string())]));
        let [a, b] = machine.guests.as_slice() else { panic!() };
        assert_eq!(a.kernel, ImageRef::File("dir/k".into()));
        assert_eq!(a.modules.iter().map(|m| m.cmdline.as_str()).collect::<Vec<_>>(), ["", "x y"]);
        assert_eq!((a.memory, a.load), (256 << 20, LoadAs::Flat { at: 0x7C00 }));
        assert!(a.lazy && a.test_exit && a.test_device && !machine.audit);
        assert_eq!(machine.control, Some([0xAB; 32]));
        assert_eq!((a.lease, b.lease), (90, 0));
        assert_eq!((b.zone, &b.kernel), (1, &ImageRef::Suite("hello".into())));
        assert!(!b.lazy && !b.test_exit);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_a_hint() {
        let guest = "[[guest]]\nname = \"a\"\nkernel = \"k\"\n";
        let cases = [
            (format!("{guest}memory = \"1M\"\n"), "dir/m.toml:4:10: ", "2M"),
            (format!("{guest}modules = [{{ path = \"m\", cmdline = \"a\\u0000\" }}]\n"), "dir/m.toml:4:36: ", "2047"),
            (format!("{guest}modules = [{}]\n", "{ path = \"m\" }, ".repeat(17)), "dir/m.toml:2:8: ", "16"),
            (format!("{guest}memory = \"64Q\"\n"), "dir/m.toml:4:10: ", "256M"),
            (format!("{guest}memory = 64\n"), "dir/m.toml:4:10: ", "256M"),
            (format!("{guest}kernal = \"k\"\n"), "dir/m.toml:4:1: ", "kernel"),
            (format!("{guest}zone = \"rd\"\n[[zone]]\nname = \"red\"\n"), "dir/m.toml:4:8: ", "red"),
            (format!("{guest}[[zone]]\nname = \"z\"\nbarriers = [\"l2d\"]\n"), "dir/m.toml:6:13: ", "l1d"),
            (format!("{guest}vcpus = 9\n"), "dir/m.toml:4:9: ", "1 to 8"),
            (format!("{guest}{guest}"), "dir/m.toml:5:8: ", "another"),
            (format!("{guest}share = 0\n"), "dir/m.toml:4:9: ", "1 to 10000"),
            (format!("{guest}cap = \"half\"\n"), "dir/m.toml:4:7: ", "one processor"),
            (format!("{guest}cap = \"0%\"\n"), "dir/m.toml:4:7: ", "1% to 6400%"),
            (format!("{guest}burst = \"5 min\"\n"), "dir/m.toml:4:9: ", "at most 60 s"),
            (
                format!("{guest}reservation = {{ period = \"1ms\", budget = \"2ms\" }}\n"),
                "dir/m.toml:4:15: ",
                "at most the period",
            ),
            (format!("{guest}cpus = [0, 0]\n"), "dir/m.toml:4:8: ", "each once"),
            (format!("{guest}lease = \"0s\"\n"), "dir/m.toml:4:9: ", "whole seconds"),
            (format!("{guest}lease = \"1500ms\"\n"), "dir/m.toml:4:9: ", "whole seconds"),
            (format!("control = {{ key = \"abc\" }}\n{guest}"), "dir/m.toml:1:19: ", "64"),
            ("[[guest]]\nname = \"a b\"\nkernel = \"k\"\n".to_owned(), "dir/m.toml:2:8: ", "letters"),
            ("[[guest]]\nname = \"a\"\nkernel = \"@debain\"\n".to_owned(), "dir/m.toml:3:10: ", "@debian"),
            ("[[guest]]\nname = \"a\"\n".to_owned(), "dir/m.toml:1:1: ", "kernel"),
            (String::new(), "dir/m.toml:1:1: ", "[[guest]]"),
            ("[[guest]\n".to_owned(), "dir/m.toml:1:", ""),
        ];
        for (text, place, hint) in cases {
            let (message, got) = read(&text).unwrap_err();
            assert!(message.starts_with(place), "{text}\n-> {message}");
            assert!(got.contains(hint), "{text}\n-> {message}\n-> {got}");
        }
    }
}
