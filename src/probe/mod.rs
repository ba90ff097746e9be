//! One probe: a connection to a service and, for HTTP, one request and the status line of its response. Health checks and
//! waits for a port are made of them.
//!
//! No service can block the daemon or make its memory grow: no call here blocks, at most [`status_line::MAX`] bytes of
//! a response are kept, and who makes a probe ends one that takes too long.

pub(crate) mod status_line;

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt};

use self::status_line::Reading;
use crate::model::{HealthCheck, HealthKind};

/// How a probe ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The service is healthy.
    Healthy,
    /// The service is not healthy: a sentence that says why.
    Failed(String),
    /// The probe could not be made, for lack of descriptors, ports or memory. It says nothing about the service.
    Void(io::Error),
}

/// A probe in progress. It connects to 127.0.0.1, and to `[::1]` if the former has no listener.
#[derive(Debug)]
pub(crate) struct Probe {
    stream: TcpStream,
    address: SocketAddr,
    /// If it tries `[::1]`, a sentence about the attempt on 127.0.0.1. Also set if there is no second address to try.
    first: Option<String>,
    connected: bool,
    registered: bool,
    /// `None` for a TCP check.
    http: Option<Http>,
}

/// The request and the response.
#[derive(Debug, Default)]
struct Http {
    path: String,
    /// Empty until the connection is established, because the request names its address.
    request: Vec<u8>,
    /// Every status will do, not only those from 200 to 399.
    any_status: bool,
    /// Number of bytes of the request that were sent.
    sent: usize,
    /// The bytes of the response that were received.
    response: Vec<u8>,
}

/// Why there is no connection.
enum Unconnected {
    /// The address has no listener; described by a sentence.
    NoListener(String),
    /// The outcome of the probe, which another address cannot change.
    Ended(Outcome),
}

impl Probe {
    /// Begins the probe of a health check.
    pub(crate) fn connect(check: &HealthCheck) -> Result<Probe, Outcome> {
        let path = || check.path.clone().unwrap_or_else(|| "/".to_owned());
        let http = (check.kind == HealthKind::Http).then(|| Http { path: path(), ..Http::default() });
        Probe::connect_to_loopback(check.port, http)
    }

