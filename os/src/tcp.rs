//! What the kernel knows about the peer of a TCP connection (tcp(7)).

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

/// Seconds of silence after which the kernel probes the peer of a connection with [`keep_alive`].
const KEEP_ALIVE_IDLE: u32 = 60;

/// Seconds between two such probes. The connection fails after nine without an answer.
const KEEP_ALIVE_INTERVAL: u32 = 15;

/// Makes the kernel probe a peer that has been silent for a minute, so that a connection whose peer has vanished fails
/// after about 3 minutes. The kernel of a peer that is only stopped answers.
///
/// # Errors
/// What `setsockopt(2)` says, for example that it is no TCP socket.
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd();
    if getsockopt(&fd, sockopt::KeepAlive)? && getsockopt(&fd, sockopt::TcpKeepIdle)? == KEEP_ALIVE_IDLE {
        return Ok(());
    }
    setsockopt(&fd, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE)?;
    setsockopt(&fd, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL)?;
    setsockopt(&fd, sockopt::KeepAlive, &true)?;
    Ok(())
}

/// The time since the peer's kernel last acknowledged anything (`tcpi_last_ack_recv`). It acknowledges data whether or
/// not the peer's program reads.
///
/// # Errors
/// What `getsockopt(2)` says.
pub fn silence(stream: &TcpStream) -> io::Result<Duration> {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is valid for writing for `length` bytes, and `length` for reading and writing.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    Errno::result(result)?;
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// From `linux/tcp.h`, since Linux 6.15. The libc crate does not have it.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// From `linux/sockios.h`. The libc crate does not have it.
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// Makes the kernel probe the peer at least this often while data is unacknowledged or does not fit into the peer's
/// buffer (TCP_RTO_MAX_MS). Without this option the intervals grow up to 2 minutes.
///
/// # Errors
/// What `setsockopt(2)` says: ENOPROTOOPT before Linux 6.15.
pub fn set_max_probe_interval(stream: &TcpStream, interval: Duration) -> io::Result<()> {
    let millis = libc::c_int::try_from(interval.as_millis()).unwrap_or(libc::c_int::MAX);
    let length = size_of_val(&millis) as libc::socklen_t;
    // SAFETY: `millis` is valid for reading for `length` bytes.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, TCP_RTO_MAX_MS, (&raw const millis).cast(), length)
    };
    Ok(Errno::result(result).map(drop)?)
}

/// The number of bytes that were written and not sent, because the peer's kernel has no room for them.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn unsent(stream: &TcpStream) -> io::Result<usize> {
    queued(stream, SIOCOUTQNSD)
}

/// The number of bytes that were written and not acknowledged by the peer's kernel. The end of the stream counts as
/// one.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn unacknowledged(stream: &TcpStream) -> io::Result<usize> {
    // TIOCOUTQ has the same number as SIOCOUTQ.
    queued(stream, libc::TIOCOUTQ)
}

fn queued(stream: &TcpStream, request: libc::Ioctl) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one int (tcp(7)), which `count` is valid for.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut count) };
    Errno::result(result)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    use crate::testing::wait_until;

    #[test]
    fn a_peer_that_does_not_read_still_acknowledges() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        let long = Duration::from_millis(200);
        wait_until("the peer is silent", || silence(&ours).unwrap() >= long);
        let begun = Instant::now();
        ours.write_all(b"x").unwrap();
        // Without an acknowledgement, the silence would always be longer than this time and `long` together. A delayed
        // acknowledgement takes 40 ms.
        wait_until("it acknowledges", || {
            let waited = begun.elapsed();
            silence(&ours).unwrap() < waited + long / 2
        });
    }

    #[test]
    fn data_without_room_at_the_peer_is_unsent_and_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        assert_eq!((unsent(&ours).unwrap(), unacknowledged(&ours).unwrap()), (0, 0));
        ours.set_nonblocking(true).unwrap();
        // The kernel of the peer may take what it has room for a moment later, which makes room here.
        wait_until("there is no room", || {
            while ours.write(&[0; 1 << 16]).is_ok() {}
            unsent(&ours).unwrap() > 0 && unacknowledged(&ours).unwrap() > 0
        });
        // Older kernels do not have the option.
        let _ = set_max_probe_interval(&ours, Duration::from_secs(15));
    }
}
