//! The socket of one connection: non-blocking, with its read buffer. Every wait has a deadline or watches the client.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tl_os::allocator;
use tl_os::poll::{self, Events, Waker};
use tl_os::tcp;

use crate::http::server::connections::{Phase, Seated};
use crate::http::server::memory::{Grant, Pool};

/// The first size of the read buffer: most heads, and most JSON bodies with them, fit.
const SMALL: usize = 4 << 10;

/// How long to wait for a client that does not take what is sent to it.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) enum Patience {
    /// So long without any progress; it may be shown out before that.
    For(Duration),
    /// Until then, whatever progress there is; it may be shown out before that.
    Until(Instant),
    /// For ever, even when it has closed its own half: what is sent has an end.
    ForEver,
    /// Until it goes; a client that has closed its half has gone.
    WhileThere,
}

/// What ended a wait beside another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Woken {
    /// The waker was woken, and is cleared.
    Waker,
    /// The time is over.
    Deadline,
    /// The client has gone.
    Gone,
}

/// How far a client has gone, as far as the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Departure {
    /// It is there.
    None,
    /// It sends no more; it may be listening still.
    Half,
    /// It neither sends nor listens.
    Whole,
}

/// A connection and what was read from it but not used yet.
#[derive(Debug)]
pub(in crate::http) struct Socket {
    seat: Seated,
    /// Zeroed once, when it grows; what is buffered is `start..end`.
    data: Vec<u8>,
    start: usize,
    end: usize,
    answered: bool,
    /// For what the buffer has beyond its first size.
    grant: Grant,
}

impl Socket {
    /// A connection that nothing was read from yet.
    pub(in crate::http) fn new(seat: Seated) -> Socket {
        let grant = seat.heads().grant();
        Socket { seat, data: Vec::new(), start: 0, end: 0, answered: false, grant }
    }

    /// The port that the client has connected to.
    pub(in crate::http) fn local_port(&self) -> Option<u16> {
        self.seat.stream().local_addr().ok().map(|addr| addr.port())
    }

    /// Says what the connection does; see [`Seated::enter`].
    pub(in crate::http) fn enter(&self, phase: Phase) -> bool {
        self.seat.enter(phase)
    }

    /// Whether the server is being stopped.
    pub(in crate::http) fn stopping(&self) -> bool {
        self.seat.stopping()
    }

    /// What was read and not consumed.
    pub(in crate::http) fn buffered(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// Drops the first `count` buffered bytes.
    pub(in crate::http) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
    }

    /// Gives the memory of an empty buffer back: an idle connection keeps none.
    pub(in crate::http) fn release(&mut self) {
        if self.start == self.end {
            (self.data, self.start, self.end) = (Vec::new(), 0, 0);
            self.grant.release();
        }
    }

    /// The same where the buffer has grown for a large head, which most requests after it do not have.
    pub(in crate::http) fn release_large(&mut self) {
        if self.data.len() > SMALL {
            self.release();
        }
    }

    /// For the body of a request.
    pub(in crate::http) fn bodies(&self) -> &Pool {
        self.seat.bodies()
    }

    /// For the input of a run.
    pub(in crate::http) fn inputs(&self) -> &Pool {
        self.seat.inputs()
    }

    /// For the listing of a directory.
    pub(in crate::http) fn listings(&self) -> &Pool {
        self.seat.listings()
    }

