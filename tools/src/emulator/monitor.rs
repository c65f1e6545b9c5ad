//! QEMU's monitor: stops a machine and writes its memory and registers to a file.
//!
//! The protocol is QMP: one JSON object a line, each way (QEMU, "QEMU Machine Protocol Specification"). QEMU connects to
//! us, as for the serial line. The file is an ELF core: a loadable segment for each range of RAM, by physical address,
//! and two notes for each processor, of which the one named `QEMU` has the control registers.

use crate::failure::{Failure, Outcome};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
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

    /// Gives the first processor an uncorrectable machine check, as broken hardware would.
    pub fn machine_check(&mut self) -> Outcome<()> {
        // Bank 0, valid, uncorrected, enabled; nothing can be restarted. SDM vol. 3B 16.3.2.2 "IA32_MCi_STATUS MSRs".
        self.line("mce 0 0 0xb000000000000000 0x4 0 0")
    }

    /// Lets all processors but the first stand still, as long as what it returns lives: QEMU's debugger stub stops the machine,
    /// and goes on with the first alone. `socket` is a name for it. GDB, "Packets", `vCont`.
    pub fn hold_others(&mut self, socket: &Path) -> Outcome<UnixStream> {
        let fail = |e: std::io::Error| Failure::failed(format!("QEMU's debugger stub: {e}"));
        self.line(&format!("gdbserver unix:{},server=on,wait=off", socket.display()))?;
        let mut stub = UnixStream::connect(socket).map_err(fail)?;
        // The checksum is the sum of the bytes between $ and #.
        stub.write_all(b"+$vCont;c:1#13").map_err(fail)?;
        Ok(stub)
    }

    /// Has a line of the monitor for people carried out.
    fn line(&mut self, line: &str) -> Outcome<()> {
        let command = serde_json::json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": line },
        });
        self.execute(&[serde_json::json!({ "execute": "qmp_capabilities" }), command])
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
        let execute = |what: &str| serde_json::json!({ "execute": what });
        self.execute(&[execute("qmp_capabilities"), execute("stop"), file])
            .map_err(|failure| failure.hint("check the path of the dump"))
    }

    /// Has `commands` carried out, one after the other.
    fn execute(&mut self, commands: &[serde_json::Value]) -> Outcome<()> {
        let fail = |e: std::io::Error| Failure::failed(format!("QEMU's monitor: {e}"));
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        let mut replies = BufReader::new(self.stream.try_clone().map_err(fail)?).lines();
        for command in commands {
            writeln!(self.stream, "{command}").map_err(fail)?;
            loop {
                let line = replies.next().ok_or_else(|| Failure::failed("QEMU's monitor has gone"))?.map_err(fail)?;
                let reply: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(error) = reply.get("error") {
                    let said = error.get("desc").and_then(serde_json::Value::as_str).unwrap_or(&line);
                    return Err(Failure::failed(format!("QEMU's monitor: {said}")));
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
