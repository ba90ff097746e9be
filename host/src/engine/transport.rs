//! The connection to the engine's socket. `ureq` speaks HTTP over it.
//!
//! The kernel probes the other end of a TCP connection: the stream of events has no time limit, and would stay silent for
//! ever if the engine's machine vanished without a word.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use tl_os::tcp;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
use ureq::{Error, Timeout};

/// Connects every request to one Unix socket.
#[derive(Debug)]
pub(super) struct UnixConnector {
    pub(super) path: PathBuf,
}

/// Resolves no name: [`UnixConnector`] needs no address.
#[derive(Debug)]
pub(super) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

impl Connector<()> for UnixConnector {
    type Out = SocketTransport<UnixStream>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        connect(&self.path, details.timeout).map(|stream| Some(SocketTransport::new(stream, details)))
    }
}

/// Connects to the address of the URL.
#[derive(Debug)]
pub(super) struct TcpConnector;

impl Connector<()> for TcpConnector {
    type Out = SocketTransport<TcpStream>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let stream = connect_tcp(details)?;
        stream.set_nodelay(true)?;
        tcp::keep_alive(&stream)?;
        Ok(Some(SocketTransport::new(stream, details)))
    }
}

/// Connects to the first address that accepts. Each gets its share of the time.
fn connect_tcp(details: &ConnectionDetails) -> Result<TcpStream, Error> {
    let (deadline, mut failure) = (deadline(details.timeout), Error::HostNotFound);
    let mut left = u32::try_from(details.addrs.len()).unwrap_or(u32::MAX);
    for addr in &details.addrs {
        let stream = match time_left(deadline, details.timeout)? {
            // At least what `connect_timeout` takes.
            Some(time) => TcpStream::connect_timeout(addr, (time / left.max(1)).max(Duration::from_millis(1))),
            None => TcpStream::connect(addr),
        };
        left = left.saturating_sub(1);
        match stream {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => failure = Error::Timeout(Timeout::Connect),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// As `UnixStream::connect`, which has no time limit: it waits while the queue of the listener is full.
fn connect(path: &Path, timeout: NextTimeout) -> Result<UnixStream, Error> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let socket = socket.map_err(io::Error::from)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(time_left(deadline(timeout), timeout)?)?;
    let address = UnixAddr::new(path).map_err(io::Error::from)?;
    match socket::connect(stream.as_raw_fd(), &address) {
        Ok(()) => Ok(stream),
        Err(Errno::EAGAIN) => Err(Error::Timeout(Timeout::Connect)),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// A socket whose reads and writes have time limits.
pub(super) trait Socket: Read + Write + std::fmt::Debug + Send + Sync + 'static {
    fn limit_reads(&self, limit: Option<Duration>) -> io::Result<()>;
    fn limit_writes(&self, limit: Option<Duration>) -> io::Result<()>;
}

impl Socket for UnixStream {
    fn limit_reads(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(limit)
    }

    fn limit_writes(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_write_timeout(limit)
    }
}

impl Socket for TcpStream {
    fn limit_reads(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(limit)
    }

    fn limit_writes(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_write_timeout(limit)
    }
}

/// A connection over a socket.
#[derive(Debug)]
pub(super) struct SocketTransport<S> {
    stream: S,
    buffers: LazyBuffers,
}

impl<S: Socket> SocketTransport<S> {
    fn new(stream: S, details: &ConnectionDetails) -> SocketTransport<S> {
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        SocketTransport { stream, buffers }
    }
}

impl<S: Socket> Transport for SocketTransport<S> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let deadline = deadline(timeout);
        let mut output = self.buffers.output().get(..amount).unwrap_or_default();
        while !output.is_empty() {
            self.stream.limit_writes(time_left(deadline, timeout)?)?;
            match self.stream.write(output) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => output = output.get(written..).unwrap_or_default(),
                // The next turn ends at the deadline.
                Err(error) if is_retried(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let deadline = deadline(timeout);
        loop {
            self.stream.limit_reads(time_left(deadline, timeout)?)?;
            match self.stream.read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                Err(error) if is_retried(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asked only of connections that are kept for another request, and none is.
    fn is_open(&mut self) -> bool {
        false
    }
}

fn is_retried(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// When the operation times out; None: never.
fn deadline(timeout: NextTimeout) -> Option<Instant> {
    if timeout.after.is_not_happening() { None } else { Instant::now().checked_add(*timeout.after) }
}

fn time_left(deadline: Option<Instant>, timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::Timeout(timeout.reason)) } else { Ok(Some(left)) }
}