    /// Reads more into the buffer, which may grow to `limit` bytes and must not be full; 0 at the client's end.
    pub(in crate::http) fn fill(&mut self, limit: usize, deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            match self.fill_now(limit) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(Events::READ, deadline)?,
                result => return result,
            }
        }
    }

    /// The same, without waiting: [`ErrorKind::WouldBlock`] when nothing is there.
    pub(in crate::http) fn fill_now(&mut self, limit: usize) -> io::Result<usize> {
        self.make_room(limit)?;
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::Error::other("the read buffer is full"));
        }
        let read = read_now(&self.seat, room)?;
        self.end += read;
        Ok(read)
    }

    fn make_room(&mut self, limit: usize) -> io::Result<()> {
        if self.start > 0 && (self.start == self.end || self.end == self.data.len()) {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.data.len() && self.data.len() < limit {
            let size = (self.data.len() * 4).clamp(SMALL.min(limit), limit);
            if size > SMALL && !(allocator::has_margin() && self.grant.grow_to(size - SMALL)) {
                return Err(ErrorKind::OutOfMemory.into());
            }
            self.data.try_reserve_exact(size - self.data.len())?;
            self.data.resize(size, 0);
        }
        Ok(())
    }

    /// Reads into `out`, from the buffer first; 0 at the client's end.
    pub(in crate::http) fn read(&mut self, out: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        let buffered = self.buffered();
        if !buffered.is_empty() {
            let count = copy(buffered, out);
            self.consume(count);
            return Ok(count);
        }
        loop {
            match read_now(&self.seat, out) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(Events::READ, deadline)?,
                result => return result,
            }
        }
    }

    /// Reads what is there, from the buffer first: [`ErrorKind::WouldBlock`] when nothing is.
    pub(in crate::http) fn read_now(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.buffered() {
            [] => read_now(&self.seat, out),
            _ => self.read(out, None),
        }
    }

    /// Writes what the kernel takes: [`ErrorKind::WouldBlock`] when that is nothing.
    pub(in crate::http) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.seat.stream().write(bytes)?;
        self.seat.has_taken();
        Ok(written)
    }

    /// How long ago the client's machine was last heard of.
    pub(in crate::http) fn silence(&self) -> io::Result<Duration> {
        tcp::silence(self.seat.stream())
    }

    /// See [`tcp::set_max_probe_interval`].
    pub(in crate::http) fn ask_at_least_every(&self, interval: Duration) -> io::Result<()> {
        tcp::set_max_probe_interval(self.seat.stream(), interval)
    }

    /// What was written and has no room at the client.
    pub(in crate::http) fn unsent(&self) -> io::Result<usize> {
        tcp::unsent(self.seat.stream())
    }

    /// Waits for what `poll(2)` reports.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] at the deadline.
    pub(in crate::http) fn wait(&self, events: Events, deadline: Option<Instant>) -> io::Result<()> {
        let [ready] = poll::wait([(self.seat.as_fd(), events)], deadline)?;
        if ready == Events::NONE { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Waits for another thread, the deadline or the client's going, whichever is first.
    pub(in crate::http) fn wait_beside(&self, waker: &Waker, deadline: Option<Instant>) -> io::Result<Woken> {
        let [socket, woken] = poll::wait([(self.seat.as_fd(), Events::GONE), (waker.as_fd(), Events::READ)], deadline)?;
        if socket.any(Events::GONE) {
            return Ok(Woken::Gone);
        }
        if woken.any(Events::READ) {
            waker.clear();
            return Ok(Woken::Waker);
        }
        Ok(Woken::Deadline)
    }

    /// Looks whether the client is there.
    pub(in crate::http) fn departure(&self) -> Departure {
        match poll::wait([(self.seat.as_fd(), Events::GONE)], Some(Instant::now())) {
            Ok([events]) if events.any(Events::BROKEN) => Departure::Whole,
            Ok([events]) if events.any(Events::GONE) => Departure::Half,
            _ => Departure::None,
        }
    }

    /// Waits for the deadline or the client's going.
    pub(in crate::http) fn wait_for_its_end(&self, deadline: Instant) -> io::Result<Woken> {
        let [socket] = poll::wait([(self.seat.as_fd(), Events::GONE)], Some(deadline))?;
        Ok(if socket.any(Events::GONE) { Woken::Gone } else { Woken::Deadline })
    }

    /// Sends an interim answer (`1xx`), after which the real one can be another still.
    pub(in crate::http) fn invite(&mut self, bytes: &[u8], patience: Patience) -> io::Result<()> {
        self.send(bytes, patience)?;
        self.answered = false;
        if self.enter(Phase::Busy) { Ok(()) } else { Err(ErrorKind::ConnectionAborted.into()) }
    }

    /// Sends all of `bytes`, in one system call where the client keeps up.
    ///
    /// # Errors
    /// When the client has gone, or `patience` is over.
    pub(in crate::http) fn send(&mut self, mut bytes: &[u8], patience: Patience) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.seat.stream().write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.answered = true;
                    self.seat.has_taken();
                    bytes = bytes.get(sent..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_to_send(patience)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_to_send(&self, patience: Patience) -> io::Result<()> {
        match patience {
            Patience::For(time) => {
                if !self.enter(Phase::Flushing) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                self.wait(Events::WRITE, Some(Instant::now() + time))
            }
            Patience::Until(deadline) => {
                if !self.enter(Phase::Flushing) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                self.wait(Events::WRITE, Some(deadline))
            }
            Patience::ForEver => self.wait(Events::WRITE, None),
            Patience::WhileThere => {
                let [ready] = poll::wait([(self.seat.as_fd(), Events::WRITE.and(Events::GONE))], None)?;
                if ready.any(Events::GONE) { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
            }
        }
    }

    /// Whether a byte of an answer to the request at hand was sent.
    pub(in crate::http) fn answered(&self) -> bool {
        self.answered
    }

    /// The next request begins.
    pub(in crate::http) fn begin_exchange(&mut self) {
        self.answered = false;
        self.seat.end_long();
    }

    /// See [`Seated::begin_long`].
    pub(in crate::http) fn begin_long(&mut self) -> bool {
        self.seat.begin_long()
    }

    /// See [`House::most_long`](crate::http::server::connections::House::most_long).
    pub(in crate::http) fn most_long(&self) -> usize {
        self.seat.most_long()
    }

    /// Ends a connection whose client may be sending still: says that no more comes, then reads and drops for a while.
    ///
    /// Closed at once, the kernel would answer the unread bytes with a reset, which takes the answer away from the
    /// client before it has read it (RFC 9112, section 9.6). A slow client gets more than `time`, until it has taken
    /// nothing for as long as `stalled`.
    pub(in crate::http) fn linger(&mut self, time: Duration, stalled: Duration, mut bytes: usize) {
        if self.seat.stream().shutdown(Shutdown::Write).is_err() || !self.enter(Phase::Flushing) {
            return;
        }
        let begun = Instant::now();
        let (mut left, mut taken, mut deadline) = (self.unacknowledged(), begun, begun + time);
        // Many a client looks for an answer only when there is no room to send more: so let there be none for a moment.
        let _ = self.wait(Events::GONE, Some(begun + time / 4));
        while bytes > 0 {
            self.consume(usize::MAX);
            match self.fill(SMALL, Some(deadline)) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    let (now, still_left) = (Instant::now(), self.unacknowledged());
                    if still_left < left {
                        (left, taken) = (still_left, now);
                    }
                    if now - taken >= stalled {
                        return;
                    }
                    deadline = now + time;
                }
                Ok(0) | Err(_) => return,
                Ok(read) => bytes = bytes.saturating_sub(read),
            }
        }
    }

    fn unacknowledged(&self) -> usize {
        tcp::unacknowledged(self.seat.stream()).unwrap_or(0)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.seat.as_fd()
    }
}

fn read_now(seat: &Seated, out: &mut [u8]) -> io::Result<usize> {
    loop {
        match seat.stream().read(out) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Copies as much as fits.
pub(in crate::http) fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
        to.copy_from_slice(from);
    }
    count
}
