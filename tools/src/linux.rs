//! The guest Linux: a distribution's kernel as it is, and an initial RAM disk with busybox.
//!
//! Both come from the distribution's packages, which are fetched and unpacked below `build/linux`, not installed. On
//! Debian the kernel is that of `linux-image-cloud-amd64`.

use crate::cpio::Archive;
use crate::failure::{Failure, Outcome};
use crate::machine::tool;
use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{cargo, files, vmlinux};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages that depend on the newest kernel: Debian's for clouds, Ubuntu's for virtual machines.
const KERNELS: [&str; 3] = ["linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual"];
const BUSYBOX: &str = "busybox-static";

/// What the first program leaves to a shell: the usual mounts, and then a shell with job control on the console.
const RC: &str = "\
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
hostname bulkhead
cd /root
echo \"Linux $(uname -r) with busybox; 'poweroff -f' ends it.\"
while :; do setsid cttyhack sh; done
";

/// The kernel's bzImage; fetched if it is not there.
pub fn kernel(workspace: &Workspace) -> Outcome<PathBuf> {
    let kernel = workspace.build("linux")?.join("vmlinuz");
    if kernel.is_file() {
        return Ok(kernel);
    }
    let Some(package) = kernel_package().or_else(|| update_lists().ok().and_then(|()| kernel_package())) else {
        return Err(Failure::machine("apt knows no package of a Linux kernel")
            .hint("give a kernel of your own with --kernel, or run `apt-get update`"));
    };
    let unpacked = fetch(workspace, &package)?;
    let boot = std::fs::read_dir(unpacked.join("boot")).into_iter().flatten().flatten();
    let found =
        boot.map(|e| e.path()).find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")));
    let found = found.ok_or_else(|| Failure::failed(format!("the package {package} has no kernel in /boot")))?;
    place(&found, &kernel)?;
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
        let unpacked = fetch(workspace, BUSYBOX)?;
        let inside = ["bin/busybox", "usr/bin/busybox"].map(|p| unpacked.join(p));
        let found = inside.iter().find(|p| p.is_file());
        let found = found.ok_or_else(|| Failure::failed(format!("the package {BUSYBOX} has no busybox")))?;
        place(found, &busybox)?;
        let _ = std::fs::remove_dir_all(&unpacked);
    }
    let init = cargo::linux_init(workspace)?;
    let archive = archive(&files::read(&init)?, &files::read(&busybox)?);
    let path = folder.join("initrd.cpio");
    if std::fs::read(&path).is_ok_and(|there| there == archive) {
        return Ok(path);
    }
    let part = folder.join(format!("initrd-{}.part", std::process::id()));
    files::write(&part, &archive)?;
    place(&part, &path)?;
    Ok(path)
}

fn archive(init: &[u8], busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.device("dev/ttyS0", 4, 64);
    archive.program("init", init);
    archive.program("bin/busybox", busybox);
    archive.link("bin/sh", "busybox");
    archive.file("etc/rc", RC.as_bytes());
    archive.finish()
}

/// The package of the newest kernel, by what the well-known packages depend on.
fn kernel_package() -> Option<String> {
    KERNELS.iter().find_map(|name| {
        let output = Command::new("apt-cache").args(["depends", "--important", name]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let depends = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
        depends.map(str::trim).find(|d| d.starts_with("linux-image-")).map(str::to_owned)
    })
}

fn update_lists() -> Outcome<()> {
    eprintln!("asking apt for its lists of packages");
    let root = rustix::process::geteuid().is_root();
    let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        command.arg("apt-get");
    }
    tool(command.arg("update"))
}

/// Downloads a package and unpacks it; the folder.
fn fetch(workspace: &Workspace, package: &str) -> Outcome<PathBuf> {
    let folder = workspace.build(&format!("fetch/{package}"))?;
    let _ = std::fs::remove_dir_all(&folder);
    let folder = workspace.build(&format!("fetch/{package}"))?;
    eprintln!("fetching the package {package}");
    let _progress = Progress::start(format!("fetching {package}"));
    let download = || tool(Command::new("apt-get").args(["download", package]).current_dir(&folder));
    download().or_else(|_| update_lists().and_then(|()| download())).map_err(|e| {
        Failure::machine(format!("can not fetch {package}: {}", e.message))
            .hint("check the network and `apt-get update`, or give files of your own with --kernel and --initrd")
    })?;
    let mut inside = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path());
    let package_file = inside.find(|p| p.extension().is_some_and(|e| e == "deb"));
    let package_file = package_file.ok_or_else(|| Failure::failed(format!("apt-get fetched no {package}")))?;
    let unpacked = folder.join("unpacked");
    tool(Command::new("dpkg").arg("-x").arg(&package_file).arg(&unpacked))?;
    let _ = std::fs::remove_file(&package_file);
    Ok(unpacked)
}

fn place(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::rename(from, to).map_err(|e| Failure::failed(format!("can not make {}: {e}", to.display())))
}
