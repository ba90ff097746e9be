//! Connects to a sandbox, with a deadline, as long as the client is there.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use tl_os::poll::{self, Events};
use tl_os::tcp;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The client has disconnected meanwhile.
    #[error("the client has disconnected")]
    ClientGone,
    /// It was refused, or not accepted in time.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Connects to `addr`. `client` is watched meanwhile. The connection is not blocking; small writes are sent at once, and
/// the kernel checks from time to time that the other side is still there.
pub(crate) fn connect(addr: SocketAddr, client: &impl AsFd, deadline: Instant) -> Result<TcpStream, ConnectError> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, SockType::Stream, flags, None).map_err(io::Error::from)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true).map_err(io::Error::from)?;
    tcp::keep_alive(&fd)?;
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(addr)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let fds = [(fd.as_fd(), Events::WRITE), (client.as_fd(), Events::NONE)];
            let [connected, client] = poll::wait(fds, Some(deadline))?;
            if client.any(Events::BROKEN) {
                return Err(ConnectError::ClientGone);
            }
            if connected == Events::NONE {
                return Err(ConnectError::Failed(ErrorKind::TimedOut.into()));
            }
            let code = socket::getsockopt(&fd, sockopt::SocketError).map_err(io::Error::from)?;
            if code != 0 {
                return Err(ConnectError::Failed(io::Error::from_raw_os_error(code)));
            }
        }
        Err(errno) => return Err(ConnectError::Failed(errno.into())),
    }
    let stream = TcpStream::from(fd);
    // If nothing listens, the kernel may connect from that very port, and so connect the socket to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(ConnectError::Failed(ErrorKind::ConnectionRefused.into()));
    }
    Ok(stream)
}
