//! A byte stream to a sandbox: a TCP connection, or a tunnel. Nothing here waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

/// A stream that neither reads nor writes blocks.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// One end of a socket pair whose other end a tunnel's thread has.
    Tunnel(UnixStream, Arc<TunnelFailure>),
}

/// Set when a tunnel ends before its service has ended its output. A socket pair has no way to tell that.
#[derive(Debug, Default)]
pub(crate) struct TunnelFailure(AtomicBool);

impl TunnelFailure {
    pub(crate) fn set(&self) {
        self.0.store(true, SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(SeqCst)
    }
}

impl Stream {
    /// Reads what has arrived: `Some(0)` at the end of the stream, None if nothing has arrived.
    pub(crate) fn read_now(&self, out: &mut [u8]) -> io::Result<Option<usize>> {
        let read = match self {
            Stream::Tcp(stream) => now(|| (&*stream).read(out)),
            Stream::Tunnel(stream, _) => now(|| (&*stream).read(out)),
        };
        if matches!(read, Ok(Some(0))) { self.check_end().map(|()| Some(0)) } else { read }
    }

    /// Checks that the end of the stream, which was read, is that of the other side's output.
    fn check_end(&self) -> io::Result<()> {
        match self {
            Stream::Tunnel(_, failure) if failure.is_set() => Err(ErrorKind::ConnectionReset.into()),
            Stream::Tcp(_) | Stream::Tunnel(..) => Ok(()),
        }
    }

    /// Writes what there is room for. None if there is none.
    pub(crate) fn write_now(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match self {
            Stream::Tcp(stream) => now(|| (&*stream).write(bytes)),
            Stream::Tunnel(stream, _) => now(|| (&*stream).write(bytes)),
        }
    }

    /// Tells the other side that nothing more will be written.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tunnel(stream, _) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Makes the close that follows a reset, so that the other side can tell it from an end.
    pub(crate) fn reset_on_close(&self) {
        match self {
            Stream::Tcp(stream) => reset_on_close(stream),
            // The tunnel ends without a closing frame.
            Stream::Tunnel(_, failure) => failure.set(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Tunnel(stream, _) => stream.as_fd(),
        }
    }
}

/// Makes the close of a TCP connection a reset.
pub(crate) fn reset_on_close(fd: &impl AsFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // This fails only for what is no TCP connection.
    let _ = setsockopt(&fd.as_fd(), sockopt::Linger, &linger);
}

/// The result of a call that does not block; None if it would.
pub(crate) fn now(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result.map(Some),
        }
    }
}
