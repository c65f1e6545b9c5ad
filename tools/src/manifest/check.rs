//! From what is written to a [`Machine`]: every value against its range, every name against what there is.

use super::diagnostic::Diagnostic;
use super::near::nearest;
use super::time::{parse_percent, parse_seconds, parse_time};
use super::toml_file::{self, Barrier, File, Load};
use super::{Guest, ImageRef, Machine, Module, parse_size};
use bulkhead_control::mac;
use bulkhead_types::manifest::{
    ConsoleMode, CpuTime, LoadAs, MAX_CAP, MAX_CMDLINE, MAX_GUESTS, MAX_MEMORY, MAX_MODULES, MAX_SHARE, MAX_TIME,
    MIN_MEMORY, Zone, is_name,
};
use bulkhead_types::{Barriers, MAX_VCPUS};
use std::path::Path;
use toml::Spanned;

/// RAM of a guest whose manifest does not say.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// Checks `file`, whose image files are relative to `folder`.
pub fn check(file: File, folder: &Path) -> Result<Machine, Diagnostic> {
    let mut machine = Machine {
        console: ConsoleMode::Framed,
        audit: file.audit,
        zones: Vec::new(),
        guests: Vec::new(),
        control: None,
    };
    if let Some(control) = &file.control {
        let wrong = || {
            Diagnostic::new(
                control.key.span(),
                "this is no key",
                "write 64 hexadecimal digits (`openssl rand -hex 32`)",
            )
        };
        machine.control = Some(mac::key(control.key.get_ref()).ok_or_else(wrong)?);
    }
    for zone in &file.zones {
        check_name(&zone.name, "zone")?;
        if machine.zones.iter().any(|other| other.name == *zone.name.get_ref()) {
            return Err(Diagnostic::new(zone.name.span(), "this zone is there already", "give it another name"));
        }
        machine.zones.push(Zone { name: zone.name.get_ref().clone(), barriers: barriers(zone.barriers.as_deref()) });
    }
    if file.guests.is_empty() || file.guests.len() > MAX_GUESTS {
        let hint = format!("a machine has 1 to {MAX_GUESTS} guests: begin each with [[guest]]");
        return Err(Diagnostic::new(0..0, format!("{} guests", file.guests.len()), hint));
    }
    for written in file.guests {
        let written = written.into_inner();
        check_name(&written.name, "guest")?;
        if machine.guests.iter().any(|g| g.name == *written.name.get_ref()) {
            return Err(Diagnostic::new(written.name.span(), "this guest is there already", "give it another name"));
        }
        let zone = zone_of(&mut machine.zones, &written)?;
        machine.guests.push(guest(written, zone, folder)?);
    }
    Ok(machine)
}

/// The barriers that a zone names; all of them if it does not say.
fn barriers(named: Option<&[Barrier]>) -> Barriers {
    let Some(named) = named else { return Barriers::ALL };
    let has = |barrier| named.contains(&barrier);
    Barriers { ibpb: has(Barrier::Ibpb), l1d: has(Barrier::L1d), verw: has(Barrier::Verw), ssbd: has(Barrier::Ssbd) }
}

fn check_name(name: &Spanned<String>, what: &str) -> Result<(), Diagnostic> {
    if is_name(name.get_ref()) {
        return Ok(());
    }
    let message = format!("`{}` can not name a {what}", name.get_ref());
    Err(Diagnostic::new(name.span(), message, "use 1 to 32 letters, digits, - and _"))
}

fn zone_of(zones: &mut Vec<Zone>, guest: &toml_file::Guest) -> Result<u16, Diagnostic> {
    let found = match &guest.zone {
        Some(zone) => zones.iter().position(|z| z.name == *zone.get_ref()).ok_or_else(|| {
            let hint = match nearest(zone.get_ref(), zones.iter().map(|z| z.name.as_str())) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("add [[zone]] with name = \"{}\"", zone.get_ref()),
            };
            Diagnostic::new(zone.span(), format!("there is no zone `{}`", zone.get_ref()), hint)
        })?,
        None => {
            zones.push(Zone { name: guest.name.get_ref().clone(), barriers: Barriers::ALL });
            zones.len() - 1
        }
    };
    u16::try_from(found).map_err(|_| Diagnostic::new(guest.name.span(), "too many zones", "use fewer"))
}

fn guest(written: toml_file::Guest, zone: u16, folder: &Path) -> Result<Guest, Diagnostic> {
    let cpu = cpu_time(&written)?;
    let mut modules = Vec::new();
    if let Some(initrd) = &written.initrd {
        modules.push(Module { image: image(initrd, folder)?, cmdline: String::new() });
    }
    for module in written.modules {
        modules.push(Module { image: image(&module.path, folder)?, cmdline: cmdline(module.cmdline)? });
    }
    if modules.len() > MAX_MODULES {
        let message = format!("{} modules, the initrd counted", modules.len());
        return Err(Diagnostic::new(written.name.span(), message, format!("a guest has at most {MAX_MODULES}")));
    }
    Ok(Guest {
        kernel: image(&written.kernel, folder)?,
        name: written.name.into_inner(),
        zone,
        load: match written.load {
            Load::Detect => LoadAs::Detect,
            Load::Flat(at) => LoadAs::Flat { at },
        },
        modules,
        cmdline: cmdline(written.cmdline)?,
        memory: memory(written.memory)?,
        vcpus: vcpus(written.vcpus)?,
        cpu,
        restarts: written.restarts,
        lease: match &written.lease {
            None => 0,
            Some(text) => parse_seconds(text.get_ref())
                .map_err(|message| Diagnostic::new(text.span(), message, "whole seconds, at least one"))?,
        },
        lazy: written.lazy,
        test_exit: written.test_exit,
        test_device: written.test_device,
    })
}

