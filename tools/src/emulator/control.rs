//! The machine's control line (COM2) as a Unix socket that `hv ctl` connects to.
//!
//! The emulator connects to us, as for the first serial port, so that both emulators are alike. One client has the line
//! at a time; the next one waits until it hangs up, in the order in which they came. What the machine says while there is no client is lost, as on a line without a plug.

use crate::failure::{Failure, Outcome};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The file beside the socket that has the key.
pub fn key_file(line: &Path) -> PathBuf {
    let mut name = line.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

/// The socket, and the file with the key; both go with it.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// Offers `machine`'s line at `path`, and `key` beside it, to this user.
    pub fn offer(path: &Path, key: &[u8; 32], machine: TcpStream) -> Outcome<Self> {
        let fail = |e: std::io::Error| {
            Failure::usage(format!("can not offer the control line at {}: {e}", path.display()))
                .hint("give --control another path")
        };
        if UnixStream::connect(path).is_ok() {
            return Err(Failure::usage(format!("another machine's control line is at {}", path.display()))
                .hint("give --control another path"));
        }
        // What another run left behind.
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(key_file(path));
        let listener = UnixListener::bind(path).map_err(fail)?;
        // An answer would wait for the acknowledgement of what was sent before it, which waits for the answer.
        machine.set_nodelay(true).map_err(fail)?;
        let control = Self { path: path.to_owned() };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(key_file(path)).map_err(fail)?;
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{digits}").map_err(fail)?;
        thread::spawn(move || relay(&listener, &machine));
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(key_file(&self.path));
    }
}

/// Passes bytes between the machine and one client after the other.
fn relay(listener: &UnixListener, machine: &TcpStream) {
    let client: Arc<Mutex<Option<UnixStream>>> = Arc::default();
    let (Ok(mut from), Ok(mut to)) = (machine.try_clone(), machine.try_clone()) else { return };
    let present = Arc::clone(&client);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut present = present.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(stream) = present.as_mut() {
                // A client that has gone is noticed by who reads from it.
                let _ = stream.write_all(buffer.get(..count).unwrap_or_default());
            }
        }
        // The machine has ended.
        if let Some(stream) = present.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    for mut stream in listener.incoming().flatten() {
        // No frame. One that has not waited for its turn is not there any more: what it said is for nobody.
        if stream.write_all(&[0]).is_err() {
            continue;
        }
        let Ok(mut reader) = stream.try_clone() else { continue };
        *client.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        let copied = std::io::copy(&mut reader, &mut to);
        *client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if copied.is_err() && machine.peer_addr().is_err() {
            return;
        }
    }
}
