//! Waits for descriptors and for other threads at the same time: `poll(2)`, and an eventfd that wakes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::task::Wake;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes a thread that waits for it in [`wait`]. Any number of wakes before [`Waker::clear`] count as one.
#[derive(Debug)]
pub struct Waker(EventFd);

impl Waker {
    /// A waker that has not been woken.
    ///
    /// # Errors
    /// When the system or this process has no descriptor left.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Wakes the thread that waits, or the next one that does. Does not block: a write fails only if the counter is
    /// full, and then the waker is awake.
    pub fn wake(&self) {
        let _ = self.0.write(1);
    }

    /// Resets the waker: the next wait for it blocks until it is woken again.
    pub fn clear(&self) {
        let _ = self.0.read();
    }
}

impl Wake for Waker {
    fn wake(self: Arc<Self>) {
        Waker::wake(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        Waker::wake(self);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Events to wait for, or that have happened: the `POLL…` bits of `poll(2)`. nix has no `POLLRDHUP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(pub i16);

impl Events {
    /// No events.
    pub const NONE: Events = Events(0);
    /// There is something to read.
    pub const READ: Events = Events(libc::POLLIN);
    /// There is room to write.
    pub const WRITE: Events = Events(libc::POLLOUT);
    /// An exceptional condition, such as a change of a cgroup's file.
    pub const URGENT: Events = Events(libc::POLLPRI);
    /// The peer of a connection is gone or has closed its writing half. Detected without reading.
    pub const GONE: Events = Events(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL);

    /// The connection is closed in both directions, or broken.
    pub const BROKEN: Events = Events(libc::POLLHUP | libc::POLLERR | libc::POLLNVAL);

    /// The events of both sets.
    pub const fn and(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }

    /// Whether the sets have any event in common.
    pub fn any(self, other: Events) -> bool {
        self.0 & other.0 != 0
    }
}

/// Waits until one of `fds` has an event that is asked for it, or until `deadline`. Returns the events of each; none
/// for all of them at the deadline. A signal does not end the wait.
///
/// # Errors
/// What `poll(2)` says, except EINTR.
pub fn wait<const N: usize>(fds: [(BorrowedFd<'_>, Events); N], deadline: Option<Instant>) -> io::Result<[Events; N]> {
    let mut polled = fds.map(|(fd, events)| libc::pollfd { fd: fd.as_raw_fd(), events: events.0, revents: 0 });
    loop {
        // SAFETY: `polled` is an array of N entries, valid for reading and writing.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout(deadline)) };
        match Errno::result(ready) {
            Ok(0) if deadline.is_some_and(|at| at > Instant::now()) => {}
            Ok(_) => return Ok(polled.map(|fd| Events(fd.revents))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The time until `deadline` in milliseconds; -1 without a deadline.
pub(crate) fn timeout(deadline: Option<Instant>) -> libc::c_int {
    let Some(deadline) = deadline else { return -1 };
    // Rounded up: a thread that wakes before the deadline would only have to wait again.
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX)
}
