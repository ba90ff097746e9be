//! The socket of one connection: non-blocking, with a read buffer. Every wait has a deadline or watches the client.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, sendmsg};

use tl_os::allocator;
use tl_os::poll::{self, Events, Waker};
use tl_os::tcp;

use crate::http::connection::entry::Phase;
use crate::http::connection::memory::{MemoryGrant, MemoryPool};
use crate::http::connection::table::ConnectionGuard;
use crate::http::connection::wait::{PeerState, SendDeadline, Wakeup};

/// First size of the read buffer, in bytes: most request heads fit, and most JSON bodies with them.
pub(super) const FIRST_BUFFER: usize = 4 << 10;

/// The connection to a client, as a handler gets it after an [upgrade](crate::http::message::Response::upgrade).
///
/// Reading and writing never block: both return [`ErrorKind::WouldBlock`] when nothing can be read or written. Wait
/// with [`Socket::wait_readable`] and [`Socket::wait_writable`], or `poll(2)` the descriptor together with others; call
/// `read` before you poll, as some bytes may already be in the buffer.
#[derive(Debug)]
pub struct Socket {
    guard: ConnectionGuard,
    /// The read buffer, zeroed when it grows. The bytes read and not consumed are at `start..end`.
    data: Vec<u8>,
    start: usize,
    end: usize,
    response_begun: bool,
    /// Memory of the buffer beyond its first size.
    grant: MemoryGrant,
}

impl Socket {
    /// A connection from which nothing has been read.
    pub(crate) fn new(guard: ConnectionGuard) -> Socket {
        let grant = guard.heads().grant();
        Socket { guard, data: Vec::new(), start: 0, end: 0, response_begun: false, grant }
    }

    /// Waits until there are bytes to read, or the end of the stream.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] at the deadline.
    pub fn wait_readable(&self, deadline: Option<Instant>) -> io::Result<()> {
        if self.buffered().is_empty() { self.wait(Events::READ, deadline) } else { Ok(()) }
    }

    /// Waits until the kernel accepts bytes, or the client has disconnected.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] at the deadline.
    pub fn wait_writable(&self, deadline: Option<Instant>) -> io::Result<()> {
        self.wait(Events::WRITE, deadline)
    }

