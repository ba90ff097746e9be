//! What the kernel knows of the other end of a TCP connection.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;

/// How long ago the peer's kernel last acknowledged anything (`tcpi_last_ack_recv`, tcp(7)). It does so whether or not
/// the peer's program reads.
///
/// # Errors
/// What `getsockopt(2)` says.
pub fn silence(stream: &TcpStream) -> io::Result<Duration> {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` and `length` are valid for writing, and `length` is that of `info`.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    Errno::result(result)?;
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// `linux/tcp.h`, since Linux 6.15; the libc crate does not have it.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// `linux/sockios.h`; the libc crate does not have it.
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// Has the kernel ask the peer at least this often while something is not acknowledged or has no room there. Without
/// it the kernel asks less and less often, every 2 min at last.
///
/// # Errors
/// What `setsockopt(2)` says: an older kernel does not know it.
pub fn ask_at_least_every(stream: &TcpStream, interval: Duration) -> io::Result<()> {
    let millis = libc::c_int::try_from(interval.as_millis()).unwrap_or(libc::c_int::MAX);
    let length = size_of_val(&millis) as libc::socklen_t;
    // SAFETY: `millis` is valid for reading for `length`.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, TCP_RTO_MAX_MS, (&raw const millis).cast(), length)
    };
    Ok(Errno::result(result).map(drop)?)
}

/// Bytes that were written and have not left: the peer has no room for them.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn unsent(stream: &TcpStream) -> io::Result<usize> {
    queued(stream, SIOCOUTQNSD)
}

/// Bytes that were written and that the peer's kernel has not acknowledged; the end counts as one.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn unacknowledged(stream: &TcpStream) -> io::Result<usize> {
    // SIOCOUTQ is another name of this.
    queued(stream, libc::TIOCOUTQ)
}

fn queued(stream: &TcpStream, request: libc::Ioctl) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: `count` is valid for writing, and is the integer that both requests write (tcp(7)).
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut count) };
    Errno::result(result)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread::sleep;

    #[test]
    fn a_peer_that_does_not_read_is_heard_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        sleep(Duration::from_millis(60));
        let before = silence(&ours).unwrap();
        assert!(before >= Duration::from_millis(50), "{before:?}");
        ours.write_all(b"x").unwrap();
        // A delayed acknowledgement takes 40 ms.
        sleep(Duration::from_millis(100));
        let after = silence(&ours).unwrap();
        assert!(after < before + Duration::from_millis(90), "{after:?} after {before:?}");
    }

    #[test]
    fn what_has_no_room_at_the_peer_is_unsent_and_not_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        assert_eq!((unsent(&ours).unwrap(), unacknowledged(&ours).unwrap()), (0, 0));
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 1 << 16]).is_ok() {}
        assert!(unsent(&ours).unwrap() > 0 && unacknowledged(&ours).unwrap() > 0);
        // Not every kernel has it.
        let _ = ask_at_least_every(&ours, Duration::from_secs(15));
    }
}
