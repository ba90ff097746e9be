//! Waiting for a socket and for another thread at the same time: an eventfd that wakes a `poll(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::task::Wake;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes a thread out of [`wait`]. Any number of wakes before it looks count as one.
#[derive(Debug)]
pub struct Waker(EventFd);

impl Waker {
    /// A waker that has not been woken.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Wakes it. Never blocks: a counter that is full means that it is awake already.
    pub fn wake(&self) {
        let _ = self.0.write(1);
    }

    /// Takes the wake back.
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

/// What to wait for, or what came: the `POLL…` bits of `poll(2)`. nix has no `POLLRDHUP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(pub i16);

impl Events {
    /// Nothing.
    pub const NONE: Events = Events(0);
    /// There is something to read.
    pub const READ: Events = Events(libc::POLLIN);
    /// There is room to write.
    pub const WRITE: Events = Events(libc::POLLOUT);
    /// Something out of the ordinary: a file of a cgroup has changed.
    pub const URGENT: Events = Events(libc::POLLPRI);
    /// The peer of a connection has gone or closed its half; found out without reading anything.
    pub const GONE: Events = Events(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL);

    /// The connection is closed in both directions, or broken.
    pub const BROKEN: Events = Events(libc::POLLHUP | libc::POLLERR | libc::POLLNVAL);

    /// Both.
    pub const fn and(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }

    /// Whether any of `other` is in it.
    pub fn any(self, other: Events) -> bool {
        self.0 & other.0 != 0
    }
}

/// Waits until one of `fds` has what it asks for, or until `deadline`; returns what each has.
///
/// A signal does not end it.
///
/// # Errors
/// What `poll(2)` says, but for EINTR.
pub fn wait<const N: usize>(fds: [(BorrowedFd<'_>, Events); N], deadline: Option<Instant>) -> io::Result<[Events; N]> {
    let mut polled = fds.map(|(fd, events)| libc::pollfd { fd: fd.as_raw_fd(), events: events.0, revents: 0 });
    loop {
        // SAFETY: `polled` is an array of N initialised entries, and its descriptors are borrowed for the call.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout(deadline)) };
        match Errno::result(ready) {
            Ok(0) if deadline.is_some_and(|at| at > Instant::now()) => {}
            Ok(_) => return Ok(polled.map(|fd| Events(fd.revents))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn timeout(deadline: Option<Instant>) -> libc::c_int {
    let Some(deadline) = deadline else { return -1 };
    // Rounded up: waking before the deadline would only mean waiting again.
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX)
}
