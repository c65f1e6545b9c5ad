//! QEMU's monitor: stops a machine and writes its memory and registers to a file.
//!
//! The protocol is QMP: one JSON object a line, each way (QEMU, "QEMU Machine Protocol Specification"). QEMU connects to
//! us, as for the serial line. The file is an ELF core: a loadable segment for each range of RAM, by physical address,
//! and two notes for each processor, of which the one named `QEMU` has the control registers.

use crate::failure::{Failure, Outcome};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take to write a large memory.
const PATIENCE: Duration = Duration::from_secs(120);

/// The connection.
#[derive(Debug)]
pub struct Monitor {
    stream: TcpStream,
}

impl Monitor {
    /// A monitor on what QEMU has connected.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream }
    }

    /// Stops the machine for good and writes its RAM and registers to `path`.
    pub fn dump(&mut self, path: &Path) -> Outcome<()> {
        let fail = |e: std::io::Error| Failure::failed(format!("QEMU's monitor: {e}"));
        let path = std::path::absolute(path).map_err(fail)?;
        let Some(name) = path.to_str() else {
            return Err(Failure::usage(format!("QEMU can not write to {}", path.display())).hint("use a name in UTF-8"));
        };
        let file = serde_json::json!({
            "execute": "dump-guest-memory",
            "arguments": { "paging": false, "protocol": format!("file:{name}") },
        });
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        let mut replies = BufReader::new(self.stream.try_clone().map_err(fail)?).lines();
        let execute = |what: &str| serde_json::json!({ "execute": what });
        for command in [execute("qmp_capabilities"), execute("stop"), file] {
            writeln!(self.stream, "{command}").map_err(fail)?;
            loop {
                let line = replies.next().ok_or_else(|| Failure::failed("QEMU's monitor has gone"))?.map_err(fail)?;
                let reply: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(error) = reply.get("error") {
                    let said = error.get("desc").and_then(serde_json::Value::as_str).unwrap_or(&line);
                    return Err(Failure::failed(format!("no dump was written: {said}")).hint("check the path"));
                }
                // The greeting and events come in between.
                if reply.get("return").is_some() {
                    break;
                }
            }
        }
        Ok(())
    }
}
