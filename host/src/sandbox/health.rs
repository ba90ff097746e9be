//! Asks the tl-init of a new container whether it is ready.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// Time for a connection to the tl-init of a container on this machine.
const CONNECT: Duration = Duration::from_millis(100);
/// Time for its whole answer: it may wait for a CPU.
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

/// A connection on which reading ends at a deadline, however slowly the bytes come: root in a sandbox can take control of
/// its tl-init.
struct Connection {
    stream: TcpStream,
    deadline: Instant,
}

impl Connection {
    /// Connects and sends a request.
    fn send(address: SocketAddr, request: &str) -> io::Result<Connection> {
        let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.write_all(request.as_bytes())?;
        Ok(Connection { stream, deadline: Instant::now() + ANSWER })
    }
}

impl Read for Connection {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(out)
    }
}

/// Asks once whether tl-init answers. An answer other than 200 is an error.
pub(crate) fn is_up(address: SocketAddr) -> io::Result<()> {
    let request = "GET /api/v1/health HTTP/1.1\r\nHost: tl-host\r\nConnection: close\r\n\r\n";
    // The status line is enough.
    let mut head = [0; 12];
    Connection::send(address, request)?.read_exact(&mut head)?;
    if &head == b"HTTP/1.1 200" {
        return Ok(());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    Err(io::Error::other(format!("its answer begins with {head:?}")))
}

/// Asks once whether the main process runs. tl-init answers before it has started it.
pub(crate) fn main_process_runs(address: SocketAddr, token: &str, command: &str) -> io::Result<()> {
    // With HTTP/1.0 the body ends with the connection.
    let request = format!("GET /api/v1/processes HTTP/1.0\r\nHost: tl-host\r\nAuthorization: Bearer {token}\r\n\r\n");
    let mut answer = Vec::new();
    Connection::send(address, &request)?.take(LONGEST_LIST).read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").and_then(|end| answer.get(end + 4..));
    let list: Processes = serde_json::from_slice(body.unwrap_or_default())?;
    let is_main =
        |process: &Process| process.command == command && process.status == "running" && process.managed.is_none();
    if list.processes.iter().any(is_main) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "its main process does not run"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that answers a connection with a byte from time to time, and never with a whole answer.
    #[test]
    fn an_answer_that_trickles_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let trickle = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Until the client has closed the connection.
            while stream.write_all(b"H").is_ok() {
                thread::sleep(ANSWER / 20);
            }
        });
        let begun = Instant::now();
        let (tell, told) = std::sync::mpsc::channel();
        thread::spawn(move || tell.send(main_process_runs(address, "token", "sh")));
        let error = told.recv_timeout(ANSWER * 5).expect("an end at the deadline").unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error:?}");
        assert!(begun.elapsed() >= ANSWER, "{:?}", begun.elapsed());
        trickle.join().unwrap();
    }
}
