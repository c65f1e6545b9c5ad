//! The packed manifest, and the file that a person writes.

use crate::Feed;
use bulkhead_types::manifest::{
    ConsoleMode, CpuTime, Guest, Image, LoadAs, MAX_CMDLINE, MAX_GUESTS, MAX_MEMORY, MIN_MEMORY, Manifest, Module,
    PackHeader, Zone, is_name,
};
use bulkhead_types::{Barriers, PAGE_SIZE};

fn pack(manifest: &Manifest, pack_bytes: u64) -> Vec<u8> {
    let encoded = postcard::to_allocvec(manifest).expect("a manifest can be encoded");
    let header = PackHeader { manifest_bytes: encoded.len() as u32, pack_bytes };
    [header.encode().to_vec(), encoded].concat()
}

/// All that the hypervisor counts on, said once more.
fn assert_good(manifest: &Manifest, pack_bytes: u64) {
    assert!((1..=MAX_GUESTS).contains(&manifest.guests.len()) && pack_bytes.is_multiple_of(PAGE_SIZE));
    assert!(manifest.zones.iter().all(|zone| is_name(&zone.name)));
    let mut names: Vec<_> = manifest.guests.iter().map(|guest| &guest.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), manifest.guests.len(), "names are unique");
    for guest in &manifest.guests {
        let images = guest.modules.iter().map(|module| module.image).chain([guest.kernel]);
        for image in images {
            let end = image.offset.checked_add(image.bytes).expect("an image ends");
            assert!(
                end <= pack_bytes && image.offset >= PackHeader::BYTES as u64 && image.offset.is_multiple_of(PAGE_SIZE)
            );
        }
        assert!(is_name(&guest.name) && usize::from(guest.zone) < manifest.zones.len());
        assert!((MIN_MEMORY..=MAX_MEMORY).contains(&guest.memory) && guest.memory.is_multiple_of(PAGE_SIZE));
        assert!(guest.kernel.bytes > 0 && (1..=8).contains(&guest.vcpus) && guest.modules.len() <= 16);
        for cmdline in guest.modules.iter().map(|module| &module.cmdline).chain([&guest.cmdline]) {
            assert!(cmdline.len() <= MAX_CMDLINE && !cmdline.contains('\0'), "a command line of {}", cmdline.len());
        }
    }
}

fn text(feed: &mut Feed<'_>) -> String {
    match feed.u8() {
        byte @ 0..0xC0 => {
            ["a", "b", "office", "x-1", "", "a b", "q\0"][usize::from(byte) % 7].repeat(1 + usize::from(byte >> 6))
        }
        0xC0 => "c".repeat(MAX_CMDLINE + usize::from(feed.u8() & 1)),
        byte => String::from_utf8_lossy(feed.bytes(usize::from(byte & 31))).into_owned(),
    }
}

fn zone(feed: &mut Feed<'_>) -> Zone {
    let bits = feed.u8();
    let set = |bit: u8| bits >> bit & 1 != 0;
    Zone { name: text(feed), barriers: Barriers { ibpb: set(0), l1d: set(1), verw: set(2), ssbd: set(3) } }
}

fn image(feed: &mut Feed<'_>) -> Image {
    let offset = if feed.flag() { feed.magnitude() } else { PAGE_SIZE * u64::from(feed.u8() & 7) };
    Image { offset, bytes: if feed.flag() { feed.magnitude() } else { u64::from(feed.u16()) } }
}

fn cpu(feed: &mut Feed<'_>) -> CpuTime {
    CpuTime {
        share: feed.u16().into(),
        cap: feed.u16().into(),
        burst: feed.magnitude(),
        period: feed.magnitude(),
        budget: feed.magnitude(),
        cpus: feed.magnitude(),
    }
}

fn guest(feed: &mut Feed<'_>) -> Guest {
    Guest {
        name: text(feed),
        zone: u16::from(feed.u8() & 3),
        kernel: image(feed),
        load: if feed.flag() { LoadAs::Detect } else { LoadAs::Flat { at: feed.magnitude() } },
        cmdline: text(feed),
        modules: (0..feed.u8() & 3).map(|_| Module { image: image(feed), cmdline: text(feed) }).collect(),
        memory: if feed.flag() { feed.magnitude() } else { u64::from(feed.u8()) << 20 },
        lazy: feed.flag(),
        vcpus: u16::from(feed.u8() % 10),
        cpu: if feed.flag() { CpuTime::default() } else { cpu(feed) },
        restarts: feed.u16(),
        lease: feed.u16().into(),
        origin: [feed.u8(); 32],
        test_exit: feed.flag(),
        test_device: feed.flag(),
    }
}

