//! Archives for the initial RAM disk: cpio's "new ASCII" format.
//!
//! Linux Documentation/driver-api/early-userspace/buffer-format.rst: a header of thirteen 8-digit hexadecimal fields
//! behind the magic, the name with its zero, padding to 4 bytes, the content, padding to 4 bytes.

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a folder.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER | 0o755, &[], (0, 0));
    }

    /// Adds an executable file.
    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, REGULAR | 0o755, content, (0, 0));
    }

    /// Adds a plain file.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, REGULAR | 0o644, content, (0, 0));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, SYMLINK | 0o777, target.as_bytes(), (0, 0));
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER | 0o600, &[], (major, minor));
    }

    /// The whole archive, with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inode += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        self.bytes.extend(b"070701");
        for field in [self.inode, mode, 0, 0, links, 0] {
            self.field(field as usize);
        }
        self.field(content.len());
        for field in [0, 0, device.0, device.1] {
            self.field(field as usize);
        }
        self.field(name.len() + 1);
        self.field(0);
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn field(&mut self, value: usize) {
        self.bytes.extend(format!("{value:08X}").as_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.program("bin/a", b"12345");
        archive.link("bin/sh", "a");
        archive.device("console", 5, 1);
        archive.finish()
    }

    #[test]
    fn each_header_is_110_bytes_and_content_is_padded() {
        let bytes = sample();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"bin\0");
        // The header and "bin" with its zero are 114 bytes, padded to 116.
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[116 + 54..116 + 62], b"00000005");
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn cpio_lists_what_was_put_in() {
        let Ok(mut child) =
            Command::new("cpio").arg("-itv").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        else {
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 4, "{out}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with("bin"), "{out}");
        assert!(lines[1].starts_with("-rwxr-xr-x") && lines[1].contains(" 5 "), "{out}");
        assert!(lines[2].ends_with("bin/sh -> a"), "{out}");
        assert!(lines[3].starts_with("crw-------") && lines[3].contains("5,   1"), "{out}");
    }
}
