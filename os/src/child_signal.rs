//! SIGCHLD: says that a child has ended or, if it is traced, has stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use nix::errno::Errno;
use signal_hook_registry::{SigId, register_sigaction, unregister};

use crate::Pid;
use crate::bell::Bell;
use crate::sigmask;

/// A handler for SIGCHLD that rings a bell. It is removed when this is dropped.
#[derive(Debug)]
pub struct ChildSignal {
    id: SigId,
    received: Arc<Received>,
}

/// The number of PIDs that are remembered.
const PIDS: usize = 64;

/// What the handler has received.
#[derive(Debug)]
struct Received {
    any: AtomicBool,
    /// The children that the latest signals were for; 0 for none.
    pids: [AtomicI32; PIDS],
    /// Number of signals so far.
    count: AtomicUsize,
}

impl Received {
    /// Async-signal-safe.
    fn add(&self, pid: Pid) {
        let next = self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = self.pids.get(next % PIDS) {
            slot.store(pid, Ordering::Relaxed);
        }
        self.any.store(true, Ordering::Release);
    }
}

impl ChildSignal {
    /// Installs the handler. It runs in any thread that has SIGCHLD unblocked. SIGCHLD is blocked for the calling
    /// thread from now on; a thread that never hangs in a system call must [unblock](ChildSignal::unblock) it.
    ///
    /// # Errors
    /// What `sigaction(2)` says.
    pub fn register(bell: Arc<Bell>) -> io::Result<ChildSignal> {
        let pids = [(); PIDS].map(|()| AtomicI32::new(0));
        let received = Arc::new(Received { any: AtomicBool::new(false), pids, count: AtomicUsize::new(0) });
        let in_handler = Arc::clone(&received);
        let handler = move |info: &libc::siginfo_t| {
            let errno = Errno::last_raw();
            // SAFETY: it reads integers that every siginfo has room for. A PID that somebody has made up is not that of
            // an ended child, and is ignored.
            in_handler.add(unsafe { info.si_pid() });
            bell.ring();
            Errno::set_raw(errno);
        };
        // SAFETY: the handler stores to atomics, and rings the bell, which writes to a descriptor at most; it restores
        // `errno`. It neither allocates nor panics.
        let id = unsafe { register_sigaction(libc::SIGCHLD, handler) }?;
        let signal = ChildSignal { id, received };
        sigmask::block(&[libc::SIGCHLD])?;
        Ok(signal)
    }

    /// Unblocks SIGCHLD for the calling thread, so that the handler can run in it. A pending signal is delivered before
    /// this returns.
    ///
    /// # Errors
    /// What `sigprocmask(2)` says.
    pub fn unblock(&self) -> io::Result<()> {
        sigmask::unblock(&[libc::SIGCHLD])
    }

    /// Whether a signal was received since the last call of [`ChildSignal::take`].
    pub fn is_received(&self) -> bool {
        self.received.any.load(Ordering::Acquire)
    }

    /// Whether a signal was received since the last call. Children are waited for after this: one that ends later
    /// causes another signal.
    pub fn take(&self) -> bool {
        self.is_received() && self.received.any.swap(false, Ordering::AcqRel)
    }

    /// Takes the PIDs of the latest signals, in no order. They need not be those of all children that have ended:
    /// signals that are pending at the same time count as one.
    pub fn pids(&self) -> impl Iterator<Item = Pid> {
        let taken = |slot: &AtomicI32| match slot.load(Ordering::Relaxed) {
            0 => 0,
            _ => slot.swap(0, Ordering::Relaxed),
        };
        self.received.pids.iter().map(taken).filter(|pid| *pid > 0)
    }
}

impl Drop for ChildSignal {
    fn drop(&mut self) {
        unregister(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, raise};

    use super::*;
    use crate::testing::is_alone;

    #[test]
    fn a_signal_ends_the_sleep_of_the_thread_that_has_it_unblocked() {
        if !is_alone("child_signal::tests::a_signal_ends_the_sleep_of_the_thread_that_has_it_unblocked") {
            return;
        }
        let bell = Arc::new(Bell::new().unwrap());
        let children = ChildSignal::register(Arc::clone(&bell)).unwrap();
        raise(Signal::SIGCHLD).unwrap();
        assert!(!children.is_received(), "it is blocked for the thread that has installed the handler");
        children.unblock().unwrap();
        assert!(children.take() && !children.is_received());
        // `raise` is this process's own signal.
        assert_eq!(children.pids().collect::<Vec<_>>(), [std::process::id() as Pid]);
        assert_eq!(children.pids().count(), 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        let other = std::process::Command::new("/bin/true").spawn();
        while !children.is_received() {
            assert!(Instant::now() < deadline);
            bell.sleep_unless(|| children.is_received(), Some(deadline), |_| {}).unwrap();
        }
        let mut other = other.unwrap();
        other.wait().unwrap();
        assert_eq!(children.pids().collect::<Vec<_>>(), [other.id() as Pid]);
    }
}