/// A pack of any bytes; or one that was made of a manifest, with some bytes changed.
pub fn packed(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut bytes = if feed.flag() {
        let manifest = Manifest {
            console: if feed.flag() { ConsoleMode::Lines } else { ConsoleMode::Framed },
            audit: feed.flag(),
            zones: (0..feed.u8() & 3).map(|_| zone(&mut feed)).collect(),
            guests: (0..feed.u8() & 3).map(|_| guest(&mut feed)).collect(),
            control: feed.flag().then_some([7; 32]),
        };
        let pack_bytes = if feed.flag() { feed.magnitude() } else { 8 * PAGE_SIZE };
        let bytes = pack(&manifest, pack_bytes);
        let checked = manifest.check(pack_bytes);
        assert_eq!(Manifest::from_pack(&bytes).map(|(_, back)| back), checked.map(|()| manifest), "it comes back");
        bytes
    } else {
        let rest = feed.rest();
        let header = PackHeader { manifest_bytes: rest.len() as u32, pack_bytes: 1 << 40 };
        [&header.encode()[..], rest].concat()
    };
    for change in feed.rest().chunks_exact(3) {
        let length = bytes.len();
        bytes[usize::from(u16::from_le_bytes([change[0], change[1]])) % length] ^= change[2];
    }
    match Manifest::from_pack(&bytes) {
        Ok((header, manifest)) => {
            assert_good(&manifest, header.pack_bytes);
            let again = pack(&manifest, header.pack_bytes);
            assert_eq!(Manifest::from_pack(&again).map(|(_, back)| back), Ok(manifest));
        }
        Err(error) => drop(error.to_string()),
    }
}

/// The machine that `hv` makes of a file, as it would be packed: images of a page each behind the manifest.
fn as_packed(machine: &crate::hv::manifest::Machine) -> Manifest {
    // A page for each image, behind the one of the manifest.
    let pages = std::cell::Cell::new(0);
    let image = || {
        pages.set(pages.get() + 1);
        Image { offset: pages.get() * PAGE_SIZE, bytes: PAGE_SIZE }
    };
    let guest = |guest: &crate::hv::manifest::Guest| Guest {
        name: guest.name.clone(),
        zone: guest.zone,
        kernel: image(),
        load: guest.load,
        cmdline: guest.cmdline.clone(),
        modules: guest
            .modules
            .iter()
            .map(|module| Module { image: image(), cmdline: module.cmdline.clone() })
            .collect(),
        memory: guest.memory,
        lazy: guest.lazy,
        vcpus: guest.vcpus,
        cpu: guest.cpu,
        restarts: guest.restarts,
        lease: guest.lease,
        origin: [0; 32],
        test_exit: guest.test_exit,
        test_device: guest.test_device,
    };
    Manifest {
        console: machine.console,
        audit: machine.audit,
        zones: machine.zones.clone(),
        guests: machine.guests.iter().map(guest).collect(),
        control: machine.control,
    }
}

/// Bytes of a pack with room for all images of all guests.
const PACK: u64 = (1 << 16) * PAGE_SIZE;

/// Words that manifests are made of: a byte stands for one, so that most inputs are nearly right.
const WORDS: [&str; 64] = [
    "[[guest]]\n",
    "[[zone]]\n",
    "name = ",
    "kernel = ",
    "zone = ",
    "memory = ",
    "cmdline = ",
    "modules = ",
    "initrd = ",
    "load = ",
    "vcpus = ",
    "lazy = ",
    "test-exit = ",
    "test-device = ",
    "audit = ",
    "barriers = ",
    "\n",
    "\n",
    "\n",
    " ",
    "\"a\"",
    "\"b\"",
    "\"office\"",
    "\"\"",
    "\"16M\"",
    "\"2M\"",
    "\"1T\"",
    "\"1025G\"",
    "\"1M\"",
    "\"64Q\"",
    "\"@busybox\"",
    "\"@suite/x\"",
    "\"@debian\"",
    "\"@\"",
    "true",
    "false",
    "1",
    "2",
    "0x7c00",
    "-1",
    "{ flat = ",
    " }",
    "{ path = ",
    ", cmdline = ",
    "[",
    "]",
    ", ",
    "\"detect\"",
    "\"flat\"",
    "\"\\u0000\"",
    "\"a b\"",
    "# x\n",
    "'",
    "\"",
    "\\",
    ".",
    "=",
    "\"\"\"",
    "ibpb",
    "l1d",
    "\"none\"",
    "\"all\"",
    "99999999999999999999",
    "\u{e4}\u{2603}",
];

/// The file that a person writes: words, or any text.
pub fn toml(data: &[u8]) {
    let mut text = String::new();
    for &byte in data {
        match byte {
            0..0x40 => text.push_str(WORDS[usize::from(byte)]),
            0xC0.. => text.push_str("[[guest]]\nname = \"g\"\nkernel = \"k\"\n"),
            _ => text.push(char::from(byte & 0x7F)),
        }
    }
    match crate::hv::manifest::parse(&text, std::path::Path::new("m.toml")) {
        Ok(machine) => {
            let manifest = as_packed(&machine);
            let checked = manifest.check(PACK);
            assert_eq!(checked, Ok(()), "what `hv` takes the hypervisor takes: {text:?}");
        }
        Err(failure) => {
            assert!(failure.message.starts_with("m.toml:"), "a mistake has a place: {failure}");
            assert_eq!(failure.status, 2);
        }
    }
}