    /// Tells the client that nothing more will be sent. Reading goes on.
    ///
    /// # Errors
    /// If the client has disconnected.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.guard.stream().shutdown(Shutdown::Write)
    }

    /// The port to which the client has connected.
    pub(crate) fn local_port(&self) -> Option<u16> {
        self.guard.stream().local_addr().ok().map(|addr| addr.port())
    }

    /// See [`ConnectionGuard::enter`].
    pub(crate) fn enter(&self, phase: Phase) -> bool {
        self.guard.enter(phase)
    }

    /// Whether the server is shutting down. It then waits a few seconds for this connection to end. The beginning of the
    /// shutdown does not end [`Socket::wait_readable`] and [`Socket::wait_writable`]: look at intervals, or poll
    /// [`Socket::stop_signal`] as well.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.guard.is_stopping()
    }

    /// A descriptor that becomes readable when the server begins to shut down, and stays so: `poll(2)` it together with
    /// the connection. It is the same for all connections, so do not read from it.
    #[must_use]
    pub fn stop_signal(&self) -> BorrowedFd<'_> {
        self.guard.stopped()
    }

    /// The bytes that were received together with the request. [`read`](Read::read) returns them before it reads from the
    /// connection; until then, a program must not read from the descriptor itself, with `splice(2)` for example.
    #[must_use]
    pub fn buffered(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// Drops the first `count` buffered bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
    }

    /// Frees the buffer if it is empty. An idle connection holds no buffer.
    pub(crate) fn release(&mut self) {
        if self.start == self.end {
            (self.data, self.start, self.end) = (Vec::new(), 0, 0);
            self.grant.release();
        }
    }

    /// Frees the buffer if it is empty and has grown for a large head.
    pub(crate) fn release_large(&mut self) {
        if self.data.len() > FIRST_BUFFER {
            self.release();
        }
    }

    /// The pool for bodies that are read as a whole.
    pub(crate) fn bodies(&self) -> &MemoryPool {
        self.guard.bodies()
    }

    /// Reads into the buffer, which may grow to `limit` bytes and must not be full. Returns 0 at the end of the stream.
    pub(crate) fn fill(&mut self, limit: usize, deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            match self.fill_now(limit) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(Events::READ, deadline)?,
                result => return result,
            }
        }
    }

    /// Like [`Socket::fill`], but fails with [`ErrorKind::WouldBlock`] instead of waiting.
    pub(crate) fn fill_now(&mut self, limit: usize) -> io::Result<usize> {
        self.make_room(limit)?;
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::Error::other("the read buffer is full"));
        }
        let read = read_now(&self.guard, room)?;
        self.end += read;
        Ok(read)
    }

    fn make_room(&mut self, limit: usize) -> io::Result<()> {
        if self.start > 0 && (self.start == self.end || self.end == self.data.len()) {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.data.len() && self.data.len() < limit {
            let size = (self.data.len() * 4).clamp(FIRST_BUFFER.min(limit), limit);
            if size > FIRST_BUFFER && !(allocator::has_margin() && self.grant.grow_to(size - FIRST_BUFFER)) {
                return Err(ErrorKind::OutOfMemory.into());
            }
            self.data.try_reserve_exact(size - self.data.len())?;
            self.data.resize(size, 0);
        }
        Ok(())
    }

    /// Time since the client's kernel was last heard from.
    pub(crate) fn silence(&self) -> io::Result<Duration> {
        tcp::silence(self.guard.stream())
    }

    /// See [`tcp::set_max_probe_interval`].
    pub(crate) fn set_max_probe_interval(&self, interval: Duration) -> io::Result<()> {
        tcp::set_max_probe_interval(self.guard.stream(), interval)
    }

    /// Bytes written that the client's kernel has no room for.
    pub(crate) fn unsent(&self) -> io::Result<usize> {
        tcp::unsent(self.guard.stream())
    }

    /// Waits for `events`, or for what `poll(2)` always reports.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] at the deadline.
    pub(crate) fn wait(&self, events: Events, deadline: Option<Instant>) -> io::Result<()> {
        let [ready] = poll::wait([(self.guard.as_fd(), events)], deadline)?;
        if ready == Events::NONE { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Waits for the waker, the deadline or the client's disconnection, whichever is first.
    pub(crate) fn wait_for_waker(&self, waker: &Waker, deadline: Option<Instant>) -> io::Result<Wakeup> {
        let fds = [(self.guard.as_fd(), Events::GONE), (waker.as_fd(), Events::READ)];
        let [socket, woken] = poll::wait(fds, deadline)?;
        if socket.any(Events::GONE) {
            return Ok(Wakeup::Disconnected);
        }
        if woken.any(Events::READ) {
            waker.clear();
            return Ok(Wakeup::Waker);
        }
        Ok(Wakeup::Deadline)
    }

    /// Waits for the deadline or the client's disconnection, whichever is first.
    pub(crate) fn wait_for_disconnect(&self, deadline: Option<Instant>) -> io::Result<Wakeup> {
        let [socket] = poll::wait([(self.guard.as_fd(), Events::GONE)], deadline)?;
        Ok(if socket.any(Events::GONE) { Wakeup::Disconnected } else { Wakeup::Deadline })
    }

    /// Checks, without waiting, whether the client is still connected.
    pub(crate) fn peer_state(&self) -> PeerState {
        match poll::wait([(self.guard.as_fd(), Events::GONE)], Some(Instant::now())) {
            Ok([events]) if events.any(Events::BROKEN) => PeerState::Closed,
            Ok([events]) if events.any(Events::GONE) => PeerState::HalfClosed,
            _ => PeerState::Connected,
        }
    }

    /// Sends an interim response (`1xx`). The final response may still have any status.
    pub(crate) fn send_interim(&mut self, bytes: &[u8], deadline: SendDeadline) -> io::Result<()> {
        self.send(bytes, deadline)?;
        self.response_begun = false;
        if self.enter(Phase::Busy) { Ok(()) } else { Err(ErrorKind::ConnectionAborted.into()) }
    }

    /// Sends all of `bytes`: in one system call if the kernel has room for them.
    ///
    /// # Errors
    /// If the client has disconnected, or at the deadline.
    pub(crate) fn send(&mut self, mut bytes: &[u8], deadline: SendDeadline) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.guard.stream().write(bytes);
            bytes = bytes.get(self.after_send(sent, deadline)?..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends what the kernel has room for, without waiting. None if there is no room.
    pub(crate) fn send_now(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match self.guard.stream().write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            sent => self.after_send(sent, SendDeadline::Never).map(Some),
        }
    }

    /// Like [`Socket::send`], all bytes of all slices.
    pub(crate) fn send_slices(&mut self, mut slices: &mut [IoSlice<'_>], deadline: SendDeadline) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            // Without SIGPIPE if the client has disconnected.
            let sent = sendmsg::<()>(self.guard.stream().as_raw_fd(), slices, &[], MsgFlags::MSG_NOSIGNAL, None);
            IoSlice::advance_slices(&mut slices, self.after_send(sent.map_err(io::Error::from), deadline)?);
        }
        Ok(())
    }

    /// Handles the result of one attempt to send: waits if the kernel had no room. Returns the number of bytes sent.
    fn after_send(&mut self, sent: io::Result<usize>, deadline: SendDeadline) -> io::Result<usize> {
        match sent {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(sent) => {
                self.response_begun = true;
                self.guard.note_progress();
                Ok(sent)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_to_send(deadline).map(|()| 0),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn wait_to_send(&self, deadline: SendDeadline) -> io::Result<()> {
        let at = match deadline {
            SendDeadline::Never => return self.wait(Events::WRITE, None),
            SendDeadline::Disconnect => {
                let [ready] = poll::wait([(self.guard.as_fd(), Events::WRITE.and(Events::GONE))], None)?;
                return if ready.any(Events::GONE) { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) };
            }
            SendDeadline::Stalled(time) => Instant::now() + time,
            SendDeadline::At(at) => at,
        };
        if !self.enter(Phase::Flushing) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        self.wait(Events::WRITE, Some(at))
    }

    /// Whether any byte of the final response to the current request has been sent.
    pub(crate) fn response_begun(&self) -> bool {
        self.response_begun
    }

    /// Prepares for the next request.
    pub(crate) fn begin_exchange(&mut self) {
        self.response_begun = false;
        self.guard.end_long();
    }

    /// The entry in the table of connections.
    pub(crate) fn guard(&self) -> &ConnectionGuard {
        &self.guard
    }

    /// See [`ConnectionGuard::begin_long`].
    pub(crate) fn begin_long(&mut self) -> bool {
        self.guard.begin_long()
    }

    /// See [`ConnectionGuard::begin_start`].
    pub(crate) fn begin_start(&mut self) -> bool {
        self.guard.begin_start()
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffered().is_empty() {
            return read_now(&self.guard, out);
        }
        let count = copy(self.buffered(), out);
        self.consume(count);
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.guard.stream().write(bytes)?;
        self.guard.note_progress();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.guard.as_fd()
    }
}

fn read_now(guard: &ConnectionGuard, out: &mut [u8]) -> io::Result<usize> {
    loop {
        match guard.stream().read(out) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Copies as many bytes as fit, and returns their number.
pub(crate) fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
        to.copy_from_slice(from);
    }
    count
}
