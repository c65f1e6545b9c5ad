//! Packages of the distribution, fetched and unpacked below `build/`, not installed.

use crate::failure::{Failure, Outcome};
use crate::machine::tool;
use crate::progress::Progress;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package with this prefix that one of `names` depends on.
pub fn behind(names: &[&str], prefix: &str) -> Outcome<String> {
    let look = || {
        names.iter().find_map(|name| {
            let output = Command::new("apt-cache").args(["depends", "--important", name]).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            let mut depends = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: ")).map(str::trim);
            depends.find(|d| d.starts_with(prefix)).map(str::to_owned)
        })
    };
    look().or_else(|| update_lists().ok().and_then(|()| look())).ok_or_else(|| {
        Failure::machine(format!("apt knows none of the packages {}", names.join(", ")))
            .hint("give a kernel of your own with --kernel, or run `apt-get update`")
    })
}

/// The file in /boot of an unpacked package whose name begins and ends so.
pub fn boot_file(unpacked: &Path, prefix: &str, suffix: &str) -> Outcome<PathBuf> {
    let boot = unpacked.join("boot");
    let mut names = std::fs::read_dir(&boot).into_iter().flatten().flatten().map(|e| e.path());
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    names.find(wanted).ok_or_else(|| Failure::failed(format!("there is no {prefix}*{suffix} in {}", boot.display())))
}

/// The module of the kernel in an unpacked package that lies there below `kernel/drivers`, if it is in a file of its own.
pub fn module(unpacked: &Path, name: &str) -> Option<PathBuf> {
    let versions =
        ["lib/modules", "usr/lib/modules"].into_iter().filter_map(|m| std::fs::read_dir(unpacked.join(m)).ok());
    let mut places = versions.flatten().flatten().map(|version| version.path().join("kernel/drivers").join(name));
    places.find(|path| path.is_file())
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
pub fn fetch(workspace: &Workspace, package: &str) -> Outcome<PathBuf> {
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