fn image(text: &Spanned<String>, folder: &Path) -> Result<ImageRef, Diagnostic> {
    ImageRef::parse(text.get_ref(), folder).map_err(|message| {
        Diagnostic::new(text.span(), message, "write a file's path, @debian, @busybox or @suite/NAME")
    })
}

fn cmdline(text: Option<Spanned<String>>) -> Result<String, Diagnostic> {
    let Some(text) = text else { return Ok(String::new()) };
    if text.get_ref().len() > MAX_CMDLINE || text.get_ref().contains('\0') {
        let message = "this command line is too long, or has a NUL in it";
        return Err(Diagnostic::new(text.span(), message, format!("it may have {MAX_CMDLINE} bytes")));
    }
    Ok(text.into_inner())
}

fn memory(text: Option<Spanned<String>>) -> Result<u64, Diagnostic> {
    let Some(text) = text else { return Ok(DEFAULT_MEMORY) };
    let bytes = parse_size(text.get_ref()).map_err(|m| Diagnostic::new(text.span(), m, "for example \"256M\""))?;
    check_memory(bytes).map_err(|m| Diagnostic::new(text.span(), m, "a guest has 2M to 1T, in whole pages of 4K"))?;
    Ok(bytes)
}

/// Whether a guest can have `bytes` of RAM.
pub fn check_memory(bytes: u64) -> Result<(), String> {
    if (MIN_MEMORY..=MAX_MEMORY).contains(&bytes) && bytes.is_multiple_of(4096) {
        return Ok(());
    }
    Err(format!("a guest can not have {bytes} bytes of memory"))
}

/// A guest's part of the processors.
fn cpu_time(written: &toml_file::Guest) -> Result<CpuTime, Diagnostic> {
    let mut time = CpuTime::default();
    let span_of = |span: core::ops::Range<usize>, message: String, hint: String| Diagnostic::new(span, message, hint);
    let length = |text: &Spanned<String>| {
        let parsed = parse_time(text.get_ref()).and_then(|length| match length {
            0..=MAX_TIME => Ok(length),
            _ => Err(format!("`{}` is too long", text.get_ref())),
        });
        parsed.map_err(|m| span_of(text.span(), m, format!("at most {} s", MAX_TIME / 1_000_000)))
    };
    if let Some(share) = &written.share {
        time.share = *share.get_ref();
        if !(1..=MAX_SHARE).contains(&time.share) {
            return Err(span_of(share.span(), format!("a share of {}", time.share), format!("1 to {MAX_SHARE}")));
        }
    }
    if let Some(cap) = &written.cap {
        time.cap = parse_percent(cap.get_ref()).map_err(|m| span_of(cap.span(), m, "of one processor".to_owned()))?;
        if !(1..=MAX_CAP).contains(&time.cap) {
            return Err(span_of(cap.span(), format!("a cap of {}", cap.get_ref()), format!("1% to {}%", MAX_CAP / 10)));
        }
    }
    if let Some(burst) = &written.burst {
        time.burst = length(burst)?;
    }
    if let Some(reservation) = &written.reservation {
        time.period = length(&reservation.get_ref().period)?;
        time.budget = length(&reservation.get_ref().budget)?;
        if time.budget == 0 || time.budget > time.period {
            let hint = "the budget is more than nothing, and at most the period".to_owned();
            return Err(span_of(reservation.span(), "a reservation that is none".to_owned(), hint));
        }
    }
    if let Some(cpus) = &written.cpus {
        time.cpus = cpus.get_ref().iter().filter(|number| **number < 64).fold(0, |mask, number| mask | 1 << number);
        if time.cpus.count_ones() as usize != cpus.get_ref().len() {
            let hint = "write numbers from 0 to 63, each once, like [0, 2]".to_owned();
            return Err(span_of(cpus.span(), "a list of processors that is none".to_owned(), hint));
        }
    }
    Ok(time)
}

fn vcpus(count: Option<Spanned<u16>>) -> Result<u16, Diagnostic> {
    match count {
        None => Ok(1),
        Some(count) if (1..=MAX_VCPUS).contains(&usize::from(*count.get_ref())) => Ok(*count.get_ref()),
        Some(count) => {
            let (message, hint) =
                (format!("{} virtual CPUs", count.get_ref()), format!("a guest has 1 to {MAX_VCPUS}"));
            Err(Diagnostic::new(count.span(), message, hint))
        }
    }
}
