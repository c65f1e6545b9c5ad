//! Where things are: the repository's root and what is built below it.

use crate::failure::{Failure, Outcome};
use std::path::{Path, PathBuf};

/// The repository on this machine.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The repository that `./hv` was called in (it sets `HV_ROOT`), or that this program was built from.
    pub fn find() -> Outcome<Self> {
        let root = std::env::var_os("HV_ROOT").map_or_else(|| built_from().to_owned(), PathBuf::from);
        if root.join("x86_64-hv.json").is_file() {
            return Ok(Self { root });
        }
        Err(Failure::usage(format!("{} is not Bulkhead's repository", root.display())).hint("start ./hv at its root"))
    }

    /// A path below the root.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder below `build/`, which is not tracked; made if it is not there.
    pub fn build(&self, relative: &str) -> Outcome<PathBuf> {
        let path = self.root.join("build").join(relative);
        std::fs::create_dir_all(&path)
            .map_err(|e| Failure::failed(format!("can not make the folder {}: {e}", path.display())))?;
        Ok(path)
    }

    /// Cargo's target folder.
    pub fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }
}

fn built_from() -> &'static Path {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR"));
    tools.parent().unwrap_or(tools)
}
