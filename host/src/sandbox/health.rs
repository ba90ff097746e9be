//! Asks the tl-init of a new container whether it is ready.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::Deserialize;

use crate::sandbox::registry::Daemon;

/// Time for a connection to the tl-init of a container on this machine.
const CONNECT: Duration = Duration::from_millis(100);
/// Time for its answer: it may wait for a CPU.
const ANSWER: Duration = Duration::from_secs(2);

/// The longest list of processes that is read: a new sandbox has few.
const LONGEST_LIST: u64 = 1 << 20;

#[derive(Deserialize)]
struct Processes {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    command: String,
    status: String,
    managed: Option<serde::de::IgnoredAny>,
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Asks once whether tl-init answers. An answer other than 200 is an error.
pub(crate) fn is_up(address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(address)?;
    stream.write_all(b"GET /api/v1/health HTTP/1.1\r\nHost: tl-host\r\nConnection: close\r\n\r\n")?;
    // The status line is enough.
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if &head == b"HTTP/1.1 200" {
        return Ok(());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    Err(io::Error::other(format!("its answer begins with {head:?}")))
}

/// Asks once whether the main process runs. tl-init answers before it has started it.
pub(crate) fn main_process_runs(daemon: &Daemon, command: &str) -> io::Result<()> {
    let mut stream = connect(daemon.address)?;
    let token = &daemon.token;
    // With HTTP/1.0 the body ends with the connection.
    write!(stream, "GET /api/v1/processes HTTP/1.0\r\nHost: tl-host\r\nAuthorization: Bearer {token}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST_LIST).read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").and_then(|end| answer.get(end + 4..));
    let list: Processes = serde_json::from_slice(body.unwrap_or_default())?;
    let is_main =
        |process: &Process| process.command == command && process.status == "running" && process.managed.is_none();
    if list.processes.iter().any(is_main) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "its main process does not run"))
}
