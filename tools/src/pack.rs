//! The pack: the checked manifest and the images, as the hypervisor takes them.

use crate::failure::{Failure, Outcome};
use crate::files;
use crate::linux;
use crate::manifest::{self, ImageRef, Machine};
use crate::{cargo, workspace::Workspace, xen};
use bulkhead_control::mac::Hash;
use bulkhead_core::load::{Protocol, detect};
use bulkhead_types::PAGE_SIZE;
use bulkhead_types::manifest::{Guest, Image, LoadAs, Manifest, Module, PackHeader};
use std::path::PathBuf;

/// The file that `image` stands for; it is fetched or built if need be.
pub fn resolve(workspace: &Workspace, image: &ImageRef) -> Outcome<PathBuf> {
    match image {
        ImageRef::File(path) => Ok(path.clone()),
        ImageRef::Debian => linux::kernel(workspace),
        ImageRef::DebianElf => linux::elf(workspace),
        ImageRef::Busybox => linux::initrd(workspace),
        ImageRef::Xen => xen::kernel(workspace),
        ImageRef::Suite(name) => cargo::guest(workspace, "bulkhead-suite", name),
        ImageRef::Hostile(name) => cargo::guest(workspace, "bulkhead-hostile", name),
    }
}

/// Fetches and builds every image of `machine`.
pub fn resolve_all(workspace: &Workspace, machine: &Machine) -> Outcome<()> {
    for guest in &machine.guests {
        resolve(workspace, &guest.kernel)?;
        for module in &guest.modules {
            resolve(workspace, &module.image)?;
        }
    }
    Ok(())
}

/// Packs `machine` with its images.
pub fn pack(workspace: &Workspace, machine: &Machine) -> Outcome<Vec<u8>> {
    let mut images = Images::default();
    let mut manifest = Manifest {
        console: machine.console,
        audit: machine.audit,
        zones: machine.zones.clone(),
        guests: Vec::new(),
        control: machine.control,
    };
    for guest in &machine.guests {
        images.hash = Hash::default();
        let mut modules = Vec::new();
        let (kernel, cmdline) = kernel(workspace, guest)?;
        let kernel = images.add(kernel)?;
        for module in &guest.modules {
            let image = images.add(resolve(workspace, &module.image)?)?;
            modules.push(Module { image, cmdline: module.cmdline.clone() });
        }
        manifest.guests.push(Guest {
            name: guest.name.clone(),
            zone: guest.zone,
            kernel,
            load: guest.load,
            cmdline,
            modules,
            memory: guest.memory,
            lazy: guest.lazy,
            vcpus: guest.vcpus,
            cpu: guest.cpu,
            restarts: guest.restarts,
            lease: guest.lease,
            origin: core::mem::take(&mut images.hash).finish(),
            test_exit: guest.test_exit,
            test_device: guest.test_device,
        });
    }
    images.finish(manifest)
}

/// The guest's kernel file, if it is of a kind that boots, and its command line. A multiboot kernel takes the first word
/// for its own name (as QEMU's loader has it), and finds the file's name there.
fn kernel(workspace: &Workspace, guest: &manifest::Guest) -> Outcome<(PathBuf, String)> {
    let path = resolve(workspace, &guest.kernel)?;
    let mut cmdline = guest.cmdline.clone();
    if guest.load == LoadAs::Detect {
        let protocol = detect(&files::read(&path)?).map_err(|e| {
            Failure::usage(format!("{} (kernel of guest {}): {e}", path.display(), guest.name))
                .hint("give a bzImage, a PVH or multiboot kernel, or say where to put a flat binary (load, --flat)")
        })?;
        if matches!(protocol, Protocol::Multiboot | Protocol::Multiboot2) {
            let name = path.file_name().map(|name| name.to_string_lossy().replace(char::is_whitespace, "_"));
            cmdline = format!("{} {cmdline}", name.unwrap_or_default()).trim_end().to_owned();
        }
    }
    Ok((path, cmdline))
}

