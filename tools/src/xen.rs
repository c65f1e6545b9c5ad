//! The guest Xen: a kernel by multiboot that is not ours, from the distribution's package.

use crate::failure::Outcome;
use crate::files::place;
use crate::machine::tool;
use crate::package;
use crate::workspace::Workspace;
use std::path::PathBuf;
use std::process::Command;

/// The package that depends on the newest.
const SYSTEM: &str = "xen-system-amd64";

/// Its ELF; fetched if it is not there.
pub fn kernel(workspace: &Workspace) -> Outcome<PathBuf> {
    let kernel = workspace.build("xen")?.join("xen");
    if !kernel.is_file() {
        let unpacked = package::fetch(workspace, &package::behind(&[SYSTEM], "xen-hypervisor-")?)?;
        let packed = package::boot_file(&unpacked, "xen", ".gz")?;
        tool(Command::new("gzip").arg("-d").arg(&packed))?;
        place(&packed.with_extension(""), &kernel)?;
        let _ = std::fs::remove_dir_all(&unpacked);
    }
    Ok(kernel)
}