    /// Begins a probe that any HTTP response to a request for `path` satisfies. `address` is the one at which the service
    /// listens.
    pub(crate) fn of_any_status(address: IpAddr, port: u16, path: &str) -> Result<Probe, Outcome> {
        let http = Some(Http { path: path.to_owned(), any_status: true, ..Http::default() });
        if address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            return Probe::connect_to_loopback(port, http);
        }
        let address = SocketAddr::from((address, port));
        match begin(address) {
            // There is no second address: as if it were the second one.
            Ok(stream) => {
                Ok(Probe { stream, address, first: Some(String::new()), connected: false, registered: false, http })
            }
            Err(Unconnected::NoListener(why)) => Err(Outcome::Failed(why)),
            Err(Unconnected::Ended(outcome)) => Err(outcome),
        }
    }

    fn connect_to_loopback(port: u16, http: Option<Http>) -> Result<Probe, Outcome> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (stream, address, first) = match begin(address) {
            Ok(stream) => (stream, address, None),
            Err(Unconnected::NoListener(why)) => {
                let (stream, address) = begin_second(port, &why)?;
                (stream, address, Some(why))
            }
            Err(Unconnected::Ended(outcome)) => return Err(outcome),
        };
        Ok(Probe { stream, address, first, connected: false, registered: false, http })
    }

    /// Whether it is registered for events.
    pub(crate) fn is_registered(&self) -> bool {
        self.registered
    }

    /// Registers it for events. Call it after [`Probe::advance`], and call that again when an event arrives.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.registered = true;
        Ok(())
    }

    /// Continues as far as possible without blocking. Returns the outcome if the probe has ended. Otherwise it may need
    /// to be registered again, because it opens a new connection for the second address.
    pub(crate) fn advance(&mut self, registry: &Registry) -> Option<Outcome> {
        while !self.connected {
            match (self.finish_connecting(), &self.first) {
                (Ok(true), _) => {
                    self.connected = true;
                    if let Some(http) = &mut self.http {
                        http.request = request(self.address, &http.path).into_bytes();
                    }
                }
                (Ok(false), _) => return None,
                (Err(Unconnected::NoListener(why)), Some(first)) => {
                    return Some(Outcome::Failed(format!("{first}; {why}")));
                }
                (Err(Unconnected::NoListener(why)), None) => match begin_second(self.address.port(), &why) {
                    Ok((stream, address)) => {
                        self.deregister(registry);
                        (self.stream, self.address, self.first) = (stream, address, Some(why));
                    }
                    Err(outcome) => return Some(outcome),
                },
                (Err(Unconnected::Ended(outcome)), _) => return Some(outcome),
            }
        }
        let Some(http) = &mut self.http else { return Some(Outcome::Healthy) };
        let sending = http.send(&mut self.stream);
        // Receive even if sending failed: a server may respond and close before it has read the request.
        match http.receive(&mut self.stream) {
            Ok(Some(reading)) => http.judge(self.address, reading),
            Ok(None) => sending.err().map(|error| broken(self.address, &error)),
            Err(error) => Some(broken(self.address, &error)),
        }
    }

    /// The outcome after its timeout.
    pub(crate) fn timed_out(&self, timeout_ms: u64) -> Outcome {
        let what = match &self.http {
            _ if !self.connected => "did not accept a connection",
            Some(http) if !http.response.is_empty() => "did not finish its status line",
            Some(http) if http.sent < http.request.len() => "did not read the request",
            _ => "did not answer",
        };
        failed(self.address, format_args!("{what} within {timeout_ms} ms"))
    }

    /// Closes the connection, with a FIN or with a reset.
    ///
    /// A FIN leaves the connection in TIME_WAIT for a minute: 1,000 probes per second would keep 60,000 of them, more
    /// than there are ephemeral ports for one service, and slow down `connect(2)` for all processes. A reset leaves
    /// nothing, but is an error to the service, which many services log.
    pub(crate) fn close(mut self, registry: &Registry, with_fin: bool) {
        self.deregister(registry);
        if !with_fin {
            let _ = setsockopt(&self.stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }

    fn deregister(&mut self, registry: &Registry) {
        if std::mem::take(&mut self.registered) {
            // Closing is not enough: a child between fork and exec can still hold the connection open, and its events
            // would come with the token of a later probe.
            let _ = registry.deregister(&mut self.stream);
        }
    }

    /// Whether the connection is established; false while it is being established.
    fn finish_connecting(&self) -> Result<bool, Unconnected> {
        match self.stream.take_error() {
            Ok(None) => {}
            // Only an established connection can be reset.
            Ok(Some(error)) if error.kind() == ErrorKind::ConnectionReset => {
                return match self.http {
                    Some(_) => Err(Unconnected::Ended(broken(self.address, &error))),
                    None => Ok(true),
                };
            }
            Ok(Some(error)) | Err(error) => return Err(unreachable(self.address, &error)),
        }
        let peer = match self.stream.peer_addr() {
            Ok(peer) => peer,
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(unreachable(self.address, &error)),
        };
        // If a port of the ephemeral range has no listener, the kernel may choose the same port for this end, and TCP
        // then connects the socket to itself.
        if self.stream.local_addr().is_ok_and(|local| local == peer) {
            let why = sentence(self.address, "has no listener; the connection met itself");
            return Err(Unconnected::NoListener(why));
        }
        Ok(true)
    }
}

/// Begins to connect to `address`.
fn begin(address: SocketAddr) -> Result<TcpStream, Unconnected> {
    TcpStream::connect(address).map_err(|error| match error {
        error if is_local_shortage(&error) => Unconnected::Ended(Outcome::Void(error)),
        error => unreachable(address, &error),
    })
}

/// Begins to connect to `[::1]` after 127.0.0.1 had no listener, which the sentence `first` describes. The timeout
/// of the probe continues.
fn begin_second(port: u16, first: &str) -> Result<(TcpStream, SocketAddr), Outcome> {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    match begin(address) {
        Ok(stream) => Ok((stream, address)),
        Err(Unconnected::NoListener(why)) => Err(Outcome::Failed(format!("{first}; {why}"))),
        Err(Unconnected::Ended(Outcome::Void(error))) if error.kind() != ErrorKind::AddrNotAvailable => {
            Err(Outcome::Void(error))
        }
        // The machine has no IPv6, which says nothing about the service.
        Err(Unconnected::Ended(_)) => Err(Outcome::Failed(first.to_owned())),
    }
}

impl Http {
    fn send(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while let Some(rest) = self.request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives up to one status line, and returns the result of parsing it; `None` if the rest has not arrived yet.
    fn receive(&mut self, stream: &mut TcpStream) -> io::Result<Option<Reading>> {
        loop {
            let mut room = [0; status_line::MAX];
            let room = room.get_mut(self.response.len()..).unwrap_or_default();
            match stream.read(room) {
                Ok(0) => return Ok(Some(Reading::Incomplete)),
                Ok(count) => self.response.extend(room.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            match status_line::read(&self.response) {
                Reading::Incomplete => {}
                reading => return Ok(Some(reading)),
            }
        }
    }

    /// The outcome for a status line.
    fn judge(&self, address: SocketAddr, reading: Reading) -> Option<Outcome> {
        Some(match reading {
            Reading::Status(200..=399) => Outcome::Healthy,
            Reading::Status(_) if self.any_status => Outcome::Healthy,
            Reading::Status(status) => failed(address, format_args!("answered with status {status}, not 2xx or 3xx")),
            Reading::TooLong => {
                failed(address, format_args!("answered with a status line of more than {} bytes", status_line::MAX))
            }
            Reading::Garbage => {
                let start = self.response.get(..40).unwrap_or(&self.response);
                failed(address, format_args!("answered with what is not HTTP: {:?}", String::from_utf8_lossy(start)))
            }
            Reading::Incomplete if self.response.is_empty() => {
                failed(address, "closed the connection without an answer")
            }
            Reading::Incomplete => failed(address, "closed the connection within its status line"),
        })
    }
}

fn request(address: SocketAddr, path: &str) -> String {
    let agent = concat!("tl-supervisor/", env!("CARGO_PKG_VERSION"));
    let headers = format!("Host: {address}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n");
    format!("GET {path} HTTP/1.1\r\n{headers}\r\n")
}

/// A sentence about the address.
fn sentence(address: SocketAddr, what: impl fmt::Display) -> String {
    format!("{address} {what}")
}

fn failed(address: SocketAddr, what: impl fmt::Display) -> Outcome {
    Outcome::Failed(sentence(address, what))
}

fn unreachable(address: SocketAddr, error: &io::Error) -> Unconnected {
    match error.kind() {
        ErrorKind::ConnectionRefused => Unconnected::NoListener(sentence(address, "refused the connection")),
        _ => Unconnected::Ended(failed(address, format_args!("cannot be connected to: {error}"))),
    }
}

fn broken(address: SocketAddr, error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => failed(address, "reset the connection"),
        _ => failed(address, format_args!("cannot be talked to: {error}")),
    }
}

/// Whether connecting failed for lack of descriptors, memory or ephemeral ports on this side.
fn is_local_shortage(error: &io::Error) -> bool {
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EAGAIN, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.contains(&code))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};

    use super::*;

    #[test]
    fn a_connection_to_itself_is_a_failure() {
        let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        socket::bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        let own = socket::getsockname::<SockaddrIn>(fd.as_raw_fd()).unwrap();
        socket::connect(fd.as_raw_fd(), &own).unwrap();
        let port = own.port();
        let stream = TcpStream::from_std(fd.into());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (first, registry) = (None, mio::Poll::new().unwrap());
        let mut probe = Probe { stream, address, first, connected: false, registered: false, http: None };
        // 127.0.0.1 has no other listener, so [::1] is tried next, if the machine has it.
        let outcome = loop {
            if let Some(outcome) = probe.advance(registry.registry()) {
                break outcome;
            }
        };
        assert!(matches!(outcome, Outcome::Failed(why) if why.contains("met itself")));
    }

    #[test]
    fn a_request_names_the_address_and_asks_to_close_the_connection() {
        let text = request("127.0.0.1:80".parse().unwrap(), "/a?b=c");
        assert!(text.starts_with("GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:80\r\nUser-Agent: tl-supervisor/"), "{text}");
        assert!(text.ends_with("\r\nConnection: close\r\n\r\n"), "{text}");
        assert!(request("[::1]:80".parse().unwrap(), "/").contains("\r\nHost: [::1]:80\r\n"));
    }
}