/// Images behind each other; offsets count from the first until [`Images::finish`] moves them.
#[derive(Default)]
struct Images {
    bytes: Vec<u8>,
    count: usize,
    /// Of the images of one guest.
    hash: Hash,
}

impl Images {
    /// Adds a file. Each guest gets a copy of its own, even of the same file: a frame of memory has one owner.
    fn add(&mut self, path: PathBuf) -> Outcome<Image> {
        let content = files::read(&path)?;
        if content.is_empty() {
            return Err(Failure::usage(format!("{} is empty", path.display())).hint("give a kernel or a boot module"));
        }
        let image = Image { offset: bytes_of(&self.bytes), bytes: bytes_of(&content) };
        self.hash.update(&content);
        self.bytes.extend(content);
        pad(&mut self.bytes);
        self.count += 1;
        Ok(image)
    }

    fn finish(self, mut manifest: Manifest) -> Outcome<Vec<u8>> {
        let encode = |manifest: &Manifest| {
            postcard::to_allocvec(manifest).map_err(|e| Failure::failed(format!("the manifest does not encode: {e}")))
        };
        // Offsets are of variable length: leave room for them to grow.
        let most = encode(&manifest)?.len() + 8 * (1 + self.count + manifest.guests.len() * 17);
        let start = u64::try_from(PackHeader::BYTES + most).unwrap_or(u64::MAX).next_multiple_of(PAGE_SIZE);
        for guest in &mut manifest.guests {
            guest.kernel.offset += start;
            for module in &mut guest.modules {
                module.image.offset += start;
            }
        }
        let encoded = encode(&manifest)?;
        let header = PackHeader {
            manifest_bytes: u32::try_from(encoded.len()).unwrap_or(u32::MAX),
            pack_bytes: start + bytes_of(&self.bytes),
        };
        manifest.check(header.pack_bytes).map_err(|e| Failure::usage(e.to_string()))?;
        let mut out = header.encode().to_vec();
        out.extend(encoded);
        out.resize(usize::try_from(start).unwrap_or(usize::MAX), 0);
        out.extend(self.bytes);
        Ok(out)
    }
}

fn bytes_of(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

fn pad(bytes: &mut Vec<u8>) {
    let page = usize::try_from(PAGE_SIZE).unwrap_or(4096);
    bytes.resize(bytes.len().next_multiple_of(page), 0);
}

#[cfg(test)]
mod tests {
    use super::pack;
    use crate::manifest;
    use crate::workspace::Workspace;
    use bulkhead_types::manifest::Manifest;

    #[test]
    fn images_come_back_from_the_pack_and_each_guest_has_its_own() {
        let folder = std::env::temp_dir().join(format!("hv-pack-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("kernel"), vec![1; 5000]).unwrap();
        std::fs::write(folder.join("module"), b"module").unwrap();
        let text = r#"
            [[guest]]
            name = "a"
            kernel = "kernel"
            load = { flat = 0x100000 }
            initrd = "module"
            [[guest]]
            name = "b"
            kernel = "kernel"
            load = { flat = 0x100000 }
        "#;
        let machine = manifest::parse(text, &folder.join("m.toml")).unwrap();
        let packed = pack(&Workspace::find().unwrap(), &machine).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();

        let (header, manifest) = Manifest::from_pack(&packed).unwrap();
        assert_eq!(header.pack_bytes, packed.len() as u64);
        let at = |image: bulkhead_types::manifest::Image| {
            let start = usize::try_from(image.offset).unwrap();
            &packed[start..start + usize::try_from(image.bytes).unwrap()]
        };
        assert_eq!(at(manifest.guests[0].kernel), [1; 5000]);
        assert_eq!(at(manifest.guests[0].modules[0].image), b"module");
        assert_eq!(at(manifest.guests[1].kernel), [1; 5000]);
        assert_ne!(manifest.guests[0].kernel.offset, manifest.guests[1].kernel.offset);
        assert_eq!(packed.len(), 4096 + 8192 + 4096 + 8192);
    }
}
