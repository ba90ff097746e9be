//! The end of a connection whose client may still be sending.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tl_os::poll::{self, Events};
use tl_os::tcp;

use crate::http::connection::entry::Phase;
use crate::http::connection::socket::{FIRST_BUFFER, Socket};

/// How long a client may take to disconnect after its last response when the server shuts down.
const STOP_GRACE: Duration = Duration::from_millis(200);

/// Time after which such a connection is looked at again.
const STOP_STEP: Duration = Duration::from_millis(20);

impl Socket {
    /// Ends a connection whose client may still be sending: closes the sending direction, then reads and drops up to
    /// `bytes` bytes until nothing arrives for `time`.
    ///
    /// If the socket were closed at once, the kernel would answer unread bytes with a reset, which discards the
    /// response before the client has read it (RFC 9112, section 9.6). A client that acknowledges slowly gets more
    /// time, until it has acknowledged nothing for `stall_timeout`. When the server shuts down, a client that has
    /// acknowledged everything gets [`STOP_GRACE`].
    pub(crate) fn linger(&mut self, time: Duration, stall_timeout: Duration, mut bytes: usize) {
        if self.shutdown_write().is_err() || !self.enter(Phase::Flushing) {
            return;
        }
        let begun = Instant::now();
        let (mut queued, mut progress, mut deadline) = (self.unacknowledged(), begun, begun + time);
        // Many clients look for a response only when they cannot send more: read nothing for a moment, so that they
        // cannot.
        let _ = self.wait_unless_stopping(Events::GONE, begun + time / 4);
        let mut stop_at = None;
        while bytes > 0 {
            self.consume(usize::MAX);
            match self.fill_now(FIRST_BUFFER) {
                Ok(read @ 1..) => {
                    bytes = bytes.saturating_sub(read);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
            if self.is_stopping() {
                let now = Instant::now();
                if now >= *stop_at.get_or_insert(now + STOP_GRACE) && self.unacknowledged() == 0 {
                    return;
                }
                let _ = self.wait(Events::READ, Some(deadline.min(now + STOP_STEP)));
            } else {
                let _ = self.wait_unless_stopping(Events::READ, deadline);
            }
            let now = Instant::now();
            if now >= deadline {
                let still_queued = self.unacknowledged();
                if still_queued < queued {
                    (queued, progress) = (still_queued, now);
                }
                if now - progress >= stall_timeout {
                    return;
                }
                deadline = now + time;
            }
        }
    }

    /// Waits for `events`, the deadline or the beginning of the shutdown, whichever is first.
    fn wait_unless_stopping(&self, events: Events, deadline: Instant) -> io::Result<()> {
        let fds = [(self.as_fd(), events), (self.stop_signal(), Events::READ)];
        poll::wait(fds, Some(deadline)).map(drop)
    }

    fn unacknowledged(&self) -> usize {
        tcp::unacknowledged(self.guard().stream()).unwrap_or(0)
    }
}
