//! Reading and writing files, with errors that name the file.

use crate::failure::{Failure, Outcome};
use std::path::Path;

/// Bytes of a file.
pub fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|e| Failure::usage(format!("can not read {}: {e}", path.display())))
}

/// Text of a file.
pub fn read_text(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| Failure::usage(format!("can not read {}: {e}", path.display())))
}

/// Writes a file whole.
pub fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    std::fs::write(path, bytes).map_err(|e| Failure::failed(format!("can not write {}: {e}", path.display())))
}

/// When a file was last changed.
pub fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

/// Puts the file `from` in the place of `to`, in one step.
pub fn place(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::rename(from, to).map_err(|e| Failure::failed(format!("can not make {}: {e}", to.display())))
}
