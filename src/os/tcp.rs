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
}
