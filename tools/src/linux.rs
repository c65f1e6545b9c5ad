//! The guest Linux: a distribution's kernel as it is, and an initial RAM disk with busybox.
//!
//! Both come from the distribution's packages, which are fetched and unpacked below `build/linux`, not installed. On
//! Debian the kernel is that of `linux-image-cloud-amd64`.

use crate::cpio::Archive;
use crate::failure::{Failure, Outcome};
use crate::files::place;
use crate::workspace::Workspace;
use crate::{cargo, files, package, vmlinux};
use std::path::{Path, PathBuf};

/// Packages that depend on the newest kernel: Debian's for clouds, Ubuntu's for virtual machines.
const KERNELS: [&str; 3] = ["linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual"];
const BUSYBOX: &str = "busybox-static";
/// Modules of the kernel that hear the power button, and pass it on to a program, by their places below `kernel/drivers`. A
/// kernel may have them built in.
const MODULES: [&str; 2] = ["acpi/button.ko", "input/evdev.ko"];

/// What the first program leaves to a shell: the usual mounts, the power button, and then a shell with job control on the
/// console.
const RC: &str = "\
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
hostname bulkhead
for module in /lib/*.ko; do insmod $module; done
(head -c 1 /dev/input/event0 >/dev/null && poweroff -f) 2>/dev/null &
cd /root
echo \"Linux $(uname -r) with busybox; 'poweroff -f' ends it.\"
while :; do setsid cttyhack sh; done
";

/// The kernel's bzImage; fetched if it is not there.
pub fn kernel(workspace: &Workspace) -> Outcome<PathBuf> {
    let folder = workspace.build("linux")?;
    let (kernel, modules) = (folder.join("vmlinuz"), folder.join("modules"));
    if kernel.is_file() && modules.is_dir() {
        return Ok(kernel);
    }
    let package = package::behind(&KERNELS, "linux-image-")?;
    let unpacked = package::fetch(workspace, &package)?;
    let modules = workspace.build("linux/modules")?;
    for path in MODULES.iter().filter_map(|module| package::module(&unpacked, module)) {
        place(&path, &modules.join(path.file_name().unwrap_or_default()))?;
    }
    place(&package::boot_file(&unpacked, "vmlinuz", "")?, &kernel)?;
    let _ = std::fs::remove_dir_all(&unpacked);
    Ok(kernel)
}

/// The same kernel as an ELF; unpacked if it is not there.
pub fn elf(workspace: &Workspace) -> Outcome<PathBuf> {
    let elf = workspace.build("linux")?.join("vmlinux");
    if !elf.is_file() {
        let part = elf.with_extension(std::process::id().to_string());
        files::write(&part, &vmlinux::extract(&files::read(&kernel(workspace)?)?)?)?;
        place(&part, &elf)?;
    }
    Ok(elf)
}

/// The initial RAM disk; made if it is not there or its first program is newer.
pub fn initrd(workspace: &Workspace) -> Outcome<PathBuf> {
    let folder = workspace.build("linux")?;
    let busybox = folder.join("busybox");
    if !busybox.is_file() {
        let unpacked = package::fetch(workspace, BUSYBOX)?;
        let inside = ["bin/busybox", "usr/bin/busybox"].map(|p| unpacked.join(p));
        let found = inside.iter().find(|p| p.is_file());
        let found = found.ok_or_else(|| Failure::failed(format!("the package {BUSYBOX} has no busybox")))?;
        place(found, &busybox)?;
        let _ = std::fs::remove_dir_all(&unpacked);
    }
    let init = cargo::linux_init(workspace)?;
    let mut archive = archive(&files::read(&init)?, &files::read(&busybox)?);
    kernel(workspace)?;
    for module in MODULES.iter().filter_map(|module| Path::new(module).file_name()) {
        let path = folder.join("modules").join(module);
        if path.is_file() {
            archive.file(&format!("lib/{}", module.display()), &files::read(&path)?);
        }
    }
    let archive = archive.finish();
    let path = folder.join("initrd.cpio");
    if std::fs::read(&path).is_ok_and(|there| there == archive) {
        return Ok(path);
    }
    let part = folder.join(format!("initrd-{}.part", std::process::id()));
    files::write(&part, &archive)?;
    place(&part, &path)?;
    Ok(path)
}

fn archive(init: &[u8], busybox: &[u8]) -> Archive {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "etc", "lib", "proc", "root", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.device("dev/ttyS0", 4, 64);
    archive.program("init", init);
    archive.program("bin/busybox", busybox);
    archive.link("bin/sh", "busybox");
    archive.file("etc/rc", RC.as_bytes());
    archive
}
